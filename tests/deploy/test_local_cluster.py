"""Every job by spark-submit on a standalone cluster, with what was packed, beside the same day on one machine."""

from __future__ import annotations

import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from recall_lib.commands import simulator
from recall_lib.commands.cli import JOBS
from recall_lib.config import load_config
from recall_lib.store.tables import Tables
from recall_lib.training import horovod_ranks
from tests.conftest import ROOT
from tests.test_pipeline import SLIPS, START, WITH_ITEMS, clicked

SCRIPT = ROOT / "deploy/local_cluster.py"
spec = importlib.util.spec_from_file_location("local_cluster", SCRIPT)
local_cluster = importlib.util.module_from_spec(spec)
spec.loader.exec_module(local_cluster)

BEFORE, DT = "2024-03-01", "2024-03-02"  # the log holds a later click
PUBLISHED = {"events", "rejects", *JOBS} - {"train", "report", "pipeline"} | {"models"}
OWNER = """
import sys, time
from itertools import pairwise
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from local_cluster import cluster
with cluster(Path(sys.argv[2])) as master:
    print(master, flush=True)
    time.sleep(600)
"""
PACKED = ["faiss", "petastorm", "torch", *(["horovod"] if horovod_ranks.built() else [])]
PROBE = f"""
import importlib, json, os, sys
from pyspark.sql import SparkSession

def look(_):
    files = [importlib.import_module(name).__file__ for name in {["recall_lib", *PACKED]}]
    yield json.dumps([sys.executable, *map(os.path.abspath, [*files, *filter(None, sys.path)])])

rows = SparkSession.builder.getOrCreate().sparkContext.parallelize([0, 1], 2).mapPartitions(look).collect()
print("found", json.dumps([json.loads(row) for row in rows]))
"""


def processes_below(folder: Path) -> list[str]:
    """The processes whose working directory lies there."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if os.readlink(process / "cwd").startswith(str(folder)):
                found.append((process / "cmdline").read_text())
        except OSError:  # it has just ended
            continue
    return found


@pytest.mark.proof
@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT])
def test_nothing_is_left_when_the_owner_is_killed_or_interrupted(tmp_path: Path, end: signal.Signals) -> None:
    command = [sys.executable, "-c", OWNER, str(SCRIPT.parent), str(tmp_path)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT, process_group=0
    ) as owner:
        port = int(owner.stdout.readline().rsplit(":", 1)[1])
        socket.create_connection(("127.0.0.1", port)).close()
        assert len([line for line in processes_below(tmp_path) if "worker.Worker" in line and "java" in line]) == 2
        os.killpg(owner.pid, end)  # as a terminal's Ctrl-C does
    deadline = time.monotonic() + 30
    while processes_below(tmp_path) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not processes_below(tmp_path)


@pytest.fixture(scope="module")
def master(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a cluster, once both archives are packed; `make proof` packs the environment anew where it is old."""
    parts = ["code"] if (ROOT / "build/dist/environment.tar.gz").exists() else []
    subprocess.run([sys.executable, str(ROOT / "deploy/pack.py"), *parts], stdout=subprocess.DEVNULL, check=True)
    with local_cluster.cluster(tmp_path_factory.mktemp("cluster")) as address:
        yield address


def shared(folder: Path) -> list[str]:
    return ["--set", f"paths.root={folder}/tables", "--set", f"input.path={folder}/log"]


@pytest.mark.proof
@pytest.mark.timeout(1200)
def test_executors_see_what_was_packed_and_nothing_of_this_checkout(master: str, tmp_path: Path) -> None:
    command = local_cluster.rendered(master, "vocab", ["--config", str(ROOT / "conf/demo.yaml"), "--dt", DT, *shared(tmp_path)])
    (tmp_path / "probe.py").write_text(PROBE)
    said = local_cluster.run(command.replace(f"{ROOT}/jobs/vocab.py", f"{tmp_path}/probe.py"), tmp_path / "driver")
    (line,) = [line for line in said.splitlines() if line.startswith("found ")]
    for python, *places in json.loads(line.removeprefix("found ")):
        unpacked, environment = python.split("/environment/")
        assert environment == "bin/python"
        assert any(above == "work" and name.startswith("app-") for above, name in pairwise(Path(unpacked).parts))
        assert places[0] == f"{unpacked}/recall.zip/recall_lib/__init__.py"
        assert all(place.startswith(f"{unpacked}/environment/") for place in places[1 : 1 + len(PACKED)])
        assert not [place for place in places if place.startswith(str(ROOT)) and "/pyspark/" not in place]


def digests(tables: Tables) -> dict[str, str]:
    """Of all that is published but reports, which hold times."""
    datasets = [path.rsplit("/", 1)[-1] for path in tables.fs.ls(tables.root, detail=False)]
    return {
        "/".join([dataset, dt, *keys.values()]): tables.get(dataset, dt, **keys).manifest["digest"]
        for dataset in datasets
        if not dataset.startswith("_") and dataset != "reports"
        for dt, keys in tables.publications(dataset)
    }


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_every_job_makes_the_tables_of_one_machine(master: str, tmp_path: Path) -> None:
    log = simulator.simulate(users=100, items=60, days=3)
    simulator.write_rows(log, tmp_path / "log")
    sections = {
        **WITH_ITEMS,
        "input": {"items": "items.csv", **SLIPS},
        "training": {**WITH_ITEMS["training"], "launcher": "spark", "ranks": 2},
        "evaluation": {"protocol": "day"},
        "spark": {"partitions": 3},
    }
    config = tmp_path / "config.yaml"
    config.write_text(yaml.safe_dump(sections))
    given = ["--config", str(config), *shared(tmp_path)]
    steps = [("events", BEFORE), *((job, DT) for job in JOBS if job != "pipeline")]
    for job, dt in steps:
        local_cluster.run(local_cluster.rendered(master, job, [*given, "--dt", dt]), tmp_path / "driver")
    alone = ["--set", f"paths.root={tmp_path}/alone", "--set", "training.launcher=local"]
    command = [sys.executable, "-m", "recall_lib.commands.cli", "pipeline", *given, *alone, "--dt", DT]
    subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=True)

    tables = Tables(load_config(str(config), [f"paths.root={tmp_path}/tables"]))
    found, expected = digests(tables), digests(Tables(load_config(str(config), [f"paths.root={tmp_path}/alone"])))
    assert found.keys() == expected.keys()
    # Rows without a readable day are rejected under the day that is run: here each of both, there the last alone.
    assert {name for name, digest in found.items() if digest != expected[name]} == {f"rejects/{BEFORE}"}
    assert {name.split("/")[0] for name in found} == PUBLISHED
    assert tables.get("reports", DT).files
    assert tables.get("top_n", DT).manifest["rows"] == len(clicked(log, START - 86_400))
    metrics = tables.read_json(f"{tables.get('metrics', DT).folder}/metrics.json")
    assert (metrics["status"], metrics["users"] > 20, metrics["model"]["hr@10"] > 0) == ("final", True, True)
