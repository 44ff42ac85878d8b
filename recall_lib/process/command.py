"""What every command shares: its parser, and how it ends (errors.py has the exit codes)."""

from __future__ import annotations

import argparse
import os
import re
import sys
import traceback
from collections.abc import Callable, Collection, Sequence
from typing import Any

from recall_lib.process import messages
from recall_lib.process.errors import INTERRUPTED, NOT_READ, DataRefused, RecallError


class _Parser(argparse.ArgumentParser):
    def print_help(self, file: Any = None) -> None:
        """Print the help at once; unlike argparse's, this raises BrokenPipeError where nobody reads it."""
        print(self.format_help(), end="", file=file, flush=True)


def parser(name: str, doc: str | None, *required: str, optional: Collection[str] = ()) -> argparse.ArgumentParser:
    """The parser of `recall <name>`, with --log-format and the shared options that the command takes.

    Args:
        name: as it is typed.
        doc: the description, printed as it is written.
        required: of --config (which brings --set) and --dt, those that must be given.
        optional: those that may be given.
    """
    made = _Parser(
        prog=f"recall {name}", description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    taken = {*required, *optional}
    if "--config" in taken:
        made.add_argument(
            "--config", required="--config" in required, metavar="FILE", help="YAML file of settings, e.g. conf/demo.yaml"
        )
        made.add_argument(
            "--set",
            action="append",
            default=[],
            metavar="section.key=value",
            dest="overrides",
            help="override a setting, e.g. --set input.path=/data/log (may be repeated)",
        )
    if "--dt" in taken:
        made.add_argument("--dt", required="--dt" in required, metavar="YYYY-MM-DD", help="the day the result is for")
    made.add_argument(
        "--log-format", choices=messages.FORMATS, help="print lines of text, or one JSON object per line (default: text)"
    )
    return made


def run_command(
    options: argparse.ArgumentParser, action: Callable[[argparse.Namespace], object], argv: Sequence[str] | None = None
) -> int:
    """Parse `argv`, call `action` with the arguments other than --log-format, and return the exit code."""

    def parse_and_act() -> None:
        args = options.parse_args(argv)
        messages.choose(vars(args).pop("log_format"))
        action(args)

    return guarded(options.prog.removeprefix("recall "), parse_and_act)


def guarded(name: str, action: Callable[[], object]) -> int:
    """Run an action; any failure becomes one line on stderr and the documented exit code."""
    try:
        action()
        sys.stdout.flush()
        return 0
    except RecallError as error:
        messages.fail(name, " ".join(str(error).split()))
        return error.exit_code
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at exit
        return NOT_READ
    except KeyboardInterrupt:
        messages.fail(name, "interrupted; nothing half-written is published, run it again")
        return INTERRUPTED
    except Exception as error:
        if os.environ.get("RECALL_TRACEBACK"):
            traceback.print_exc()
        refused = _refusal_inside(error)
        if refused:
            messages.fail(name, refused)
            return DataRefused.exit_code
        hint = "set RECALL_TRACEBACK=1 for the traceback"
        messages.fail(name, f"{type(error).__name__}: {_cause(error)} ({hint})")
        return 1


# What Spark says of the files of a catalog table that are not what they are said to be.
_UNREADABLE = re.compile(
    r"EOFException|ZipException|incorrect (data|header) check|[Nn]ot a (Parquet|gzip)|"
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
        file = re.search(r"(?:reading file:?|for file|file) (\S*/\S+)", str(error))
        where = file[1].rstrip(".:,") if file else "an input file"
        return f"{where} cannot be read ({_cause(error)}): mend or remove it, or set input.file_format and input.options"
    return None
