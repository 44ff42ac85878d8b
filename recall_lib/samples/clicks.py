"""Users' clicks in order as NumPy columns, and the segments that are cut from them (SPEC 3.1 to 3.7).

All clicks of a user are in one partition. So order, truncation, targets, caps and negatives are array operations over all users
of a partition at once; nothing loops over users or clicks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from pandas.util import hash_array

from recall_lib.config import Features, Samples
from recall_lib.samples import sequences
from recall_lib.samples.ids import FIRST_INDEX, IMPRESSIONS, PADDING, UNKNOWN
from recall_lib.samples.negatives import draw, mix
from recall_lib.samples.ragged import Bools, Float32s, Float64s, Ints, Ragged, ceil_div, ranges
from recall_lib.samples.sequences import Events

# Tokens of a segment. A user with more tokens is cut into segments, which repeat window_size tokens.
SEGMENT_LENGTH = 512
# At least this many clicks of a held-out user's history are stored, however small the window: the baselines use them.
LEAST_HISTORY = 10
# Instead of the number of a click: the start token, and a target that does not exist.
START, NONE = -1, -2
_OF_NO_CLICK = np.array([PADDING, UNKNOWN], np.int32)  # appended to a column, these are its values at -2 (NONE) and -1 (START)
# Numbers in a list column of one batch; bounds memory, e.g. with 255 negatives per target.
_BATCH_VALUES = 1 << 22


@dataclass(frozen=True)
class Users:
    """Clicks of U users: one user after another, each user's oldest click first. Click i is row i of every column.

    Attributes:
        ids: user_id, [U].
        offsets: user u's clicks are offsets[u]:offsets[u + 1], [U + 1].
        user: the user of each click, [clicks].
        key: a random number for each user that only seed and user_id decide, uint64 [U].
        item: item index, [clicks].
        order: µs since 1970 or position, int64 [clicks].
        age: example_age as the log gives it, days, [clicks]; NaN if the log gives none.
        validates: whether the click's user has a validation click (build.split_samples with protocol `day`), [clicks].
        is_target: whether the click may be a target (build.samples_of_day), [clicks].
        features: for each feature the index of its value, [clicks + 2], or for a multi-valued one a list per click. The last
            two rows are for tokens without a click.
        weight: the weight of each click as a target, float32 [clicks].
        numbers: for each numeric feature the value of each click, NaN if it is unknown, float32 [clicks + 2].
        sequences: the events of each further sequence.
    """

    ids: pa.Array
    offsets: Ints
    user: Ints
    key: npt.NDArray[np.uint64]
    item: Ints
    order: Ints
    age: Float64s
    validates: Bools | None
    is_target: Bools | None
    weight: Float32s
    features: dict[str, npt.NDArray | Ragged]
    numbers: dict[str, Float32s]
    sequences: dict[str, Events]

    @classmethod
    def of(cls, table: pa.Table, features: Features, seed: int = 0) -> Users:
        """Make users from rows of transforms.samples.columns and with_activity, in any order."""
        rows, names = table, [sequence.name for sequence in features.sequences]
        if "sequence" in table.column_names:
            table, names = rows.filter(pc.is_null(rows.column("sequence"))), [*names, IMPRESSIONS]
        codes = table.column("user_id").combine_chunks().dictionary_encode()
        by_id = pc.sort_indices(codes.dictionary)  # the order of users does not depend on the order of rows
        ids = codes.dictionary.take(by_id)
        user = np.argsort(by_id.to_numpy())[codes.indices.to_numpy()]
        order = _click_order(table, user)
        user = user[order]
        offsets = np.searchsorted(user, np.arange(len(ids) + 1))

        def column(name: str) -> npt.NDArray:
            values = table.column(name).to_numpy()
            return values[order]

        def mark(name: str) -> Bools | None:
            return column(name) if name in table.column_names else None

        def feature(name: str, multi: bool) -> npt.NDArray | Ragged:
            if not multi:
                return np.append(column(name), _OF_NO_CLICK)
            lists = Ragged.from_arrow(table.column(name).combine_chunks())
            lists = lists.slices(lists.offsets[:-1][order], lists.offsets[1:][order])
            return Ragged(np.append(lists.values, _OF_NO_CLICK), np.append(lists.offsets, lists.offsets[-1] + np.array([1, 2])))

        def events(name: str) -> Events:
            return Events.of(rows.filter(pc.equal(rows.column("sequence"), name)), ids)

        return cls(
            ids=ids,
            offsets=offsets,
            user=user,
            key=hash_array(ids.to_numpy(zero_copy_only=False), hash_key=f"{seed:016x}"[-16:], categorize=False),
            item=column("item_index"),
            order=column("order"),
            age=column("example_age") if "example_age" in table.column_names else np.full(len(order), np.nan),
            validates=mark("validates"),
            is_target=mark("is_target"),
            weight=column("weight").astype(np.float32) if features.weighted else np.ones(len(order), np.float32),
            features={f.name: feature(f"{f.name}_index", f.multi) for f in (*features.target_ids, *features.token_ids)},
            numbers={
                n.name: np.append(column(f"{n.name}_value"), [np.float32(np.nan)] * 2)
                for n in (*features.target_numbers, *features.token_numbers)
            },
            sequences={name: events(name) for name in names},
        )


def _click_order(table: pa.Table, user: Ints) -> Ints:
    """The order of rows by user, then time or position; ties by the log's own order, item id bytes, then `tie`, [rows]."""
    time = table.column("order").to_numpy()
    order = _sorted(user, time)
    user, time = user[order], time[order]
    same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
    tied = np.flatnonzero(np.append(same, False) | np.append(False, same))
    if len(tied):
        names = [name for name in ("position", "item_id", "tie") if name in table.column_names]
        rows = table.select(names).take(pa.array(order[tied]))
        rows = rows.append_column("group", pa.array(np.cumsum(~np.append(False, same))[tied]))
        within = pc.sort_indices(rows, [(name, "ascending") for name in ("group", *names)])
        order[tied] = order[tied][within.to_numpy()]
    return order


def _sorted(user: Ints, time: Ints) -> Ints:
    """The order of rows by user, then time. If both fit into one number, that sorts several times as fast as two."""
    if not len(user):
        return np.zeros(0, np.int64)
    oldest, newest = int(time.min()), int(time.max())
    span = newest - oldest + 1
    if (int(user.max()) + 1) * span < 1 << 63:
        return np.argsort(user * span + (time - oldest))
    return np.lexsort((time, user))


@dataclass(frozen=True)
class Rows:
    """Rows of schemas.segments before their columns are gathered.

    Attributes:
        user: the user of each row, [R].
        tokens: the clicks of each row, oldest first (ragged [R]); START and NONE are tokens without a click.
        is_target: whether each token is a target, [tokens].
        event: for each target, the click whose user features it gets, [targets].
        age: the age of each target, days, [targets].
    """

    user: Ints
    tokens: Ragged
    is_target: Bools
    event: Ints
    age: Float32s

    def slice(self, start: int, stop: int) -> Rows:
        """The rows from start to stop - 1."""
        first, last = self.tokens.offsets[start], self.tokens.offsets[stop]
        before, targets = self.is_target[:first].sum(), self.is_target[first:last].sum()
        mine = slice(before, before + targets)
        tokens = Ragged(self.tokens.values[first:last], self.tokens.offsets[start : stop + 1] - first)
        return Rows(self.user[start:stop], tokens, self.is_target[first:last], self.event[mine], self.age[mine])


def training_tokens(users: Users, trains: Bools, settings: Samples) -> tuple[Ragged, Bools]:
    """Each user's training clicks, truncated (ragged [U]), and whether a start token precedes them, [U] (SPEC 3.1)."""
    known = np.flatnonzero(trains & (users.item >= FIRST_INDEX))
    per_user = np.bincount(users.user[known], minlength=len(users.ids))
    tokens = Ragged.of(known, per_user)
    most = settings.max_history or len(known)
    starts = settings.start_token & (per_user <= most) & (per_user > 0)
    if (per_user > most).any():
        tokens = tokens.slices(tokens.offsets[1:] - np.minimum(per_user, most), tokens.offsets[1:])
    return tokens, starts


def targets(
    users: Users,
    tokens: Ragged,
    starts: Bools,
    settings: Samples,
    keep: Float64s | None,
    since: int | None = None,
) -> Bools:
    """Whether each token is a target, [tokens] (SPEC 3.2, 3.4, 3.5).

    Args:
        users: all clicks.
        tokens: each user's training clicks (ragged [U]).
        starts: whether a start token precedes them, [U].
        settings: the settings of the samples.
        keep: for each item index, the probability that a target is kept; None: all are kept.
        since: µs since 1970; earlier clicks are not targets. None: every click may be one.
    """
    user = users.user[tokens.values]
    target = np.ones(len(user), bool)
    target[tokens.offsets[:-1][~starts & (tokens.lengths > 0)]] = False  # a user's first token
    if since is not None:
        target &= users.order[tokens.values] >= since
    if keep is not None:
        nth = tokens.values - users.offsets[user]
        with np.errstate(over="ignore"):
            drawn = mix(mix(users.key[user] + _SUBSAMPLE) + nth.astype(np.uint64))
        target &= (drawn >> np.uint64(11)).astype(np.float64) / float(1 << 53) < keep[users.item[tokens.values]]
    if settings.max_targets_per_user:
        so_far = np.cumsum(target)
        before = np.append(0, so_far)[tokens.offsets[user]]
        target &= so_far - before <= settings.max_targets_per_user
    return target


# What the random numbers of a user are for.
_SUBSAMPLE, _NEGATIVES, _SHUFFLE = (np.uint64(word) for word in (1, 2, 3))


def training_rows(users: Users, tokens: Ragged, starts: Bools, target: Bools, age: Float64s, settings: Samples) -> Rows:
    """The segments that have a target, in random order.

    A segment has up to `length` tokens of its own; the targets among these are its targets. Up to window_size tokens come
    before them as history. START, if the user has one, is at place 0. With length 4 and window_size 2:

        place         0    1    2    3    4    5    6    7    8    9
        segment 0    own  own  own  own                                  first 0, own 0, stop 4
        segment 1               h    h   own  own  own  own              first 2, own 4, stop 8
        segment 2                                   h    h   own  own    first 6, own 8, stop 10

    Args:
        users: all clicks.
        tokens: each user's training clicks (ragged [U]).
        starts: whether START precedes them, [U].
        target: whether each of `tokens` is a target, [tokens].
        age: days, [clicks].
        settings: the settings of the samples.
    """
    length = max(SEGMENT_LENGTH, 2 * settings.window_size)
    size = tokens.lengths + starts  # [U], number of tokens, START included
    pieces = ceil_div(size, length)  # [U], number of segments
    # For each segment, [S]: its user, its number among the user's segments, and three places among the user's tokens.
    user, nth = np.repeat(np.arange(len(users.ids)), pieces), ranges(pieces)
    own, stop = nth * length, np.minimum((nth + 1) * length, size[user])
    first = np.maximum(own - settings.window_size, 0)
    # base + place is a token's number in tokens.values, which lacks START: for a user with START, place 1 is the first there.
    base = tokens.offsets[user] - starts[user]
    targets_before = np.append(0, np.cumsum(target))
    begin = np.maximum(base + own, tokens.offsets[user])
    has_target = targets_before[base + stop] > targets_before[begin]
    order = _shuffled(users.key[user], nth)
    order = order[has_target[order]]
    user, own, stop, first, base = (column[order] for column in (user, own, stop, first, base))
    # For each token of the segments, [total]: its place, its number in tokens.values, and its click.
    places = Ragged.spans(first, stop)
    is_start = (places.values == 0) & np.repeat(starts[user], places.lengths)
    number = np.where(is_start, 0, places.values + np.repeat(base, places.lengths))
    clicks = np.where(is_start, START, tokens.values[number])
    is_target = ~is_start & target[number] & (places.values >= np.repeat(own, places.lengths))
    event = clicks[is_target]
    return Rows(user, Ragged(clicks, places.offsets), is_target, event, age[event].astype(np.float32))


def _shuffled(user_key: npt.NDArray[np.uint64], nth: Ints) -> Ints:
    """An order of the segments, [S], that only the seed, their user's id and their number decide."""
    with np.errstate(over="ignore"):
        return np.argsort(mix(mix(user_key + _SHUFFLE) + nth.astype(np.uint64)), kind="stable")


def held_out_rows(users: Users, user: Ints, target: Ints, settings: Samples, *, start_token: bool) -> Rows:
    """One row per target: the clicks before it, as many as windows and baselines need, and the target.

    Args:
        users: all clicks.
        user: the user of each row, [R].
        target: the click that is the target, [R]; without one (inference) the number after the user's last click.
        settings: the settings of the samples.
        start_token: whether the history may begin with the start token (in samples yes, at inference no).
    """
    known = np.flatnonzero(users.item >= FIRST_INDEX)  # [known clicks]
    # For each row, [R]: where its target is in `known`, its known clicks before that, and how many of them are kept.
    end = np.searchsorted(known, target)
    clicks = end - np.searchsorted(known, users.offsets[user])
    stored = max(settings.window_size, LEAST_HISTORY)
    kept = np.minimum(clicks, min(stored, settings.max_history or stored))
    fits = (clicks > 0) & (clicks < settings.window_size) & (clicks <= (settings.max_history or settings.window_size))
    starts = fits & start_token & settings.start_token
    # Places in `known`, later its clicks:  | START, if the row starts | kept clicks, the last at end - 1 | target, at end |
    places = Ragged.spans(end - kept - starts, end + 1)  # ragged [R]
    first, last = places.offsets[:-1], places.offsets[1:] - 1
    tokens = np.append(known, NONE)[places.values]
    exists = target < users.offsets[user + 1]
    tokens[first[starts]] = START
    tokens[last] = np.where(exists, target, NONE)
    is_target = np.zeros(len(tokens), bool)
    is_target[last] = True
    event = np.where(exists, target, target - 1)
    return Rows(user, Ragged(tokens, places.offsets), is_target, event, np.zeros(len(user), np.float32))


def seen_items(users: Users, user: Ints, target: Ints) -> Ragged:
    """For each row every known item that the user clicked before the target, ascending (ragged [R])."""
    clicks = Ragged.spans(users.offsets[user], target)
    row = np.repeat(np.arange(len(user)), clicks.lengths)
    return distinct(row, users.item[clicks.values], len(user))


def distinct(row: Ints, item: Ints, rows: int) -> Ragged:
    """Each row's different known items, ascending (ragged [rows])."""
    pairs = np.unique(((row << 32) | item)[item >= FIRST_INDEX])  # a pair as one number: | 32 bits: row | 32 bits: item |
    return Ragged.of((pairs & 0xFFFFFFFF).astype(np.int32), np.bincount(pairs >> 32, minlength=rows))


@dataclass(frozen=True)
class Negatives:
    """How the negatives of training targets are drawn.

    Attributes:
        own: for each user, the items that are not negatives, ascending (ragged [U]).
        weights: the weight of each item index, [items]; see samples.negatives.
        shown: the items that users were shown; they come first. None: all negatives are drawn.
    """

    own: Ragged
    weights: Float64s
    shown: Events | None = None

    def draw(self, users: Users, rows: Rows, k: int) -> npt.NDArray[np.int32]:
        """k negatives for each target of the rows, [targets, k]."""
        user = np.repeat(rows.user, rows.tokens.lengths)[rows.is_target]
        with np.errstate(over="ignore"):
            nth = (rows.event - users.offsets[user]).astype(np.uint64)
            keys = mix(mix(users.key[user] + _NEGATIVES) + nth)
        own = self.own.slices(self.own.offsets[user], self.own.offsets[user + 1])
        given = None if self.shown is None else self._shown_near(self.shown, users, user, rows.event, own, k)
        return draw(keys, own, self.weights, k, given)

    @staticmethod
    def _shown_near(shown: Events, users: Users, user: Ints, event: Ints, own: Ragged, k: int) -> Ints:
        """The last items, up to k, that a user was shown since the click before the target and not after it, [targets, k]."""
        # The user's first click has none before it: then everything that the user was shown counts.
        oldest = np.searchsorted(shown.user, user)
        begin = np.where(event == users.offsets[user], oldest, shown.before(user, users.order[event - 1] + 1))
        near = Ragged.spans(begin, shown.before(user, users.order[event] + 1))  # ragged [targets], oldest first
        row = np.repeat(np.arange(len(user)), near.lengths)[::-1]
        item = shown.tokens.values[near.values][::-1].astype(np.int64)  # newest first
        forbidden = np.repeat(np.arange(len(user)), own.lengths) << 32 | own.values
        usable = (item >= FIRST_INDEX) & ~np.isin(row << 32 | item, forbidden)
        row, item = row[usable], item[usable]
        _, newest = np.unique(row << 32 | item, return_index=True)
        newest = newest[np.lexsort((newest, row[newest]))]  # each item once, row by row, newest first
        row, item = row[newest], item[newest]
        nth = ranges(np.bincount(row, minlength=len(user)))
        given = np.zeros((len(user), k), np.int64)
        given[row[nth < k], nth[nth < k]] = item[nth < k]
        return given


def record_batches(
    users: Users, rows: Rows, features: Features, k: int, *, negatives: Negatives | None = None, seen: Ragged | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows as schemas.segments, in batches of about equal size, which bounds memory.

    Args:
        users: all clicks.
        rows: the rows.
        features: the features.
        k: negatives for each target.
        negatives: how they are drawn; None: they are 0.
        seen: each row's seen items (ragged [R]); None: empty lists.
    """
    values = np.append(0, np.cumsum(rows.tokens.lengths * (1 + k)))  # [R + 1], numbers in the rows before each row
    parts = -(-int(values[-1]) // _BATCH_VALUES)
    edges = np.unique(np.searchsorted(values, np.linspace(0, values[-1], parts + 1)))
    for start, stop in pairwise(edges):
        part = rows.slice(start, stop)
        drawn = negatives.draw(users, part, k) if negatives else np.zeros((len(part.event), k), np.int32)
        mine = seen.slices(seen.offsets[start:stop], seen.offsets[start + 1 : stop + 1]) if seen else None
        yield _batch(users, part, features, drawn, mine)


def _batch(
    users: Users, rows: Rows, features: Features, negatives: npt.NDArray[np.int32], seen: Ragged | None
) -> pa.RecordBatch:
    """The rows with their columns, in the order of schemas.segments."""
    tokens, offsets = rows.tokens.values, rows.tokens.offsets  # tokens index columns; START and NONE are negative
    item = np.append(users.item, _OF_NO_CLICK).astype(np.int32)
    targets = np.append(0, np.cumsum(rows.is_target))[offsets]  # [R + 1], offsets of each row's targets
    columns = {
        "user_id": users.ids.take(pa.array(rows.user)),
        "item_index": _lists(offsets, item[tokens]),
        "is_target": _lists(offsets, rows.is_target),
        "example_age": _lists(targets, rows.age),
        "negatives": _lists(targets * negatives.shape[1], negatives.ravel()),  # [targets, k] -> [targets * k]
    }
    if features.weighted:
        columns["weight"] = _lists(targets, users.weight[rows.event])
    ids = _id_columns(users, features.target_ids, targets, rows.event) | _id_columns(users, features.token_ids, offsets, tokens)
    columns |= {name: ids[name] for name in sorted(ids, key=lambda name: name.endswith("_length"))}  # lengths are the last
    for numbers, at, places in ((features.target_numbers, targets, rows.event), (features.token_numbers, offsets, tokens)):
        columns |= {f"{number.name}_value": _lists(at, users.numbers[number.name][places]) for number in numbers}
    target = tokens[rows.is_target]
    moment = np.where(target >= 0, users.order[target], _AFTER_ALL)
    for sequence in features.sequences:
        parts = sequences.columns(users.sequences[sequence.name], rows.user, targets, moment, sequence.window_size)
        columns |= {f"{sequence.name}_{suffix}": _lists(at, values) for suffix, (at, values) in parts.items()}
    none = np.zeros(len(rows.user) + 1, np.int64)
    columns["seen"] = _lists(seen.offsets, seen.values) if seen else _lists(none, np.zeros(0, np.int32))
    return pa.RecordBatch.from_pydict(columns)


# The moment of a target that does not exist (inference): after every event.
_AFTER_ALL = np.iinfo(np.int64).max


def _id_columns(users: Users, features: Sequence[Any], offsets: Ints, places: Ints) -> dict[str, pa.Array]:
    """The `_index` and `_length` columns of features.

    Args:
        offsets: where the places of each row begin, [R + 1].
        places: rows of the columns in `users`; those of no click are counted from the end.
    """
    columns = {}
    for feature in features:
        values = users.features[feature.name]
        if isinstance(values, Ragged):
            place = np.where(places < 0, places + len(values.offsets) - 1, places)
            values = values.slices(values.offsets[place], values.offsets[place + 1])
            columns[f"{feature.name}_index"] = _lists(values.offsets[offsets], values.values)
            columns[f"{feature.name}_length"] = _lists(offsets, values.lengths.astype(np.int32))
        else:
            columns[f"{feature.name}_index"] = _lists(offsets, values[places])
    return columns


def _lists(offsets: Ints, values: npt.NDArray) -> pa.Array:
    return pa.ListArray.from_arrays(pa.array(offsets.astype(np.int32)), pa.array(values))
