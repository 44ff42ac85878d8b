"""Who may import what: a layer that reaches across is a mistake."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from tests.conftest import ROOT

RULES = [
    ("recall_lib/model", {"pyspark", "petastorm", "horovod", "faiss", "fsspec"}),
    ("recall_lib/transforms", {"torch", "faiss", "petastorm", "horovod", "fsspec"}),
    ("recall_lib/retrieval", {"pyspark", "petastorm", "horovod"}),  # torch: for its matrix product
    ("recall_lib/io", {"torch", "faiss", "petastorm", "horovod"}),
]


def imported(path: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.split(".")[0] for name in names}


@pytest.mark.parametrize(("folder", "forbidden"), RULES, ids=[folder for folder, _ in RULES])
def test_layers(folder, forbidden):
    files = list((ROOT / folder).rglob("*.py"))
    assert files
    assert {str(path): found for path in files if (found := imported(path) & forbidden)} == {}


@pytest.mark.parametrize(("library", "name"), [("horovod", "horovod_ranks.py"), ("petastorm", "petastorm_compat.py")])
def test_one_file_imports_the_library(library, name):
    files = [path for folder in ("jobs", "recall_lib") for path in (ROOT / folder).rglob("*.py")]
    assert [path.name for path in files if library in imported(path)] == [name]


def test_jobs_are_thin_and_functions_short():
    for path in [path for folder in ("jobs", "recall_lib") for path in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 65, f"{path}: {node.name}"


def test_no_modules_import_each_other():
    """Directly or in a circle, at run time or for types alone."""
    files = [path for folder in ("jobs", "recall_lib") for path in (ROOT / folder).rglob("*.py")]
    modules = {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in files}
    graph = {module: imports_of(path, modules) - {module} for module, path in modules.items()}
    assert "recall_lib.schemas" in graph["recall_lib.datasets"]
    TopologicalSorter(graph).prepare()


def imports_of(path, modules):
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found & modules.keys()
