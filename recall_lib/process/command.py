"""What every command shares: its arguments, and how it ends.

Exit codes: 0 done, 1 an unexpected failure, 2 bad usage or config, 3 data refused, 4 no input, 75 another run has the day.
"""

from __future__ import annotations

import argparse
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable

from recall_lib.process import messages
from recall_lib.process.errors import DataRefused, RecallError


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


def guarded(name: str, action: Callable[[], object]) -> int:
    """Run an action; any failure becomes one line on stderr and the documented exit code."""
    try:
        action()
        return 0
    except RecallError as error:
        messages.fail(name, " ".join(str(error).split()))
        return error.exit_code
    except BrokenPipeError:  # the reader of our output has seen enough: the shells' code for it, for what is left is not done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        messages.fail(name, "interrupted; nothing half-written is published, run it again")
        return 130
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
