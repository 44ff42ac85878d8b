"""Vocabulary, model, vectors and index of a day belong together, or nothing is written (SPEC 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recall_lib.datasets import DATASETS
from recall_lib.process.errors import DataRefused

if TYPE_CHECKING:
    from recall_lib.store.publication import Publication
    from recall_lib.store.tables import Tables


@dataclass(frozen=True)
class Serving:
    """What everything of a day is inferred with: a model, and the vocabulary it was trained on.

    Attributes:
        dt: the day of both. It is earlier than the day it serves where that day's own model was not promoted
            (training.max_hr_drop).
        model: models/dt.
        vocab: vocab/dt.
    """

    dt: str
    model: Publication
    vocab: Publication

    @property
    def stamp(self) -> dict[str, str]:
        """What the manifest of everything that is made with them has."""
        return {"model_version": self.model.manifest["version"], "vocab": self.vocab.digest}

    def require(self, publication: Publication) -> Publication:
        """The same publication; DataRefused if it was made with another model or vocabulary."""
        other = [name for name, value in self.stamp.items() if publication.manifest.get(name) != value]
        if other:
            raise DataRefused(
                f"{publication.dataset}/dt={publication.dt} was made with another {' and '.join(other)}: "
                f"run `recall {DATASETS[publication.dataset].job_of(publication.keys)} --dt {publication.dt}`"
            )
        return publication


def serving_day(model: Publication) -> str:
    """The day whose model serves the day of this one: its own, or an earlier one if it was not promoted."""
    return str(model.manifest.get("serving_dt", model.dt))


def serving(tables: Tables, dt: str) -> Serving:
    """What serves a day.

    Raises:
        DataRefused: one is not published, or the model was trained on another vocabulary or with other settings.
    """
    return model_of_vocab(tables, serving_day(tables.get("models", dt)))


def model_of_vocab(tables: Tables, dt: str) -> Serving:
    """Model and vocabulary of a day; see `serving`."""
    vocab, model = tables.get("vocab", dt), tables.require_settings("models", dt)
    if model.inputs["vocab"] != vocab.digest:
        raise DataRefused(
            f"models/dt={dt} was trained on another vocabulary: run `recall samples` and `recall train` --dt {dt}"
        )
    return Serving(dt, model, vocab)


def items_of_vocab(tables: Tables, vocab: Publication) -> Publication:
    """items/dt of the day of a vocabulary.

    Raises:
        DataRefused: it is not published, or was made with another vocabulary or for other settings.
    """
    items = tables.require_settings("items", vocab.dt)
    if items.inputs["vocab"] != vocab.digest:
        raise DataRefused(f"items/dt={vocab.dt} was made with another vocabulary: run `recall items --dt {vocab.dt}`")
    return items
