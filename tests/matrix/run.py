"""`make matrix`: the heart of the tests on every Spark that a cluster may have, and the same digests on all of them.

Each Spark gets an environment of its own below build/matrix: its PySpark, with everything else from `.venv`. In it run the
tests named in HEART and `tests.matrix.digests`. The outcome is printed as a Markdown table and kept in
build/matrix/matrix.json. The exit code is 1 if a test fails anywhere or a digest differs.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "build" / "matrix"
SPARKS = ("3.5.9", "4.0.5", "4.1.4", "4.3.0")
# The reading of logs, events to top_n on both formats, days, the catalog, ranks, executors of a local cluster.
HEART = (
    "tests/transforms/test_events.py",
    "tests/transforms/test_vocab.py",
    "tests/transforms/test_samples.py",
    "tests/test_pipeline.py",
    "tests/test_daily.py",
    "tests/test_determinism.py",
    "tests/store/test_catalog.py",
    "tests/inference/test_cluster.py",
    "tests/training/test_loader.py",
    "tests/training/test_launch.py",
)


def environment(spark: str) -> Path:
    """The Python of an environment with this PySpark; made at the first call."""
    folder = FOLDER / spark
    python = folder / "env" / "bin" / "python"
    if not (folder / "ready").exists():
        shutil.rmtree(folder, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(folder / "env")], check=True)
        # PySpark's own folder comes first in the path, `.venv` after it.
        shared = next(path for path in map(Path, sys.path) if path.name == "site-packages")
        own = next((folder / "env" / "lib").glob("python*/site-packages"))
        (own / "shared.pth").write_text(f"import site; site.addsitedir({str(shared)!r})\n", encoding="utf-8")
        install = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
        subprocess.run([*install, f"pyspark=={spark}"], check=True)
        (folder / "ready").touch()
    return python


def outcome(spark: str) -> dict[str, Any]:
    """What the tests said, how long they took, and the digests."""
    python, folder = str(environment(spark)), FOLDER / spark
    began = time.monotonic()
    with (folder / "pytest.log").open("wb") as log:
        subprocess.run([python, "-m", "pytest", "-q", *HEART], cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
    tests = summary((folder / "pytest.log").read_text(encoding="utf-8"))
    seconds = round(time.monotonic() - began)
    shutil.rmtree(folder / "day", ignore_errors=True)
    with (folder / "digests.log").open("wb") as log:
        command = [python, "-m", "tests.matrix.digests", str(folder / "day")]
        made = subprocess.run(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT).returncode == 0
    digests = json.loads((folder / "day" / "digests.json").read_text(encoding="utf-8")) if made else {}
    return {"spark": spark, "tests": tests, "seconds": seconds, "digests": digests}


def summary(log: str) -> str:
    """Pytest's closing line, without its time and decoration."""
    said = re.findall(r"^=*\s*((?:\d+ \w+(?:, )?)+) in [\d.]+s", log, re.MULTILINE)
    return str(said[-1]) if said else "no closing line"


def is_green(outcome: Mapping[str, Any]) -> bool:
    """Whether every test that ran has passed, and the digests were made."""
    passed = re.fullmatch(r"\d+ passed(, \d+ (skipped|deselected|warnings?))*", outcome["tests"])
    return bool(passed and outcome["digests"])


def differences(outcomes: list[dict[str, Any]]) -> list[str]:
    """The publications whose digest is not the same everywhere, by name."""
    named: list[Mapping[str, str]] = [outcome["digests"] for outcome in outcomes]
    names = sorted(set().union(*named))
    return [name for name in names if len({digests.get(name) for digests in named}) != 1]


def table(outcomes: list[dict[str, Any]], differ: list[str]) -> str:
    """Markdown: a row a Spark."""
    lines = ["| pyspark | tests | seconds | publications with equal digests |", "|---|---|---|---|"]
    for one in outcomes:
        same = sum(name not in differ for name in one["digests"])
        lines.append(f"| {one['spark']} | {one['tests']} | {one['seconds']} | {same} of {len(one['digests'])} |")
    return "\n".join(lines)


def main() -> int:
    """Run what is asked for, print the table; returns the exit code."""
    parser = argparse.ArgumentParser(prog="make matrix", description=__doc__)
    parser.add_argument("--only", choices=SPARKS, help="one Spark alone")
    args = parser.parse_args()
    outcomes = []
    for spark in [args.only] if args.only else SPARKS:
        print(f"pyspark {spark}: tests and digests", flush=True)
        outcomes.append(outcome(spark))
    differ = differences(outcomes)
    (FOLDER / "matrix.json").write_text(json.dumps({"outcomes": outcomes, "differ": differ}, indent=1) + "\n", encoding="utf-8")
    print(table(outcomes, differ))
    for name in differ:
        print(f"the digest differs: {name}")
    return 0 if all(map(is_green, outcomes)) and not differ else 1


if __name__ == "__main__":
    sys.exit(main())
