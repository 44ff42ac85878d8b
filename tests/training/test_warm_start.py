"""Weights go with their values from one day's ids to the next's, against a dictionary a value."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from recall_lib.config import Feature, Features, ItemId
from recall_lib.model import checkpoint
from recall_lib.model.towers import YouTubeDNN
from recall_lib.process.errors import DataRefused
from recall_lib.training.loop import Run, _model, train
from recall_lib.training.ranks import Alone
from recall_lib.training.spec import FirstWeights, TrainSpec
from recall_lib.training.warm_start import previous_ids
from tests.training.synthetic import FEATURES, SAMPLES, Vocabulary, make_spec, sequences, write_runs, write_vocab
from tests.training.synthetic import VALUES as BEFORE


def shuffled(values: list[str], seed: int) -> list[str]:
    return random.Random(seed).sample(values, len(values))


GROWN = {name: shuffled([*values, f"new {name}", f"newer {name}"], 1) for name, values in BEFORE.items()}
SHRUNK = {name: values[1:-1] for name, values in BEFORE.items()}
REORDERED = {name: shuffled(values, 2) for name, values in BEFORE.items()}
OTHER = {name: [f"other {value}" for value in values] for name, values in BEFORE.items()}


def sizes(values: Vocabulary) -> dict[str, int]:
    return {name: 2 + len(own) for name, own in values.items()}


def first_of(folder: Path, spec: TrainSpec, seed: int = 7, **facts: Any) -> FirstWeights:
    """A model of BEFORE's sizes with random weights everywhere, as if it were trained."""
    torch.manual_seed(seed)
    ids = sizes(BEFORE) | facts.pop("sizes", {})
    model = _model(spec.model_copy(update={"sizes": ids, "first": None}))
    with torch.no_grad():
        for weights in model.parameters():
            weights.normal_()
    (folder / "model").mkdir(parents=True)
    version = checkpoint.save(folder / "model", model, spec.features, SAMPLES, ids, "v")
    files = write_vocab(folder / "before", BEFORE)
    known: dict[str, Any] = {"dt": "2024-03-03", "version": version, "folder": f"file://{folder}/model", "vocab": files}
    return FirstWeights(**known | facts)


MODELS: dict[str, dict[str, Any]] = {
    "mean, tied": {"encoder": "mean"},
    "Paddle": {"encoder": "lstm", "encoder_dim": 6, "item_output": "separate", "item_bias": True, "example_age": True},
    "attention": {"encoder": "attention", "encoder_dim": 8, "tower": (8,), "similarity": "cosine", "temperature": 0.05},
    "recency": {"encoder": "mean", "item_bias": True, "recency": {}},
}


@pytest.mark.parametrize(
    "now", [GROWN, SHRUNK, REORDERED, OTHER, BEFORE], ids=["grown", "shrunk", "reordered", "other", "same"]
)
@pytest.mark.parametrize("model", MODELS)
def test_a_row_goes_with_its_value(tmp_path: Path, model: str, now: Vocabulary) -> None:
    spec = make_spec([], [], model=MODELS[model]).model_copy(
        update={"sizes": sizes(now), "vocab_files": write_vocab(tmp_path / "now", now)}
    )
    first = first_of(tmp_path, spec)
    earlier = checkpoint.load(tmp_path / "model")[0].state_dict()
    torch.manual_seed(spec.seed)
    drawn = _model(spec).state_dict()
    torch.manual_seed(spec.seed)
    found = _model(spec.model_copy(update={"first": first})).state_dict()
    assert found.keys() == earlier.keys() == drawn.keys()
    expected = naive(earlier, drawn, now)
    for name, value in found.items():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=0, msg=name)


def naive(earlier: dict[str, torch.Tensor], drawn: dict[str, torch.Tensor], now: Vocabulary) -> dict[str, torch.Tensor]:
    """What each parameter should be, by a dictionary from value to row."""
    of = {"item_table.weight": "item_id", "output_table.weight": "item_id", "item_bias": "item_id"}
    of |= {"tables.user_city.weight": "city", "tables.bag_category.weight": "category", "tables.bag_tags.weight": "tags"}
    expected = {}
    for name, value in drawn.items():
        if name == "mean_user":  # not learnt: measured at the end of a training run
            expected[name] = value
        elif name not in of:
            expected[name] = earlier[name]
        else:
            rows = dict(zip(["padding", "unknown", *BEFORE[of[name]]], earlier[name], strict=True))
            values = ["padding", "unknown", *now[of[name]]]
            expected[name] = torch.stack([rows.get(v, value[i]) for i, v in enumerate(values)])
    return expected


def test_content_is_the_new_days(tmp_path: Path) -> None:
    """What items are made of is no weight: it stays that of the new day's items."""
    features = Features(item_id=ItemId(dim=8), item=(Feature(name="category", dim=8),))
    settings = make_spec([], [], model={"item_rows": "both", "tower": ()}).model
    values = {name: BEFORE[name] for name in ("item_id", "category")}
    models = []
    for shift in range(2):
        content = {"category": [torch.arange(22) % 4 + 2 - shift, torch.arange(23)]}
        models.append(YouTubeDNN(features, settings, sizes(values), 4, content))
    assert models[0].rows_of_features() == {"item_table.weight": "item_id", "tables.bag_category.weight": "category"}


def test_hashed_values_stay_where_they_are(tmp_path: Path) -> None:
    features = FEATURES.model_copy(update={"user": (Feature(name="city", dim=4, buckets=9),)})
    now = {name: own for name, own in REORDERED.items() if name != "city"}
    spec = make_spec([], []).model_copy(
        update={
            "features": features,
            "sizes": sizes(now) | {"city": 11},
            "vocab_files": write_vocab(tmp_path / "now", now),
        }
    )
    first = first_of(tmp_path, spec, sizes={"city": 11})
    found = _model(spec.model_copy(update={"first": first})).state_dict()["tables.user_city.weight"]
    assert torch.equal(found, checkpoint.load(tmp_path / "model")[0].state_dict()["tables.user_city.weight"])


def test_ids_before(tmp_path: Path) -> None:
    files = (
        write_vocab(tmp_path / "before", {"city": ["x", "y", "z"]}),
        write_vocab(tmp_path / "now", {"city": ["z", "new", "x"]}),
    )
    assert previous_ids(*files, "city", 5).tolist() == [0, 1, 4, -1, 2]
    assert previous_ids(*files, "country", 2).tolist() == [0, 1]
    assert previous_ids(*files, "city", 5).dtype == np.int64


def test_a_model_that_is_another_by_now_is_refused(tmp_path: Path) -> None:
    spec = make_spec([], []).model_copy(update={"vocab_files": write_vocab(tmp_path / "now", BEFORE)})
    first = first_of(tmp_path, spec, version="another")
    with pytest.raises(DataRefused, match="published again"):
        _model(spec.model_copy(update={"first": first}))


class Killed(Exception):
    pass


def test_it_learns_faster_and_a_resumed_run_ends_in_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_files = [write_runs(tmp_path / f"{i}.parquet", sequences(60, 8, ordered=True, seed=i)) for i in range(2)]
    held_out = [write_runs(tmp_path / "held.parquet", sequences(60, 6, ordered=True, seed=9), held_out=True)]
    vocab = write_vocab(tmp_path / "vocab", BEFORE)

    def run(name: str, **settings: Any) -> dict[str, Any]:
        (tmp_path / name).mkdir(exist_ok=True)
        return train(make_spec(train_files, held_out, vocab_files=vocab, **settings), Alone(), tmp_path / name)

    before = run("before", training={"epochs": 6})
    folder = f"file://{tmp_path}/before"
    first = FirstWeights(dt="2024-03-03", version=before["version"], folder=folder, vocab=vocab)
    short = {"epochs": 2, "learning_rate": 0.001}
    cold = run("cold", training=short)
    warm = run("warm", training=short, first=first)
    assert cold["steps"] == warm["steps"] < before["steps"]
    assert warm["validation"]["ndcg@10"] > 0.8 > 0.6 > cold["validation"]["ndcg@10"]
    assert run("again", training=short, first=first)["version"] == warm["version"]
    kept = {"training": short, "first": first, "checkpoint": f"file://{tmp_path}/kept/state.safetensors"}
    save = Run.save

    def die(self: Run) -> None:
        save(self)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", die)
        with pytest.raises(Killed):
            run("killed", **kept)
    assert Run(make_spec(train_files, held_out, vocab_files=vocab, **kept), Alone(), tmp_path / "killed").progress.epoch == 1
    assert run("resumed", **kept)["version"] == warm["version"]
