"""The samples of jobs/vocab.py and jobs/samples.py made with Polars: protocol `day`, no features, no negatives.

Argument: JSON {events, held_out, out, window_size, min_count}: the Parquet files of the clicks before dt; a Parquet file of
the users (column user_id) whose last click is validation, because Polars lacks Spark's hash; the folder for vocab.parquet,
train.parquet and validation.parquet. Prints JSON {seconds, version}; imports are not in the seconds.

A user's clicks become one list of integers, time above item, so that one sort of small lists replaces a sort of all rows.
"""

import json
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl

UNKNOWN, FIRST_INDEX = 1, 2
_ITEM_BITS = 20  # of a click's integer: a million items; the 43 above them hold microseconds since the first click, 101 days
_SECONDS_A_DAY = 86_400


def users_clicks(clicks: pl.LazyFrame, items: pl.Series, start: Any) -> pl.DataFrame:
    """One row a user: user_id and `clicks`, the user's clicks as integers, in order."""
    item = pl.col("item_id").cast(pl.Enum(items)).to_physical().cast(pl.Int64)
    time_us = (pl.col("event_ts") - start).dt.total_microseconds()
    packed = clicks.select("user_id", (time_us * (1 << _ITEM_BITS) + item).alias("clicks"))
    # Sorting the lists afterwards is several times as fast as sorting inside the aggregation.
    return packed.group_by("user_id").agg("clicks").with_columns(pl.col("clicks").list.sort()).collect(engine="streaming")


def make_vocab(train: pl.Series, items: pl.Series, min_count: int) -> tuple[pl.DataFrame, pl.Series]:
    """The surviving items with index and count, by falling count and item id; and each item number's index or null.

    Item numbers are in the order of the ids.
    """
    counts = train.value_counts(name="count").rename({train.name: "item"}).filter(pl.col("count") >= min_count)
    vocab = counts.sort("count", "item", descending=[True, False]).with_row_index(
        "index", FIRST_INDEX
    )  # numbers are in id order
    every_item = pl.DataFrame({"item": range(len(items))}, schema={"item": train.dtype})
    index = every_item.join(vocab, "item", how="left", maintain_order="left")["index"].cast(pl.Int32)
    named = vocab.with_columns(items.gather(vocab["item"]).alias("item_id"))
    return named.select("item_id", pl.col("index").cast(pl.Int32), "count"), index


def item_of(click: pl.Expr) -> pl.Expr:
    """The item number in a click's integer."""
    return (click & ((1 << _ITEM_BITS) - 1)).cast(pl.UInt32).alias("item")


def make_samples(task: dict[str, Any]) -> dict[str, pl.DataFrame]:
    """The tables vocab, train (all tokens but a row's first are targets) and validation (the last token is the target)."""
    clicks = pl.scan_parquet(task["events"])
    facts = clicks.select(pl.col("item_id").unique().sort().implode(), pl.col("event_ts").min()).collect(engine="streaming")
    items = facts["item_id"].explode()
    users = users_clicks(clicks, items, facts["event_ts"].item()).with_row_index("row")
    users = users.with_columns(held_out=pl.col("user_id").is_in(pl.read_parquet(task["held_out"])["user_id"].implode()))
    training = pl.col("clicks").list.head(pl.col("clicks").list.len() - pl.col("held_out").cast(pl.UInt32))
    tokens = users.select("row", "user_id", training.alias("click")).explode("click").drop_nulls("click")
    tokens = tokens.select("row", "user_id", item_of(pl.col("click")), time_us=pl.col("click") // (1 << _ITEM_BITS))
    vocab, index = make_vocab(tokens["item"], items, task["min_count"])
    age = (pl.col("time_us").max() - pl.col("time_us")) / (_SECONDS_A_DAY * 1_000_000)
    tokens = tokens.with_columns(index.gather(tokens["item"]).alias("item_index"), example_age=age.cast(pl.Float32))
    of_user = tokens.drop_nulls("item_index").group_by("row", maintain_order=True)
    runs = of_user.agg(pl.col("user_id").first(), "item_index", pl.col("example_age").slice(1))
    train = runs.filter(pl.col("item_index").list.len() > 1).select("user_id", "item_index", "example_age")
    return {
        "vocab": vocab,
        "train": train.sample(fraction=1.0, shuffle=True, seed=1),
        "validation": held_out_samples(users, runs, index, task["window_size"]),
    }


def held_out_samples(users: pl.DataFrame, runs: pl.DataFrame, index: pl.Series, window_size: int) -> pl.DataFrame:
    """The last clicks of the held-out users that have an earlier one, after the last known clicks before it."""
    last = users.filter("held_out", pl.col("clicks").list.len() > 1)
    last = last.select("row", "user_id", item_of(pl.col("clicks").list.last()))
    last = last.with_columns(index.gather(last["item"]).fill_null(UNKNOWN).alias("target"))
    history = pl.col("item_index").fill_null([])
    return last.join(runs.select("row", "item_index"), "row", how="left").select(
        "user_id",
        pl.concat_list(history.list.tail(window_size), "target").alias("item_index"),
        history.list.unique().list.sort().alias("seen"),
    )


def main() -> None:
    """Make and write the tables, timed."""
    task = json.loads(sys.argv[1])
    started = time.perf_counter()
    for name, table in make_samples(task).items():
        table.write_parquet(Path(task["out"]) / f"{name}.parquet", compression="zstd")
    print(json.dumps({"seconds": time.perf_counter() - started, "version": pl.__version__}))


if __name__ == "__main__":
    main()
