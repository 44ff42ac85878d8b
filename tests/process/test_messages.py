"""Lines for people, or JSON with what they belong to."""

import json

import pytest

from recall_lib.day import job
from recall_lib.process import messages
from recall_lib.process.errors import DataRefused

KEYS = {"at", "level", "stage", "dt", "run_id", "rank", "seconds", "message"}


@pytest.fixture(autouse=True)
def _text(monkeypatch):
    monkeypatch.setenv(messages._VARIABLE, "{}")  # so that what a test leaves there is put back
    monkeypatch.delenv(messages._VARIABLE)


def run(ctx):
    ctx.say('read "5" clicks, ü')
    raise DataRefused("nothing\nfits")


def ended(tmp_path, capsys, *argv):
    (tmp_path / "c.yaml").write_text(f"paths: {{root: {tmp_path}/root}}\n")
    code = job.main(run, ["--config", str(tmp_path / "c.yaml"), "--dt", "2024-03-03", *argv])
    assert code == DataRefused.exit_code
    return capsys.readouterr()


def test_text(tmp_path, capsys):
    said = ended(tmp_path, capsys)
    assert said.out == 'test_messages 2024-03-03: read "5" clicks, ü\n'
    assert said.err == "recall test_messages: nothing fits\n"


def test_json_says_whose_each_line_is(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HOROVOD_RANK", "3")
    said = ended(tmp_path, capsys, "--log-format", "json")
    (progress,), (error,) = ([json.loads(line) for line in text.splitlines()] for text in (said.out, said.err))
    assert progress.keys() == error.keys() == KEYS
    assert (progress["stage"], progress["dt"], progress["rank"]) == ("test_messages", "2024-03-03", 3)
    assert (progress["level"], progress["message"]) == ("info", 'read "5" clicks, ü')
    assert (error["level"], error["message"]) == ("error", "nothing fits")
    assert progress["run_id"] == error["run_id"]
    assert 0 <= progress["seconds"] <= error["seconds"]


def test_a_stage_of_the_pipeline_is_named_and_ranks_inherit(capsys):
    import os
    import subprocess
    import sys

    messages.choose("json")
    messages.bind(stage="vocab", run_id="r")
    messages.say("pipeline", "m", dt="2024-03-03")
    assert json.loads(capsys.readouterr().out)["stage"] == "vocab"
    command = "from recall_lib.process import messages; messages.say('train', 'm', to_stderr=True)"
    told = subprocess.run([sys.executable, "-c", command], env=os.environ, capture_output=True, text=True, check=True).stderr
    assert json.loads(told)["run_id"] == "r"


def test_an_unknown_format_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        ended(tmp_path, capsys, "--log-format", "xml")
