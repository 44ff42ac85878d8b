"""Whether a new model serves its day (training.max_hr_drop), or the one that serves the day before goes on."""

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
    """Whose model serves a day.

    Attributes:
        serving_dt: the day of that model.
        version: of that model.
        why: it is not the day's own, or could not be compared; empty: nothing is to be said.
        inputs: digests of the models that the verdict depends on, by name.
    """

    serving_dt: str
    version: str
    why: str = ""
    inputs: dict[str, str] = field(default_factory=dict)


def judge(tables: Tables, dt: str, version: str, validation: Mapping[str, float]) -> Verdict:
    """Compare a new model with the one that serves the last published day before; without one it serves.

    Args:
        tables: what is published.
        dt: the new model's day.
        version: of the new model.
        validation: its figures on the validation split; without any it is not promoted over a model that has some.
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
        # It could not serve dt with the settings of now, or without its vocabulary.
        model_of_vocab(tables, serving)
    except DataRefused as error:
        return Verdict(dt, version, f"promoted without a comparison: {error}", inputs)
    ours, theirs = validation.get(_METRIC, 0.0), other.manifest["validation"].get(_METRIC, 0.0)
    if ours >= (1 - most) * theirs:
        return Verdict(dt, version, inputs=inputs)
    why = f"validation {_METRIC} {ours:.4f} is less than {1 - most:g} x the {theirs:.4f} of models/dt={serving}"
    return Verdict(serving, other.manifest["version"], f"not promoted: {why}, which serves {dt} in its place", inputs)
