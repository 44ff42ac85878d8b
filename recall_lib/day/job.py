"""How a job runs, from its arguments to its exit code; it holds the lock of its day."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from recall_lib.config import load_config, parse_day
from recall_lib.day.context import Context
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command


def main(run: Callable[[Context], object], argv: Sequence[str] | None = None) -> int:
    """Parse a job's arguments and run it; returns the exit code. A failure prints one line on stderr."""
    module = sys.modules[run.__module__]
    name = module.__file__.rsplit("/", 1)[-1].removesuffix(".py") if module.__file__ else "job"
    return run_command(parser(name, module.__doc__, "--config", "--dt"), lambda args: run_alone(run, context(args, name)), argv)


def context(args: argparse.Namespace, name: str) -> Context:
    """The context that the parsed arguments describe (UsageError if they are bad)."""
    ctx = Context(load_config(args.config, args.overrides), parse_day(args.dt), name)
    messages.bind(dt=ctx.dt, run_id=ctx.run_id)
    return ctx


def run_alone(run: Callable[[Context], object], ctx: Context) -> None:
    """Run a job while this run holds the lock of its day (Busy if another run holds it)."""
    from recall_lib.store import locks

    with locks.held(ctx.config.paths.root, f"dt={ctx.dt}", ctx.run_id):
        run(ctx)
