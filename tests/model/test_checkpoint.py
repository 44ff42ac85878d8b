import json
from pathlib import Path

import pytest
import torch

from recall_lib.config import Feature, Features, ItemId, Model, Samples
from recall_lib.model import checkpoint
from recall_lib.model.towers import YouTubeDNN
from recall_lib.process.errors import DataRefused

FEATURES = Features(item_id=ItemId(dim=4), user=(Feature(name="city", dim=2),))
SIZES = {"item_id": 6, "city": 3}


def saved(folder: Path, seed: int = 0, vocab: str = "v") -> tuple[YouTubeDNN, str]:
    torch.manual_seed(seed)
    model = YouTubeDNN(FEATURES, Model(tower=(4,)), SIZES, 9)
    folder.mkdir(exist_ok=True)
    return model, checkpoint.save(folder, model, FEATURES, Samples(window_size=9), SIZES, vocab)


def test_a_loaded_model_is_the_saved_one(tmp_path: Path) -> None:
    model, version = saved(tmp_path)
    loaded, meta = checkpoint.load(tmp_path)
    assert not loaded.training
    assert meta["version"] == version
    assert (meta["vocab"], meta["sizes"], meta["samples"]["window_size"]) == ("v", SIZES, 9)
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value)


def test_the_version_comes_from_the_content_alone(tmp_path: Path) -> None:
    versions = [
        saved(tmp_path / str(i), seed, vocab)[1] for i, (seed, vocab) in enumerate([(0, "v"), (0, "v"), (1, "v"), (0, "w")])
    ]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3


@pytest.mark.parametrize("damage", ["weights", "meta", "missing"])
def test_damage_is_refused(tmp_path: Path, damage: str) -> None:
    saved(tmp_path)
    if damage == "weights":
        data = bytearray((tmp_path / checkpoint.WEIGHTS).read_bytes())
        data[-1] ^= 1
        (tmp_path / checkpoint.WEIGHTS).write_bytes(data)
    elif damage == "meta":
        meta = json.loads((tmp_path / checkpoint.META).read_text())
        (tmp_path / checkpoint.META).write_text(json.dumps(meta | {"vocab": "another"}))
    else:
        (tmp_path / checkpoint.META).unlink()
    with pytest.raises(DataRefused, match="recall train"):
        checkpoint.load(tmp_path)


def test_packed_states_come_back_and_damaged_ones_do_not() -> None:
    tensors = {"a.b": torch.arange(6.0).reshape(2, 3), "step": torch.tensor(3.0)}
    data = checkpoint.pack(tensors, {"epoch": 2, "records": [{"loss": 0.5}]})
    found, facts = checkpoint.unpack(data)
    assert facts == {"epoch": 2, "records": [{"loss": 0.5}]}
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    for damaged in (b"", data[:50], data[:-4], b"\x00" * 100):
        with pytest.raises(ValueError, match="not a packed state"):
            checkpoint.unpack(damaged)
