"""Vocabulary, model, vectors and index of a day belong together, or nothing is written (SPEC 2.4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from recall_lib.errors import DataRefused

if TYPE_CHECKING:
    from recall_lib.io.tables import Tables


def serving_day(tables: Tables, dt: str) -> str:
    """The day whose model and vocabulary everything of dt is inferred with.

    It is dt itself, also while no model of dt is published, or the earlier day whose model goes on serving because that of dt
    was not promoted (training.max_hr_drop).
    """
    return str(tables.manifest("models", dt).get("serving_dt", dt)) if tables.find("models", dt) else dt


def model_of_vocab(tables: Tables, dt: str) -> dict[str, str]:
    """{model_version, vocab} of a day: what everything made by the model is stamped with.

    Raises:
        DataRefused: one is not published, or the model was trained on another vocabulary or with other settings.
    """
    vocab, model = tables.manifest("vocab", dt)["digest"], tables.require_settings("models", dt)
    if model["inputs"]["vocab"] != vocab:
        raise DataRefused(
            f"models/dt={dt} was trained on another vocabulary: run `recall samples` and `recall train` --dt {dt}"
        )
    return {"model_version": model["version"], "vocab": vocab}


def items_of_vocab(tables: Tables, dt: str) -> dict[str, Any]:
    """The manifest of items/dt.

    Raises:
        DataRefused: it is not published, or was made with another vocabulary or for other settings.
    """
    manifest = tables.require_settings("items", dt)
    if manifest["inputs"]["vocab"] != tables.manifest("vocab", dt)["digest"]:
        raise DataRefused(f"items/dt={dt} was made with another vocabulary: run `recall items --dt {dt}`")
    return manifest


def require_stamp(tables: Tables, stamp: dict[str, str], dataset: str, dt: str, **keys: str) -> None:
    """Refuse (DataRefused) a publication that another model or vocabulary made."""
    manifest = tables.manifest(dataset, dt, **keys)
    other = [name for name, value in stamp.items() if manifest.get(name) != value]
    if other:
        raise DataRefused(f"{dataset}/dt={dt} was made with another {' and '.join(other)}: run `recall {dataset} --dt {dt}`")
