"""Print what a day recommends to a user, near an item or after a history, without Spark.

    recall query --config conf/demo.yaml --dt 2024-03-09 --history a00003,a00017

Each line has rank, item id, score and source, separated by tabs, best item first. The source is
`model`, `vectors` (--item: cosine of the items' vectors) or `popular`. The most clicked items
(`popular`) are the answer if the user has no list in top_n, or if no item of the history is known.
They are not filtered by `top_n.allow` and `top_n.deny`.

--history answers for a user of whom only these clicks are known. Ids must not contain a comma. The
answer leaves the clicked items out if `top_n.filter_seen` is set. `top_n.allow` and `top_n.deny`
are ignored.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any, TypedDict

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recall_lib.config import Features, Samples
from recall_lib.day.job import context
from recall_lib.inference.related import VECTORS, related_by_vectors
from recall_lib.inference.shipping import fetch_published, load_index, load_model
from recall_lib.inference.top_n import MODEL, POPULAR, scored_items
from recall_lib.inference.vectors import infer
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command
from recall_lib.process.errors import DataRefused
from recall_lib.samples.ids import FIRST_INDEX, PADDING, UNKNOWN
from recall_lib.samples.ragged import Ragged
from recall_lib.samples.windows import Segments, Windows
from recall_lib.store.arrays import read_item_features
from recall_lib.store.filesystems import open_parquet, read_parquet
from recall_lib.store.serving import items_of_vocab, serving
from recall_lib.store.tables import Tables
from recall_lib.transforms.popular import ALL

_MOST = 100_000  # items asked for
# Rows of top_n that are decoded at a time in search of one.
_ROWS = 1024


class Scored(TypedDict):
    """An item of a list, as in schemas.SCORED_ITEMS."""

    item_id: str
    score: float


Answer = tuple[str, list[Scored]]  # source and items, best first


def main(argv: Sequence[str] | None = None) -> int:
    """`recall query --config F --dt D (--user U | --item I | --history a,b,c)`."""
    options = parser("query", __doc__, "--config", "--dt")
    asked = options.add_mutually_exclusive_group(required=True)
    asked.add_argument("--user", metavar="ID", help="print this user's list from top_n, or else the most clicked items")
    asked.add_argument("--item", metavar="ID", help="print the items nearest to this one")
    asked.add_argument("--history", metavar="ID,ID,...", help="print the model's items after these clicks, oldest click first")
    options.add_argument("--n", type=_positive, default=10, metavar="N", help="print at most N items (default: %(default)s)")

    def query(args: argparse.Namespace) -> None:
        ctx = context(args, "query")
        tables = ctx.tables
        if args.user is not None:
            source, items = list_of_user(tables, ctx.dt, args.user, args.n)
        elif args.item is not None:
            source, items = related_items(tables, ctx.dt, args.item, args.n)
        else:
            source, items = after_history(tables, ctx.dt, args.history.split(","), args.n)
        for rank, item in enumerate(items, 1):
            text = f"{rank}\t{item['item_id']}\t{item['score']:.7g}\t{source}"
            messages.show_row("query", {"rank": rank, **item, "source": source}, text)

    return run_command(options, query, argv)


def list_of_user(tables: Tables, dt: str, user_id: str, n: int) -> Answer:
    """The first n items of top_n/dt; the most clicked ones for a user who is not in it."""
    for name in tables.get("top_n", dt).files:
        with open_parquet(name) as parquet:
            for group in range(parquet.num_row_groups):
                users = parquet.read_row_group(group, ["user_id"], use_threads=False)
                place = pc.index(users.column(0), user_id).as_py()
                if place < 0:
                    continue
                for rows in parquet.iter_batches(_ROWS, [group], ["items", "source"], use_threads=False):
                    if place < rows.num_rows:
                        (row,) = rows.slice(place, 1).to_pylist()
                        return row["source"], row["items"][:n]
                    place -= rows.num_rows
    messages.say("query", f"user {user_id!r} has no list in top_n/dt={dt}", to_stderr=True)
    return most_clicked(tables, dt, n)


def related_items(tables: Tables, dt: str, item_id: str, n: int) -> Answer:
    """The n items of the largest cosine in index/dt.

    Raises:
        DataRefused: the item is not in the index.
    """
    index = fetch_published(serving(tables, dt).require(tables.get("index", dt)))
    place = pc.index(load_index(index).item_ids, item_id).as_py()
    if place < 0:
        raise DataRefused(
            f"item {item_id!r} is not in index/dt={dt}: ask for one with at least features.item_id.min_count clicks before {dt}"
        )
    row = pa.RecordBatch.from_pydict({"item_index": pa.array([place], pa.int32())})
    (found,) = related_by_vectors([row], index=index, n=n, has_bias=tables.config.model.has_bias)
    return VECTORS, found.column("items")[0].as_py()


def after_history(tables: Tables, dt: str, item_ids: list[str], n: int) -> Answer:
    """The model's n best items after these clicks, oldest first; the most clicked ones where it knows none of them."""
    ours = serving(tables, dt)
    items = load_index(fetch_published(ours.require(tables.get("index", dt))))
    places = pc.index_in(pa.array(item_ids), items.item_ids).to_pylist()
    strange = [item_id for item_id, place in zip(item_ids, places, strict=True) if place is None]
    if strange:
        ignored = f"not in the vocabulary of {dt} and ignored: {', '.join(map(repr, strange))}"
        messages.say("query", ignored, to_stderr=True)
    clicks = np.array([place for place in places if place is not None], np.int64)
    if not len(clicks):
        return most_clicked(tables, dt, n)
    towers, meta = load_model(fetch_published(ours.model))
    features, samples = Features(**meta["features"]), Samples(**meta["samples"] | {"negatives_per_positive": 0})
    of_items: dict[str, Ragged] = {}
    if tables.config.model.asks_for_items and features.token_ids:
        table = items_of_vocab(tables, ours.vocab)
        of_items = read_item_features(table.files, [f.name for f in features.token_ids], len(items.vectors))
    begin = datetime.fromtimestamp(tables.config.input.day_begins(dt) / 1_000_000, UTC)
    users = infer(towers, window_of(clicks, of_items, features, samples, begin))
    seen = _ragged([np.unique(clicks).tolist()]) if tables.config.top_n.filter_seen else None
    found, scores = items.search(users, n, seen)
    return MODEL, scored_items(found, scores, items.item_ids)[0].as_py()


def window_of(clicks: np.ndarray, of_items: dict[str, Ragged], features: Features, samples: Samples, at: datetime) -> Windows:
    """What a model sees of a user of whom nothing but these clicks is known.

    Args:
        clicks: item indexes, oldest first, not empty.
        of_items: per item feature the values of each item index; a feature that is absent is unknown of all items.
        features: the model's.
        samples: that the model was trained on, without negatives.
        at: the moment that the answer is for, in UTC.
    """
    time = {"hour": FIRST_INDEX + at.hour, "weekday": FIRST_INDEX + at.weekday()}
    clicks = clicks[-(samples.max_history or len(clicks)) :]
    tokens = [*clicks.tolist(), PADDING]  # the last one stands for the target, which there is not
    lists = {
        "item_index": [tokens],
        "is_target": [[token == PADDING for token in tokens]],
        "example_age": [[0.0]],
        "negatives": [[]],
        "weight": [[1.0]],
        **{f"{feature.name}_index": [[time.get(feature.name, UNKNOWN)]] for feature in features.target_ids},
        **{f"{feature.name}_length": [[1]] for feature in features.target_ids if feature.multi},
        **{f"{number.name}_value": [[np.nan]] for number in features.target_numbers},
        **{f"{number.name}_value": [[np.nan] * len(tokens)] for number in features.token_numbers},
    }
    for sequence in features.sequences:
        lists |= {f"{sequence.name}_index": [[]], f"{sequence.name}_length": [[]], f"{sequence.name}_seen": [[0]]}
    for feature in features.token_ids:
        own = [_values(of_items.get(feature.name), token) for token in tokens]
        lists[f"{feature.name}_index"] = [[value for values in own for value in values]]
        lists[f"{feature.name}_length"] = [[len(values) for values in own]]
    segments = Segments({name: _ragged(rows) for name, rows in lists.items()}, features, samples)
    return segments.windows(np.arange(1))


def most_clicked(tables: Tables, dt: str, n: int) -> Answer:
    """The first n items of popular/dt, window `all`."""
    table = pa.concat_tables([read_parquet(name) for name in tables.get("popular", dt).files])
    wanted = pc.and_(pc.equal(table["window"], ALL), pc.less_equal(table["rank"], n))
    rows = table.filter(wanted).sort_by("rank").to_pylist()
    return POPULAR, [{"item_id": row["item_id"], "score": row["count"]} for row in rows]


def _values(lists: Ragged | None, item: int) -> list[int]:
    own = lists.values[lists.offsets[item] : lists.offsets[item + 1]].tolist() if lists and item != PADDING else []
    return own or [UNKNOWN]


def _ragged(rows: list[list[Any]]) -> Ragged:
    return Ragged.of(np.array([value for row in rows for value in row]), np.array([len(row) for row in rows]))


def _positive(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= _MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1 to {_MOST}")
    return int(text)
