"""A batch of raw rows -> canonical columns, and what becomes of each row (SPEC 1): kept, rejected, or dropped by name."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from recall_lib.config import Feature, Input, Number, Sequence
from recall_lib.log import activity, values
from recall_lib.log.batch import Batch
from recall_lib.log.readers import LINE
from recall_lib.log.tables import Need
from recall_lib.samples.ids import IMPRESSIONS

# What every mapping adds to its own columns. FATE is KEPT, NOT_CLICKED, BLANK or a reason to reject the row; SOURCE and RAW
# are the file and the text of a rejected row, else null. NOTES are the bits below. PLACE orders the rows of a table.
FATE, DAY, SOURCE, RAW, NOTES, LOOKS_LIKE, PLACE = "_fate", "_day", "_source", "_raw", "_notes", "_looks_like", "_place"
ACTIVITY = "_activity"  # the events of further sequences that a row is
KEPT, NOT_CLICKED = "kept", "not_clicked"
FLOAT_LIKE_ID, DATE_ONLY = 1, 2
_STRING = pa.string()


class _Fates:
    """What becomes of the rows of a batch; of several reasons the first one counts."""

    def __init__(self, rows: int) -> None:
        self.names = [KEPT]
        self.codes = np.zeros(rows, np.int8)

    def reject(self, reason: str, rows: values.Mask | None) -> None:
        if rows is not None and rows.any():
            self.names.append(reason)
            self.codes[(self.codes == 0) & rows] = len(self.names) - 1

    def of_rows(self, others: Iterable[tuple[str, str]]) -> pa.Array:
        """The names, of the rows and then of the lines that are no row."""
        return pa.concat_arrays(
            [pa.array(self.names).take(pa.array(self.codes)), pa.array([name for name, _ in others], _STRING)]
        )

    def reject_texts(self, reason: str, *read: values.Texts) -> None:
        """Reject the rows in which one of the columns could not be read for this reason."""
        for texts in read:
            marks = {"bad_utf8": texts.undecodable, "fractional_id": texts.fractional, "nested_value": texts.nested}
            self.reject(reason, marks[reason])


def _batch(batch: Batch, source: str, columns: dict[str, pa.Array], fates: _Fates, also: dict[str, pa.Array]) -> pa.RecordBatch:
    """The columns with what every mapping adds; the lines that are no row follow, null in every column."""
    rejected = [n for n, name in enumerate(fates.names) if name not in (KEPT, NOT_CLICKED)]
    rows = np.flatnonzero(np.isin(fates.codes, rejected)) if rejected else np.array([], np.int64)
    raw = np.full(batch.rows, None, object)
    raw[rows] = batch.texts(rows)
    more = len(batch.others)
    texts = pa.array([*raw, *(text for _, text in batch.others)], _STRING)
    sources = pc.if_else(texts.is_valid(), pa.scalar(source), pa.scalar(None, _STRING))
    own = columns | also
    if more:
        own = {name: pa.concat_arrays([array, pa.nulls(more, array.type)]) for name, array in own.items()}
    return pa.RecordBatch.from_pydict(own | {FATE: fates.of_rows(batch.others), SOURCE: sources, RAW: texts})


@dataclass(frozen=True)
class Clicks:
    """The click log: its columns under the names of events.

    Attributes:
        settings: name the log's columns and say how values are written.
        features: the features and numbers that the log holds, without user_id.
        sequences: the further sequences that its rows form.
        impressions: whether the items that users were shown form one.
    """

    settings: Input
    features: tuple[Feature | Number, ...]
    sequences: tuple[Sequence, ...] = ()
    impressions: bool = False

    @property
    def needs(self) -> list[Need]:
        """The columns of the log."""
        columns, kinds = self.settings.columns, self.settings.events
        clock = "time" if self.settings.ordering == "time" else "number"
        needs = [Need(columns.user_id, "id"), Need(columns.item_id, "id"), Need(columns.event_ts, clock)]
        click = (kinds.column, "feature") if kinds else (columns.click, "flag")
        others = [click, (columns.example_age, "number"), (columns.order, "number")]
        needs += [Need(column, role) for column, role in others if column]
        needs += [Need(sequence.source, "list", is_required=False) for sequence in self.sequences]
        return [*needs, *features_needed(self.features)]

    @property
    def schema(self) -> pa.Schema:
        """Of what `map` gives."""
        columns = {"user_id": _STRING, "item_id": _STRING, "event_ts": pa.timestamp("us", "UTC"), "position": pa.int64()}
        columns |= {"example_age": pa.float64()} | features_schema(self.features)
        if self.settings.events:
            columns["weight"] = pa.float64()
        added = {DAY: _STRING, NOTES: pa.int8(), LOOKS_LIKE: _STRING, FATE: _STRING, SOURCE: _STRING, RAW: _STRING}
        if self.sequences or self.impressions:
            added[ACTIVITY] = activity.TYPE
        return pa.schema(list((columns | added).items()))

    def map(self, batch: Batch, source: str, first: int | None) -> pa.RecordBatch:
        """The canonical columns and the fate of each row."""
        settings, rows = self.settings, batch.rows
        names, nulls = settings.columns, pa.array(settings.nulls, _STRING)
        ids = [values.texts(batch.columns[name]) for name in (names.user_id, names.item_id)]
        user, item = (values.known(texts.text, nulls) for texts in ids)
        time, order, looks_like, notes = self._clock(batch)
        of_features, read = _features(batch, self.features, nulls)
        kinds = self._kinds(batch, nulls)
        fates = _Fates(rows)
        fates.reject_texts("bad_utf8", *ids, *read)
        by_time = settings.ordering == "time"
        fates.reject("bad_time" if by_time else "bad_position", _is_null(time if by_time else order))
        fates.reject_texts("nested_value", *ids, *read)
        fates.reject_texts("fractional_id", *ids)
        fates.reject("no_user", _is_null(user))
        fates.reject("no_item", _is_null(item) & kinds.needs_item)
        fates.reject("bad_click", kinds.unreadable)
        age = pa.nulls(rows, pa.float64())
        if names.example_age:
            age, bad = values.numbers(batch.columns[names.example_age])
            fates.reject("bad_example_age", bad)
        if by_time and names.order:
            fates.reject("bad_position", _is_null(order))
        usable = fates.codes == 0
        fates.reject(NOT_CLICKED, ~kinds.click)
        notes = notes | _float_like(ids) * np.int8(FLOAT_LIKE_ID)
        columns = {"user_id": user, "item_id": item, "event_ts": time.cast(pa.timestamp("us", "UTC")), "position": order}
        columns |= {"example_age": age, "weight": kinds.weight} | of_features
        also = {DAY: values.days_of(time, settings), NOTES: pa.array(notes), LOOKS_LIKE: looks_like}
        if ACTIVITY in self.schema.names:
            also[ACTIVITY] = self._activity(batch, kinds, item, usable, nulls)
        return _batch(batch, source, columns, fates, also).select(self.schema.names)

    def _kinds(self, batch: Batch, nulls: pa.Array) -> activity.Kinds:
        """What kind of event each row is."""
        if self.settings.events:
            text = values.known(values.texts(batch.columns[self.settings.events.column]).text, nulls)
            return activity.Kinds.by_name(text, self.settings.events)
        click = self.settings.columns.click
        return activity.Kinds.by_flag(values.flags(batch.columns[click]) if click else np.ones(batch.rows, np.int8))

    def _activity(self, batch: Batch, kinds: activity.Kinds, item: pa.Array, usable: values.Mask, nulls: pa.Array) -> pa.Array:
        """The events of further sequences that each usable row is, activity.TYPE."""
        found = []
        for sequence in self.sequences:
            own, _ = values.lists(batch.columns[sequence.source], None, nulls)
            tokens = activity.words(own) if sequence.tokens == "words" else activity.without_nulls(own)
            found.append((sequence.name, tokens, usable & kinds.of(sequence.events)))
        if self.impressions:
            shown = activity.without_nulls(pa.ListArray.from_arrays(np.arange(batch.rows + 1, dtype=np.int32), item))
            found.append((IMPRESSIONS, shown, usable & kinds.shown))
        return activity.lists(found, batch.rows)

    def _clock(self, batch: Batch) -> tuple[pa.Array, pa.Array, pa.Array, npt.NDArray[np.int8]]:
        """µs, position, what unit the times look like, and notes."""
        names, nothing = self.settings.columns, pa.nulls(batch.rows, pa.int64())
        if self.settings.ordering == "position":
            position = values.integers(batch.columns[names.event_ts])
            return nothing, position, pa.nulls(batch.rows, _STRING), np.zeros(batch.rows, np.int8)
        times = values.times(batch.columns[names.event_ts], self.settings)
        order = values.integers(batch.columns[names.order]) if names.order else nothing
        return times.micros, order, times.looks_like, times.date_only * np.int8(DATE_ONLY)


@dataclass(frozen=True)
class Entries:
    """A table with an id in each row, e.g. of items, and what the row says of it.

    Attributes:
        settings: as in Clicks.
        column: of the id.
        name: of the id in the result.
        features: of the id.
        reason: why a row without an id is rejected.
    """

    settings: Input
    column: str
    name: str
    reason: str
    features: tuple[Feature | Number, ...] = ()

    @property
    def needs(self) -> list[Need]:
        """The columns of the table."""
        return [Need(self.column, "id"), *features_needed(self.features)]

    @property
    def schema(self) -> pa.Schema:
        """Of what `map` gives; PLACE is the place of the row in the table, null in a catalog table."""
        columns = {self.name: _STRING} | features_schema(self.features)
        added = {PLACE: pa.int64(), FATE: _STRING, SOURCE: _STRING, RAW: _STRING}
        return pa.schema(list((columns | added).items()))

    def map(self, batch: Batch, source: str, first: int | None) -> pa.RecordBatch:
        """The id, the features and the fate of each row."""
        nulls = pa.array(self.settings.nulls, _STRING)
        ids = values.texts(batch.columns[self.column])
        key = values.known(ids.text, nulls)
        of_features, read = _features(batch, self.features, nulls)
        fates = _Fates(batch.rows)
        for reason in ("bad_utf8", "nested_value"):
            fates.reject_texts(reason, ids, *read)
        fates.reject_texts("fractional_id", ids)
        fates.reject(self.reason, _is_null(key))
        places = pa.nulls(batch.rows, pa.int64()) if first is None else pa.array(np.arange(first, first + batch.rows))
        return _batch(batch, source, {self.name: key} | of_features, fates, {PLACE: places}).select(self.schema.names)


@dataclass(frozen=True)
class Lines:
    """Session lines: the text of each line, which transforms/events.py takes apart."""

    needs: tuple[Need, ...] = ()

    @property
    def schema(self) -> pa.Schema:
        """SOURCE and RAW of every line."""
        return pa.schema([(FATE, _STRING), (SOURCE, _STRING), (RAW, _STRING)])

    def map(self, batch: Batch, source: str, first: int | None) -> pa.RecordBatch:
        """The lines; their fate is KEPT, bad_utf8 or BLANK."""
        texts = values.texts(batch.columns[LINE])
        bad = texts.undecodable
        fates = _Fates(batch.rows)
        fates.reject("bad_utf8", bad)
        lines = texts.text if bad is None else pa.array([*batch.texts(range(batch.rows))], _STRING)
        blank = pa.nulls(len(batch.others), _STRING)
        fate = fates.of_rows(batch.others)
        text = pa.concat_arrays([lines, blank])
        return pa.RecordBatch.from_arrays([fate, pa.repeat(pa.scalar(source), len(fate)), text], schema=self.schema)


Mapping = Clicks | Entries | Lines


def features_needed(features: Iterable[Feature | Number]) -> list[Need]:
    """The columns that features are read from."""
    return [Need(f.source, "number" if isinstance(f, Number) else "list", is_required=False) for f in features]


def features_schema(features: Iterable[Feature | Number]) -> dict[str, pa.DataType]:
    """The types of features."""
    return {f.name: pa.float64() if isinstance(f, Number) else pa.list_(_STRING) if f.multi else _STRING for f in features}


def _features(
    batch: Batch, features: Iterable[Feature | Number], nulls: pa.Array
) -> tuple[dict[str, pa.Array], list[values.Texts]]:
    """The features' values by name, and how their texts were read; what is no number is unknown."""
    found: dict[str, pa.Array] = {}
    read = []
    for feature in features:
        column = batch.columns[feature.source]
        if isinstance(feature, Number):
            found[feature.name], _ = values.numbers(column)
            continue
        if feature.multi:
            found[feature.name], texts = values.lists(column, feature.separator, nulls)
        else:
            found[feature.name], texts = values.firsts(column, nulls)
        read.append(texts)
    return found, read


def _is_null(array: pa.Array) -> values.Mask:
    return array.is_null().to_numpy(zero_copy_only=False)


def _float_like(ids: Iterable[values.Texts]) -> values.Mask:
    """Whether an id of a row is a text such as 123.0."""
    marks = [values.is_float_like(texts.text) for texts in ids]
    return np.logical_or.reduce(marks)
