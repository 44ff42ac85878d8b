"""`recall forget`: the user is in no table, all others are as they were, and nothing made from the tables looks stale."""

import os
import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from recall_lib import cli
from recall_lib.forget import forget
from recall_lib.io.tables import Tables
from recall_lib.job import Context
from tests.inference.conftest import DT, STAGES, make_config, make_log, publish_untrained, run_job

USER = "u7"
BY_ID = {"top_n": {"n": 7, "user_id_only": True}, "spark": {"partitions": 1}}


@pytest.fixture(scope="module")
def made(spark, tmp_path_factory):
    """A folder with the tables of a day, and rejected rows of users whose ids end or begin alike."""
    folder = tmp_path_factory.mktemp("made")
    rejected = [f"{user},i1,never,1,c1,t1" for user in (USER, "u77", "au7")]
    (folder / "clicks.csv").write_text("\n".join([*make_log(users=12), *rejected]) + "\n", encoding="utf-8")
    ctx = Context(make_config(folder, **BY_ID), DT, "test")
    run_job(ctx, "events", "2024-03-04")
    for job in ("vocab", "samples"):
        run_job(ctx, job)
    publish_untrained(ctx)
    for job in STAGES:
        run_job(ctx, job)
    return folder


@pytest.fixture
def tables(made, tmp_path, spark):
    shutil.copytree(made, tmp_path / "copy")
    config = make_config(tmp_path / "copy", **BY_ID)
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(config.model_dump(mode="json", exclude_defaults=True)))
    return Tables(config, spark=spark)


def rows_of(tables):
    """{publication: its rows, in order}."""
    found = {}
    for manifest in sorted(Path(tables.root).rglob("_manifest.json")):
        if list(manifest.parent.glob("*.parquet")) and manifest.parts[-3] != "index":
            files = sorted(manifest.parent.glob("*.parquet"), key=lambda path: path.name[path.name.index("part-") :])
            found[str(manifest.parent.relative_to(tables.root))] = [row for f in files for row in pq.read_table(f).to_pylist()]
    return found


def without(place, rows):
    if place.startswith("rejects/"):
        return [row for row in rows if not row["raw"].startswith(f"{USER},")]
    if place.startswith("vocab/"):
        return [row | {"value": None} if (row["feature"], row["value"]) == ("user_id", USER) else row for row in rows]
    return [row for row in rows if row.get("user_id") != USER]


def test_the_user_is_nowhere_and_the_others_are_where_they_were(tables, tmp_path, capsys):
    before = rows_of(tables)
    for path in Path(tables.root).rglob("*.parquet"):  # what another has open, or a catalog points to, stays as it is
        os.link(path, tmp_path / f"{path.parent.name}-{path.name}")
    linked = {path: path.read_bytes() for path in tmp_path.glob("*.parquet")}
    assert cli.main(["forget", "--config", str(tmp_path / "config.yaml"), "--user", USER]) == 0
    said = capsys.readouterr().out
    after = rows_of(tables)
    assert after == {place: without(place, rows) for place, rows in before.items()}
    assert not [row for rows in after.values() for row in rows if USER in row.values()]
    changed = {place for place in before if before[place] != after[place]}
    assert {place.split("/")[0] for place in changed} == {
        "events", "rejects", "vocab", "samples", "vectors", "top_n", "top_n_user_id",
    }  # fmt: skip
    assert all(f"forget: {place}: " in said for place in changed)
    assert {path: path.read_bytes() for path in linked} == linked


def test_what_was_made_from_it_is_not_stale(tables):
    old = {split: tables.manifest("samples", DT, split=split) for split in ("train", "test")}
    assert dict(forget(Tables(tables.config), USER))[f"top_n/dt={DT}"] == 1
    for split, manifest in old.items():
        new = tables.manifest("samples", DT, split=split)
        assert (new["digest"], new["inputs"], new["run_id"]) == (manifest["digest"], manifest["inputs"], manifest["run_id"])
        assert sum(file["rows"] for file in new["files"]) == new["rows"] < manifest["rows"] == new["amended"][0]["rows_before"]
    run_job(Context(tables.config, DT, "test"), "top_n")  # its stamps fit
    users = [row["user_id"] for row in tables.spark.read.parquet(tables.path("top_n", DT)).collect()]
    assert USER not in users
    assert len(users) == tables.manifest("top_n", DT)["rows"] == tables.manifest("vectors", DT, kind="user")["rows"]


def test_a_user_of_no_table(tables, tmp_path, capsys):
    before = rows_of(tables)
    assert cli.main(["forget", "--config", str(tmp_path / "config.yaml"), "--user", "nobody"]) == 0
    assert "no table under" in capsys.readouterr().out
    assert rows_of(tables) == before


def test_row_groups_keep_their_rows(tmp_path):
    """Training plans its steps from them."""
    tables = Tables(make_config(tmp_path))
    with tables.publish_files("samples", DT, facts={"rows": 6}, split="train") as folder:
        rows = pa.table({"user_id": ["a", "b", "b", "c", "a", "a"], "x": [1, 2, 3, 4, 5, 6]})
        pq.write_table(rows, folder / "part-0.parquet", row_group_size=2)
    assert list(forget(tables, "a")) == [(f"samples/dt={DT}/split=train", 3)]
    manifest = tables.manifest("samples", DT, split="train")
    assert [file["row_groups"] for file in manifest["files"]] == [[1, 2]]
    assert manifest["rows"] == 3
    assert list(forget(tables, "a")) == []
