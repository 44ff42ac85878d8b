"""What executors write themselves is published whole, and nothing else with it."""

import time
from functools import partial

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pyspark import TaskContext
from pyspark.sql.types import LongType, StringType, StructField, StructType

from recall_lib.spark.grouping import map_users, partitions_for
from recall_lib.spark.writing import WRITTEN, write_files
from recall_lib.store.digests import content_digests
from recall_lib.store.tables import Tables

DT = "2024-01-02"
SCHEMA = StructType([StructField("user_id", StringType()), StructField("n", LongType())])


def rows(spark, users=41, clicks=7):
    return spark.range(users * clicks, numPartitions=5).selectExpr(f"concat('u', id % {users}) user_id", "id n")


def write(table, folder, fail=False):
    """Even numbers to split `even`, a batch a user; odd ones to `odd`."""
    if fail and TaskContext.get().partitionId():
        time.sleep(1)  # it writes when another task has failed

    def batches():
        for user in sorted(set(table.column("user_id").to_pylist())):
            own = table.filter(pa.compute.equal(table.column("user_id"), user))
            for split, rest in (("even", 0), ("odd", 1)):
                part = own.filter(pa.compute.equal(pa.compute.bit_wise_and(own.column("n"), 1), rest))
                yield f"{folder}/split={split}", part.combine_chunks().to_batches()[0]
            if fail and not TaskContext.get().partitionId():
                raise ValueError("boom")

    return write_files(batches())


def writer(spark, folder, **settings):
    return map_users(rows(spark), 3, partial(write, folder=folder, **settings), WRITTEN)


@pytest.fixture
def tables(make_config, spark):
    return Tables(make_config(), start_spark=lambda: spark)


def test_each_split_is_a_publication_with_a_file_a_partition_and_a_row_group_a_batch(tables, spark):
    with tables.publishing("samples", DT, split=["even", "odd", "none"], inputs={"x": "y"}) as staged:
        staged.keep(writer(spark, staged.address).collect(), SCHEMA)
    even, odd, none = (split.manifest for split in staged.published)
    assert (even["rows"], odd["rows"], none["rows"]) == (144, 143, 0)
    assert none["files"] == []
    assert [file["name"].split("-")[1] for file in even["files"]] == ["00000", "00001", "00002"]
    assert even["row_groups"] == 41 == sum(len(file["row_groups"]) for file in even["files"])
    found = tables.get("samples", DT, split="even").read(SCHEMA)
    assert content_digests(found) == content_digests(rows(spark).where("n % 2 = 0"))
    assert even["inputs"] == {"x": "y"}


def test_files_of_attempts_that_do_not_count_are_not_published(tables, spark):
    with tables.publishing("samples", DT, split=["even", "odd"]) as staged:
        written = writer(spark, staged.address)
        lost = f"{staged.path}/split=even/part-00001-999.parquet"
        pq.write_table(pa.table({"user_id": ["lost"], "n": [1]}), lost)
        staged.keep(written.collect(), SCHEMA)
    assert staged.published[0].manifest["rows"] == 144
    assert tables.get("samples", DT, split="even").read(SCHEMA).where("user_id = 'lost'").count() == 0


def test_one_pass_writes_several_publications(tables, spark):
    """Each keeps its own files alone, and loses those of attempts that do not count."""
    with (
        tables.publishing("samples", DT, split=["even"], inputs={"x": "y"}) as some,
        tables.publishing("vectors", DT, kind="user") as others,
    ):
        work = partial(write_to_both, even=f"{some.address}/split=even", odd=others.address)
        written = map_users(rows(spark), 3, work, WRITTEN).collect()
        pq.write_table(pa.table({"user_id": ["lost"], "n": [1]}), f"{others.path}/part-00001-999.parquet")
        for staged in (some, others):
            staged.keep(written, SCHEMA)
    found = [tables.get("samples", DT, split="even"), tables.get("vectors", DT, kind="user")]
    for rest, publication in enumerate(found):
        assert content_digests(publication.read(SCHEMA)) == content_digests(rows(spark).where(f"n % 2 = {rest}"))
        assert len(publication.files) == 3
    assert [publication.inputs for publication in found] == [{"x": "y"}, {}]


def write_to_both(table, even, odd):
    rest = pa.compute.bit_wise_and(table.column("n"), 1)
    return write_files(
        (folder, table.filter(pa.compute.equal(rest, value)).combine_chunks().to_batches()[0])
        for value, folder in ((0, even), (1, odd))
    )


def test_a_failed_task_publishes_nothing(tables, spark):
    with pytest.raises(Exception, match="boom"), tables.publishing("samples", DT, split=["even", "odd"]) as staged:
        staged.keep(writer(spark, staged.address, fail=True).collect(), SCHEMA)
    assert not tables.find("samples", DT, split="even")
    time.sleep(2)
    assert not any(tables.fs.ls(f"{tables.root}/_staging"))


def users_of_partitions(table):
    yield pa.RecordBatch.from_pydict({"users": [sorted(set(table.column("user_id").to_pylist()))]})


def test_a_user_is_whole_in_one_partition_that_depends_on_nothing_else(spark):
    def partitions(frame):
        found = map_users(frame, 3, users_of_partitions, "users array<string>").collect()
        return sorted(row["users"] for row in found)

    found = partitions(rows(spark))
    assert sorted(user for users in found for user in users) == sorted({f"u{n}" for n in range(41)})
    assert partitions(rows(spark).repartition(11)) == partitions(rows(spark).coalesce(1)) == found


def test_partitions_follow_the_clicks():
    assert [partitions_for(n) for n in (0, 10_000, 8 << 20, (8 << 20) + 1, 1_000_000_000)] == [8, 8, 8, 9, 954]
    assert partitions_for(10_000_000, multiple_of=4) == 12


def test_all_but_floats_are_written_with_dictionaries(tmp_path, monkeypatch):
    monkeypatch.setattr("recall_lib.spark.writing.TaskContext", TaskOutsideSpark)
    lists = [[{"item_id": "a", "score": 1.5}, {"item_id": "a", "score": 2.5}], []]
    batch = pa.RecordBatch.from_pydict(
        {
            "user_id": pa.array(["u", "v"]),
            "ages": pa.array([[0.5], [0.25]], pa.list_(pa.float32())),
            "items": pa.array(lists, pa.list_(pa.struct([("item_id", pa.string()), ("score", pa.float32())]))),
        }
    )
    (written,) = write_files([(str(tmp_path), batch)])
    file = pq.ParquetFile(written.column("address")[0].as_py())
    group = file.metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    encoded = {column.path_in_schema: column.has_dictionary_page for column in columns}
    assert {path for path, dictionary in encoded.items() if dictionary} == {"user_id", "items.list.element.item_id"}
    assert encoded.keys() == {"user_id", "ages.list.element", "items.list.element.item_id", "items.list.element.score"}
    assert file.read().to_pylist() == batch.to_pylist()


class TaskOutsideSpark:
    @classmethod
    def get(cls):
        return cls()

    def partitionId(self):
        return 0
