from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch

from recall_lib.config import Feature, Features, ItemId, Model, Recency
from recall_lib.model import encoders
from recall_lib.model.batch import Batch
from recall_lib.model.encoders import Dropout
from recall_lib.model.towers import YouTubeDNN
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Shared, Windows

FEATURES = Features(
    item_id=ItemId(dim=5),
    user=(Feature(name="user_id", dim=3), Feature(name="type", dim=2)),  # `type`: a name that torch's modules have too
    item=(Feature(name="category", dim=2), Feature(name="tags", dim=4, multi=True)),
)
SIZES = {"item_id": 20, "user_id": 9, "type": 5, "category": 6, "tags": 11}
ENCODERS = ["mean", "lstm", "attention"]
WINDOW = 9
HISTORIES = [[3, 4, 5], [7, 1], [], [19, 19, 2, 3]]
# The values of each token of each history.
VALUES: dict[str, list[list[list[int]]]] = {
    "category": [[[2], [3], [3]], [[4], [1]], [], [[2], [2], [5], [5]]],
    "tags": [[[2], [3, 7], [2]], [[3, 4, 5], [10]], [], [[2], [2, 2], [7], [8]]],
}


def ragged(lists: list[list[int]]) -> Ragged:
    return Ragged.of(np.concatenate(lists).astype(np.int64), np.array([len(values) for values in lists]))


def windows() -> Windows:
    return Windows(
        history=ragged(HISTORIES),
        item={name: ragged(list(chain.from_iterable(lists))) for name, lists in VALUES.items()},
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
        return YouTubeDNN(FEATURES, Model(**{**defaults, **model}), SIZES, WINDOW)

    return build


def silu(x: torch.Tensor) -> torch.Tensor:
    return x / (1 + (-x).exp())


def norm(x: torch.Tensor, weight: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
    return scaled * weight[f"{name}.weight"] + weight[f"{name}.bias"]


def naive_attention(model: YouTubeDNN, row: int) -> torch.Tensor:
    """The last state of the attention encoder, token by token."""
    weight, history = dict(model.named_parameters()), HISTORIES[row]
    if not history:
        return torch.zeros(6)
    states = []
    for place, item in enumerate(history):
        parts = [model.item_table.weight[item]]
        parts += [
            torch.stack([weight[f"tables.bag_{n}.weight"][v] for v in VALUES[n][row][place]]).mean(0)
            for n in ("category", "tags")
        ]
        token = weight["encoder.project.weight"] @ torch.cat(parts) + weight["encoder.project.bias"]
        states.append(norm(token + weight["encoder.position"][place], weight, "encoder.norm_in"))
    for block in ("encoder.blocks.0", "encoder.blocks.1"):
        made = [
            silu(weight[f"{block}.into.weight"] @ norm(s, weight, f"{block}.norm_in") + weight[f"{block}.into.bias"])
            for s in states
        ]
        out = []
        for i, state in enumerate(states):
            gate, _, query, _ = made[i].split(6)
            attended = torch.zeros(6)
            for j in range(i + 1):
                _, value, _, key = made[j].split(6)
                for head in range(2):
                    own = slice(3 * head, 3 * head + 3)
                    bias = weight[f"{block}.distance_bias"][head, i - j]
                    attended[own] += silu(query[own] @ key[own] + bias) * value[own] / WINDOW
            gated = gate * norm(attended, weight, f"{block}.norm_attended")
            out.append(state + weight[f"{block}.out.weight"] @ gated + weight[f"{block}.out.bias"])
        states = out
    return norm(states[-1], weight, "encoder.norm_out")


def naive(model: YouTubeDNN, row: int) -> torch.Tensor:
    """The tower's output for one window, from the definition."""
    weight = dict(model.named_parameters())
    items = model.item_table.weight[torch.tensor(HISTORIES[row], dtype=torch.long)]
    if model.settings.encoder == "mean":
        encoded = items.sum(0) / max(1, len(items))
    elif model.settings.encoder == "attention":
        encoded = naive_attention(model, row)
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
    for name in ("category", "tags") if model.settings.encoder != "attention" else ():
        table, values = weight[f"tables.bag_{name}.weight"], list(chain.from_iterable(VALUES[name][row]))
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


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("age", [False, True])
@pytest.mark.parametrize("activation", ["relu", "linear"])
def test_user_representation_is_the_loop(make: Callable, encoder: str, age: bool, activation: str) -> None:
    model = make(encoder=encoder, example_age=age, output_activation=activation)
    found = model.user_representation(Batch.of(windows()))
    for row in range(4):
        torch.testing.assert_close(found[row], naive(model, row), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_everything_but_padding_learns(make: Callable, encoder: str) -> None:
    model = make(encoder=encoder)
    model.user_representation(Batch.of(windows())).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None
        assert torch.isfinite(parameter.grad).all(), name
        assert parameter.grad.abs().sum() > 0, name
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
        {"similarity": "cosine", "temperature": 0.1},
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
    if model.settings.temperature:
        logits = logits * model.settings.temperature
    elif model.settings.similarity == "cosine":
        logits = torch.cosine_similarity(user[:, None], model.item_weights[None], dim=2)
    torch.testing.assert_close(exported, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_neutral_query_is_a_batch_like_any_other(make: Callable, encoder: str) -> None:
    model = make(encoder=encoder, item_output="separate", item_bias=True)
    given, nothing = windows(), np.zeros(4, np.int64)
    neutral = replace(
        given,
        history=Ragged.of(nothing[:0], nothing),
        item={name: Ragged.of(np.zeros(0, np.int32), nothing[:0]) for name in given.item},
        user={"user_id": given.user["user_id"], "type": nothing + 1},
    )
    vectors = model.user_vectors(Batch.of(neutral))
    assert torch.isfinite(vectors).all()
    assert not torch.equal(vectors[0], vectors[1])


@pytest.mark.parametrize("encoder", ENCODERS)
def test_targets_that_share_a_history_see_their_part_of_it(make: Callable, encoder: str) -> None:
    model = make(encoder=encoder, example_age=True)
    given = windows()
    seen = [(0, 3), (0, 1), (1, 2), (3, 4), (3, 2), (0, 0)]

    def of_targets(column: np.ndarray) -> np.ndarray:
        return column[[row for row, _ in seen]]

    shared = replace(
        given,
        user={name: of_targets(ids) for name, ids in given.user.items()},
        example_age=of_targets(given.example_age),
        target=of_targets(given.target),
        negatives=of_targets(given.negatives),
        shared=Shared(np.array([row for row, _ in seen]), np.array([tokens for _, tokens in seen])),
    )
    found = model.user_representation(Batch.of(shared))
    alone = replace(
        shared,
        history=ragged([HISTORIES[row][:tokens] for row, tokens in seen]),
        item={n: ragged(list(chain.from_iterable(VALUES[n][row][:tokens] for row, tokens in seen))) for n in VALUES},
        shared=None,
    )
    torch.testing.assert_close(found, model.user_representation(Batch.of(alone)), atol=1e-5, rtol=1e-4)


def test_dropout_drops_its_share_and_keeps_the_mean() -> None:
    torch.manual_seed(0)
    dropout, ones = Dropout(0.25), torch.ones(1000, 37)
    found = dropout(ones)
    assert (found == 0).float().mean().item() == pytest.approx(0.25, abs=0.01)
    assert found.mean().item() == pytest.approx(1, abs=0.01)
    assert not torch.equal(found, dropout(ones))
    assert torch.equal(dropout.eval()(ones), ones)


def test_a_tower_without_layers_is_the_encoder(make: Callable) -> None:
    features = Features(item_id=ItemId(dim=6))
    model = YouTubeDNN(features, Model(encoder="attention", encoder_dim=6, tower=()), SIZES, WINDOW)
    batch = Batch.of(replace(windows(), item={}, user={}))
    assert model.user_representation(batch).shape == (4, 6)
    assert "project" not in str(list(dict(model.named_parameters())))


def test_vectors_of_the_day_leave_room_for_the_prior(make: Callable) -> None:
    """The exported score is prior + weight (u - mean u) v; the learnt bias and the mean user's taste have no part in it."""
    model = make(item_bias=True, recency=Recency(weight=0.7))
    torch.nn.init.normal_(model.item_bias)
    batch = Batch.of(windows())
    users, prior = model.user_representation(batch), torch.randn(20)
    model.get_buffer("mean_user").copy_(users[:3].mean(0))
    items = model.item_vectors(of_day=True)
    items[:, 0] += prior
    expected = prior + 0.7 * (users - users[:3].mean(0)) @ model.item_weights.T
    torch.testing.assert_close(model.user_vectors(batch) @ items.T, expected, atol=1e-4, rtol=1e-4)
    logits = model.shared_scores(users, slice(None))  # what validation ranks by
    torch.testing.assert_close(model.user_vectors(batch) @ model.item_vectors().T, logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("bags", [True, False])
@pytest.mark.parametrize("many", [1, 10**9])  # ids from which SciPy's loop is taken
def test_the_gradient_of_a_table_is_the_sum_of_its_rows(monkeypatch, many, bags):
    monkeypatch.setattr(encoders, "_MANY", many)
    lengths = torch.tensor([3, 0, 2, 1]) if bags else None
    values, rows = torch.tensor([4, 2, 4, 1, 4, 2]), torch.randn(4 if bags else 6, 3)
    expected = torch.zeros(5, 3)
    for value, row in zip(values, rows if lengths is None else rows.repeat_interleave(lengths, 0), strict=True):
        expected[value] += row
    torch.testing.assert_close(encoders._sums(values, lengths, rows, 5), expected)
