import pickle
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recall_lib.config import Samples
from recall_lib.process.errors import DataRefused
from recall_lib.samples.windows import Segments, Windows
from recall_lib.training.loader import join, prefetched, read_epoch, read_segments
from recall_lib.training.petastorm_compat import ParquetDataset
from recall_lib.training.shards import batch_sizes
from recall_lib.training.spec import SampleFile
from tests.training.synthetic import FEATURES, SAMPLES, sequences, write_runs


@pytest.fixture
def files(tmp_path: Path) -> list[SampleFile]:
    folder, made = tmp_path / "a #1 100%25 ü", []
    folder.mkdir()
    for number in range(3):
        users = sequences(23, 9, ordered=False, seed=number)
        users = [items[: 2 + i % 8] for i, items in enumerate(users)]  # of different lengths
        made.append(write_runs(folder / f"part-{number}.parquet", users, negatives=2, row_group_size=7))
    return made


WITH_NEGATIVES = Samples(window_size=4, negatives_per_positive=2)


def epoch(
    files: list[SampleFile], steps: int = 10, *, row_groups: int = 2, seed: int = 1, unit: str = "window"
) -> list[Windows]:
    sizes = batch_sizes(sum(file.targets for file in files), steps)
    found = list(
        read_epoch([f.url for f in files], sizes, FEATURES, WITH_NEGATIVES, unit=unit, row_groups=row_groups, seed=(seed, 0, 0))
    )
    assert len(found) == steps
    if unit == "window":
        assert [len(windows.target) for windows in found] == sizes.tolist()
    return found


def as_rows(windows: Windows) -> list[str]:
    rows = []
    histories = windows.history
    for i in range(len(windows.target)):
        bags = {n: bag.values[bag.offsets[i] : bag.offsets[i + 1]].tolist() for n, bag in windows.bags().items()}
        user = {name: int(ids[i]) for name, ids in windows.user.items()}
        row = (
            histories.values[histories.offsets[i] : histories.offsets[i + 1]].tolist(),
            bags,
            user,
            float(windows.example_age[i]),
            int(windows.target[i]),
        )
        rows.append(repr((*row, windows.negatives[i].tolist())))
    return rows


def test_an_epoch_is_every_window_of_the_files_once(files: list[SampleFile]) -> None:
    expected: Counter[str] = Counter()
    for file in files:
        segments = Segments.from_arrow(pq.read_table(file.url.removeprefix("file://")), FEATURES, WITH_NEGATIVES)
        expected.update(as_rows(segments.windows(np.arange(len(segments)))))
    for row_groups in (1, 2, 100):
        found = [row for windows in epoch(files, row_groups=row_groups) for row in as_rows(windows)]
        assert Counter(found) == expected


def test_an_epoch_of_runs_is_every_target_once_after_what_stands_before_it(files: list[SampleFile]) -> None:
    expected: Counter[tuple] = Counter()
    for file in files:
        for row in pq.read_table(file.url.removeprefix("file://")).to_pylist():
            places = [place for place, is_target in enumerate(row["is_target"]) if is_target]
            for n, place in enumerate(places):
                expected[row["item_index"][place], row["example_age"][n], tuple(row["negatives"][2 * n : 2 * n + 2])] += 1
    for row_groups, steps in ((1, 3), (2, 8), (100, 8)):
        found: Counter[tuple] = Counter()
        for windows in epoch(files, steps, row_groups=row_groups, unit="run"):
            assert windows.shared is not None
            assert len(windows.target)
            length = windows.history.lengths
            assert max(length) <= WITH_NEGATIVES.window_size
            for row, seen, target, age, negatives in zip(
                *windows.shared, windows.target, windows.example_age, windows.negatives, strict=True
            ):
                assert 1 <= seen <= length[row]
                if seen < length[row]:  # the next token of the history is the target itself
                    assert windows.history.values[windows.history.offsets[row] + seen] == target
                found[int(target), float(age), tuple(negatives.tolist())] += 1
        assert found == expected


def test_batches_of_runs_are_never_empty(tmp_path: Path) -> None:
    """A long stretch beside short ones, and more batches than there are stretches."""
    users = [[2, 3, 4, 5, 6], *([[2, 3]] * 4)]
    file = write_runs(tmp_path / "uneven.parquet", users, negatives=2)
    for steps in (1, 2, 3, 4, 5):
        found = epoch([file], steps, unit="run")
        assert min(len(windows.target) for windows in found) > 0
        assert sum(len(windows.target) for windows in found) == 8
    with pytest.raises(DataRefused, match="5 stretches of clicks cannot make 6 batches"):
        epoch([file], 6, unit="run")


def test_runs_are_cut_elsewhere_in_every_epoch_and_the_same_with_the_seed(files: list[SampleFile]) -> None:
    first, again, other = (repr(epoch(files, 5, seed=seed, unit="run")) for seed in (1, 1, 2))
    assert first == again != other


def test_the_seed_decides_the_order(files: list[SampleFile]) -> None:
    def order(seed: int) -> list[str]:
        return [row for windows in epoch(files, seed=seed) for row in as_rows(windows)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert sorted(order(1)) == sorted(order(2))


def test_targets_of_a_user_are_spread(files: list[SampleFile]) -> None:
    first = as_rows(epoch(files, row_groups=100)[0])
    plain = Segments.from_arrow(pq.read_table(files[0].url.removeprefix("file://")), FEATURES, WITH_NEGATIVES)
    assert first != as_rows(plain.windows(np.arange(len(first))))


def test_fewer_targets_than_planned_is_refused(files: list[SampleFile]) -> None:
    sizes = batch_sizes(sum(file.targets for file in files) + 1, 5)
    with pytest.raises(DataRefused, match="fewer targets"):
        list(read_epoch([f.url for f in files], sizes, FEATURES, SAMPLES, unit="window", row_groups=2, seed=(1,)))


def test_seen_items_come_with_their_runs(tmp_path: Path) -> None:
    users = sequences(9, 5, ordered=True)
    file = write_runs(tmp_path / "held.parquet", users, held_out=True, row_group_size=4)
    position = 0
    for segments, seen in read_segments([file.url], FEATURES, SAMPLES, seen=True):
        assert seen is not None
        for run in range(len(segments)):
            assert seen.values[seen.offsets[run] : seen.offsets[run + 1]].tolist() == sorted(set(users[position][:-1]))
            position += 1
    assert position == 9


def test_bytes_that_end_in_zero_survive(tmp_path: Path) -> None:
    file = write_runs(tmp_path / "zeros.parquet", [[2, 3, 0]])
    [windows] = list(read_epoch([file.url], np.array([2]), FEATURES, SAMPLES, unit="window", row_groups=1, seed=(1,)))
    assert sorted(windows.target.tolist()) == [0, 3]


def test_nothing_in_the_folder_is_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder's _common_metadata may hold a pickled schema, which Petastorm loads; a list of files has none."""
    file = write_runs(tmp_path / "part-0.parquet", sequences(5, 4, ordered=True))
    schema = pq.read_schema(tmp_path / "part-0.parquet")
    trapped = schema.with_metadata({b"dataset-toolkit.unischema.v1": pickle.dumps(Path("forbidden"))})
    pq.write_metadata(trapped, tmp_path / "_common_metadata")
    pq.write_table(pq.read_table(tmp_path / "part-0.parquet").cast(trapped), tmp_path / "part-0.parquet")
    with monkeypatch.context() as patch:  # that file is a trap: Petastorm unpickles what it is shown of it
        patch.setattr(ParquetDataset, "common_metadata", pq.read_metadata(tmp_path / "_common_metadata"))
        with pytest.raises(pickle.UnpicklingError):
            list(read_segments([file.url], FEATURES, SAMPLES))
    assert len(list(read_segments([file.url], FEATURES, SAMPLES))) == 1


def test_joined_windows_are_those_cut_at_once(files: list[SampleFile]) -> None:
    segments = Segments.from_arrow(pq.read_table(files[0].url.removeprefix("file://")), FEATURES, WITH_NEGATIVES)
    whole = segments.windows(np.arange(len(segments)))
    parts = [segments.windows(np.arange(i, min(i + 1, len(segments)))) for i in range(len(segments))]
    joined = join(parts)
    assert as_rows(joined) == as_rows(whole)


def test_prefetching_keeps_order_and_errors_and_ends_early() -> None:
    def items(fail: bool) -> Iterator[int]:
        yield from range(20)
        if fail:
            raise DataRefused("broken")

    assert list(prefetched(items(False), 3)) == list(range(20))
    with pytest.raises(DataRefused, match="broken"):
        list(prefetched(items(True), 3))
    stream = prefetched(items(True), 3)
    assert next(stream) == 0
    stream.close()  # does not hang
