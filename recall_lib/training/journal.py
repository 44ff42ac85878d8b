"""The log of a training run: JSON lines and TensorBoard events in its folder, and progress on stderr."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

from torch.utils.tensorboard import SummaryWriter
from tqdm import tqdm

from recall_lib.process import messages

LOG = "log.jsonl"
_SECONDS_BETWEEN_LINES = 10


class Journal:
    """Writes rank 0's records, {"step", "epoch", ...numbers}; progress is a bar on a terminal, and plain lines elsewhere."""

    def __init__(self, folder: Path, total_steps: int, records: list[dict[str, Any]]) -> None:
        """`records`: the earlier records of a resumed run; they are written again."""
        self.records: list[dict[str, Any]] = []
        self._log = (folder / LOG).open("w", encoding="utf-8")
        self._events = SummaryWriter(str(folder))
        done = records[-1]["step"] if records else 0
        self._bar = tqdm(total=total_steps, initial=done, unit="step", disable=not sys.stderr.isatty())
        self._said = 0.0
        for record in records:
            self._write(record)

    def add(self, **record: Any) -> None:
        """Write one record; its numbers become scalars in TensorBoard."""
        self._write(record)
        text = " ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in record.items() if k != "step")
        if not self._bar.disable:
            self._bar.update(record["step"] - self._bar.n)
            self._bar.set_postfix_str(text)
        elif "loss" not in record or time.monotonic() - self._said > _SECONDS_BETWEEN_LINES:
            self._said = time.monotonic()
            messages.say("train", f"step {record['step']} of {self._bar.total} {text}", to_stderr=True)

    def _write(self, record: dict[str, Any]) -> None:
        self.records.append(record)
        self._log.write(json.dumps(record) + "\n")
        self._log.flush()
        for name, value in record.items():
            if name not in ("step", "epoch"):
                self._events.add_scalar(name, value, record["step"])

    def close(self) -> None:
        """Flush and close all files."""
        self._bar.close()
        self._log.close()
        self._events.close()
