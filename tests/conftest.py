"""Shared fixtures: one Spark session, one cluster, the real logs, and small logs written from a few lines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from recall_lib.config import Config, Spark, load_config
from recall_lib.day.context import Context

ROOT = Path(__file__).resolve().parents[1]
SPARK = {"master": "local[2]", "partitions": 3}
# Each JVM of the tests runs much code a few times: it is faster without the optimising compiler. Java prints the variable.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    from recall_lib.spark.session import start

    session = start(Spark.model_validate(SPARK), "tests")
    yield session
    session.stop()


DRIVER = """
    import json, os, sys, traceback
    from recall_lib.config import Spark
    from recall_lib.spark.session import start

    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    # No time is lost on fetching from a dead executor.
    conf = {"spark.shuffle.io.retryWait": "100ms", "spark.shuffle.io.maxRetries": "1"}
    session = start(Spark(master="local-cluster[2,1,1024]", partitions=3, conf=conf), "tests")
    for line in sys.stdin:
        sys.argv = json.loads(line)
        failure = None
        try:
            exec(sys.argv[0], {"__name__": "__main__"})
        except BaseException:
            failure = traceback.format_exc()
        print(json.dumps(failure), file=answers)
    session.stop()
"""


class Cluster:
    """A driver and two executors with one core each, in processes of their own."""

    def __init__(self, log: Path) -> None:
        self._log = log
        with log.open("wb") as said:
            self._driver = subprocess.Popen(
                [sys.executable, "-c", textwrap.dedent(DRIVER)],
                env=os.environ | {"PYTHONPATH": str(ROOT)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=said,
                text=True,
            )

    def run(self, script: str, *arguments: str) -> None:
        """Run a script in the driver, in the cluster's session; the script finds the arguments in sys.argv[1:]."""
        assert self._driver.stdin
        assert self._driver.stdout
        self._driver.stdin.write(json.dumps([textwrap.dedent(script), *arguments]) + "\n")
        self._driver.stdin.flush()
        answer = self._driver.stdout.readline()
        failure = json.loads(answer) if answer else "the driver has ended"
        assert failure is None, f"{failure}\n{self._log.read_text()[-3000:]}"

    def stop(self) -> None:
        self._driver.communicate(timeout=60)


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    started = Cluster(tmp_path_factory.mktemp("cluster") / "log")
    yield started
    started.stop()


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real logs, RECALL_TEST_DATA or ../shared/data; tests that need it are skipped where it is absent."""
    folder = Path(os.environ.get("RECALL_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real logs at {folder}: set RECALL_TEST_DATA")
    return folder


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Config]:
    """A config from sections, with input and output below tmp_path."""

    def make(**sections: Any) -> Config:
        sections = {"spark": SPARK, **sections}
        sections["input"] = {"path": str(tmp_path / "log"), **sections.get("input", {})}
        sections["paths"] = {"root": str(tmp_path / "root")}
        file = tmp_path / "config.yaml"
        file.write_text(yaml.safe_dump(sections))
        return load_config(str(file))

    return make


@pytest.fixture
def run_jobs(spark: Any) -> Callable[..., Context]:
    """Runs jobs by name for a day, in the shared session."""
    import importlib

    def run(config: Config, dt: str, *jobs: str) -> Context:
        ctx = Context(config, dt, "test")
        for job in jobs:
            importlib.import_module(f"jobs.{job}").run(ctx)
        return ctx

    return run


def write_lines(folder: Path, name: str, lines: list[str]) -> Path:
    """Writes a file of a raw log, line by line."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return path


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[[str, list[str]], Path]:
    """Writes a file of the raw log of `make_config`."""
    return partial(write_lines, tmp_path / "log")
