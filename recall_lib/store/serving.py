"""Checks that vocabulary, model, vectors and index of a day belong together; otherwise nothing is written (SPEC 2.4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from recall_lib.process.errors import DataRefused
from recall_lib.store.datasets import DATASETS

if TYPE_CHECKING:
    from recall_lib.store.publication import Publication
    from recall_lib.store.tables import Tables


@dataclass(frozen=True)
class Serving:
    """The model that serves a day, and the vocabulary it was trained on.

    Attributes:
        dt: the day of both. If the model of the served day was not promoted (training.max_hr_drop), this is an earlier day.
        model: models/dt.
        vocab: vocab/dt.
    """

    dt: str
    model: Publication
    vocab: Publication

    @property
    def stamp(self) -> dict[str, str]:
        """The facts that the manifest of every table made with them records."""
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
    """The day whose model serves the day of this model: the same day, or an earlier one if this model was not promoted."""
    return str(model.manifest.get("serving_dt", model.dt))


def serving(tables: Tables, dt: str) -> Serving:
    """The model and vocabulary that serve a day.

    Raises:
        DataRefused: one of them is not published, or the model was trained on another vocabulary or with other settings.
    """
    return model_of_vocab(tables, serving_day(tables.get("models", dt)))


def model_of_vocab(tables: Tables, dt: str) -> Serving:
    """The model and vocabulary of a day itself; raises as `serving` does."""
    vocab, model = tables.get("vocab", dt), tables.require_settings("models", dt)
    if model.inputs["vocab"] != vocab.digest:
        raise DataRefused(
            f"models/dt={dt} was trained on another vocabulary: run `recall samples --dt {dt}`, then `recall train --dt {dt}`"
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
