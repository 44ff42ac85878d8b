"""What every job shares: its arguments, its context, and how it ends.

Exit codes: 0 done, 1 an unexpected failure, 2 bad usage or config, 3 data refused, 4 no input, 75 another run has the day.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from recall_lib import log
from recall_lib.config import Config, load_config, parse_day
from recall_lib.errors import DataRefused, RecallError

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from recall_lib.inference.fingerprints import Serving
    from recall_lib.io.publication import Publication
    from recall_lib.io.tables import Tables


@dataclass(frozen=True)
class Context:
    """One run of one or more jobs for one day."""

    config: Config
    dt: str
    name: str = "recall"
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @cached_property
    def spark(self) -> SparkSession:
        """The Spark session, started at first use."""
        from recall_lib.session import start

        return start(self.config.spark, f"recall {self.name} {self.dt}")

    @cached_property
    def tables(self) -> Tables:
        """The dated tables; Spark is started when one is first read or written."""
        from recall_lib.io.tables import Tables

        return Tables(self.config, self.run_id, lambda: self.spark)

    @cached_property
    def serving(self) -> Serving:
        """The model and the vocabulary that this day is inferred with (DataRefused if they do not fit)."""
        from recall_lib.inference.fingerprints import serving

        return serving(self.tables, self.dt)

    def days_of_history(self) -> list[Publication]:
        """The days of events that tables for this day are made from.

        With ordering `time` all published days before dt; with `position` the snapshot stored under dt.

        Raises:
            DataRefused: there is none.
        """
        if self.config.input.ordering == "position":
            return [self.tables.get("events", self.dt)]
        days = [self.tables.get("events", day) for day in self.tables.days("events") if day < self.dt]
        if not days:
            raise DataRefused(
                f"no events before {self.dt} are published: run `recall pipeline --dt {self.dt}`, or, where the log begins "
                "with that day, take a later one"
            )
        return days

    def history(self) -> tuple[DataFrame, dict[str, str]]:
        """The clicks of `days_of_history`, and each day's digest."""
        from recall_lib import schemas
        from recall_lib.io.publication import read_all

        days = self.days_of_history()
        clicks = read_all(days, schemas.events(self.config.features), self.spark)
        return clicks, {day.name: day.digest for day in days}

    def say(self, text: str) -> None:
        """A line of progress."""
        log.say(self.name, text, dt=self.dt)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """--config, --dt and --set, the same for every job."""
    add_config_arguments(parser)
    parser.add_argument("--dt", required=True, metavar="YYYY-MM-DD", help="the day the result is for")


def add_config_arguments(parser: argparse.ArgumentParser) -> None:
    """--config and --set, the same for every command."""
    parser.add_argument("--config", required=True, metavar="FILE", help="YAML file of settings, e.g. conf/demo.yaml")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="section.key=value",
        dest="overrides",
        help="override a setting, e.g. --set input.path=/data/log (may be repeated)",
    )


def context(args: argparse.Namespace, name: str) -> Context:
    """The context that the parsed arguments describe (UsageError if they are bad)."""
    ctx = Context(load_config(args.config, args.overrides), parse_day(args.dt), name)
    log.bind(dt=ctx.dt, run_id=ctx.run_id)
    return ctx


def main(run: Callable[[Context], object], argv: Sequence[str] | None = None) -> int:
    """Parse a job's arguments, run it, and turn its end into an exit code and, on failure, one line on stderr."""
    module = sys.modules[run.__module__]
    name = module.__file__.rsplit("/", 1)[-1].removesuffix(".py") if module.__file__ else "job"
    parser = argparse.ArgumentParser(prog=f"recall {name}", description=module.__doc__, allow_abbrev=False)
    add_arguments(parser)
    log.add_argument(parser)
    args = parser.parse_args(argv)
    return guarded(name, lambda: run_alone(run, context(args, name)))


def run_alone(run: Callable[[Context], object], ctx: Context) -> None:
    """Run what publishes a day while nobody else does (Busy if somebody does)."""
    from recall_lib.io import locks

    with locks.held(ctx.config.paths.root, f"dt={ctx.dt}", ctx.run_id):
        run(ctx)


def guarded(name: str, action: Callable[[], object]) -> int:
    """Run an action; any failure becomes one line on stderr and the documented exit code."""
    try:
        action()
        return 0
    except RecallError as error:
        log.fail(name, " ".join(str(error).split()))
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough: the shells' code for it, for what is left is not done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        log.fail(name, "interrupted; nothing half-written is published, run it again")
        return 130
    except Exception as error:
        if os.environ.get("RECALL_TRACEBACK"):
            traceback.print_exc()
        refused = _refusal_inside(error)
        if refused:
            log.fail(name, refused)
            return DataRefused.exit_code
        hint = "set RECALL_TRACEBACK=1 for the traceback"
        log.fail(name, f"{type(error).__name__}: {_cause(error)} ({hint})")
        return 1


# What Spark's readers say of files that are not what they are said to be.
_UNREADABLE = re.compile(
    r"CSV header does not conform|EOFException|ZipException|incorrect (data|header) check|[Nn]ot a (Parquet|gzip)|"
    r"not a Parquet file|Malformed ORC|MalformedInputException|unexpected end of (file|stream)|UNABLE_TO_INFER_SCHEMA"
)


def _cause(error: Exception) -> str:
    """The line of an error that names its cause: the last "Caused by", a Python worker's last line, else the first."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    caused = [line.removeprefix("Caused by: ") for line in lines if line.startswith("Caused by: ")]
    raised = [line for line in lines if re.match(r"[\w.]*(Error|Exception|Interrupt): ", line)]
    return ([*lines[:1], *raised[-1:], *caused[-1:]] or ["no message"])[-1][:500]


def _refusal_inside(error: Exception) -> str | None:
    """What to say where the data is to blame: a Spark worker's DataRefused, or a file that cannot be read."""
    marker = f"{DataRefused.__module__}.{DataRefused.__name__}: "
    for line in str(error).splitlines():
        if marker in line:
            return line.split(marker, 1)[1].strip()
    if _UNREADABLE.search(str(error)):
        file = re.search(r"(?:reading file:?|CSV file:|for file|file) (\S*/\S+)", str(error))
        where = file[1].rstrip(".:,") if file else "an input file"
        return f"{where} cannot be read ({_cause(error)}): mend or remove it, or set input.file_format and input.options"
    return None
