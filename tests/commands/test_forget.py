"""`recall forget`: the user is in no table, all others are as they were, and nothing made from the tables looks stale."""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recall_lib.commands import cli
from recall_lib.commands.forget import forget
from recall_lib.config import Config, Features
from recall_lib.process.errors import Busy
from recall_lib.store import locks, schemas
from recall_lib.store.folders import MANIFEST
from recall_lib.store.tables import Tables
from tests.publish import publish

DAYS = ("2024-03-03", "2024-03-04")
USER, USERS = "u7", ("u7", "u77", "au7", "u-7", "7", "v")


@pytest.fixture(scope="module")
def frames(spark):
    """(dataset, keys, schema, frame) of every table that knows users, and of one that knows none."""
    at = datetime(2024, 3, 3, tzinfo=UTC)
    events = [{"user_id": u, "item_id": f"i{n}", "event_ts": at, "position": n} for u in USERS for n in range(3)]
    rejects = [("log.csv", "time", f"{user},i1,never,1") for user in USERS] + [("log.csv", "malformed", None)]
    names = [("user_id", n, user, 9) for n, user in enumerate(USERS, 2)] + [("item_id", 2, "u7", 9), ("user_id", 1, None, 4)]
    run = {"item_index": [2, 3], "is_target": [False, True], "example_age": [0.5], "negatives": [], "seen": []}
    lists = [(user, [("i1", 0.5)], "model", "v1") for user in USERS]
    rows = [
        ("events", {}, schemas.events(Features()), events),
        ("rejects", {}, schemas.REJECTS, rejects),
        ("vocab", {}, schemas.VOCAB, names),
        ("samples", {"split": "train"}, schemas.segments(Features()), [{"user_id": user, **run} for user in USERS]),
        ("vectors", {"kind": "user"}, schemas.USER_VECTORS, [(user, [0.5]) for user in USERS]),
        ("vectors", {"kind": "item"}, schemas.ITEM_VECTORS, [(2, "u7", [0.5])]),
        ("top_n", {}, schemas.TOP_N, lists),
        ("top_n_user_id", {}, schemas.TOP_N, lists),
    ]
    return [(dataset, keys, schema, spark.createDataFrame(data, schema).coalesce(2)) for dataset, keys, schema, data in rows]


@pytest.fixture(scope="module")
def published(frames, spark, tmp_path_factory):
    """A root with the tables."""
    root = tmp_path_factory.mktemp("published") / "root"
    tables = Tables(Config.model_validate({"paths": {"root": str(root)}}), start_spark=lambda: spark)
    for dataset, keys, schema, frame in frames:
        for dt in DAYS:
            if dataset == "events" or dt == DAYS[0]:
                publish(tables, frame, schema, dataset, dt, inputs={"x": "y"}, **keys)
    return root


@pytest.fixture
def tables(published, make_config, spark):
    tables = Tables(make_config(), start_spark=lambda: spark)
    shutil.copytree(published, tables.root)
    return tables


def rows_of(tables):
    """{publication: its rows, in order}."""
    found = {}
    for manifest in Path(tables.root).rglob(MANIFEST):
        files = sorted(manifest.parent.glob("*.parquet"), key=lambda path: path.name[path.name.index("part-") :])
        found[str(manifest.parent.relative_to(tables.root))] = [row for f in files for row in pq.read_table(f).to_pylist()]
    return found


def without(place, rows):
    if place.startswith("rejects/"):
        return [row for row in rows if not (row["raw"] or "").startswith(f"{USER},")]
    if place.startswith("vocab/"):
        return [row | {"value": None} if (row["feature"], row["value"]) == ("user_id", USER) else row for row in rows]
    return [row for row in rows if row.get("user_id") != USER]


def test_the_user_is_nowhere_and_the_others_are_where_they_were(tables, tmp_path, capsys):
    before = rows_of(tables)
    for path in Path(tables.root).rglob("*.parquet"):  # what another has open, or a catalog points to, stays as it is
        os.link(path, tmp_path / f"{path.parent.name}-{path.name}")
    linked = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert cli.main(["forget", "--config", str(tmp_path / "config.yaml"), "--user", USER]) == 0
    said, after = capsys.readouterr().out, rows_of(tables)
    assert after == {place: without(place, rows) for place, rows in before.items()}
    changed = {place for place in before if before[place] != after[place]}
    assert len(changed) == len(before) - 1, "all but the items' vectors"
    assert all(f"forget: {place}: {3 if place.startswith('events') else 1} row" in said for place in changed)
    assert {path: path.read_bytes() for path in linked} == linked


def test_what_was_made_from_it_is_not_stale(tables, frames):
    old = {(name, *keys.values()): tables.get(name, DAYS[0], **keys).manifest for name, keys, _, _ in frames}
    assert dict(forget(Tables(tables.config), USER))[f"top_n/dt={DAYS[0]}"] == 1
    for name, keys, schema, _ in frames:
        was, now = old[(name, *keys.values())], tables.get(name, DAYS[0], **keys).manifest
        rows = tables.get(name, DAYS[0], **keys).read(schema).count()
        assert rows == now["rows"] == sum(file["rows"] for file in now["files"])
        if keys != {"kind": "item"}:
            assert now["amended"][0]["rows_before"] == was["rows"]
        same = was.keys() - {"rows", "files", "row_groups"}
        assert {key: now[key] for key in same} == {key: was[key] for key in same}


def test_a_user_of_no_table(tables, tmp_path, capsys):
    before = rows_of(tables)
    assert cli.main(["forget", "--config", str(tmp_path / "config.yaml"), "--user", "nobody"]) == 0
    assert "no table under" in capsys.readouterr().out
    assert rows_of(tables) == before


@pytest.mark.parametrize(
    ("user", "raw", "theirs"),
    [
        ('a"b', '"a""b",i1,never', True),
        ('a"b', '{"user": "a\\"b", "item": "i1"}', True),
        ("Ünal", '{"user": "\\u00dcnal", "item": "i1"}', True),
        ("nal", "Ünal,i1,never", False),
        ("用户1", "用户12,i1,never", False),
        ("a\\b.c", "a\\b.c,i1,never", True),
    ],
)
def test_a_rejected_row_is_found_by_the_id_as_it_is_written_there(make_config, user, raw, theirs):
    tables = Tables(make_config())
    with tables.publishing("rejects", DAYS[0], facts={"rows": 1}) as staged:
        pq.write_table(pa.table({"raw": [raw, None]}), staged.folder / "part-0.parquet")
    assert dict(forget(tables, user)) == ({f"rejects/dt={DAYS[0]}": 1} if theirs else {})


def test_row_groups_keep_their_rows(make_config):
    """Training plans its steps from them."""
    tables = Tables(make_config())
    with tables.publishing("samples", DAYS[0], facts={"rows": 6}, split="train") as staged:
        rows = pa.table({"user_id": ["a", "b", "b", "c", "a", "a"], "x": [1, 2, 3, 4, 5, 6]})
        pq.write_table(rows, staged.folder / "part-0.parquet", row_group_size=2)
    assert list(forget(tables, "a")) == [(f"samples/dt={DAYS[0]}/split=train", 3)]
    manifest = tables.get("samples", DAYS[0], split="train").manifest
    assert [file["row_groups"] for file in manifest["files"]] == [[1, 2]]
    assert manifest["rows"] == 3
    assert list(forget(tables, "a")) == []


def test_a_version_that_a_killed_run_left_is_forgotten_too(make_config):
    tables = Tables(make_config())
    rows = pa.table({"user_id": ["a", "b"]})
    for dt in DAYS:
        with tables.publishing("events", dt, facts={"rows": 2}) as staged:
            pq.write_table(rows, staged.folder / "part-0.parquet")
    retired = Path(tables.root, "_retired", f"events-dt={DAYS[0]}")
    retired.parent.mkdir(exist_ok=True)
    Path(tables.path("events", DAYS[0])).rename(retired)  # killed between the renames
    left = Path(tables.root, "_retired", f"events-dt={DAYS[1]}")
    left.mkdir()
    assert dict(forget(tables, "a")) == {f"events/dt={DAYS[0]}": 1, f"events/dt={DAYS[1]}": 1}
    assert tables.get("events", DAYS[0]).manifest["rows"] == 1
    assert not list(retired.parent.iterdir())


def test_a_run_that_has_read_the_events_is_waited_for(make_config):
    """It has published nothing of its day yet, and would bring the user."""
    tables = Tables(make_config())
    with tables.publishing("events", DAYS[0], facts={"rows": 2}) as staged:
        pq.write_table(pa.table({"user_id": ["a", "b"]}), staged.folder / "part-0.parquet")
    with locks.held(tables.config.paths.root, f"dt={DAYS[1]}", "other"):
        found = forget(tables, "a")
        assert next(found) == (f"events/dt={DAYS[0]}", 1), "whoever comes later reads them without the user"
        with pytest.raises(Busy, match=f"dt={DAYS[1]} is held by run other"):
            next(found)
    assert list(forget(tables, "a")) == []


def test_nobody_is_not_everybody(tables, tmp_path, capsys):
    before = rows_of(tables)
    assert cli.main(["forget", "--config", str(tmp_path / "config.yaml"), "--user", ""]) == 2
    assert "--user is empty" in capsys.readouterr().err
    assert rows_of(tables) == before
