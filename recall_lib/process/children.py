"""Processes that end with the one that started them, however that one ends."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable, Sequence
from typing import Any


def start(command: Sequence[str], **options: Any) -> subprocess.Popen:
    """Start a process that calls `end_with_parent`; `options` are Popen's."""
    # Nothing is ever written to its stdin: the pipe closes when we die, SIGKILL included.
    return subprocess.Popen(command, stdin=subprocess.PIPE, **options)


def end_with_parent(end: Callable[[], object]) -> None:
    """In a process that `start` has started: call `end` as soon as the one that started it is gone."""

    def wait() -> None:
        os.read(0, 1)
        end()

    threading.Thread(target=wait, daemon=True).start()
