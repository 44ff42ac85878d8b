"""`recall query` on a published day against its tables and the model, without Spark."""

import json
from datetime import UTC, datetime

import numpy as np
import pytest
import torch
import yaml

from recall_lib.commands import cli, query
from recall_lib.config import Features, Samples
from recall_lib.model import checkpoint
from recall_lib.process import messages
from recall_lib.retrieval.index import ItemIndex
from recall_lib.samples.ragged import Ragged
from tests.inference.conftest import DT, make_config
from tests.inference.test_top_n import by_clicks, vocabulary


@pytest.fixture
def ask(published, tmp_path, monkeypatch, capsys):
    """Runs `recall query`; gives (exit code, rows, stderr)."""
    monkeypatch.setattr("recall_lib.spark.session.start", lambda *_: pytest.fail("a Spark session was started"))

    def run(*argv, **sections):
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(make_config(published, **sections).model_dump(mode="json")))
        code = cli.main(["query", "--config", str(tmp_path / "config.yaml"), "--dt", DT, *argv])
        out, err = capsys.readouterr()
        return code, [line.split("\t") for line in out.splitlines()], err

    return run


def index_of(published):
    return ItemIndex.load(published / "root" / "index" / f"dt={DT}")


def test_a_users_list_is_the_published_one(ask, published, spark):
    rows = spark.read.parquet(str(published / "root" / "top_n" / f"dt={DT}")).collect()
    for row in (rows[0], rows[-1], next(row for row in rows if row["user_id"] == "lonely")):
        code, found, err = ask("--user", row["user_id"], "--n", "5")
        assert (code, err) == (0, "")
        expected = [[str(rank), item, row["source"]] for rank, (item, _) in enumerate(row["items"][:5], 1)]
        assert [[rank, item, source] for rank, item, _, source in found] == expected
        assert [float(line[2]) for line in found] == pytest.approx([score for _, score in row["items"][:5]], rel=1e-6)


def test_json_has_a_line_an_item(ask, monkeypatch):
    _, ((rank, item, score, source),), _ = ask("--history", "i7", "--n", "1")
    monkeypatch.setenv(messages._VARIABLE, "")  # so that what the command leaves there is put back
    code, ((line,),), err = ask("--history", "i7", "--n", "1", "--log-format", "json")
    row = json.loads(line)["row"]
    assert (code, err) == (0, "")
    assert (str(row["rank"]), row["item_id"], f"{row['score']:.7g}", row["source"]) == (rank, item, score, source)


def test_who_is_unknown_gets_the_most_clicked(ask):
    counts = vocabulary()
    hottest = [[str(rank), item, str(counts[item]), "popular"] for rank, item in enumerate(by_clicks(counts)[:10], 1)]
    code, found, err = ask("--user", "nobody")
    assert (code, found) == (0, hottest)
    assert "user 'nobody' has no list in top_n/dt=2024-03-05" in err
    code, found, err = ask("--history", "odd,never")
    assert (code, found) == (0, hottest)
    assert "ignored: 'odd', 'never'" in err


def test_related_items_are_the_nearest_by_angle(ask, published):
    index = index_of(published)
    names, vectors = index.item_ids.to_pylist(), index.vectors.astype(np.float64)
    unit = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    place = names.index("i7")
    cosine = {name: unit[i] @ unit[place] for i, name in enumerate(names) if i > 1 and i != place}
    code, found, _ = ask("--item", "i7", "--n", "4")
    assert code == 0
    assert [item for _, item, *_ in found] == sorted(cosine, key=lambda name: -cosine[name])[:4]
    assert [float(line[2]) for line in found] == pytest.approx(sorted(cosine.values(), reverse=True)[:4], abs=1e-6)
    assert {source for *_, source in found} == {"vectors"}
    code, found, err = ask("--item", "odd")
    assert (code, found) == (3, [])
    assert "item 'odd' is not in index/dt=2024-03-05: ask for one with" in err


@pytest.mark.parametrize("filter_seen", [True, False])
def test_a_history_is_given_to_the_model(ask, published, filter_seen):
    """The last window_size known clicks, every feature unknown."""
    index = index_of(published)
    names = index.item_ids.to_pylist()
    model, _ = checkpoint.load(published / "root" / "models" / f"dt={DT}")
    clicks = ["i9", "i1", "i2", "odd", "i3", "i4", "i5", "i5"]
    window = [names.index(item) for item in clicks if item != "odd"][-5:]
    with torch.no_grad():
        parts = [model.item_table.weight[window].mean(0), model.tables["user_user_id"].weight[1]]
        parts += [model.tables["user_city"].weight[1], model.tables["bag_tags"].weight[1]]
        scores = (model.item_vectors() @ model.tower(torch.cat(parts))).tolist()
    code, found, err = ask("--history", ",".join(clicks), "--n", "30", top_n={"filter_seen": filter_seen})
    assert code == 0
    assert "not in the vocabulary of 2024-03-05 and ignored: 'odd'" in err
    rest = [i for i in range(2, 32) if not (filter_seen and names[i] in clicks)]
    assert [item for _, item, *_ in found] == [names[i] for i in sorted(rest, key=lambda i: -scores[i])]
    assert {source for *_, source in found} == {"model"}


@pytest.mark.parametrize("order", ["oldest_first", "newest_first"])
def test_a_window_has_the_items_features(order):
    features = Features(user=({"name": "city"},), item=({"name": "tags", "multi": True}, {"name": "kind"}))
    samples = Samples(window_size=3, max_history=2, order=order)
    tags = Ragged.of(np.array([10, 11, 12]), np.array([0, 0, 2, 1, 0]))  # of items 2, 3; item 4 has none
    window = query.window_of(np.array([4, 2, 3, 4]), {"tags": tags}, features, samples, datetime(2024, 3, 5, tzinfo=UTC))
    expected = [(3, [12], [1]), (4, [1], [1])]
    found = list(zip(window.history.values.tolist(), lists(window.item["tags"]), lists(window.item["kind"]), strict=True))
    assert found == expected[:: 1 if order == "oldest_first" else -1]
    assert (window.user["city"].tolist(), window.example_age.tolist(), window.target.tolist()) == ([1], [0], [0])


def lists(ragged):
    return [part.tolist() for part in np.split(ragged.values, ragged.offsets[1:-1])]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--user", "u", "--n", "0"], "'0' is not a whole number from 1 to"),
        (["--user", "u", "--item", "i"], "not allowed with"),
        ([], "one of the arguments --user --item --history is required"),
    ],
)
def test_bad_usage(ask, capsys, argv, said):
    with pytest.raises(SystemExit) as end:
        ask(*argv)
    assert end.value.code == 2
    assert said in capsys.readouterr().err


def test_a_day_without_tables_and_a_changed_model_are_refused(ask):
    assert ask("--user", "u1", paths={"root": "/nonexistent/x"})[0] == 3
    code, found, err = ask("--history", "i1", model={"tower": (4, 8)})
    assert (code, found) == (3, [])
    assert "models/dt=2024-03-05 was made with other settings in model" in err
