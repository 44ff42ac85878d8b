"""Run the pipeline for each day of a range that is not published, each in its own process.

    recall backfill --config conf/globo.yaml --start 2017-10-14 --end 2017-10-17

This runs the 14th, 15th and 16th: the end is not included. After an interruption, run the same
command again. It continues with the days that are left.

--reprocess chooses the days to run:
  missing  days that lack a table, and days that failed
  failed   only days that failed
  stale    the days of `missing`, and days whose inputs or settings have changed since
  all      every day
With `stale` and `all`, all stored days of events that `recall status` calls late or stale are read
again first, in one pass over the log, whether they are in the range or not.

Each day's output is in <root>/_backfill/dt=<day>.log. The exit code is 0 if all days are published,
75 if only the locks of other runs prevented this, and otherwise that of the first failure.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from functools import partial
from pathlib import Path

from tqdm import tqdm

from recall_lib.commands.status import FAILED, LATE, MISSING, PUBLISHED, STALE, Day, Days, Table, failure_file, hit_rate
from recall_lib.config import Config, load_config, parse_day
from recall_lib.day.job import context, run_alone
from recall_lib.day.log_days import spans
from recall_lib.process import children, messages
from recall_lib.process.command import parser, run_command
from recall_lib.process.errors import Busy, RecallError, UsageError
from recall_lib.store import datasets
from recall_lib.store.tables import Tables

# The states that each --reprocess takes up.
TAKEN_UP = {
    "missing": {MISSING, FAILED},
    "failed": {FAILED},
    "stale": {MISSING, FAILED, STALE, LATE},
    "all": {MISSING, FAILED, STALE, LATE, PUBLISHED},
}
_POLL_S = 0.1
_LAST_WORDS = 4096  # bytes of a log


class Incomplete(RecallError):
    """Days of the range are not published; the exit code is that of what stood in the way."""

    def __init__(self, message: str, exit_code: int) -> None:
        """`exit_code`: of the command."""
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Asked:
    """What a backfill was asked for.

    Attributes:
        arguments: --config and --set, for the days' processes.
        days: ascending.
        jobs: None: the whole pipeline.
        reprocess: a key of TAKEN_UP.
        max_active: days that run at once.
        stop: whether no further day is started after a failure.
    """

    config: Config
    arguments: list[str]
    days: list[str]
    jobs: list[str] | None
    reprocess: str
    max_active: int
    stop: bool

    def states(self, days: Sequence[str]) -> dict[str, Day]:
        """The days as they are published at this moment."""
        now = Days(self.config)
        return {day: now.day(day, self.jobs) for day in days}

    @property
    def shares_events(self) -> bool:
        """Whether its days ingest the same events."""
        return self.config.input.ordering == "time" and (self.jobs is None or "events" in self.jobs)

    def events_to_read_again(self) -> list[str]:
        """The stored days of events that must be read again before any day is run."""
        return list(Days(self.config).of_events()) if self.shares_events and STALE in TAKEN_UP[self.reprocess] else []

    def takes_up(self, day: Day) -> bool:
        """Whether a day in this state is to be run."""
        return day.state in TAKEN_UP[self.reprocess]


@dataclass(frozen=True)
class Attempt:
    """How a day's process ended: exit code (128 + n after signal n), seconds, the last line it said."""

    code: int
    seconds: float
    message: str


def main(argv: Sequence[str] | None = None) -> int:
    """`recall backfill --config F --start D1 --end D2`; returns the exit code."""
    options = parser("backfill", __doc__, "--config")
    options.add_argument("--start", required=True, metavar="YYYY-MM-DD", help="the first day")
    options.add_argument("--end", required=True, metavar="YYYY-MM-DD", help="the day after the last")
    options.add_argument("--jobs", metavar="a,b", help="run only these jobs, in the pipeline's order (default: all)")
    options.add_argument("--reprocess", choices=TAKEN_UP, default="missing", help="which days to run (default: missing)")
    options.add_argument("--max-active", type=int, default=1, metavar="N", help="run at most N days at once (default: 1)")
    options.add_argument(
        "--on-failure",
        choices=("stop", "continue"),
        default="stop",
        help="after a failure: start no further day, or continue (default: stop)",
    )
    options.add_argument("--dry-run", action="store_true", help="show what would be run, and run nothing")
    return run_command(options, lambda args: run(asked(args), args.dry_run), argv)


def asked(args: argparse.Namespace) -> Asked:
    """What the parsed arguments ask for (UsageError if they are bad)."""
    config = load_config(args.config, args.overrides)
    names, jobs = datasets.jobs(), None if args.jobs is None else args.jobs.split(",")
    unknown = [job for job in jobs or () if job not in names]
    if unknown:
        raise UsageError(f"--jobs {','.join(unknown)}: choose from {','.join(names)}")
    if args.max_active < 1:
        raise UsageError(f"--max-active {args.max_active}: give at least 1")
    return Asked(
        config=config,
        arguments=["--config", args.config, *(part for override in args.overrides for part in ("--set", override))],
        days=days_between(args.start, args.end),
        jobs=jobs,
        reprocess=args.reprocess,
        max_active=args.max_active,
        stop=args.on_failure == "stop",
    )


def days_between(start: str, end: str) -> list[str]:
    """The days from `start` up to but not including `end`.

    Raises:
        UsageError: one is no day, or there is none between them.
    """
    try:
        first, after = date.fromisoformat(parse_day(start)), date.fromisoformat(parse_day(end))
    except UsageError as error:
        raise UsageError(str(error).replace("--dt", "--start or --end")) from None
    if first >= after:
        raise UsageError(f"--start {start} --end {end}: the end is the day after the last, and must be later")
    return [(first + timedelta(days=n)).isoformat() for n in range((after - first).days)]


def run(request: Asked, dry_run: bool = False) -> None:
    """Run the days that are to be run, and say what became of each.

    Raises:
        Incomplete: not all days are published at the end.
    """
    before, again = request.states(request.days), request.events_to_read_again()
    todo = [day for day in request.days if request.takes_up(before[day])]
    require_in_order(request, todo)
    if again:
        read_again(request, again, dry_run)
        todo = [day for day, found in request.states(request.days).items() if request.takes_up(found)]
        require_in_order(request, todo)
    if request.config.input.ordering == "position":
        snapshot = "input.ordering is position: each day takes a snapshot of the log as it is now, not as it was then"
        messages.say("backfill", snapshot)
    attempts: dict[str, Attempt] = {}
    if todo and not dry_run:
        output = log_folder(Tables(request.config))
        messages.say("backfill", f"{len(todo)} of {len(request.days)} days to run, output in {output}")
        attempts = run_days(request, todo)
    after = request.states(request.days)
    messages.show("backfill", summary(request, before, after, attempts, todo if dry_run else ()))
    if dry_run:
        return
    if not todo:
        messages.say("backfill", f"nothing to do: no day is {' or '.join(sorted(TAKEN_UP[request.reprocess]))}")
    require_published(after, attempts, TAKEN_UP[request.reprocess])


def read_again(request: Asked, days: Sequence[str], dry_run: bool) -> None:
    """Read stored days of events again, in one pass (Incomplete if that fails)."""
    folder = log_folder(Tables(request.config))
    verb = "would be" if dry_run else "are"
    messages.say("backfill", f"events of {spans(days)} {verb} read again in one pass, output in {folder / 'events.log'}")
    if not dry_run:
        _ingest(request, days, folder)


def require_in_order(request: Asked, todo: Sequence[str]) -> None:
    """Refuse (UsageError) days whose models could not start from, or be compared with, that of the day before."""
    training = request.config.training
    if not training.needs_the_day_before or (request.jobs and not {"samples", "train"} & set(request.jobs)):
        return
    if request.max_active > 1:
        raise UsageError(
            f"--max-active {request.max_active}: with training.init yesterday or training.max_hr_drop a day needs the one "
            "before it: give 1"
        )
    tables = Tables(request.config)
    for day in todo:
        first = training.starts_from(day)
        if first and first not in todo and not tables.find("models", first):
            raise UsageError(
                f"training.init yesterday starts {day} from models/dt={first}, which is neither published nor to be run: begin "
                f"earlier, or run {day} alone at first, with --set training.init=scratch"
            )


def run_days(request: Asked, todo: Sequence[str]) -> dict[str, Attempt]:
    """Run days in processes of their own; the attempts are in the order of their ends.

    Raises:
        Incomplete: the events that the days share could not be ingested.
    """
    waiting, tables = list(todo), Tables(request.config)
    active: dict[str, Process] = {}
    attempts: dict[str, Attempt] = {}
    with _ended(active), tqdm(total=len(todo), unit="day", disable=not sys.stderr.isatty()) as bar:
        if min(request.max_active, len(todo)) > 1 and request.shares_events:
            _ingest(request, todo, log_folder(tables))
        while waiting or active:
            while waiting and len(active) < request.max_active:
                day = waiting.pop(0)
                if request.takes_up(request.states([day])[day]):  # still: another backfill may have come first
                    jobs = ["--jobs", ",".join(request.jobs)] if request.jobs else []
                    active[day] = Process([*request.arguments, "--dt", day, *jobs], log_folder(tables) / f"dt={day}.log")
                else:
                    bar.update()
            time.sleep(_POLL_S)
            for day in [day for day, process in active.items() if process.ended()]:
                attempt = attempts[day] = active.pop(day).attempt()
                _note(tables, day, attempt)
                bar.update()
                with tqdm.external_write_mode(sys.stdout):
                    messages.say("backfill", f"{_outcome(attempt)} after {attempt.seconds:.0f} s", dt=day)
                if request.stop and _failed(attempt):
                    waiting.clear()
    return attempts


@contextmanager
def _ended(active: Mapping[str, Process]) -> Iterator[None]:
    """No process of the block outlives it."""
    try:
        yield
    finally:
        for process in active.values():
            process.end()


def _ingest(request: Asked, days: Sequence[str], folder: Path) -> None:
    """Bring all days' events up to date in one go: no day may change them later, while another reads them."""
    process = Process([*request.arguments, "--dt", days[-1], "--ingest", ",".join(days)], folder / "events.log")
    with _ended({"events": process}):
        while not process.ended():
            time.sleep(_POLL_S)
    attempt = process.attempt()
    if attempt.code:
        raise Incomplete(f"the range's events are not ingested: {attempt.message}", attempt.code)


def log_folder(tables: Tables) -> Path:
    """Where the days' output goes: below the root, or on this machine's disk if the root is not on one."""
    return Path(tables.root, "_backfill") if tables.local else Path(tempfile.gettempdir(), "recall_backfill")


def _note(tables: Tables, day: str, attempt: Attempt) -> None:
    """Leave the record of a day's failure, or remove it after a success."""
    path = failure_file(tables, day)
    if attempt.code == 0:
        with suppress(FileNotFoundError):
            tables.fs.rm_file(path)
    if _failed(attempt):
        record = {"code": attempt.code, "message": attempt.message, "at": datetime.now(UTC).isoformat(timespec="seconds")}
        tables.fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
        tables.fs.pipe_file(path, json.dumps(record).encode())


def _failed(attempt: Attempt) -> bool:
    return attempt.code not in (0, Busy.exit_code)


def _outcome(attempt: Attempt) -> str:
    return {0: "done", Busy.exit_code: "locked"}.get(attempt.code, f"failed ({attempt.code})")


def summary(
    request: Asked,
    before: Mapping[str, Day],
    after: Mapping[str, Day],
    attempts: Mapping[str, Attempt],
    planned: Sequence[str],
) -> Table:
    """The table of days: state before, what was done or is planned, state after, seconds, HR@10, and what is to be said."""
    rows: Table = [("day", "before", "run", "now", "seconds", "hr@10", "note")]
    tables = Tables(request.config)
    for day in request.days:
        attempt, now = attempts.get(day), after[day]
        done = _outcome(attempt) if attempt else "to run" if day in planned else "-"
        seconds = f"{attempt.seconds:.1f}" if attempt else "-"
        note = attempt.message if attempt and attempt.code else now.why
        rows.append((day, before[day].state, done, now.state, seconds, hit_rate(tables, day, now.manifests), note))
    return rows


def require_published(after: Mapping[str, Day], attempts: Mapping[str, Attempt], taken_up: Collection[str]) -> None:
    """Raise Incomplete, with the first failure's exit code, if a day is not published (a stale or late one is).

    Args:
        after: every day, as it is now.
        taken_up: the states that were asked to be run: a locked day in one of them is still to be done.
    """
    locked = {day for day, attempt in attempts.items() if attempt.code == Busy.exit_code and after[day].state in taken_up}
    lacking = [day for day, found in after.items() if day in locked or found.state not in (PUBLISHED, STALE, LATE)]
    failures = [attempt.code for attempt in attempts.values() if _failed(attempt)]
    if lacking or failures:
        code = failures[0] if failures else Busy.exit_code if locked == set(lacking) else Incomplete.exit_code
        raise Incomplete(f"{len(lacking)} of {len(after)} days are still to be done: {', '.join(lacking)}; run it again", code)


class Process:
    """A day's process, in a process group of its own, that ends with us however we end."""

    def __init__(self, arguments: Sequence[str], output: Path) -> None:
        """`output` is added to: another backfill may be writing there, and its day is then locked for us."""
        output.parent.mkdir(parents=True, exist_ok=True)
        self._output, self._started = output, time.monotonic()
        command = [sys.executable, "-m", "recall_lib.commands.backfill", *arguments]
        with output.open("ab") as out:
            self._process = children.start(command, stdout=out, stderr=subprocess.STDOUT, process_group=0)

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self._process.poll() is not None

    def end(self) -> None:
        """Kill it and all it has started, if it runs."""
        if not self.ended():
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def attempt(self) -> Attempt:
        """How it ended."""
        code, words = self._process.wait(), self._last_words()
        if code < 0:
            return Attempt(128 - code, time.monotonic() - self._started, f"killed by signal {-code}; last it said: {words}")
        return Attempt(code, time.monotonic() - self._started, words)

    def _last_words(self) -> str:
        with self._output.open("rb") as output:
            output.seek(max(self._output.stat().st_size - _LAST_WORDS, 0))
            lines = [line for line in output.read().decode(errors="replace").splitlines() if line.strip()]
        said = [_said(line.strip()) for line in lines]
        # The line that ended it, rather than one that Spark, or another backfill's process, wrote after it.
        return ([words for ended, words in said if ended] or [words for _, words in said] or ["nothing"])[-1]


def _said(line: str) -> tuple[bool, str]:
    """Whether a line of output is the one that ends a command with an error, and what it says."""
    with suppress(ValueError, TypeError, KeyError):  # with --log-format json
        told = json.loads(line)
        return told["level"] == "error", told["message"]
    return line.startswith("recall "), line


def _day_main(argv: Sequence[str]) -> int:
    """What a day's process runs: the pipeline, or some of its jobs, or just the events of several days."""
    children.end_with_parent(lambda: os.killpg(0, signal.SIGKILL))  # with Spark's JVM and the ranks
    options = parser("pipeline", _day_main.__doc__, "--config", "--dt")
    options.add_argument("--jobs")
    options.add_argument("--ingest")

    def day(args: argparse.Namespace) -> None:
        from jobs import events, pipeline

        ctx = context(args, "pipeline")
        if args.ingest:
            events.run(ctx, backfill=True, also=args.ingest.split(","))
        else:
            run_alone(partial(pipeline.run, jobs=args.jobs.split(",") if args.jobs else None), ctx)

    return run_command(options, day, argv)


if __name__ == "__main__":
    sys.exit(_day_main(sys.argv[1:]))
