"""What commands say: lines for people or, with `--log-format json`, one JSON object a line, on the same streams.

    {"at": "2024-03-04T02:10:00+00:00", "level": "info", "stage": "vocab", "dt": "2024-03-03", "run_id": "5f0c...", "rank": 0,
     "seconds": 12.3, "message": "..."}

`seconds` is since the process began to speak. `rank` is that of a process that trains; local ranks inherit format and fields.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, Literal

_STARTED = time.monotonic()
# The format and what all lines of a run share: a JSON object, or unset for text. Local ranks see it too.
_VARIABLE = "RECALL_LOG_FIELDS"


FORMATS = ("text", "json")


def choose(log_format: Literal["text", "json"] | None) -> None:
    """Speak in this format from now on; None: in that of the process that started this one."""
    if log_format:
        os.environ.pop(_VARIABLE, None)
    if log_format == "json":
        os.environ[_VARIABLE] = "{}"


def bind(**fields: str) -> None:
    """Fields that every line from now on has, in JSON."""
    if _VARIABLE in os.environ:
        os.environ[_VARIABLE] = json.dumps(json.loads(os.environ[_VARIABLE]) | fields)


def say(stage: str, message: str, *, dt: str | None = None, to_stderr: bool = False) -> None:
    """A line of progress."""
    _write("info", stage, message, f"{stage} {dt}: {message}" if dt else f"{stage}: {message}", to_stderr)


def show(stage: str, result: str | Sequence[Sequence[str]]) -> None:
    """What was asked for: a line, or a table below its head, for people in columns, in JSON an object a row, {"row": {...}}."""
    if isinstance(result, str):
        _write("info", stage, result, result, False)
        return
    head, *rows = result
    widths = [max(map(len, cells)) for cells in zip(*result, strict=True)]
    for row in rows if _VARIABLE in os.environ else result:
        text = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        show_row(stage, dict(zip(head, row, strict=True)), text)


def show_row(stage: str, row: Mapping[str, Any], text: str) -> None:
    """A row of what was asked for: `text` for people, in JSON {"row": {...}} too."""
    _write("info", stage, text, text, False, row=row)


def fail(command: str, message: str) -> None:
    """The line on stderr that ends a command."""
    _write("error", command, message, f"recall {command}: {message}", True)


def _write(level: str, stage: str, message: str, text: str, to_stderr: bool, **further: Any) -> None:
    shared = os.environ.get(_VARIABLE)
    if shared is not None:
        line = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "level": level,
            "stage": stage,
            **json.loads(shared),
            "rank": int(os.environ.get("HOROVOD_RANK") or os.environ.get("RANK") or 0),
            "seconds": round(time.monotonic() - _STARTED, 3),
            "message": message,
            **further,
        }
        text = json.dumps(line, ensure_ascii=False)
    print(text, file=sys.stderr if to_stderr else sys.stdout, flush=True)
