"""What the towers make of numbers, several values a user, times and further sequences, from the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recall_lib.config import Features, Model, tower_input
from recall_lib.model import checkpoint
from recall_lib.model.batch import Batch
from recall_lib.model.towers import YouTubeDNN
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Windows
from tests.model.test_towers import ENCODERS, ragged

FEATURES = Features.model_validate(
    {
        "item_id": {"dim": 4},
        "user": [{"name": "city", "dim": 2}, {"name": "interests", "multi": True, "dim": 3}],
        "item": [{"name": "category", "dim": 4}],
        "time": [{"name": "weekday", "dim": 2}],
        "numbers": [
            {"name": "age"},
            {"name": "income", "form": "buckets", "dim": 2},
            {"name": "height", "form": "raw"},
            {"name": "price", "of": "item"},
        ],
        "sequences": [
            {"name": "searches", "dim": 3, "tokens": "words"},
            {"name": "likes", "dim": 5, "pooling": "encoder", "window_size": 4},
        ],
    }
)
SIZES = {"item_id": 9, "city": 4, "interests": 7, "category": 5, "weekday": 9, "income": 12, "searches": 8, "likes": 9}
HISTORIES = [[2, 3, 4], [], [5]]
LISTS = {"interests": [[2, 3], [1], [6]], "searches": [[2, 2, 7], [], [1]], "likes": [[3, 4], [2], []]}
PRICES = [0.5, float("nan"), 1.0, 0.25]
NAN = float("nan")


def windows() -> Windows:
    tokens = sum(map(len, HISTORIES))
    return Windows(
        history=ragged(HISTORIES),
        item={"category": Ragged.of(np.arange(tokens) % 3 + 2, np.ones(tokens, np.int64))},
        user={"city": np.array([2, 1, 3]), "weekday": np.array([2, 8, 5]), "income": np.array([2, 11, 1])},
        example_age=np.zeros(3, np.float32),
        target=np.array([2, 3, 4]),
        negatives=np.zeros((3, 0), np.int64),
        lists={name: ragged(values) for name, values in LISTS.items()},
        numbers={"age": np.array([0.25, NAN, 1], np.float32), "height": np.array([170, -2, NAN], np.float32)},
        item_numbers={"price": np.array(PRICES, np.float32)},
    )


def make(content: dict | None = None, **model: object) -> YouTubeDNN:
    torch.manual_seed(0)
    settings = Model.model_validate({"tower": (), "embedding_std": 1.0, "encoder_dim": 4, **model})
    if settings.item_rows != "own":
        content = {
            "category": [torch.tensor([2, 3, 4]), torch.tensor([0, 0, 0, 1, 2, 3, 3, 3, 3, 3])],
            "price": [torch.tensor([NAN, NAN, 0.5, 0.25, NAN, 1, 1, 1, 1])],
        }
    return YouTubeDNN(FEATURES, settings, SIZES, 5, content).eval()


def quantile(value: float) -> list[float]:
    return [0, 0, 0, 1] if np.isnan(value) else [value, value**2, value**0.5, 0]


def raw(value: float) -> list[float]:
    return [0, 1] if np.isnan(value) else [value, 0]


def mean(table: torch.Tensor, ids: list[int]) -> torch.Tensor:
    return table[ids].mean(0) if ids else torch.zeros(table.shape[1])


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("item_rows", ["own", "content", "both"])
def test_the_tower_reads_each_feature(encoder: str, item_rows: str) -> None:
    model = make(encoder=encoder, item_rows=item_rows)
    batch = Batch.of(windows())
    weight = dict(model.named_parameters())

    def table(name: str) -> torch.Tensor:
        return weight[f"tables.{name}.weight"]

    with torch.no_grad():
        encoded = model._encoded(batch)
        liked = model.sequence_encoders["of_likes"]
        rows = []
        for i in range(3):
            parts = [
                encoded[i],
                table("user_city")[batch.user["city"][i]],
                mean(table("user_interests"), LISTS["interests"][i]),
            ]
            parts += [table("user_weekday")[batch.user["weekday"][i]], table("user_income")[batch.user["income"][i]]]
            parts += [
                torch.tensor(quantile(float(batch.numbers["age"][i]))),
                torch.tensor(raw(float(batch.numbers["height"][i]))),
            ]
            parts.append(mean(table("user_searches"), LISTS["searches"][i]))
            one = alone(LISTS["likes"][i])
            if encoder == "attention":
                parts.append(liked(table("user_likes")[one.history], one)[0])
            else:
                parts.append(liked(table("user_likes"), one, sparse=False)[0])
            if encoder != "attention" and item_rows == "own":
                start = sum(map(len, HISTORIES[:i]))
                own = list(range(start, start + len(HISTORIES[i])))
                parts.append(mean(table("bag_category"), [2 + token % 3 for token in own]))
                prices = [quantile(PRICES[token]) for token in own]
                parts.append(torch.tensor(prices).mean(0) if prices else torch.zeros(4))
            rows.append(torch.cat([part.float() for part in parts]))
        assert torch.stack(rows).shape[1] == tower_input(FEATURES, model.settings)
        assert torch.allclose(model.user_representation(batch), torch.stack(rows), atol=1e-6)


def alone(history: list[int]) -> Batch:
    """One history and nothing else."""
    return Batch.of(
        Windows(
            history=ragged([history]),
            item={},
            user={},
            example_age=np.zeros(1, np.float32),
            target=np.array([2]),
            negatives=np.zeros((1, 0), np.int64),
        )
    )


@pytest.mark.parametrize("item_rows", ["content", "both"])
def test_an_items_row_is_made_of_its_numbers_too(item_rows: str) -> None:
    model = make(item_rows=item_rows)
    with torch.no_grad():
        rows = model.item_rows()
        price = torch.tensor([quantile(value) for value in [NAN, NAN, 0.5, 0.25, NAN, 1, 1, 1, 1]])
        category = torch.zeros(9, 4)
        category[2:5] = model.tables["bag_category"].weight[2:5]
        expected = category + F.linear(price.float(), model.numbers_to_row.weight, model.numbers_to_row.bias)
        if item_rows == "both":
            expected = expected + model.item_table.weight
    assert torch.allclose(rows, expected, atol=1e-6)


@pytest.mark.parametrize("item_rows", ["own", "content"])
def test_a_saved_model_gives_the_same_vectors(item_rows: str, tmp_path) -> None:
    from recall_lib.config import Samples

    model = make(item_rows=item_rows)
    checkpoint.save(tmp_path, model, FEATURES, Samples(window_size=5), SIZES, "v")
    loaded, _ = checkpoint.load(tmp_path)
    with torch.no_grad():
        batch = Batch.of(windows())
        assert torch.equal(loaded.user_vectors(batch), model.user_vectors(batch))
        assert torch.equal(loaded.item_vectors(), model.item_vectors())


def test_targets_that_share_a_history_see_the_same_as_alone() -> None:
    """training.unit `run`: one history of three tokens, whose targets see one, two and three of them."""
    from dataclasses import replace

    from recall_lib.samples.windows import Shared

    own = windows()
    shared = replace(
        own,
        history=ragged([[2, 3, 4]]),
        item={"category": Ragged.of(np.array([2, 3, 4]), np.ones(3, np.int64))},
        item_numbers={"price": np.array(PRICES[:3], np.float32)},
        shared=Shared(np.zeros(3, np.int64), np.array([1, 2, 3])),
    )
    single = replace(
        own,
        history=ragged([[2], [2, 3], [2, 3, 4]]),
        item={"category": Ragged.of(np.array([2, 2, 3, 2, 3, 4]), np.ones(6, np.int64))},
        item_numbers={"price": np.array([PRICES[i] for i in (0, 0, 1, 0, 1, 2)], np.float32)},
    )
    for encoder in ENCODERS:
        model = make(encoder=encoder)
        with torch.no_grad():
            together, apart = (model.user_representation(Batch.of(w)) for w in (shared, single))
        assert torch.allclose(together, apart, atol=1e-5), encoder
