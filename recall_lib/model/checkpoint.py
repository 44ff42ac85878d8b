"""Models on disk, as safetensors and JSON; nothing is unpickled.

A model folder holds `model.safetensors` (the weights) and `model.json`: sizes, the settings the model was built with, the
vocabulary's fingerprint, and the version. The version is a hash of all these and the weights; the clock and the run have no
part in it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from recall_lib.config import Features, Model, Samples
from recall_lib.model.towers import YouTubeDNN, content_buffers
from recall_lib.process.errors import DataRefused

WEIGHTS, META = "model.safetensors", "model.json"


def save(folder: Path, model: YouTubeDNN, features: Features, samples: Samples, sizes: dict[str, int], vocab: str) -> str:
    """Write a model into a folder; returns its version.

    Args:
        folder: an existing folder.
        model: its weights are written as they are.
        features: the features it was built with.
        samples: the settings of the samples it was trained on; inference cuts histories by them.
        sizes: number of ids of each feature.
        vocab: the vocabulary's fingerprint.
    """
    weights = safetensors.torch.save({name: value.contiguous() for name, value in model.state_dict().items()})
    facts = {
        "features": features.model_dump(mode="json"),
        "samples": samples.model_dump(mode="json"),
        "model": model.settings.model_dump(mode="json"),
        "sizes": dict(sizes),
        "vocab": vocab,
    }
    version = _version(weights, facts)
    (folder / WEIGHTS).write_bytes(weights)
    (folder / META).write_text(json.dumps(facts | {"version": version}, indent=1, sort_keys=True), encoding="utf-8")
    return version


def load(folder: Path | str) -> tuple[YouTubeDNN, dict[str, Any]]:
    """The model in a local folder, in eval mode, and the content of `model.json`.

    Raises:
        DataRefused: a file is missing or was changed after it was saved.
    """
    try:
        weights = (Path(folder) / WEIGHTS).read_bytes()
        meta = json.loads((Path(folder) / META).read_text(encoding="utf-8"))
        if meta["version"] != _version(weights, {name: fact for name, fact in meta.items() if name != "version"}):
            raise ValueError("weights and model.json do not belong together")
        tensors = safetensors.torch.load(weights)
        features, settings = Features(**meta["features"]), Model(**meta["model"])
        content = None
        if settings.item_rows != "own":
            content = {
                name: [tensors[f"content.{buffer}"] for buffer in own] for name, own in content_buffers(features).items()
            }
        model = YouTubeDNN(features, settings, meta["sizes"], meta["samples"]["window_size"], content)
        model.load_state_dict(tensors)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise DataRefused(f"model folder {folder} is damaged ({error}): run `recall train` again") from None
    return model.eval(), meta


def pack(tensors: dict[str, Tensor], facts: dict[str, Any]) -> bytes:
    """Tensors and JSON facts as the bytes of one safetensors file, e.g. the state of a training run."""
    cpu = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    return safetensors.torch.save(cpu, metadata={"facts": json.dumps(facts)})


def unpack(data: bytes) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and facts that `pack` was called with.

    Raises:
        ValueError: the bytes were not made by `pack`.
    """
    try:
        # A safetensors file begins with the length of its JSON header.
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        return safetensors.torch.load(data), json.loads(header["__metadata__"]["facts"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"not a packed state: {error}") from None


def _version(weights: bytes, facts: dict[str, Any]) -> str:
    digest = hashlib.sha256(weights)
    digest.update(json.dumps(facts, sort_keys=True).encode())
    return digest.hexdigest()[:16]
