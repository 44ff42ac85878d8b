"""Who may import what, as pyproject.toml has it: the contracts are kept here, and each of them can be broken."""

import ast
import shutil
import subprocess
import sys
import tomllib

from tests.conftest import ROOT

# Modules, and an import of each that is not allowed.
WRONG = [
    ("recall_lib.store.tables", "recall_lib.day.context"),
    ("recall_lib.model.towers", "recall_lib.retrieval.index"),
    ("recall_lib.day.context", "jobs.vocab"),
    ("recall_lib.retrieval.index", "pyspark"),
    ("recall_lib.samples.ragged", "recall_lib.store.schemas"),
    ("recall_lib.training.loader", "pyspark"),
    ("recall_lib.training.loop", "recall_lib.spark.session"),
    ("recall_lib.transforms.vocab", "torch"),
    ("recall_lib.transforms.items", "fsspec"),
    ("recall_lib.model.losses", "faiss"),
    ("jobs.train", "horovod"),
    ("recall_lib.training.launch", "petastorm"),
]
CIRCLE = ("recall_lib.store.publication", "recall_lib.store.publishing")  # imports it in turn
UNLISTED = ("recall_lib.unlisted", "recall_lib.config")  # is in no layer


def lint(folder):
    """What import-linter says of a folder with jobs/, recall_lib/ and pyproject.toml."""
    code = "from importlinter.cli import lint_imports_command; lint_imports_command(['--no-cache'])"
    return subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)


def test_the_contracts_are_kept():
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_contract_can_be_broken(tmp_path):
    for package in ("jobs", "recall_lib"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for module, imported in [*WRONG, CIRCLE, UNLISTED]:
        with (tmp_path / f"{module.replace('.', '/')}.py").open("a", encoding="utf-8") as file:
            file.write(f"\nimport {imported}\n")
    done = lint(tmp_path)
    said = " ".join(done.stdout.split())
    assert done.returncode == 1, done.stderr
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]["contracts"]
    assert [contract["name"] for contract in contracts if f"{contract['name']} BROKEN" not in said] == []
    found = [f"{module} -> {imported}" for module, imported in WRONG]
    found += [".publication -> .publishing", "not listed as layers: - recall_lib.unlisted"]
    assert [line for line in found if line not in said] == []


def lines_of(node):
    return node.end_lineno - node.lineno + 1


def test_jobs_functions_and_classes_are_short():
    long = []
    for path in [path for folder in ("jobs", "recall_lib") for path in (ROOT / folder).rglob("*.py")]:
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            most = {ast.FunctionDef: 50, ast.ClassDef: 200}.get(type(node))
            if most and lines_of(node) > most:
                long.append(f"{path}: {node.name}")
        if path.parent.name == "jobs" and len(text.splitlines()) > 150:
            long.append(str(path))
    assert not long


def test_the_root_of_the_library_fits_on_a_screen():
    entries = [path.name for path in (ROOT / "recall_lib").iterdir() if not path.name.startswith((".", "__pycache__"))]
    assert len(entries) <= 15
