import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from recall_lib.config import Config, Samples, Training
from recall_lib.model import checkpoint
from recall_lib.process.errors import DataRefused, RecallError
from recall_lib.training.loop import Run, learning_rate, train
from recall_lib.training.ranks import Alone
from recall_lib.training.spec import SampleFile
from tests.training.synthetic import ITEMS, make_spec, sequences, write_runs


def log_of(tmp_path: Path, *, ordered: bool) -> tuple[list[SampleFile], list[SampleFile]]:
    files = [write_runs(tmp_path / f"{i}.parquet", sequences(60, 8, ordered=ordered, seed=i), negatives=3) for i in range(2)]
    held_out = sequences(60, 6, ordered=ordered, seed=9)
    return files, [write_runs(tmp_path / "held.parquet", held_out, held_out=True)]


def run(folder: Path, files: tuple[list[SampleFile], list[SampleFile]], **settings: Any) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    return train(make_spec(*files, **settings), Alone(), folder)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return checkpoint.load(folder)[0].state_dict()


ATTENTION = {"encoder": "attention", "encoder_dim": 8, "tower": (8,), "similarity": "cosine", "temperature": 0.05}


@pytest.mark.parametrize("unit", ["window", "run"])
@pytest.mark.parametrize("model", [{"encoder": "mean"}, {"encoder": "lstm"}, ATTENTION])
def test_ordered_sequences_are_learnt(tmp_path: Path, model: dict[str, Any], unit: str) -> None:
    facts = run(tmp_path / "out", log_of(tmp_path, ordered=True), model=model, training={"unit": unit, "epochs": 6})
    assert facts["validation"]["hr@10"] > 0.95
    assert facts["validation"]["ndcg@10"] > 0.8
    assert (facts["targets"], facts["epochs"], facts["steps"]) == (840, 6, 6 * 14)


def test_random_sequences_do_not_look_learnt(tmp_path: Path) -> None:
    facts = run(tmp_path / "out", log_of(tmp_path, ordered=False))
    chance = 10 / (ITEMS - 2 - 4)  # about 4 of the 20 items are seen
    assert abs(facts["validation"]["hr@10"] - chance) < 0.2


@pytest.mark.parametrize(
    "training",
    [
        {"loss": "sampled_softmax", "negatives": "counts"},
        {"loss": "nce", "negatives": "uniform", "epochs": 25},
        {"loss": "in_batch_softmax"},
        {"loss": "sampled_softmax", "negatives": "samples"},
        {"loss": "sampled_softmax", "schedule": "cosine", "warmup_steps": 5, "clip_norm": 1.0},
        {"loss": "sampled_softmax", "gradients": "rows"},
        {"loss": "in_batch_softmax", "gradients": "rows"},
    ],
)
def test_every_loss_learns_the_order(tmp_path: Path, training: dict[str, Any]) -> None:
    samples = Samples(window_size=4, negatives_per_positive=3)
    facts = run(tmp_path / "out", log_of(tmp_path, ordered=True), training={"epochs": 8, **training}, samples=samples)
    assert facts["validation"]["ndcg@10"] > 0.6


MANY_NEGATIVES = {"batch_size": 420, "num_negatives": 300, "epochs": 8}  # threads share the sums of so many gradients


@pytest.mark.parametrize("training", [{"epochs": 1}, MANY_NEGATIVES], ids=["few", "many"])
def test_same_seed_same_model(tmp_path: Path, training: dict[str, Any]) -> None:
    files = log_of(tmp_path, ordered=True)
    settings = {"training": {"loss": "sampled_softmax", **training}, "model": {"item_bias": True}}
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    first, again, other = (run(tmp_path / str(i), files, seed=seed, **settings) for i, seed in enumerate([1, 1, 2]))
    torch.set_num_threads(threads)
    assert first["version"] == again["version"] != other["version"]


def steps_of(folder: Path, files: tuple[list[SampleFile], list[SampleFile]], *, model: dict[str, Any], **training: Any) -> Run:
    """A run whose steps are so small that they touch a part of the items alone."""
    settings = {"loss": "sampled_softmax", "num_negatives": 1, "batch_size": 3, "max_steps": 1, "adam_beta2": 0.5}
    made = Run(make_spec(*files, training=settings | training, model=model), Alone(), folder)
    made.train_epoch()
    return made


CLIP = 0.05


@pytest.mark.parametrize("training", [{}, {"clip_norm": CLIP}, {"unit": "run", "batch_size": 12}])
@pytest.mark.parametrize("model", [{}, {"encoder": "lstm", "item_output": "separate", "item_bias": True}, ATTENTION])
def test_a_step_of_rows_is_one_of_dense_gradients(tmp_path: Path, model: dict[str, Any], training: dict[str, Any]) -> None:
    files = log_of(tmp_path, ordered=True)
    dense, rows = (steps_of(tmp_path, files, model=model, gradients=kind, **training) for kind in ("dense", "rows"))
    assert dense.model.state_dict().keys() == rows.model.state_dict().keys()
    expected = dict(dense.model.named_parameters())
    norm = 0.0
    for name, value in rows.model.named_parameters():
        assert value.grad is not None
        assert value.grad.is_sparse == ("table" in name), name
        gradient = value.grad.to_dense()
        torch.testing.assert_close(gradient, expected[name].grad, rtol=1e-4, atol=1e-6)
        norm += float(gradient.square().sum())
        # From moments of zero, so that dense Adam moves no row without a gradient either. It divides by the gradient's size:
        # where all but rounding cancels out, the two may part.
        clear = (gradient == 0) | (gradient.abs() > 1e-4)
        torch.testing.assert_close(value[clear], expected[name][clear], rtol=1e-3, atol=1e-4)
    assert norm**0.5 == pytest.approx(CLIP, rel=1e-3) if "clip_norm" in training else norm**0.5 > 1.1 * CLIP


@pytest.mark.parametrize(
    "sections",
    [
        {"training": {"loss": "full_softmax"}},
        {"model": {"item_rows": "both"}, "features": {"item": [{"name": "kind", "dim": 64}]}},
    ],
)
def test_rows_need_a_loss_and_items_that_look_rows_up(sections: dict[str, Any]) -> None:
    Config.model_validate(sections)
    with pytest.raises(ValueError, match="gradients rows needs"):
        Config.model_validate(sections | {"training": sections.get("training", {}) | {"gradients": "rows"}})


def test_rows_that_a_step_does_not_look_up_stand_still(tmp_path: Path) -> None:
    files = log_of(tmp_path, ordered=True)
    for kind in ("dense", "rows"):
        runs = [steps_of(tmp_path, files, model={}, gradients=kind, max_steps=steps) for steps in (1, 2)]
        tables = [run.model.get_parameter("item_table.weight") for run in runs]
        gradients = [table.grad for table in tables if table.grad is not None]
        touched, again = (set(gradient.to_dense().any(dim=1).nonzero()[:, 0].tolist()) for gradient in gradients)
        moved = set((tables[0] != tables[1]).any(dim=1).nonzero()[:, 0].tolist())
        assert touched - again
        assert moved == (again if kind == "rows" else again | touched)


class Killed(Exception):
    pass


@pytest.mark.parametrize("model", [{}, ATTENTION | {"dropout": 0.3}])
@pytest.mark.parametrize("more", [{}, {"early_stopping": 3}, {"gradients": "rows", "clip_norm": 0.1}])
def test_a_resumed_run_ends_in_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], model: dict[str, Any]
) -> None:
    files = log_of(tmp_path, ordered=True)
    training = {"loss": "sampled_softmax", "epochs": 4, "schedule": "linear", **more}
    whole = run(tmp_path / "whole", files, training=training, model=model)
    kept: dict[str, Any] = {"training": training, "model": model, "checkpoint": f"file://{tmp_path}/kept/state.safetensors"}
    save = Run.save

    def die_after_two(self: Run) -> None:
        save(self)
        if self.progress.epoch == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", die_after_two)
        with pytest.raises(Killed):
            run(tmp_path / "killed", files, **kept)
    trained: list[int] = []
    monkeypatch.setattr(Run, "train_epoch", lambda self, own=Run.train_epoch: (trained.append(self.progress.epoch), own(self)))
    resumed = run(tmp_path / "resumed", files, **kept)
    assert trained == [2, 3]
    assert resumed["version"] == whole["version"]
    assert [r["loss"] for r in records(tmp_path / "resumed") if "loss" in r] == [
        r["loss"] for r in records(tmp_path / "whole") if "loss" in r
    ]


@pytest.mark.parametrize(
    "change", [{"seed": 2}, {"inputs": "other samples"}, {"training": {"learning_rate": 0.5, "epochs": 1}}]
)
def test_a_checkpoint_of_another_run_is_not_taken_up(tmp_path: Path, change: dict[str, Any]) -> None:
    files = log_of(tmp_path, ordered=True)
    address = f"file://{tmp_path}/kept/state.safetensors"
    settings: dict[str, Any] = {"training": {"epochs": 1}, "checkpoint": address}
    run(tmp_path / "first", files, **settings)
    second = Run(make_spec(*files, **settings | change), Alone(), tmp_path / "first")
    assert second.progress.epoch == 0
    Path(address.removeprefix("file://")).write_bytes(b"half a checkpoint")
    assert Run(make_spec(*files, **settings), Alone(), tmp_path / "first").progress.epoch == 0


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def test_the_log_and_the_events_say_the_same(tmp_path: Path) -> None:
    out = tmp_path / "out"
    facts = run(out, log_of(tmp_path, ordered=True), training={"epochs": 2})
    found = records(out)
    losses = [record for record in found if "loss" in record]
    assert len(losses) == facts["steps"] == losses[-1]["step"]
    assert losses[0]["loss"] == pytest.approx(math.log(ITEMS - 2), abs=0.3)
    assert losses[-1]["loss"] < losses[0]["loss"] / 1.4
    assert {"learning_rate", "targets_per_second", "epoch"} <= losses[0].keys()
    assert [r["hr@10"] for r in found if "hr@10" in r][-1] == facts["validation"]["hr@10"]
    events = EventAccumulator(str(out)).Reload()
    assert [e.value for e in events.Scalars("loss")] == pytest.approx([r["loss"] for r in losses])
    assert len(events.Scalars("ndcg@10")) == 2


def test_early_stopping_keeps_the_best_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = log_of(tmp_path, ordered=True)
    seen: list[dict[str, torch.Tensor]] = []
    values = iter([0.2, 0.5, 0.4, 0.3, 0.9])

    def fake(model: Any, *_: Any, **__: Any) -> dict[str, float]:
        seen.append({name: value.clone() for name, value in model.state_dict().items()})
        return {"hr@10": 1.0, "ndcg@10": next(values), "users": 1}

    monkeypatch.setattr("recall_lib.training.loop.validate", fake)
    facts = run(tmp_path / "out", files, training={"epochs": 5, "early_stopping": 2})
    assert facts["epochs"] == 4
    assert facts["validation"]["ndcg@10"] == 0.5
    for name, value in weights(tmp_path / "out").items():
        assert torch.equal(value, seen[1][name])


def test_max_steps_and_no_validation(tmp_path: Path) -> None:
    files = log_of(tmp_path, ordered=True)
    facts = run(tmp_path / "out", (files[0], []), training={"max_steps": 5, "early_stopping": 1})
    assert (facts["steps"], facts["validation"]) == (5, {})


def test_a_loss_that_is_no_number_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataRefused, match="learning_rate"):
        run(tmp_path / "out", log_of(tmp_path, ordered=True), training={"learning_rate": 1e30})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(tmp_path: Path) -> None:
    with pytest.raises(RecallError, match=r"training\.device"):
        run(tmp_path / "out", log_of(tmp_path, ordered=True), training={"device": "cuda"})


def test_learning_rates() -> None:
    def rates(**settings: Any) -> list[float]:
        return [learning_rate(Training(learning_rate=1.0, **settings), step, 10) for step in range(10)]

    assert rates() == [1.0] * 10
    assert rates(warmup_steps=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(warmup_steps=2, schedule="linear") == pytest.approx([0.5, 1, 1, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125])
    assert rates(schedule="cosine")[5] == pytest.approx(0.5)
