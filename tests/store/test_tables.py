"""A publication is whole or not there."""

import json

import pytest
from pyspark.sql import functions as F

from recall_lib.process.errors import DataRefused
from recall_lib.store.digests import content_digests
from recall_lib.store.schemas import POPULAR
from recall_lib.store.tables import Tables
from tests.publish import publish

DT = "2024-01-02"


@pytest.fixture
def tables(make_config, spark):
    return Tables(make_config(), start_spark=lambda: spark)


def popular(spark, n: int, partitions: int = 2):
    item_id = F.concat(F.lit("i"), "id").alias("item_id")
    rank = F.col("id").cast("int").alias("rank")
    return spark.range(n, numPartitions=partitions).select(
        F.lit("all").alias("window"), rank, item_id, F.col("id").alias("count")
    )


def test_digest_knows_content_alone(spark):
    frame = popular(spark, 500)
    digest = content_digests(frame)
    assert digest == content_digests(frame.repartition(7)) == content_digests(frame.orderBy(F.desc("rank")))
    assert digest != content_digests(frame.where("rank <> 3"))
    assert digest != content_digests(frame.withColumn("count", F.col("count") + 1))
    assert digest != content_digests(frame.unionByName(frame))


def test_publish_replaces_whole(tables, spark):
    publish(tables, popular(spark, 10), POPULAR, "popular", DT)
    manifest = publish(tables, popular(spark, 4), POPULAR, "popular", DT, inputs={"x": "y"}, facts={"note": 1})
    assert tables.get("popular", DT).read(POPULAR).count() == 4 == manifest["rows"] == sum(f["rows"] for f in manifest["files"])
    assert spark.read.parquet(tables.uri(f"{tables.root}/popular")).count() == 4, "a plain folder read sees one version"
    names = {path.rsplit("/", 1)[-1] for path in tables.fs.ls(tables.path("popular", DT), detail=False)}
    assert all(name.endswith(".parquet") or name.startswith("_") for name in names)
    assert (manifest["inputs"], manifest["note"]) == ({"x": "y"}, 1)


def test_a_failed_write_leaves_the_old_version(tables, spark):
    publish(tables, popular(spark, 10), POPULAR, "popular", DT)
    broken = popular(spark, 10).withColumn("count", F.expr("if(rank > 5, raise_error('boom'), count)"))
    with pytest.raises(Exception, match="boom"):
        publish(tables, broken.withColumn("count", F.col("count").cast("long")), POPULAR, "popular", DT)
    assert tables.get("popular", DT).read(POPULAR).count() == 10
    assert not any(tables.fs.ls(f"{tables.root}/_staging"))


def test_a_kill_between_the_renames_is_seen_by_no_reader(tables, spark):
    publish(tables, popular(spark, 10), POPULAR, "popular", DT)
    tables.fs.makedirs(f"{tables.root}/_retired", exist_ok=True)
    tables.fs.mv(tables.path("popular", DT), f"{tables.root}/_retired/popular-dt={DT}", recursive=True)
    assert tables.get("popular", DT).read(POPULAR).count() == 10
    publish(tables, popular(spark, 3), POPULAR, "popular", DT)
    assert tables.get("popular", DT).read(POPULAR).count() == 3
    assert not any(tables.fs.ls(f"{tables.root}/_retired"))


def test_schema_differences_are_all_listed(tables, spark):
    with pytest.raises(DataRefused, match=r"count is missing, more is unexpected, rank is string, not int"):
        other = popular(spark, 1).selectExpr("window", "string(rank) rank", "item_id", "1 more")
        publish(tables, other, POPULAR, "popular", DT)


def test_missing_publication_says_what_to_run(tables):
    with pytest.raises(DataRefused, match=r"models/dt=2024-01-02 is not published .*`recall train --dt 2024-01-02`"):
        tables.get("models", DT)


def test_files_and_days(tables, spark):
    with tables.publishing("models", DT, facts={"a": 1}) as staged:
        (staged.folder / "model.json").write_text(json.dumps({"k": 1}))
    assert tables.read_json(f"{tables.get('models', DT).folder}/model.json") == {"k": 1}
    with pytest.raises(ZeroDivisionError), tables.publishing("models", DT) as staged:
        (staged.folder / "model.json").write_text("half")
        raise ZeroDivisionError
    assert tables.read_json(f"{tables.get('models', DT).folder}/model.json") == {"k": 1}
    assert tables.days("models") == [DT]
    assert tables.days("absent") == []


def test_a_publication_that_ends_between_two_looks_is_found(tables, monkeypatch):
    with tables.publishing("index", DT) as staged:
        (staged.folder / "x").write_text("x")
    retired, target = tables.aside("_retired", "index", DT, {}), tables.path("index", DT)
    tables.fs.makedirs(retired.rsplit("/", 1)[0], exist_ok=True)
    tables.fs.mv(target, retired, recursive=True)
    assert tables.days("index") == [DT], "a day between its renames is a day"
    exists, looks = tables.fs.exists, []

    def then_swapped_in(path):
        found = exists(path)
        if not looks:
            tables.fs.mv(retired, target, recursive=True)
        looks.append(path)
        return found

    monkeypatch.setattr(tables.fs, "exists", then_swapped_in)
    assert tables.find("index", DT) == target
    assert len(looks) == 3


def test_a_manifest_that_is_replaced_between_the_look_and_the_read_is_read_anew(tables, monkeypatch):
    with tables.publishing("index", DT, facts={"a": 1}) as staged:
        (staged.folder / "x").write_text("x")
    read, reads = tables.read_json, []

    def first_time_gone(path):
        reads.append(path)
        if len(reads) == 1:
            raise FileNotFoundError(path)
        return read(path)

    monkeypatch.setattr(tables, "read_json", first_time_gone)
    assert tables.get("index", DT).manifest["a"] == 1


def test_an_old_version_that_cannot_be_removed_is_no_failure(tables, monkeypatch):
    for text in ("first", "second"):
        with tables.publishing("index", DT) as staged:
            (staged.folder / "x").write_text(text)
        remove = tables.fs.rm

        def busy(path, remove=remove, **options):
            if "_retired" in path:
                raise OSError(39, "Directory not empty")
            remove(path, **options)

        monkeypatch.setattr(tables.fs, "rm", busy)
    assert tables.fs.cat_file(f"{tables.path('index', DT)}/x") == b"second"
    assert tables.fs.exists(tables.aside("_retired", "index", DT, {}))


def test_what_was_looked_up_is_what_is_read(tables, spark):
    """Another publication comes between the look and the read: its rows are never read under the first one's digest."""
    publish(tables, popular(spark, 10), POPULAR, "popular", DT)
    first = tables.get("popular", DT)
    publish(tables, popular(spark, 4), POPULAR, "popular", DT)
    second = tables.get("popular", DT)
    assert first.digest != second.digest
    assert not {*first.files} & {*second.files}
    with pytest.raises(Exception, match="PATH_NOT_FOUND"):
        first.read(POPULAR).count()
    assert content_digests(second.read(POPULAR))[""][1] == second.digest


def test_looking_up_starts_no_spark(make_config):
    tables = Tables(make_config(), start_spark=lambda: pytest.fail("a Spark session was started"))
    with tables.publishing("index", DT, facts={"a": 1}) as staged:
        (staged.folder / "x").write_text("x")
    assert staged.publication == tables.get("index", DT)
    assert tables.look("index", "2024-01-03") is None
    assert tables.get("index", DT).files == (f"file://{tables.path('index', DT)}/x",)


def test_facts_that_a_block_adds_are_published(tables):
    with tables.publishing("models", DT, inputs={"x": "y"}, facts={"init": "scratch"}) as staged:
        staged.facts["digest"] = "d"
        staged.inputs["z"] = "w"
    model = tables.get("models", DT)
    assert (model.digest, model.inputs, model.manifest["init"]) == ("d", {"x": "y", "z": "w"}, "scratch")
