from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch

from recall_lib.config import Feature, Features, ItemFeature, ItemId, Model
from recall_lib.model.batch import Batch
from recall_lib.model.towers import YouTubeDNN
from recall_lib.runs import Ragged, Windows

FEATURES = Features(
    item_id=ItemId(dim=5),
    user=(Feature(name="user_id", dim=3), Feature(name="type", dim=2)),  # `type`: a name that torch's modules have too
    item=(ItemFeature(name="category", dim=2), ItemFeature(name="tags", dim=4, multi=True)),
)
SIZES = {"item_id": 20, "user_id": 9, "type": 5, "category": 6, "tags": 11}
HISTORIES = [[3, 4, 5], [7, 1], [], [19, 19, 2, 3]]
BAGS = {"category": [[2, 3, 3], [4, 1], [], [2, 2, 5, 5]], "tags": [[2], [3, 4, 5, 10], [], [2, 2, 2, 7, 8]]}


def ragged(lists: list[list[int]]) -> Ragged:
    return Ragged.of(np.concatenate(lists).astype(np.int32), np.array([len(values) for values in lists]))


def windows(width: int = 4) -> Windows:
    history = np.zeros((4, width), np.int64)
    for i, tokens in enumerate(HISTORIES):
        history[i, : len(tokens)] = tokens
    return Windows(
        history=history,
        length=np.array([len(h) for h in HISTORIES]),
        bags={name: ragged(lists) for name, lists in BAGS.items()},
        user={"type": np.array([2, 3, 1, 4]), "user_id": np.array([5, 6, 7, 8])},  # not in the features' order
        example_age=np.array([0, 1.5, 30, 400], np.float32),
        target=np.array([2, 3, 4, 5]),
        negatives=np.zeros((4, 0), np.int64),
    )


@pytest.fixture
def make() -> Callable[..., YouTubeDNN]:
    def build(**model: object) -> YouTubeDNN:
        torch.manual_seed(0)
        defaults = {"tower": (8, 5), "embedding_std": 1.0, "encoder_dim": 6}
        return YouTubeDNN(FEATURES, Model(**{**defaults, **model}), SIZES)

    return build


def naive(model: YouTubeDNN, row: int) -> torch.Tensor:
    """The tower's output for one window, from the definition."""
    weight = dict(model.named_parameters())
    items = model.item_table.weight[torch.tensor(HISTORIES[row], dtype=torch.long)]
    if model.settings.encoder == "mean":
        encoded = items.sum(0) / max(1, len(items))
    else:
        hidden = cell = torch.zeros(6)
        steps = []
        for item in items:
            gates = (
                weight["encoder.lstm.weight_ih_l0"] @ item
                + weight["encoder.lstm.bias_ih_l0"]
                + weight["encoder.lstm.weight_hh_l0"] @ hidden
                + weight["encoder.lstm.bias_hh_l0"]
            )
            i, f, g, o = gates.chunk(4)
            cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
            hidden = o.sigmoid() * cell.tanh()
            steps.append(hidden)
        encoded = torch.stack(steps).max(0).values if steps else torch.zeros(6)
    given = windows()
    parts = [encoded]
    parts += [weight[f"tables.user_{name}.weight"][given.user[name][row]] for name in ("user_id", "type")]
    for name in ("category", "tags"):
        table, values = weight[f"tables.bag_{name}.weight"], BAGS[name][row]
        parts.append(sum((table[v] for v in values), torch.zeros(table.shape[1])) / max(1, len(values)))
    if model.settings.example_age:
        parts.append(torch.log(1 + torch.tensor([given.example_age[row]])))
    out = torch.cat(parts)
    layers = [layer for layer in model.tower if isinstance(layer, torch.nn.Linear)]
    for layer in layers:
        out = layer.weight @ out + layer.bias
        if layer is not layers[-1] or model.settings.output_activation == "relu":
            out = out.clamp(min=0)
    return out


@pytest.mark.parametrize("encoder", ["mean", "lstm"])
@pytest.mark.parametrize("age", [False, True])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_user_representation_is_the_loop(make: Callable, encoder: str, age: bool, activation: str) -> None:
    model = make(encoder=encoder, example_age=age, output_activation=activation)
    found = model.user_representation(Batch.of(windows()))
    for row in range(4):
        torch.testing.assert_close(found[row], naive(model, row), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ["mean", "lstm"])
def test_padding_changes_nothing_and_learns_nothing(make: Callable, encoder: str) -> None:
    model = make(encoder=encoder)
    narrow, wide = (model.user_representation(Batch.of(windows(width))) for width in (4, 9))
    torch.testing.assert_close(narrow, wide)
    wide.square().sum().backward()
    assert torch.isfinite(wide).all()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all(), name
        if "table" in name:
            assert parameter[0].abs().sum() == 0, name
            assert parameter.grad[0].abs().sum() == 0, name


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"item_output": "separate"},
        {"item_output": "separate", "item_bias": True, "tower": (8, 3), "output_activation": "relu"},
        {"similarity": "cosine"},
    ],
)
def test_exported_vectors_give_the_score(make: Callable, settings: dict) -> None:
    model = make(**settings)
    if model.item_bias is not None:
        torch.nn.init.normal_(model.item_bias)
    batch = Batch.of(windows())
    exported = model.user_vectors(batch) @ model.item_vectors().T
    user = model.user_representation(batch)
    logits = model.shared_scores(user, slice(None))
    torch.testing.assert_close(logits, model.scores(user, torch.arange(20).repeat(4, 1)))
    if model.settings.similarity == "cosine":
        logits = torch.cosine_similarity(user[:, None], model.item_weights[None], dim=2)
    torch.testing.assert_close(exported, logits, atol=1e-5, rtol=1e-4)


def test_a_neutral_query_is_a_batch_like_any_other(make: Callable) -> None:
    model = make(encoder="lstm", item_output="separate", item_bias=True)
    given, nothing = windows(), np.zeros(4, np.int64)
    neutral = replace(
        given,
        history=np.zeros((4, 1), np.int64),
        length=nothing,
        bags={name: Ragged.of(np.zeros(0, np.int32), nothing) for name in given.bags},
        user={"user_id": given.user["user_id"], "type": nothing + 1},
    )
    vectors = model.user_vectors(Batch.of(neutral))
    assert torch.isfinite(vectors).all()
    assert not torch.equal(vectors[0], vectors[1])
