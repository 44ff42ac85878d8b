"""The `recall` command: every job without spark-submit, and the tools around them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from recall_lib import datasets

JOBS = (*datasets.jobs(), "pipeline")
TOOLS = {
    "query": "recall_lib.query",
    "dump": "recall_lib.dump",
    "demo": "recall_lib.demo",
    "simulate": "recall_lib.simulator_in_spark",
    "submit": "recall_lib.submit",
    "gc": "recall_lib.gc",
    "forget": "recall_lib.forget",
    "backfill": "recall_lib.backfill",
    "status": "recall_lib.status",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run `recall <command> ...`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage())
        return 0 if arguments else 2
    command, *rest = arguments
    if command in TOOLS:
        return importlib.import_module(TOOLS[command]).main(rest)
    if command in JOBS:
        from recall_lib import job

        return job.main(importlib.import_module(f"jobs.{command}").run, rest)
    print(f"recall: there is no command {command!r}; `recall --help` lists them", file=sys.stderr)
    return 2


def _usage() -> str:
    lines = ["usage: recall <command> --config FILE --dt YYYY-MM-DD [--set section.key=value ...]", "", "jobs:"]
    lines += [f"  {name:<10}{_summary(f'jobs.{name}')}" for name in JOBS]
    lines += ["", "tools:", *(f"  {name:<10}{_summary(module)}" for name, module in TOOLS.items()), ""]
    lines += [
        "`recall <command> --help` explains one.",
        "Exit codes: 0 done, 2 usage or config, 3 data refused, 4 no input, 75 another run has the day, 1 else.",
    ]
    return "\n".join(lines)


def _summary(module: str) -> str:
    """The first line of a module's docstring, read without importing it."""
    spec = importlib.util.find_spec(module)
    if spec is None or spec.origin is None:
        return ""
    with open(spec.origin, encoding="utf-8") as file:
        return (ast.get_docstring(ast.parse(file.read())) or "").splitlines()[0]


if __name__ == "__main__":
    sys.exit(main())
