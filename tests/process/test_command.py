"""How a command ends: one line and the documented exit code."""

import os
import subprocess
import sys

import pytest

from recall_lib.commands import cli
from recall_lib.store import locks
from tests.conftest import ROOT

DEMO = str(ROOT / "conf" / "fun_rec.yaml")


def run(capsys, *argv: str) -> tuple[int, str]:
    try:
        code = cli.main(argv)
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        (["events", "--config", DEMO, "--dt", "2026-02-30"], 2, "2026-02-30"),
        (["events", "--config", "absent.yaml", "--dt", "2026-02-03"], 2, "absent.yaml cannot be read"),
        (["events", "--config", DEMO, "--dt", "2026-02-03", "--set", "model.depth=3"], 2, "unknown key model.depth"),
        (["events", "--config", DEMO, "--dt", "2026-02-03", "--set", "top_n.n=-1"], 2, "top_n.n"),
        (["events", "--config", DEMO], 2, "--dt"),
        (["nothing"], 2, "no command 'nothing'"),
        (["dump", "samples", "--config", DEMO, "--dt", "2026-02-03", "--set", "paths.root=/nonexistent/x"], 3, "not published"),
    ],
)
def test_bad_usage_ends_before_any_session(capsys, argv, code, message, monkeypatch):
    monkeypatch.setattr("recall_lib.spark.session.start", lambda *_: pytest.fail("a Spark session was started"))
    found, err = run(capsys, *argv)
    assert found == code
    assert message in err
    assert "Traceback" not in err


@pytest.mark.parametrize("job", ["train", "pipeline"])
def test_horovod_that_is_missing_ends_before_any_session(capsys, job, tmp_path, monkeypatch):
    monkeypatch.setattr("recall_lib.spark.session.start", lambda *_: pytest.fail("a Spark session was started"))
    monkeypatch.setattr("recall_lib.training.horovod_ranks.built", lambda: False)
    overrides = ["--set", f"paths.root={tmp_path}", "--set", "training.launcher=horovod"]
    code, err = run(capsys, job, "--config", DEMO, "--dt", "2026-02-03", *overrides)
    assert (code, err.count("\n")) == (2, 1)
    assert "Horovod is not installed here: --set training.launcher=torch" in err


def test_missing_log(capsys, spark, tmp_path):
    code, err = run(
        capsys,
        "events",
        "--config",
        DEMO,
        "--dt",
        "2026-02-03",
        "--set",
        f"input.path={tmp_path}",
        "--set",
        f"paths.root={tmp_path}/r",
    )
    assert code == 4
    assert "no file matches" in err


def test_a_day_that_another_run_has_is_left_alone(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr("recall_lib.spark.session.start", lambda *_: pytest.fail("a Spark session was started"))
    arguments = ["vocab", "--config", DEMO, "--set", f"paths.root={tmp_path}", "--dt"]
    with locks.held(str(tmp_path), "dt=2026-02-03", "first"):
        code, err = run(capsys, *arguments, "2026-02-03")
        assert (code, err.count("\n")) == (75, 1)
        assert "recall vocab: dt=2026-02-03 is held by run first (pid" in err
        code, err = run(capsys, *arguments, "2026-02-04")  # nobody has this day: it gets as far as its empty root
        assert code == 3
        assert "no events before 2026-02-04 are published" in err
    assert locks.holders(str(tmp_path)) == {}


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("arguments", [["--help"], ["status", "--help"]])
def test_help_that_is_read_no_further_ends_without_a_traceback(arguments, unbuffered):
    command = [sys.executable, "-m", "recall_lib.commands.cli", *arguments]
    environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, b"")


def test_who_is_read_no_further_has_not_succeeded():
    code = "import sys; from recall_lib.process.command import guarded; "
    code += "sys.exit(guarded('x', lambda: print('y' * 10**6, flush=True)))"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, b"")
