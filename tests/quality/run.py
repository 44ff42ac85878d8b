"""`make quality`: models on real logs beside published figures; a model a row, also as build/quality/<row>.json.

A row is made from the raw log by one `recall pipeline`; "seconds" are those of all its stages, the Spark session's start
and the top-N table included; "training" those of the training alone.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from recall_lib.config import Config, load_config
from recall_lib.store.tables import Tables
from tests.benchmarks.common import CORES, ROOT
from tests.benchmarks.run import machine

FOLDER = ROOT / "build" / "quality"


@dataclass(frozen=True)
class Measure:
    """A key of the model's block in metrics.json, with what is known of it."""

    key: str
    published: str = "-"
    at_least: float | None = None
    hoped_for: float | None = None


@dataclass(frozen=True)
class Row:
    """One figure or several of one model.

    Attributes:
        data: folder of the log below DATA.
        config: below the project's folder.
        dt: the day it is for.
        overrides: as after `--set`.
        model_of: the row whose model is scored once more, with `overrides` beside that row's own; None: it trains its own.
        after: the day before, whose model is trained from scratch at first, with the same overrides.
        beside: the row whose first measure and training time this one's are compared with.
    """

    name: str
    data: str
    config: str
    dt: str
    measures: tuple[Measure, ...]
    overrides: tuple[str, ...] = ()
    model_of: str | None = None
    after: str | None = None
    beside: str | None = None


GLOBO = ("globo", "conf/globo.yaml", "2017-10-16")
ML_1M = ("ml-1m", "conf/ml1m.yaml", "2003-02-28")
_DEEPMATCH = (Measure("hr@50", "DeepMatch YoutubeDNN .337", 0.250, 0.337),)
_GLOBO = (("hr@10", 0.1547, 0.165), ("hr@50", 0.1953, 0.215), ("hr@200", 0.2172, 0.250))
# Where no prior says what is read now, the example age must.
NO_PRIOR = (
    "model.recency=null",
    "model.item_rows=own",
    "model.tower=[64]",
    "model.embedding_std=0.05",
    "model.example_age=true",
)
ROWS = (
    Row(
        "ml1m_best",
        *ML_1M,
        (
            Measure("hr@10", "SASRec BCE .239, gSASRec .300, softmax .306", 0.285, 0.330),
            Measure("ndcg@10", "SASRec BCE .126, gSASRec .173, softmax .178", 0.160, 0.190),
        ),
    ),
    Row("ml1m_30min", *ML_1M, (Measure("hr@10", "GRU4Rec .281", 0.265, 0.290),), ("training.epochs=6",)),
    Row(
        "ml1m_unfiltered",
        *ML_1M,
        (Measure("hr@50", "DeepMatch YoutubeDNN .337, SDM .475", 0.475, 0.55),),
        ("top_n.filter_seen=false",),
        model_of="ml1m_best",
    ),
    # The position stands in for the time: the log has no other.
    Row(
        "ml1m_fun_rec_255",
        "ml-1m",
        "conf/fun_rec_255.yaml",
        "2003-02-28",
        _DEEPMATCH,
        ("input.ordering=position", "training.epochs=8"),
    ),
    Row(
        "ml1m_paddle",
        "ml-1m",
        "conf/paddle.yaml",
        "2003-02-28",
        _DEEPMATCH,
        ("training.epochs=4",),
    ),
    Row(
        "ml1m_fun_rec",
        "ml-1m",
        "conf/fun_rec.yaml",
        "2003-02-28",
        (Measure("hr@10", "fun-rec's own .0126"), Measure("hr@50")),
        ("input.ordering=position",),
    ),
    Row("beauty_best", "beauty", "conf/beauty.yaml", "2014-07-23", (Measure("hr@10", "eSASRec .0928", 0.0650, 0.0928),)),
    Row(
        "globo_day",
        *GLOBO,
        tuple(Measure(key, f"last hour's popularity {popular:.4f}", popular, hoped) for key, popular, hoped in _GLOBO),
    ),
    Row("globo_scratch", *GLOBO, (Measure("hr@10"), Measure("hr@50")), NO_PRIOR),
    Row(
        "globo_yesterday",
        *GLOBO,
        (Measure("hr@10"), Measure("hr@50")),
        (*NO_PRIOR, "training.init=yesterday", "training.yesterday_days=6"),
        after="2017-10-15",
        beside="globo_scratch",
    ),
)


def main() -> None:
    """Make the rows, or the one named, and print the table."""
    parser = argparse.ArgumentParser(prog="make quality", description=__doc__)
    parser.add_argument("--data", required=True, type=Path, help="folder that holds ml-1m, beauty and globo")
    parser.add_argument("--only", choices=[row.name for row in ROWS], help="the one row to make")
    args = parser.parse_args()
    rows = [row for row in ROWS if args.only in (None, row.name)]
    missing = sorted({str(args.data / row.data) for row in rows if not (args.data / row.data).is_dir()})
    if missing:
        raise SystemExit(f"quality: no folder {', '.join(missing)}: give DATA=<folder holding ml-1m, beauty, globo>")
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])  # Spark, its workers and training ranks inherit them
    found = {row.name: measure(row, args.data.resolve()) for row in rows}
    print("\n" + table(rows, found))
    for row in rows:
        earlier = FOLDER / f"{row.beside}.json"
        if row.beside and (row.beside in found or earlier.exists()):
            print(comparison(row, {row.beside: json.loads(earlier.read_text(encoding="utf-8"))} | found))


def measure(row: Row, data: Path) -> dict[str, Any]:
    """Make a row; returns and writes to build/quality/<row>.json what metrics.json says, the seconds, and how it was made.

    Raises:
        SystemExit: a command failed; it said why.
    """
    began = time.monotonic()
    if row.model_of is None:
        shutil.rmtree(_root(row), ignore_errors=True)  # a table or checkpoint of an earlier run would shorten this one
        if row.after:
            days = ["--start", row.after, "--end", row.dt, "--jobs", "events,vocab,items,samples,train"]
            recall("backfill", row, data, *days, "--set", "training.init=scratch")
        recall("pipeline", row, data)
    else:
        trained = next(one for one in ROWS if one.name == row.model_of)
        if not is_trained(trained, data):
            measure(trained, data)
        recall("metrics", row, data)
    seconds = time.monotonic() - began
    tables = Tables(settings(row, data))
    metrics = tables.read_json(f"{tables.get('metrics', row.dt).folder}/metrics.json")
    said = {"seconds": round(seconds, 1), "config": row.config, "overrides": list(row.overrides), "dt": row.dt}
    training = tables.get("models", row.dt).manifest
    said["training"] = {key: training[key] for key in ("seconds", "steps", "targets", "init")}
    found = {**metrics, **said, "settings": tables.get("metrics", row.dt).manifest["config"]}
    found["machine"] = machine() | {"gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None}
    (FOLDER / f"{row.name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return found


def recall(job: str, row: Row, data: Path, *arguments: str) -> None:
    """Run a job for a row's day, or with other arguments, in a process of its own; what it says is printed as it comes."""
    command = [sys.executable, "-m", "recall_lib.commands.cli", job, "--config", str(ROOT / row.config)]
    for override in overrides(row, data):
        command += ["--set", override]
    command += arguments or ("--dt", row.dt)
    print(f"{row.name}: recall {' '.join(command[3:])}", flush=True)
    code = subprocess.call(command, cwd=ROOT)
    if code:
        raise SystemExit(f"quality: {row.name} ended with exit code {code}")


def is_trained(row: Row, data: Path) -> bool:
    """Whether the model that lies below build/quality/work is this row's, made with the settings of now."""
    config = settings(row, data)
    tables = Tables(config)
    model = tables.look("models", row.dt)
    return model is not None and model.manifest["config"] == config.model_dump(mode="json")


def settings(row: Row, data: Path) -> Config:
    """The settings that a row is made with."""
    return load_config(str(ROOT / row.config), overrides(row, data))


def overrides(row: Row, data: Path) -> list[str]:
    """The row's own, and where its log and its tables lie."""
    return [f"input.path={json.dumps(str(data / row.data))}", f"paths.root={json.dumps(str(_root(row)))}", *row.overrides]


def _root(row: Row) -> Path:
    return FOLDER / "work" / (row.model_of or row.name)


def table(rows: list[Row], found: dict[str, dict[str, Any]]) -> str:
    """The rows' measures in columns."""
    cells = [("row", "measure", "published", "at least", "hoped for", "ours", "seconds", "training")]
    for row in rows:
        result = found[row.name]
        for one in row.measures:
            figures = (one.at_least, one.hoped_for, result["model"][one.key])
            shown = ["-" if figure is None else f"{figure:.4f}" for figure in figures]
            seconds = (f"{result['seconds']:.0f}", f"{result['training']['seconds']:.0f}")
            cells.append((row.name, one.key, one.published, *shown, *seconds))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in cells)


def comparison(row: Row, found: dict[str, dict[str, Any]]) -> str:
    """A row's first measure and training time as shares of those of the row that it stands beside."""
    key = row.measures[0].key
    ours, theirs = found[row.name], found[str(row.beside)]
    quality = ours["model"][key] / theirs["model"][key]
    time_share = ours["training"]["seconds"] / theirs["training"]["seconds"]
    kept = "kept" if quality >= _LEAST_QUALITY and time_share <= _MOST_TIME else "MISSED"
    return (
        f"{row.name}: {quality:.3f} of {row.beside}'s {key} in {time_share:.3f} of its training time "
        f"(at least {_LEAST_QUALITY} in at most {_MOST_TIME}: {kept})"
    )


# What a day that starts from the one before must reach of the same day from scratch.
_LEAST_QUALITY, _MOST_TIME = 0.98, 0.5


if __name__ == "__main__":
    main()
