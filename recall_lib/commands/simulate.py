"""Write a simulated click log of any size, like the log of the demo.

    recall simulate --out build/log --clicks 1000000

OUT/clicks/<day>-<part>.parquet has the clicks and impressions of one day and one range of readers,
sorted by time within each block of 4,000 readers. OUT/items.parquet has the articles and is written
last. A config reads them with `input: {path: OUT, items: items.parquet}` and the default columns:
  clicks  user_id, article_id, expo_time (seconds), click, city, age, gender
  items   article_id, category, tags (joined by _), title

Equal arguments give equal rows on every machine. Unlike the demo's log, all rows are readable.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import url_to_fs

from recall_lib.commands import simulator
from recall_lib.config import Features, Spark
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command
from recall_lib.process.errors import UsageError
from recall_lib.samples.ragged import Ints
from recall_lib.spark.executors import map_batches

_READERS_OF_A_FILE = 64_000  # unless --files says otherwise
_TASKS_OF_A_CORE = 4  # cut evenly, yet two tasks seldom both simulate the block on their border
_WRITTEN = ("clicks", "impressions", "files")
_RAW = pa.schema(
    [
        ("user_id", pa.string()),
        ("article_id", pa.string()),
        ("expo_time", pa.int64()),
        ("click", pa.int32()),
        ("city", pa.string()),
        ("age", pa.string()),
        ("gender", pa.string()),
    ]
)


def main(argv: Sequence[str] | None = None) -> int:
    """`recall simulate --out OUT --clicks N`; returns the exit code."""
    options = parser("simulate", __doc__)
    options.add_argument("--out", required=True, metavar="OUT", help="the folder to write to; new or empty")
    options.add_argument("--clicks", required=True, type=int, metavar="N", help="about N clicks, and half as many impressions")
    options.add_argument("--users", type=int, metavar="U", help="readers (default: one for 40 clicks)")
    options.add_argument("--items", type=int, metavar="I", help="articles (default: one for 500 clicks, at least 1,500)")
    options.add_argument("--days", type=int, default=simulator.DAYS, metavar="D", help="days of the log (default: %(default)s)")
    options.add_argument(
        "--files",
        type=int,
        metavar="F",
        help="files of clicks, rounded up to the same number for each day "
        f"(default: one per day and {_READERS_OF_A_FILE:,} readers)",
    )
    options.add_argument(
        "--skew",
        type=float,
        default=0.0,
        metavar="S",
        help="the share of the clicks, 0 <= S < 1, that go to one live page, which readers open again and again (default: 0)",
    )
    options.add_argument(
        "--heaviest-user",
        type=int,
        default=0,
        metavar="N",
        dest="robot",
        help="add a robot that clicks N of the --clicks, round and round the catalogue (default: 0)",
    )
    options.add_argument(
        "--seed", type=int, default=simulator.SEED, metavar="N", help="of the random numbers (default: %(default)s)"
    )
    return run_command(options, lambda args: run(**vars(args)), argv)


def run(out: str, files: int | None, **wanted: Any) -> None:
    """Plan the log (arguments as of simulator.plan_for), write it to the folder `out`, and say what was written.

    Raises:
        UsageError: the folder holds something, or there is no such log.
    """
    fs, path = url_to_fs(out)
    if fs.exists(path) and (not fs.isdir(path) or fs.ls(path)):
        raise UsageError(f"{out} holds something already: remove it, or give another --out")
    plan = simulator.plan_for(**wanted)
    parts = -(-plan.readers // _READERS_OF_A_FILE) if files is None else -(-files // plan.days)
    if not 1 <= parts <= plan.readers:
        raise UsageError(f"--files {files}: {plan.days} days of {plan.readers} readers make 1 to {plan.days * plan.readers}")
    from recall_lib.spark.session import start

    written = write(start(Spark(), "recall simulate"), plan, out, parts)
    messages.say(
        "simulate",
        f"{written['clicks']} clicks and {written['impressions']} impressions of {plan.readers} users on "
        f"{plan.items} items in {written['files']} files under {out}/clicks",
    )


def clicks(spark: Any, plan: simulator.Plan, partitions: int | None = None) -> Any:
    """The clicks as canonical events without features (schemas.events(Features())); impressions are left out.

    Args:
        partitions: of the DataFrame, a range of readers each; at most plan.blocks of them hold rows. None: some a core.
    """
    from pyspark.sql import functions as F

    from recall_lib.store import schemas

    def simulate(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        ids = _article_ids(plan)
        for number in _numbers(batches):
            block = simulator.block(plan, number)
            clicked = np.flatnonzero(block.click)
            times = pa.array(block.time[clicked] * 1_000_000).cast(pa.timestamp("us", "UTC"))
            users = pa.array(block.readers["user_id"]).take(pa.array(block.user[clicked]))
            columns = [users, ids.take(pa.array(block.item[clicked])), times]
            yield pa.RecordBatch.from_arrays(columns, ["user_id", "item_id", "event_ts"])

    numbers = spark.range(0, plan.blocks, 1, partitions or _tasks(spark, plan.blocks))
    found = map_batches(numbers, simulate, "user_id string, item_id string, event_ts timestamp")
    empty = [F.lit(None).cast(field.dataType).alias(field.name) for field in schemas.events(Features()).fields[3:]]
    return found.select("*", *empty)


def write(spark: Any, plan: simulator.Plan, folder: str, parts: int) -> dict[str, int]:
    """Write the raw log, clicks and impressions, `parts` files a day (fewer where a part has no row), then the items.

    Returns:
        How many clicks, impressions and files of clicks there are.
    """
    fs, path = url_to_fs(folder)
    fs.makedirs(f"{path}/clicks", exist_ok=True)

    def simulate(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
        ids = _article_ids(plan)
        for part in _numbers(batches):
            yield pa.RecordBatch.from_pylist([_write_part(plan, ids, folder, part, parts)])

    numbers = spark.range(0, parts, 1, _tasks(spark, parts))
    written = map_batches(numbers, simulate, ", ".join(f"{name} long" for name in _WRITTEN)).groupBy().sum().collect()[0]
    with fs.open(f"{path}/items.parquet", "wb") as file:
        pq.write_table(pa.table({name: pa.array(text) for name, text in simulator.articles(plan).items()}), file)
    return dict(zip(_WRITTEN, written, strict=True))


def _write_part(plan: simulator.Plan, ids: pa.StringArray, folder: str, part: int, parts: int) -> dict[str, int]:
    """Write the files of one range of readers, a day each, block by block, so that only one block is in memory."""
    fs, path = url_to_fs(folder)
    begin, end = part * plan.readers // parts, (part + 1) * plan.readers // parts
    written = dict.fromkeys(_WRITTEN, 0)
    with ExitStack() as stack:
        writers: dict[int, pq.ParquetWriter] = {}
        for number in range(begin // simulator.BLOCK, (end - 1) // simulator.BLOCK + 1):
            block, offset = simulator.block(plan, number), number * simulator.BLOCK
            rows = np.flatnonzero((block.user >= begin - offset) & (block.user < end - offset))
            days = block.time[rows] // simulator.SECONDS
            readers = {name: pa.array(block.readers[name]) for name in ("user_id", "city", "age", "gender")}
            for day in np.unique(days).tolist():
                if day not in writers:
                    file = stack.enter_context(fs.open(f"{path}/clicks/{np.datetime64(day, 'D')}-{part:05d}.parquet", "wb"))
                    writers[day] = stack.enter_context(pq.ParquetWriter(file, _RAW, compression="zstd"))
                writers[day].write_table(_raw_rows(block, readers, ids, rows[days == day]))
            clicked = int(block.click[rows].sum())
            written["clicks"] += clicked
            written["impressions"] += rows.size - clicked
        written["files"] = len(writers)
    return written


def _raw_rows(block: simulator.Block, readers: dict[str, pa.StringArray], ids: pa.StringArray, rows: Ints) -> pa.Table:
    user = pa.array(block.user[rows])
    columns = {
        "article_id": ids.take(pa.array(block.item[rows])),
        "expo_time": pa.array(block.time[rows]),
        "click": pa.array(block.click[rows], pa.int32()),
    }
    columns |= {name: text.take(user) for name, text in readers.items()}
    return pa.table(columns).select(_RAW.names)


def _article_ids(plan: simulator.Plan) -> pa.StringArray:
    return pa.array(simulator.article_ids(plan.items))


def _numbers(batches: Iterable[pa.RecordBatch]) -> Iterator[int]:
    for batch in batches:
        yield from batch.column(0).to_pylist()


def _tasks(spark: Any, most: int) -> int:
    return min(most, _TASKS_OF_A_CORE * spark.sparkContext.defaultParallelism)


if __name__ == "__main__":
    sys.exit(main())
