"""A day on a root that no local path leads to, with odd characters in its name.

`viewfs://` is what Hadoop's client has built in for both sides to see: Spark finds its folders by a mount table, and fsspec
is told of it, in every process, as any package would tell it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from recall_lib.commands import simulator
from recall_lib.config import load_config
from recall_lib.process.errors import UsageError
from tests.conftest import ROOT
from tests.test_pipeline import DT, FEATURES, SLIPS, TINY

STORE, NAME = "viewfs://data/m", "a #1 100%25 ü"
MOUNTS = "spark.hadoop.fs.viewfs.mounttable.data"
# So that every job has a table to make.
WITH_ITEMS: dict[str, Any] = {
    **TINY,
    "features": {**FEATURES, "item": [{"name": "tags", "min_count": 1, "dim": 8, "multi": True}]},
    "model": {"tower": [8], "item_rows": "both"},
}
PACKAGE = """
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

class Mounted(DirFileSystem):
    protocol = "viewfs"

    def __init__(self, **options):
        super().__init__({store!r}, LocalFileSystem(), **options)
"""
RUN = """
import json, sys
from recall_lib.commands import cli
for command in json.loads(sys.argv[1]):
    if code := cli.main(command):
        sys.exit(f"{command[0]} ended with {code}")
"""


def install(site: Path, store: Path) -> None:
    """A package below `site` that gives fsspec the protocol: data/m there is `store`/data/m here."""
    facts = site / "mounted-1.dist-info"
    facts.mkdir(parents=True)
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: mounted\nVersion: 1\n")
    (facts / "entry_points.txt").write_text("[fsspec.specs]\nviewfs = mounted:Mounted\n")
    (site / "mounted.py").write_text(PACKAGE.format(store=str(store)))


def test_every_stage_and_tool_on_another_file_system(tmp_path: Path) -> None:
    here = tmp_path / "data/m"
    install(tmp_path / "site", tmp_path)
    simulator.write_rows(simulator.simulate(users=50, items=60, days=4), here / f"log {NAME}")
    sections: dict[str, Any] = {
        **WITH_ITEMS,
        "input": {"path": f"{STORE}/log {NAME}", "items": "items.csv", **SLIPS},
        "evaluation": {"protocol": "day"},
        "paths": {"root": f"{STORE}/{NAME}"},
        "spark": {"master": "local[2]", "partitions": 2, "conf": {f"{MOUNTS}.link./m": f"file://{here}"}},
    }
    config, work = tmp_path / "config.yaml", tmp_path / "work"
    config.write_text(yaml.safe_dump(sections), encoding="utf-8")
    work.mkdir()
    given = ["--config", str(config)]
    day = [*given, "--dt", DT]
    commands = [
        ["pipeline", *day],
        *(["query", *day, *asked] for asked in (["--user", "u00003"], ["--item", "a00003"], ["--history", "a00003"])),
        ["dump", "samples", *day, "--split", "test"],
        ["status", *given],
        ["gc", *given],
        ["forget", *given, "--user", "u00003"],
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(commands)],
        cwd=work,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}/site{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"forget: top_n/dt={DT}: 1 row" in done.stdout
    assert not list(work.iterdir()), "something took the address for a path"
    tables = here / NAME
    for dataset in ("vocab", "items", "models", "index", "popular", "top_n", "related", "metrics", "reports"):
        assert (tables / dataset / f"dt={DT}/_manifest.json").exists(), dataset
    assert not [path for area in ("_staging", "_retired", "_checkpoints") for path in (tables / area).glob("*")]


@pytest.mark.parametrize("character", "*?[]{}\\")
def test_a_root_that_is_a_pattern_is_refused(character: str) -> None:
    with pytest.raises(UsageError, match=r"paths\.root.*patterns"):
        load_config(str(ROOT / "conf/demo.yaml"), [f"paths.root={json.dumps(f'/data/a{character}b')}"])
