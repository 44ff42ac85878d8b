"""`make bench`: ours beside its peers in one run; a table a module, also as build/bench/<module>.json."""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import json
import os
import platform
import shutil
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from recall_lib.spark.session import find_java, java_version
from tests.benchmarks.common import CORES, FOLDER, GIB, Row

MODULES = ("samples", "scale", "topn", "train")


def main() -> None:
    """Run the modules, or the one named."""
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--only", choices=MODULES, help="the one module to run")
    parser.add_argument("--scale", type=float, default=1.0, help="factor of every size, e.g. 0.01 to try the benchmark out")
    args = parser.parse_args()
    # Spark, Python workers and peers inherit these cores.
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:CORES])
    for name in [args.only] if args.only else MODULES:
        work = FOLDER / "work"
        shutil.rmtree(work, ignore_errors=True)
        rows = importlib.import_module(f"tests.benchmarks.{name}").measure(args.scale, work)
        shutil.rmtree(work, ignore_errors=True)
        report(name, rows, FOLDER, args.scale)


def report(name: str, rows: list[Row], folder: Path, scale: float) -> None:
    """Write <folder>/<name>.json and print the same as a table."""
    found = {"rows": [asdict(row) for row in rows], "scale": scale, "machine": machine()}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    print(f"\n{name}, sizes x {scale:g}; ratio > 1: ours is better; {path}")
    print(table(rows))


def table(rows: list[Row]) -> str:
    """The rows in columns."""
    head = ("name", "ours", "peer", "ratio", "unit", "note")
    cells = [head, *((r.name, _figure(r.ours), _figure(r.peer), _figure(r.ratio), r.unit, r.note) for r in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *figures, unit, note in cells:
        right = [figure.rjust(width) for figure, width in zip(figures, widths[1:4], strict=True)]
        lines.append("  ".join([name.ljust(widths[0]), *right, unit.ljust(widths[4]), note]))
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return "-"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when."""
    find_java()
    model = [line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": model[0] if model else platform.machine(),
        "cores_used": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "python": platform.python_version(),
        "java": java_version(),
        "pyspark": importlib.metadata.version("pyspark"),
    }


if __name__ == "__main__":
    main()
