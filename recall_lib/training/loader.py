"""Windows streamed from sample files by Petastorm, in an order that a seed decides.

Petastorm reads one row group after another in its own thread. It can batch only lists of equal length. So each row group is
packed into one row of bytes there, and unpacked into segments here. Several row groups are mixed in memory and cut into the
planned number of batches: each target comes once per epoch, and all ranks take the same number of steps.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd
from fsspec.core import url_to_fs
from fsspec.implementations.dirfs import DirFileSystem

from recall_lib.config import Features, Samples
from recall_lib.process.errors import DataRefused
from recall_lib.samples.ragged import Ints, Ragged
from recall_lib.samples.windows import Segments, Windows
from recall_lib.store.schemas import segments as segments_schema
from recall_lib.training.petastorm_compat import TransformSpec, Unreadable, edit_field, make_batch_reader

T = TypeVar("T")
# A packed row group. For each list column: the bytes of all values, and those of all lists' lengths.
PackedRows = dict[str, tuple[bytes, bytes]]
SegmentsOf = Callable[[list[PackedRows]], Segments]
_VALUES, _LENGTHS = "_v", "_n"


def read_epoch(
    urls: Sequence[str],
    sizes: Ints,
    features: Features,
    samples: Samples,
    *,
    unit: str,
    row_groups: int,
    seed: Sequence[int],
) -> Iterator[Windows]:
    """The batches of one epoch over sample files.

    Args:
        urls: the addresses of this rank's files, all in one folder.
        sizes: targets of each batch, [steps], summing to the files' targets.
        features: the features that the samples were made with.
        samples: the settings that the samples were made with.
        unit: see training.unit. With `run` a batch has about as many targets as planned; all batches together have exactly as
            many.
        row_groups: number of row groups that are mixed in memory.
        seed: numbers that decide the order, e.g. (seed, rank, epoch).

    Yields:
        One batch per step.

    Raises:
        DataRefused: the files hold fewer targets than planned, or with unit `run` fewer stretches than batches.
    """
    random = np.random.default_rng(list(seed))
    order = [urls[i] for i in random.permutation(len(urls))]
    buffers = _buffers(order, features, row_groups)
    cut = _cut_stretches if unit == "run" else _cut_windows
    steps = 0
    for windows in cut(buffers, lambda groups: Segments(_unpack(groups), features, samples), sizes, random):
        steps += 1
        yield windows
    if steps < len(sizes):  # the other ranks would wait for this one
        raise DataRefused(
            f"sample files hold fewer targets than the {sizes.sum()} of their manifest: run `recall samples` again"
        )


def _cut_windows(
    buffers: Iterator[list[PackedRows]], segments_of: SegmentsOf, sizes: Ints, random: np.random.Generator
) -> Iterator[Windows]:
    """Batches of the targets of each buffer in random order; those left over begin the next batch."""
    wanted = iter(sizes.tolist())
    size = next(wanted, None)
    parts: list[Windows] = []
    for buffer in buffers:
        segments = segments_of(buffer)
        targets = random.permutation(len(segments))
        while size is not None and len(targets):
            missing = size - sum(len(part.target) for part in parts)
            parts.append(segments.windows(targets[:missing]))
            targets = targets[missing:]
            if len(parts[-1].target) == missing:
                yield join(parts)
                size, parts = next(wanted, None), []


def _cut_stretches(
    buffers: Iterator[list[PackedRows]], segments_of: SegmentsOf, sizes: Ints, random: np.random.Generator
) -> Iterator[Windows]:
    """Batches of stretches of similar length, so that little is padded; the batches of each buffer are in random order."""
    held: list[PackedRows] = []
    total, steps = int(sizes.sum()), len(sizes)  # planned targets and batches
    read, done = 0, 0  # targets read and batches made so far
    for buffer in buffers:
        held += buffer
        segments = segments_of(held)
        # As large a share of the batches is made as of the targets is read, rounded down. After the last buffer it is all.
        count = (read + len(segments)) * steps // total - done
        if count:  # otherwise the buffer is too small for a batch, and is mixed with the next one
            read, done, held = read + len(segments), done + count, []
            yield from _stretch_batches(segments, count, random)


def _stretch_batches(segments: Segments, count: int, random: np.random.Generator) -> Iterator[Windows]:
    """All stretches of the segments in `count` batches."""
    first, stop, targets = segments.stretches(random)
    if len(first) < count:
        raise DataRefused(
            f"{len(first)} stretches of clicks cannot make {count} batches: use fewer ranks, a larger "
            "training.batch_size or training.shuffle_row_groups, or training.unit window"
        )
    by_length = np.argsort(stop - first + random.uniform(0, _MIXED_LENGTHS, len(first)))  # [stretches]
    batches = np.split(by_length, _edges(targets[by_length], count))  # `count` lists of stretches
    for nth in random.permutation(count):
        yield segments.shared_windows(first[batches[nth]], stop[batches[nth]])


# Stretches whose lengths differ by less than this may change places, so that every epoch has other batches.
_MIXED_LENGTHS = 8


def _edges(targets: Ints, count: int) -> Ints:
    """Where to cut stretches into batches with about equally many targets and at least one stretch each, [count - 1].

    Batch i ends with the stretch that reaches i / count of the targets. With 3 batches of 18 targets, at 6 and 12:

        stretch        0   1   2   3   4   5   6
        its targets    1   2   1   3   2   5   4
        so far         1   3   4   7   9  14  18
                                     |       |        edges 4 and 6

    A stretch may hold the targets of several batches. Then edges coincide and are moved apart: each edge is above the one
    before it, and leaves a stretch for each batch after it.
    """
    nth = np.arange(1, count)  # number of each edge
    reached = np.cumsum(targets)
    edges = np.searchsorted(reached, nth * targets.sum() / count) + 1
    # Ascending by at least 1 is the same as: edges - nth never falls.
    edges = np.maximum.accumulate(edges - nth) + nth
    return np.minimum(edges, len(targets) - count + nth)


def read_segments(
    urls: Sequence[str], features: Features, samples: Samples, *, seen: bool = False
) -> Iterator[tuple[Segments, Ragged | None]]:
    """The row groups of sample files of one folder, in the given order; if asked for, with the seen items of each segment."""
    for packed in _row_groups(urls, features, seen):
        columns = _unpack([packed])
        yield Segments(columns, features, samples), columns.get("seen")


def prefetched(items: Iterable[T], depth: int) -> Generator[T, None, None]:
    """The same items, made in another thread, up to `depth` of them ahead."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(depth)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> bool:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.2)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for item in items:
                if not put("item", item):
                    return
            put("end", None)
        except BaseException as error:
            put("error", error)

    thread = threading.Thread(target=work, name="prefetch", daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()


def join(parts: list[Windows]) -> Windows:
    """Windows with one history per target, joined in the given order."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0]

    def joined(arrays: Iterable[npt.NDArray]) -> npt.NDArray:
        return np.concatenate(list(arrays))

    def lists(raggeds: list[Ragged]) -> Ragged:
        return Ragged.of(joined(r.values for r in raggeds), joined(r.lengths for r in raggeds))

    return Windows(
        history=lists([p.history for p in parts]),
        item={name: lists([p.item[name] for p in parts]) for name in first.item},
        user={name: joined(p.user[name] for p in parts) for name in first.user},
        lists={name: lists([p.lists[name] for p in parts]) for name in first.lists},
        numbers={name: joined(p.numbers[name] for p in parts) for name in first.numbers},
        item_numbers={name: joined(p.item_numbers[name] for p in parts) for name in first.item_numbers},
        example_age=joined(p.example_age for p in parts),
        target=joined(p.target for p in parts),
        negatives=joined(p.negatives for p in parts),
        weight=None if first.weight is None else joined(p.weight for p in parts if p.weight is not None),
    )


def _buffers(urls: Sequence[str], features: Features, row_groups: int) -> Iterator[list[PackedRows]]:
    """The row groups, `row_groups` of them at a time."""
    held: list[PackedRows] = []
    for packed in _row_groups(urls, features, seen=False):
        held.append(packed)
        if len(held) == row_groups:
            yield held
            held = []
    if held:
        yield held


def _row_groups(urls: Sequence[str], features: Features, seen: bool) -> Iterator[PackedRows]:
    """The row groups in the order of the files, packed by Petastorm's worker."""
    if not urls:
        return
    unread = {"user_id"} if seen else {"user_id", "seen"}
    lists = [field.name for field in segments_schema(features) if field.name not in unread]
    names = [name + suffix for name in lists for suffix in (_VALUES, _LENGTHS)]

    def pack(frame: pd.DataFrame) -> pd.DataFrame:
        row: dict[str, list[bytes]] = {}
        for name in lists:
            arrays = frame[name].tolist()
            values = np.concatenate(arrays) if arrays else np.zeros(0, np.int32)
            row[name + _VALUES] = [values.astype(_dtype(name), copy=False).tobytes()]
            row[name + _LENGTHS] = [np.fromiter(map(len, arrays), np.int64, len(arrays)).tobytes()]
        return pd.DataFrame(row)

    folder = urls[0].rsplit("/", 1)[0]
    fs, path = url_to_fs(folder)
    try:
        # Petastorm cuts an address at `#`. So it gets only names, and a file system that knows their folder.
        # With several workers, or with its own shuffling, the order would not be repeatable.
        reader = make_batch_reader(
            [f"file:{url.rsplit('/', 1)[-1]}" for url in urls],
            filesystem=DirFileSystem(path, fs),
            schema_fields=lists,
            reader_pool_type="thread",
            workers_count=1,
            results_queue_size=4,
            shuffle_row_groups=False,
            num_epochs=1,
            transform_spec=TransformSpec(pack, [edit_field(n, np.bytes_, (), False) for n in names], selected_fields=names),
        )
        try:
            for group in reader:
                yield {n: (getattr(group, n + _VALUES)[0], getattr(group, n + _LENGTHS)[0]) for n in lists}
        finally:
            reader.stop()
            reader.join()
    except Unreadable as error:
        raise DataRefused(f"cannot read {folder}/{error}: run `recall samples` again") from error


def _unpack(groups: list[PackedRows]) -> dict[str, Ragged]:
    """The list columns of several row groups, one row group after another."""
    return {
        name: Ragged.of(
            np.frombuffer(b"".join(group[name][0] for group in groups), _dtype(name)),
            np.frombuffer(b"".join(group[name][1] for group in groups), np.int64),
        )
        for name in groups[0]
    }


def _dtype(name: str) -> type[np.generic]:
    if name in ("example_age", "weight") or name.endswith("_value"):
        return np.float32
    return np.bool_ if name == "is_target" else np.int32
