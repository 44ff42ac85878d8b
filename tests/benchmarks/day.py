"""How long a published day's vectors, index and lists take: `python -m tests.benchmarks.day --config FILE --dt D`.

Runs the jobs vectors, index and top_n again, in one process, and prints a JSON line: seconds of each and of all. The start of
Spark is left out. With another checkout in PYTHONPATH, `python tests/benchmarks/day.py` measures that checkout's jobs instead:

    python -m tests.benchmarks.day --config conf/globo.yaml --dt 2017-10-16
    PYTHONPATH=/path/to/before python tests/benchmarks/day.py --config conf/globo.yaml --dt 2017-10-16
"""

from __future__ import annotations

import argparse
import importlib
import json
import time

from recall_lib.day.job import context, run_alone

JOBS = ("vectors", "index", "top_n")


def main() -> None:
    """Run the jobs and print their seconds."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.day", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Its own arguments, so that it also runs with an earlier checkout.
    parser.add_argument("--config", required=True, help="YAML file of settings")
    parser.add_argument("--dt", required=True, help="the day, YYYY-MM-DD")
    parser.add_argument("--set", action="append", default=[], dest="overrides", help="override a setting")
    ctx = context(parser.parse_args(), "day")
    ctx.spark.range(1).count()
    seconds = {}
    for job in JOBS:
        begun = time.perf_counter()
        run_alone(importlib.import_module(f"jobs.{job}").run, ctx)
        seconds[job] = round(time.perf_counter() - begun, 1)
    print(json.dumps(seconds | {"all": round(sum(seconds.values()), 1)}))


if __name__ == "__main__":
    main()
