"""Remove a user from the events and all tables of every day.

    recall forget --config conf/mine.yaml --user u123

What it removes:
  events, samples, vectors, top_n, top_n_user_id  the user's rows
  rejects  rows whose text contains the id as a word; with short numeric ids, other users' rows too
  vocab    the id, if user_id is a feature; the row stays, without a value

Every day is replaced as a whole, and tables made from it do not become stale. What stays: the
model's weights (with user_id as a feature, a row that no id refers to any more), the raw log and
`input.users`. Remove the user from the log and from `input.users` first. Otherwise the user comes
back when a day is ingested later. Afterwards run `recall gc`: it removes files that runs left
behind when they were killed.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recall_lib.config import load_config
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command
from recall_lib.process.errors import UsageError
from recall_lib.spark.session import start
from recall_lib.store import datasets, locks
from recall_lib.store.datasets import Dataset
from recall_lib.store.filesystems import open_parquet
from recall_lib.store.publication import Publication
from recall_lib.store.tables import Tables

# Which rows of a row group are the user's.
Find = Callable[[pa.Table, str], pa.ChunkedArray]


def main(argv: Sequence[str] | None = None) -> int:
    """`recall forget --config F --user U`."""
    options = parser("forget", __doc__, "--config")
    options.add_argument("--user", required=True, metavar="ID", help="the user_id, as it is in the events")

    def run(args: argparse.Namespace) -> None:
        if not args.user.strip():
            raise UsageError("--user is empty: give the user_id, as it is in the events")
        config = load_config(args.config, args.overrides)
        tables = Tables(config, start_spark=lambda: start(config.spark, "recall forget"))
        messages.bind(run_id=tables.run_id)
        found = False
        for place, rows in forget(tables, args.user):
            messages.say("forget", f"{place}: {rows} {'row' if rows == 1 else 'rows'}")
            found = True
        if not found:
            messages.say("forget", f"no table under {tables.root} has this user")
        messages.say("forget", "the raw log and the models' weights are as they were")

    return run_command(options, run, argv)


def forget(tables: Tables, user: str) -> Iterator[tuple[str, int]]:
    """Remove a user from all that is published.

    Yields:
        (publication, its rows that were removed or, in vocab, made nameless) for each that had any, once it is done.

    Raises:
        Busy: another run has a day, or may publish one from the events as they were; what has been yielded is done.
    """
    root = tables.config.paths.root
    with locks.held(root, "events", tables.run_id):
        with_users = [row for row in datasets.in_order() if row.user_column]
        yield from _forget_in_all(tables, [row for row in with_users if row.job == "events"], user)
        # A run that read the events before they were cleaned may still publish this user, where no publication is yet.
        locks.require_no_other_day(root, tables.run_id)
        yield from _forget_in_all(tables, [row for row in with_users if row.job != "events"], user)


def _forget_in_all(tables: Tables, rows: Iterable[Dataset], user: str) -> Iterator[tuple[str, int]]:
    for row in rows:
        for dt, keys in tables.publications(row.name):
            with locks.held(tables.config.paths.root, f"dt={dt}", tables.run_id):
                publication = tables.get(row.name, dt, **keys)
                removed = _forget_in(tables, publication, row.user_column, user)
            if removed:
                yield publication.name, removed


def _forget_in(tables: Tables, publication: Publication, user_column: str, user: str) -> int:
    folder, find = publication.folder, _FIND[user_column]
    rows = {file["name"]: 0 for file in publication.manifest["files"]}
    for name in rows:
        for group in _groups(tables, folder, name, user_column):
            rows[name] += pc.sum(find(group, user)).as_py() or 0
    hit = {name: n for name, n in rows.items() if n}
    if hit:
        with tables.amended(publication) as staging:
            for name in hit:
                tables.fs.rm_file(f"{staging}/{name}")
                _rewrite(tables, f"{folder}/{name}", f"{staging}/{tables.run_id}-{name}", user_column, user)
    tables.drop_old_versions(publication)
    return sum(hit.values())


def _groups(tables: Tables, folder: str, name: str, column: str) -> Iterator[pa.Table]:
    """The row groups of a file; none if it lacks the column."""
    with open_parquet(tables.uri(f"{folder}/{name}")) as file:
        for group in range(file.num_row_groups if column in file.schema_arrow.names else 0):
            yield file.read_row_group(group, use_threads=False)


def _rewrite(tables: Tables, source: str, target: str, user_column: str, user: str) -> None:
    """Write a file without the user's rows, or, of a vocabulary, without their value; other rows keep their row groups."""
    folder, name = source.rsplit("/", 1)
    writer = None
    with tables.fs.open(target, "wb") as sink:
        for group in _groups(tables, folder, name, user_column):
            theirs = _FIND[user_column](group, user)
            if user_column == _NAME:
                column = group.schema.get_field_index(_NAME)
                nameless = pc.if_else(theirs, pa.scalar(None, pa.string()), group[_NAME])
                kept = group.set_column(column, group.schema.field(column), nameless)
            else:
                kept = group.filter(pc.invert(theirs))
            writer = writer or pq.ParquetWriter(sink, group.schema, compression="zstd")
            if kept.num_rows:
                writer.write_table(kept, row_group_size=kept.num_rows)
        assert writer, "the user was found in this file"
        writer.close()


def _by_id(rows: pa.Table, user: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.equal(rows["user_id"], user), False)


def _by_text(rows: pa.Table, user: str) -> pa.ChunkedArray:
    # As it is, and as CSV and JSON write what is in quotes.
    written = {user, user.replace('"', '""'), *(json.dumps(user, ensure_ascii=ascii)[1:-1] for ascii in (True, False))}
    word = "|".join(map(re.escape, sorted(written)))
    outside = r"[^\p{L}\p{M}\p{N}_-]"
    return pc.fill_null(pc.match_substring_regex(rows["raw"], f"(^|{outside})({word})($|{outside})"), False)


def _by_value(rows: pa.Table, user: str) -> pa.ChunkedArray:
    return pc.fill_null(pc.and_(pc.equal(rows["feature"], "user_id"), pc.equal(rows["value"], user)), False)


# By the column that Dataset.user_column names. A vocabulary's row stays: only its name goes.
_NAME = "value"
_FIND: dict[str, Find] = {"user_id": _by_id, "raw": _by_text, _NAME: _by_value}


if __name__ == "__main__":
    sys.exit(main())
