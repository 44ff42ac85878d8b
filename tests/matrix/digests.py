"""Runs one small fixed log of each format through every job: `python -m tests.matrix.digests FOLDER`.

Prints the content digest of each publication as JSON, {"rows/top_n/dt=2024-03-03": digest, ...}. The log, the seed and the
settings are fixed, so that two environments must print the same. Reports are left out: they tell versions and durations.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import yaml

from jobs import pipeline
from recall_lib.commands import simulator
from recall_lib.config import load_config
from recall_lib.day.context import Context
from recall_lib.store.folders import MANIFEST

DT = "2024-03-03"  # of four days: the log holds a later click
_SHARED: dict[str, Any] = {
    "features": {
        "item_id": {"min_count": 2, "dim": 16},
        "user": [{"name": "city", "min_count": 2, "dim": 4}],
        "item": [{"name": "category", "min_count": 2, "dim": 4}, {"name": "tags", "min_count": 2, "dim": 8, "multi": True}],
    },
    "samples": {"window_size": 10, "subsample_threshold": 0.01, "negatives_per_positive": 2},
    "model": {"tower": [16]},
    "training": {"batch_size": 128, "epochs": 1, "device": "cpu"},
    "top_n": {"n": 20},
    "spark": {"master": "local[2]", "partitions": 4},
}
FORMATS: dict[str, dict[str, Any]] = {
    "rows": {"input": {"items": "items.csv"}, "evaluation": {"protocol": "day"}},
    "sessions": {"input": {"format": "sessions", "ordering": "position", "clicks": "sessions.txt"}},
}


def digests(folder: Path) -> dict[str, str]:
    """Simulate the log below `folder`, publish a day of each format, and read the digests of what was published."""
    log = simulator.simulate(users=300, items=200, days=4)
    simulator.write_rows(log, folder / "log")
    simulator.write_sessions(log, folder / "log" / "sessions.txt")
    found = {}
    for name, sections in FORMATS.items():
        root = folder / name
        settings = {**_SHARED, **sections, "paths": {"root": str(root)}}
        settings["input"] = {**sections["input"], "path": str(folder / "log")}
        config = folder / f"{name}.yaml"
        config.write_text(yaml.safe_dump(settings), encoding="utf-8")
        pipeline.run(Context(load_config(str(config)), DT, "matrix"))
        for manifest in sorted(root.glob(f"[a-z]*/**/{MANIFEST}")):
            if "reports" not in manifest.parts:
                digest = json.loads(manifest.read_text(encoding="utf-8"))["digest"]
                found[f"{name}/{manifest.parent.relative_to(root).as_posix()}"] = digest
    return found


if __name__ == "__main__":
    made = digests(Path(sys.argv[1]))
    Path(sys.argv[1], "digests.json").write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
