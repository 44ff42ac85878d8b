"""Decides whether a new model serves its day, or the model of the last published day goes on (training.max_hr_drop)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from recall_lib.process.errors import DataRefused
from recall_lib.store.serving import model_of_vocab, serving_day

if TYPE_CHECKING:
    from recall_lib.store.tables import Tables

_METRIC = "hr@10"  # of the validation split


@dataclass(frozen=True)
class Verdict:
    """Which model serves a day.

    Attributes:
        serving_dt: the day of that model.
        version: the version of that model.
        why: why the day's own model was not promoted, or was promoted without a comparison; empty otherwise.
        inputs: digests of the models that the verdict depends on, by name.
    """

    serving_dt: str
    version: str
    why: str = ""
    inputs: dict[str, str] = field(default_factory=dict)


def decide(tables: Tables, dt: str, version: str, validation: Mapping[str, float]) -> Verdict:
    """Compare a new model with the model that serves the last published day before dt; if there is none, the new one serves.

    Args:
        tables: the published tables.
        dt: the new model's day.
        version: the new model's version.
        validation: the new model's metrics on the validation split. If they are missing, it is not promoted over a model that
            has them.
    """
    most = tables.config.training.max_hr_drop
    earlier = [day for day in tables.days("models") if day < dt] if most is not None else []
    if most is None or not earlier:
        return Verdict(dt, version)
    last = tables.get("models", earlier[-1])
    serving = serving_day(last)
    other = last if serving == last.dt else tables.get("models", serving)
    inputs = {model.name: model.digest for model in (last, other)}
    try:
        # Raises if the earlier model cannot serve dt: its vocabulary is gone, or the settings have changed.
        model_of_vocab(tables, serving)
    except DataRefused as error:
        return Verdict(dt, version, f"promoted without a comparison: {error}", inputs)
    ours, theirs = validation.get(_METRIC, 0.0), other.manifest["validation"].get(_METRIC, 0.0)
    if ours >= (1 - most) * theirs:
        return Verdict(dt, version, inputs=inputs)
    why = f"validation {_METRIC} {ours:.4f} is less than {1 - most:g} x {theirs:.4f}, that of models/dt={serving}"
    return Verdict(serving, other.manifest["version"], f"not promoted: {why}, which serves {dt} in its place", inputs)
