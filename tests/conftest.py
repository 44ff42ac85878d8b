"""Shared fixtures: one Spark session, the real logs, and small logs written from a few lines."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from recall_lib.config import Config, Spark, load_config
from recall_lib.day.context import Context

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="session")
def spark() -> Iterator[Any]:
    from recall_lib.spark.session import start

    session = start(Spark(master="local[2]", partitions=3), "tests")
    yield session
    session.stop()


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
        sections = {"spark": {"master": "local[2]", "partitions": 3}, **sections}
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


@pytest.fixture
def write_log(tmp_path: Path) -> Callable[[str, list[str]], Path]:
    """Writes a file of the raw log, line by line."""

    def write(name: str, lines: list[str]) -> Path:
        path = tmp_path / "log" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        return path

    return write
