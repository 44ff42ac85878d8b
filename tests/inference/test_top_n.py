"""Vectors, index and top-N through their jobs, against loops over the log and the model."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import faiss
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from pyspark.sql import functions as F

from jobs import index as index_job
from jobs.top_n import read_popular
from recall_lib.config import TopN
from recall_lib.day.inputs import map_histories, read_allowed_items
from recall_lib.inference.shipping import Shipped, load_model
from recall_lib.inference.top_n import TOP_N, TOP_N_USER_ID, VECTORS, infer_and_search, save_recommendable
from recall_lib.inference.vectors import user_vectors
from recall_lib.model import checkpoint
from recall_lib.process.errors import DataRefused
from recall_lib.retrieval import simple_lsh
from recall_lib.retrieval.index import ItemIndex
from recall_lib.samples.ids import UNKNOWN
from recall_lib.store import schemas
from recall_lib.transforms.vocab import known_items
from tests.inference.conftest import DT, make_log, publish_untrained, read_vocab, run_job, ship


def clicks_by_user():
    users = {}
    for line in make_log()[1:]:
        user, item, time, *_ = line.split(",")
        users.setdefault(user, []).append((int(time), item))
    return {user: [item for _, item in sorted(own)] for user, own in users.items()}


def vocabulary():
    counts = Counter(item for own in clicks_by_user().values() for item in own)
    return {item: n for item, n in counts.items() if n >= 2}


def collect(ctx, dataset, schema, **keys):
    return ctx.tables.get(dataset, DT, **keys).read(schema).collect()


def assert_lists(ctx, allowed):
    """top_n/dt is the definition: of the allowed items the seven best that the user has not clicked."""
    rows = {row["user_id"]: row for row in collect(ctx, "top_n", schemas.TOP_N)}
    users, kept = clicks_by_user(), vocabulary()
    assert rows.keys() == users.keys()
    assert len(rows) == ctx.tables.get("top_n", DT).manifest["rows"]
    items = {row["item_id"]: row["vector"] for row in collect(ctx, "vectors", schemas.ITEM_VECTORS, kind="item")}
    vectors = {row["user_id"]: row["vector"] for row in collect(ctx, "vectors", schemas.USER_VECTORS, kind="user")}
    assert items.keys() == kept.keys()
    assert vectors.keys() == users.keys()
    version = ctx.tables.get("models", DT).manifest["version"]
    for user, own in users.items():
        if kept.keys() & set(own):
            scores = {item: np.float32(np.dot(np.float64(v), np.float64(vectors[user]))) for item, v in items.items()}
            source = "model"
        else:
            scores, source = kept, "popular"
        best = sorted((item for item in allowed if item not in own), key=lambda item: (-scores[item], item.encode()))[:7]
        assert [item["item_id"] for item in rows[user]["items"]] == best
        np.testing.assert_allclose([item["score"] for item in rows[user]["items"]], [scores[item] for item in best], rtol=1e-5)
        assert (rows[user]["source"], rows[user]["model_version"]) == (source, version)
    assert rows["lonely"]["source"] == "popular"
    return {user: [item["item_id"] for item in row["items"]] for user, row in rows.items()}


def test_top_n_against_the_definition(prepared):
    ctx = prepared()
    assert len(assert_lists(ctx, vocabulary())["heavy"]) == 2


def rows_of(table, batches, **search):
    """What the pass over users yields for one of its tables."""
    return pa.Table.from_batches(rows for name, rows in infer_and_search(batches, **search) if name == table).to_pylist()


def write_list(ctx, name, items):
    (Path(ctx.config.input.path) / name).write_text("\n".join(["article_id,why", *(f"{item},x" for item in items)]) + "\n")


def by_clicks(items):
    counts = vocabulary()
    return sorted(items, key=lambda item: (-counts[item], item.encode()))


def test_a_ban_and_an_allow_list_hold_for_every_user(prepared):
    """Without a new index; who has seen much of what is left, and who gets the popular list, still get seven."""
    ctx = prepared(top_n={"allow": "allow.csv", "deny": "deny.csv"})
    hottest = by_clicks(vocabulary())
    denied, allow = hottest[:6], hottest[3:28]
    write_list(ctx, "deny.csv", [*denied, "never heard of"])
    write_list(ctx, "allow.csv", [*allow, *allow, "odd", ""])
    run_job(ctx, "top_n")
    lists = assert_lists(ctx, set(allow) - set(denied))
    assert lists["lonely"] == hottest[6:13]
    clicked = {user: len(set(own) & set(allow) - set(denied)) for user, own in clicks_by_user().items()}
    assert max(seen for user, seen in clicked.items() if len(lists[user]) == 7) > 12
    made_from = ctx.tables.get("top_n", DT).manifest["inputs"]
    assert {"top_n.allow", "top_n.deny"} < made_from.keys()


@pytest.mark.parametrize("wanted", [None, ["u7", "u1", "stranger", "u3"]])
def test_the_index_is_chosen_by_users_drawn_by_hash(prepared, monkeypatch, wanted):
    """Of those that get a list the first by the hash of their ids, each different vector once, as the table has them."""
    ctx = prepared(**({"input": {"users": "users.csv"}} if wanted else {}))
    if wanted:
        (Path(ctx.config.input.path) / "users.csv").write_text("\n".join(["user_id", *wanted]) + "\n")
        run_job(ctx, "top_n")
    monkeypatch.setattr(index_job, "USERS", 5)
    found, inputs = index_job.sample_users(ctx, 8)
    table = ctx.tables.get("vectors", DT, kind="user").read(schemas.USER_VECTORS)
    by_hash = table.orderBy(F.xxhash64(F.lit(ctx.config.seed), F.lit("index"), "user_id"), "user_id").limit(20).collect()
    different = dict.fromkeys(tuple(row["vector"]) for row in by_hash)
    assert len(by_hash) == (4 if wanted else 20)
    # Batches of other sizes round differently.
    np.testing.assert_allclose(found, list(different)[:5], rtol=1e-5)
    assert inputs.keys() == {*(f"events/dt=2024-03-0{day}" for day in (2, 3, 4)), "vocab"}


def test_what_the_lists_leave(prepared):
    ctx = prepared()

    def allowed_by(ids=(), **lists):
        write_list(ctx, "some.csv", ids)
        config = ctx.config.model_copy(update={"top_n": TopN(**lists)})
        allowed, inputs, _ = read_allowed_items(replace(ctx, config=config))
        return {names[item] for item in np.flatnonzero(allowed)}, inputs

    kept, some = vocabulary().keys(), ["i3", "i4", "odd"]
    names = {row["item_index"]: row["item_id"] for row in known_items(read_vocab(ctx)).collect()}
    assert allowed_by() == (kept, {})
    assert allowed_by(some, allow="some.csv")[0] == {"i3", "i4"}
    found, digest = allowed_by(some, deny="some.csv")
    assert found == kept - {"i3", "i4"}
    assert allowed_by([*some[::-1], "i3"], deny="some.csv")[1] == digest
    assert allowed_by([], deny="some.csv") != (kept, digest)
    with pytest.raises(DataRefused, match="leave none of the 30 items of vocab/dt=2024-03-05: check the ids in column article"):
        allowed_by(["odd"], allow="some.csv")


def test_rows_of_lists_are_counted_and_limited(prepared):
    ctx = prepared()
    write_list(ctx, "some.csv", ["i3", "", "None", "i4", "i4,more", "i5", "i6"])
    config = ctx.config.model_copy(update={"top_n": TopN(deny="some.csv")})
    _, _, counts = read_allowed_items(replace(ctx, config=config))
    assert counts == {"top_n.deny": {"in": 7, "kept": 4, "rejected_malformed": 1, "rejected_no_id": 2}}
    strict = config.model_copy(update={"input": config.input.model_copy(update={"max_reject_share": 0.1})})
    with pytest.raises(DataRefused, match=r"3 of 7 rows are unreadable \(malformed 1, no_id 2\).* mend top_n\.deny"):
        read_allowed_items(replace(ctx, config=strict))


def histories_of(ctx):
    """Every user's history, as rows of schemas.segments."""
    return map_histories(ctx, iter, schemas.segments(ctx.config.features))[0].toPandas()


def test_an_unknown_id_with_a_long_history_still_gets_a_whole_list(prepared, tmp_path):
    """With user_id_only the popular list goes as deep as what its user has seen asks for."""
    ctx = prepared()
    pandas = histories_of(ctx)
    pandas["user_id_index"] = [[UNKNOWN]] * len(pandas)
    clicks, allowed = read_popular(ctx, 32)[0], np.arange(32) > 4
    save_recommendable(tmp_path, allowed, clicks)
    search = {
        "model": ship(ctx, "models"),
        "index": ship(ctx, "index"),
    }
    batch = pa.RecordBatch.from_pandas(pandas, preserve_index=False)
    recommendable = Shipped(str(tmp_path), "these")
    search |= {"recommendable": recommendable, "n": 7, "filter_seen": True, "user_id_only": True}
    names = {row["item_index"]: row["item_id"] for row in known_items(read_vocab(ctx)).collect()}
    rest = {names[item] for item in np.flatnonzero(allowed)}
    for row in rows_of(TOP_N_USER_ID, [batch], **search):
        expected = by_clicks(rest - set(clicks_by_user()[row["user_id"]]))[:7]
        assert [item["item_id"] for item in row["items"]] == expected
        assert [item["score"] for item in row["items"]] == [vocabulary()[item] for item in expected]
        assert row["source"] == "popular"


def test_user_vectors_see_the_last_window(prepared):
    """The tower is fed the user's last window_size known clicks, and the features of the newest click."""
    ctx = prepared()
    model, _ = checkpoint.load(ctx.tables.get("models", DT).folder)
    index = {(row["feature"], row["value"]): row["index"] for row in read_vocab(ctx).collect() if row["value"]}
    vectors = {row["user_id"]: row["vector"] for row in collect(ctx, "vectors", schemas.USER_VECTORS, kind="user")}
    lines = [line.split(",") for line in make_log()[1:]]
    for user, own in clicks_by_user().items():
        known = [index["item_id", item] for item in own if item in vocabulary()][-5:]
        newest = max((int(line[2]), line[1], line[4]) for line in lines if line[0] == user)
        parts = [model.item_table.weight[known].mean(0) if known else torch.zeros(8)]
        parts.append(model.tables["user_user_id"].weight[index.get(("user_id", user), 1)])
        parts.append(model.tables["user_city"].weight[index.get(("city", newest[2]), 1)])
        tags = [f"t{int(item[1:]) % k}" for item in own if item in vocabulary() for k in (5, 7)][-10:]
        if user == "heavy":  # its clicks carry one tag each
            continue
        ids = [index.get(("tags", tag), 1) for tag in tags]
        parts.append(model.tables["bag_tags"].weight[ids].mean(0) if known else torch.zeros(4))
        with torch.no_grad():
            np.testing.assert_allclose(vectors[user], model.tower(torch.cat(parts)), rtol=1e-4, atol=1e-5)


def test_any_partitioning_gives_the_same_rows(prepared):
    ctx = prepared()
    digests = [digests_of_the_pass(ctx)]
    for partitions in (1, 5):
        run_job(prepared_with(ctx, partitions), "top_n")
        digests.append(digests_of_the_pass(ctx))
    assert digests == digests[:1] * 3


def digests_of_the_pass(ctx):
    return [ctx.tables.get(name, DT, **keys).digest for name, keys in (("vectors", {"kind": "user"}), ("top_n", {}))]


def test_the_user_id_alone(prepared):
    """Users that agree in everything but the id differ; histories and features are not looked at."""
    ctx = prepared(top_n={"user_id_only": True, "filter_seen": False})
    run_job(ctx, "top_n")
    rows = {row["user_id"]: row for row in collect(ctx, "top_n_user_id", schemas.TOP_N)}
    assert rows.keys() == clicks_by_user().keys()
    model, _ = checkpoint.load(ctx.tables.get("models", DT).folder)
    index = {(row["feature"], row["value"]): row["index"] for row in read_vocab(ctx).collect() if row["value"]}
    names = {i: value for (feature, value), i in index.items() if feature == "item_id"}
    for user in ("u0", "u5", "lonely"):
        with torch.no_grad():
            parts = [torch.zeros(8), model.tables["user_user_id"].weight[index["user_id", user]]]
            parts += [model.tables["user_city"].weight[1], torch.zeros(4)]
            scores = model.item_vectors() @ model.tower(torch.cat(parts))
        best = sorted(names, key=lambda i: (-float(scores[i]), names[i]))[:7]
        assert [item["item_id"] for item in rows[user]["items"]] == [names[i] for i in best]
        assert rows[user]["source"] == "model"


def test_an_input_users_table_decides_who_gets_a_list(prepared):
    ctx = prepared(input={"users": "users.csv"})
    (Path(ctx.config.input.path) / "users.csv").write_text("user_id\nu1\nstranger\n007\n")
    run_job(ctx, "top_n")
    rows = {row["user_id"]: row for row in collect(ctx, "top_n", schemas.TOP_N)}
    assert {user: row["source"] for user, row in rows.items()} == {"u1": "model", "stranger": "popular", "007": "popular"}
    hottest = sorted(vocabulary().items(), key=lambda pair: (-pair[1], pair[0].encode()))[:7]
    assert [(item["item_id"], item["score"]) for item in rows["stranger"]["items"]] == hottest


def test_fingerprints_that_differ_are_refused_before_anything_is_written(prepared):
    ctx = prepared()
    before = ctx.tables.get("top_n", DT).manifest
    publish_untrained(ctx, seed=1)
    with pytest.raises(DataRefused, match="index/dt=2024-03-05 was made with another model_version: run `recall index"):
        run_job(ctx, "top_n")
    with pytest.raises(DataRefused, match="vectors/dt=2024-03-05 was made with another model_version"):
        run_job(ctx, "index")
    publish_untrained(ctx, vocab="another")
    for job in ("vectors", "index", "top_n"):
        with pytest.raises(DataRefused, match="models/dt=2024-03-05 was trained on another vocabulary"):
            run_job(ctx, job)
    assert ctx.tables.get("top_n", DT).manifest == before
    publish_untrained(ctx)
    with pytest.raises(DataRefused, match="popular/dt=2024-03-05 was made with another vocabulary: run `recall popular"):
        read_popular(ctx, 33)


def test_plain_iterators_of_batches(prepared, tmp_path):
    """The executor functions need no Spark: lists in, lists out, however they are cut."""
    ctx = prepared()
    pandas = histories_of(ctx)
    whole = pa.RecordBatch.from_pandas(pandas, preserve_index=False)
    model, index = ship(ctx, "models"), ship(ctx, "index")
    save_recommendable(tmp_path, np.arange(32) > 1, np.arange(32))
    recommendable = Shipped(str(tmp_path), "all")
    search = {"model": model, "index": index, "recommendable": recommendable, "n": 5, "filter_seen": True}
    cut = [whole.slice(start, 4) for start in range(0, whole.num_rows, 4)]
    for table in (VECTORS, TOP_N, TOP_N_USER_ID):
        expected = rows_of(table, [whole], **search, user_id_only=True)
        assert rows_of(table, iter(cut), **search, user_id_only=True) == expected
        assert [row["user_id"] for row in expected] == pandas["user_id"].tolist()
    assert {table for table, _ in infer_and_search(cut, **search)} == {VECTORS, TOP_N}
    assert pa.Table.from_batches(user_vectors(cut, model=model)).to_pylist() == rows_of(VECTORS, [whole], **search)


def test_a_reused_worker_loads_the_new_model(prepared):
    ctx = prepared()
    versions = []
    for seed in (0, 1):
        publish_untrained(ctx, seed=seed)
        versions.append(load_model(ship(ctx, "models"))[1]["version"])
    assert versions[0] != versions[1]
    stale = Shipped(ctx.tables.get("models", DT).folder, "another digest")
    with pytest.raises(DataRefused, match="published again while it was being used"):
        load_model(stale)


def test_the_index_for_online_search(prepared):
    ctx = prepared()
    folder = Path(ctx.tables.get("index", DT).folder)
    index = ItemIndex.load(folder)
    lsh = np.load(folder / "item_vectors_simple_lsh.npy")
    np.testing.assert_array_equal(lsh[:, :-1], index.vectors)
    np.testing.assert_allclose(np.linalg.norm(lsh, axis=1), np.linalg.norm(lsh, axis=1)[0], rtol=1e-5)
    assert index.item_ids.to_pylist()[:2] == [None, None]
    assert set(index.item_ids.to_pylist()[2:]) == vocabulary().keys()


def test_an_online_search_in_the_exports_gives_the_published_lists(prepared):
    """Index file, ids and user vectors suffice; the SIMPLE-LSH files give the same order by cosine."""
    ctx = prepared()
    folder = Path(ctx.tables.get("index", DT).folder)
    index = faiss.read_index(str(folder / "items.faiss"))
    by_cosine = [np.load(folder / f"item_vectors_simple_lsh{form}.npy")[2:] for form in ("", "_unit")]
    ids = pq.read_table(folder / "item_ids.parquet").to_pandas().set_index("item_index")["item_id"]
    published = {row["user_id"]: [item for item, _ in row["items"]] for row in collect(ctx, "top_n", schemas.TOP_N)}
    clicked = clicks_by_user()
    for row in collect(ctx, "vectors", schemas.USER_VECTORS, kind="user"):
        if row["user_id"] == "lonely":
            continue
        user = np.array([row["vector"]], np.float32)
        cosines = [lsh @ simple_lsh.users(user)[0] / np.linalg.norm(lsh, axis=1) for lsh in by_cosine]
        for places in (index.search(user, index.ntotal)[1][0], *(np.argsort(-cosine) for cosine in cosines)):
            unseen = [ids[place + 2] for place in places if ids[place + 2] not in clicked[row["user_id"]]]
            assert unseen[:7] == published[row["user_id"]]


def test_an_approximate_index_gives_the_same_whole_lists_on_any_partitions(prepared):
    ctx = prepared(index={"factory": "IVF6,Flat", "nprobe": 2}, top_n={"n": 2})
    run_job(ctx, "top_n")
    exact = {row["user_id"]: row["items"] for row in collect(ctx, "top_n", schemas.TOP_N)}
    run_job(ctx, "index")
    assert ctx.tables.get("index", DT).manifest["recall"] < 1
    digests = set()
    for partitions in (1, 8):
        run_job(prepared_with(ctx, partitions), "top_n")
        digests.add(ctx.tables.get("top_n", DT).manifest["digest"])
    assert len(digests) == 1
    lists, own = {row["user_id"]: row["items"] for row in collect(ctx, "top_n", schemas.TOP_N)}, clicks_by_user()
    assert {user: len(items) for user, items in lists.items()} == {user: len(items) for user, items in exact.items()}
    assert not any({item["item_id"] for item in items} & set(own[user]) for user, items in lists.items())
    assert lists != exact
    best = {(user, item["item_id"]): item["score"] for user, items in exact.items() for item in items}
    assert all(item["score"] == best.get((user, item["item_id"]), item["score"]) for user in lists for item in lists[user])


def prepared_with(ctx, partitions):
    spark = ctx.config.spark.model_copy(update={"partitions": partitions})
    return replace(ctx, config=ctx.config.model_copy(update={"spark": spark}))
