"""The rendered commands, compared with golden/*.txt as a whole: a changed setting shows as a changed line."""

import json
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from recall_lib.commands.cli import main
from recall_lib.commands.submit import ROOT, command, quoted
from recall_lib.config import load_config
from recall_lib.process import messages
from recall_lib.process.errors import UsageError

GOLDEN = Path(__file__).with_name("golden")
CONFIG = ROOT / "conf/globo.yaml"
SHARED = ["input.path=/data/globo", "paths.root=/data/recall"]
STANDALONE = {"master": "spark://head:7077"}


def rendered(to, job="top_n", overrides=SHARED, **more):
    config = load_config(str(CONFIG), overrides)
    return command(to, job, config, CONFIG, "2017-10-16", overrides=overrides, **more)


def conf(arguments):
    return dict(value.split("=", 1) for key, value in pairwise(arguments) if key == "--conf")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("standalone", rendered("standalone", **STANDALONE)),
        ("yarn", rendered("yarn", executors=16, conf=["spark.yarn.queue=nightly"])),
        ("kubernetes", rendered("kubernetes")),
        (
            "standalone_train",
            rendered("standalone", "train", [*SHARED, "training.launcher=spark", "training.ranks=2"], **STANDALONE),
        ),
    ],
)
def test_the_command_is_the_golden_one(name, arguments):
    text = quoted(arguments).replace(sys.executable, "PYTHON").replace(str(ROOT), "ROOT")
    assert text + "\n" == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "value", ["{half_life_hours: 0.5}", "it's", 'a "quoted" word', "$HOME `id` $(id)", "back\\slash", "a\nb"]
)
def test_values_reach_the_job_as_they_were_given(value):
    override = f"input.clicks={value!r}" if "\n" in value else f"model.recency={value}"
    arguments = command("yarn", "vocab", load_config(str(CONFIG), SHARED), CONFIG, "2017-10-16", overrides=[override])
    seen = subprocess.check_output(
        ["bash", "-c", f"spark-submit() {{ printf '%s\\0' \"$@\"; }}\n{quoted(arguments)}"], text=True
    )
    assert seen.split("\0")[:-1] == arguments[1:]


def test_only_the_pod_s_own_name_and_address_are_left_to_the_shell():
    line = f"spark-submit() {{ printf '%s\\n' \"$@\"; }}\n{quoted(rendered('kubernetes'))}"
    environment = {"POD_NAME": "driver 1", "POD_IP": "10.0.0.7", "PATH": "/usr/bin:/bin"}
    seen = subprocess.check_output(["bash", "-c", line], text=True, env=environment).splitlines()
    assert {"spark.kubernetes.driver.pod.name=driver 1", "spark.driver.host=10.0.0.7"} <= set(seen)
    assert not [word for word in seen if "$" in word]


@pytest.mark.parametrize("to", ["standalone", "yarn", "kubernetes"])
@pytest.mark.parametrize(
    ("launcher", "ranks", "executors"), [("process", 1, 1), ("horovod", 2, 1), ("spark", 3, 3), ("spark", 1, 1)]
)
def test_training_has_an_executor_a_rank(to, launcher, ranks, executors):
    overrides = [*SHARED, f"training.launcher={launcher}", f"training.ranks={ranks}"]
    settings = conf(rendered(to, "train", overrides, executors=9, conf=["spark.executor.cores=6"], master="spark://head:7077"))
    assert settings["spark.task.cpus"] == settings["spark.executor.cores"] == "6"
    counted = int(settings.get("spark.cores.max", 0)) // 6 or int(settings["spark.executor.instances"])
    assert counted == executors


def test_the_config_travels_where_the_driver_is_elsewhere():
    for to, travels in (("standalone", False), ("yarn", True), ("kubernetes", False)):
        arguments = rendered(to, **STANDALONE)
        given = arguments[arguments.index("--config") + 1]
        assert (arguments[arguments.index("--deploy-mode") + 1] == "cluster") is travels
        assert ("--files" in arguments) is travels
        assert given == ("globo.yaml" if travels else str(CONFIG))
        if travels:
            assert arguments[arguments.index("--files") + 1] == str(CONFIG)


def test_given_settings_come_last():
    assert conf(rendered("yarn", conf=["spark.executor.memory=12g"]))["spark.executor.memory"] == "12g"
    settings = conf(rendered("standalone", executors=3, conf=["spark.executor.cores=8", "spark.x=a=b"], **STANDALONE))
    assert settings["spark.cores.max"] == "24"
    assert settings["spark.x"] == "a=b"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"to": "standalone"}, "--master"),
        ({"to": "yarn", "overrides": ["paths.root=/data/recall"]}, "input.path"),
        ({"to": "yarn", "overrides": ["input.path=/data/globo"]}, "paths.root"),
        ({"to": "yarn", "conf": ["spark.executor.memory"]}, "spark.key=value"),
        ({"to": "yarn", "conf": ["executor.memory=4g"]}, "spark.key=value"),
    ],
)
def test_what_cannot_work_is_refused(arguments, words):
    with pytest.raises(UsageError, match=words):
        rendered(**arguments)


def test_paths_of_object_stores_and_catalog_tables_need_no_slash():
    rendered("yarn", overrides=["input.file_format=table", "paths.root=hdfs://name/recall"])


def test_the_command_line_ends_with_the_documented_codes(capsys, monkeypatch):
    base = ["submit", "--to", "kubernetes", "--job", "top_n", "--dt", "2017-10-16"]
    shared = [word for override in SHARED for word in ("--set", override)]
    assert main([*base, "--config", str(CONFIG), *shared]) == 0
    said = shlex.split(capsys.readouterr().out.replace("\\\n", ""))
    assert said[0] == "spark-submit"
    assert said[-len(shared) :] == shared
    monkeypatch.setenv(messages._VARIABLE, "")  # so that what the command leaves there is put back
    assert main([*base, "--config", str(CONFIG), *shared, "--log-format", "json"]) == 0
    assert shlex.split(json.loads(capsys.readouterr().out)["message"].replace("\\\n", "")) == said
    monkeypatch.delenv(messages._VARIABLE)
    assert main([*base, "--config", str(CONFIG), *shared, "--set", "top_n.n=0"]) == 2
    assert "top_n.n" in capsys.readouterr().err
