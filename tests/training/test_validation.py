import math
from pathlib import Path

import numpy as np
import pytest
import torch

from recall_lib.model.batch import Batch
from recall_lib.model.towers import YouTubeDNN
from recall_lib.samples.ragged import Ragged
from recall_lib.training.loader import read_segments
from recall_lib.training.ranks import Alone
from recall_lib.training.validation import evaluate, places
from tests.training.synthetic import FEATURES, SAMPLES, SIZES, make_spec, sequences, write_runs


def test_places_are_the_sorted_list() -> None:
    random = np.random.default_rng(0)
    scores = random.integers(0, 4, (60, 15)).astype(np.float32)  # many ties
    target = random.integers(1, 15, 60)
    seen = [sorted(set(random.integers(2, 15, 4).tolist())) for _ in range(60)]
    found = places(
        torch.tensor(scores), torch.tensor(target), Ragged.of(np.concatenate(seen), np.array([len(s) for s in seen]))
    )
    for row in range(60):
        candidates = sorted((i for i in range(2, 15) if i not in seen[row]), key=lambda i: (-scores[row, i], i))
        expected = {1: 15} | dict.fromkeys(seen[row], -1) | {item: place for place, item in enumerate(candidates)}
        assert found[row] == expected[target[row]]


def test_hit_rate_and_gain_over_files_of_several_row_groups(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = YouTubeDNN(FEATURES, make_spec([], [], model={"embedding_std": 1.0}).model, SIZES, SAMPLES.window_size)
    users = sequences(40, 6, ordered=False)
    users[3][-1] = 1  # outside the vocabulary: a miss
    users[4][-1] = users[4][0]  # seen: not scored
    users[5] = users[5][-1:]  # no history: not scored
    urls = [write_runs(tmp_path / f"{i}.parquet", users[i::2], held_out=True, row_group_size=7).url for i in range(2)]
    found = evaluate(model, urls, FEATURES, SAMPLES, torch.device("cpu"), Alone())
    hits, gains, scored = 0, 0.0, 0
    for file in range(2):
        runs, _ = next(
            iter(read_segments([write_runs(tmp_path / "all.parquet", users[file::2], held_out=True).url], FEATURES, SAMPLES))
        )
        with torch.no_grad():
            scores = model.user_vectors(Batch.of(runs.windows(np.arange(len(runs))))) @ model.item_vectors().T
        for items, row in zip(users[file::2], scores, strict=True):
            *history, target = items
            if not history or target in history:
                continue
            scored += 1
            ranking = sorted((i for i in range(2, SIZES["item_id"]) if i not in history), key=lambda i: (-row[i], i))[:10]
            if target in ranking:
                hits += 1
                gains += 1 / math.log2(ranking.index(target) + 2)
    assert scored < 39
    assert found == pytest.approx({"hr@10": hits / scored, "ndcg@10": gains / scored, "users": scored})
    assert evaluate(model, [], FEATURES, SAMPLES, torch.device("cpu"), Alone()) == {}
