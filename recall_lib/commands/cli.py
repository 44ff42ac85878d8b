"""The `recall` command: every job without spark-submit, and the tools around them."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence

from recall_lib.process.command import guarded
from recall_lib.process.errors import EXIT_CODES
from recall_lib.store import datasets

JOBS = (*datasets.jobs(), "pipeline")
TOOLS = ("query", "dump", "demo", "simulate", "submit", "gc", "forget", "backfill", "status")


def main(argv: Sequence[str] | None = None) -> int:
    """Run `recall <command> ...`; returns the exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or arguments[0] in ("-h", "--help"):
        return guarded("--help", lambda: print(_usage())) or (0 if arguments else 2)
    command, *rest = arguments
    if command in TOOLS:
        return importlib.import_module(f"recall_lib.commands.{command}").main(rest)
    if command in JOBS:
        from recall_lib.day import job

        return job.main(importlib.import_module(f"jobs.{command}").run, rest)
    print(f"recall: there is no command {command!r}; `recall --help` lists them", file=sys.stderr)
    return 2


def _usage() -> str:
    lines = ["usage: recall <command> --config FILE --dt YYYY-MM-DD [--set section.key=value ...]", ""]
    lines += ["`recall <command> --help` describes a command and its options.", "", "jobs:"]
    lines += [f"  {name:<10}{_summary(f'jobs.{name}')}" for name in JOBS]
    lines += ["", "tools:", *(f"  {name:<10}{_summary(f'recall_lib.commands.{name}')}" for name in TOOLS)]
    lines += ["", "exit codes:", *(f"  {code:<10}{meaning}" for code, meaning in EXIT_CODES.items())]
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
