"""The session that the commands start."""

import json
import os
import subprocess
import sys

import pytest
import yaml

from recall_lib.spark.session import _speak_utf8
from tests.conftest import ROOT


@pytest.mark.parametrize(
    ("given", "then"),
    [
        ({}, "C.UTF-8"),
        ({"LC_ALL": "C"}, "C.UTF-8"),
        ({"LC_ALL": "POSIX", "LANG": "en_US.UTF-8"}, "C.UTF-8"),
        ({"LANG": "en_US.UTF-8"}, None),
        ({"LC_ALL": "", "LC_CTYPE": "de_DE.utf8"}, ""),
    ],
)
def test_java_gets_a_locale_that_names_every_file(monkeypatch, given, then):
    for name in ("LC_ALL", "LC_CTYPE", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    _speak_utf8()
    assert os.environ.get("LC_ALL") == then


def test_any_path_in_the_locale_of_cron(tmp_path):
    (tmp_path / "点击.csv").write_text("user_id,article_id,expo_time,click\nu,a,1700006400,1\n", encoding="utf-8")
    settings = {"input": {"path": str(tmp_path), "clicks": "点击.csv"}, "spark": {"master": "local[1]", "partitions": 1}}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump({**settings, "paths": {"root": str(tmp_path / "根")}}), encoding="utf-8")
    command = [sys.executable, "-m", "jobs.events", "--config", str(tmp_path / "c.yaml"), "--dt", "2023-11-15"]
    done = subprocess.run(command, cwd=ROOT, env=os.environ | {"LC_ALL": "C"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "根" / "events" / "dt=2023-11-15" / "_manifest.json").read_text())["rows"] == 1
