"""What Petastorm reads with what it was given back, compared with what pyarrow itself reads."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.dirfs import DirFileSystem
from fsspec.implementations.local import LocalFileSystem

from recall_lib.process.errors import DataRefused
from recall_lib.training.loader import read_segments
from recall_lib.training.petastorm_compat import TransformSpec, edit_field, make_batch_reader, ventilator
from recall_lib.training.spec import SampleFile
from tests.training.synthetic import FEATURES, SAMPLES, sequences, write_runs

UNTOUCHED = """
import sys, numpy as np, pyarrow.parquet as pq
from types import ModuleType
sys.modules["pyarrow.hdfs"] = ModuleType("an older pyarrow's")
removed = ("pyarrow.filesystem", "pyarrow.hdfs", "distutils.version")
def seen():
    return [sys.modules.get(name) for name in removed], [vars(np).get(name) for name in ("unicode_", "string_")], dict(vars(pq))
before = seen()
import recall_lib.training.petastorm_compat
assert seen() == before
"""


def groups(folder: Path, names: list[str], **settings: Any) -> Iterator[Any]:
    reader = make_batch_reader(
        [f"file:{name}" for name in names],
        filesystem=DirFileSystem(str(folder), LocalFileSystem()),
        reader_pool_type="thread",
        workers_count=1,
        shuffle_row_groups=False,
        num_epochs=1,
        **settings,
    )
    try:
        yield from reader
    finally:
        reader.stop()
        reader.join()


def test_the_process_keeps_its_pyarrow_and_numpy() -> None:
    subprocess.run([sys.executable, "-W", "error::FutureWarning", "-c", UNTOUCHED], check=True)


def test_lists_are_those_that_pyarrow_reads(tmp_path: Path) -> None:
    """Of several files and row groups, in their order; some lists, a row group's lists and a file are empty."""
    random = np.random.default_rng(1)
    lengths = {"b": [3, 0, 2, 0, 0, 0, 1], "a": [], "c": [0], "d": [500] * 4}
    for name, rows in lengths.items():
        lists = pa.array([random.integers(1 << 31, size=n) for n in rows], pa.list_(pa.int32()))
        flags = pa.array([random.random(n) < 0.5 for n in rows], pa.list_(pa.bool_()))
        pq.write_table(pa.table({"i": lists, "unread": lists, "f": flags}), tmp_path / name, row_group_size=3)

    def pack(frame: pd.DataFrame) -> pd.DataFrame:
        return pd.DataFrame({"json": [json.dumps([[row.tolist() for row in frame[name]] for name in ("i", "f")]).encode()]})

    spec = TransformSpec(pack, [edit_field("json", np.bytes_, (), False)], selected_fields=["json"])
    found = [
        json.loads(group.json[0]) for group in groups(tmp_path, list(lengths), schema_fields=["i", "f"], transform_spec=spec)
    ]
    expected = []
    for name in lengths:
        file = pq.ParquetFile(tmp_path / name)
        for number in range(file.num_row_groups):
            table = file.read_row_group(number)
            expected.append([table[column].to_pylist() for column in ("i", "f")])
    assert found == expected
    assert len(found) >= 6


def test_text_bytes_and_lists_of_one_length_without_a_transform(tmp_path: Path) -> None:
    table = pa.table({"text": ["ü", "", "#"], "bytes": [b"a", b"", b"\xff"], "pair": [[1, 2], [3, 4], [5, 6]]})
    pq.write_table(table, tmp_path / "one", row_group_size=2)
    found = list(groups(tmp_path, ["one"]))
    assert [group.pair.tolist() for group in found] == [[[1, 2], [3, 4]], [[5, 6]]]
    for name in ("text", "bytes"):
        assert [value for group in found for value in getattr(group, name).tolist()] == table[name].to_pylist()


@pytest.mark.filterwarnings("ignore:No matching data")
def test_files_without_a_row_group(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "none", pa.schema([("x", pa.int64())])):
        pass
    pq.write_table(pa.table({"x": [1]}), tmp_path / "one")
    assert list(groups(tmp_path, ["none"])) == []
    assert [group.x.tolist() for group in groups(tmp_path, ["none", "one", "none"])] == [[1]]


def test_no_row_group_is_lost_at_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The reader asks whether all row groups were handed out after it saw none under way: it may be slow to ask."""
    completed = ventilator.ConcurrentVentilator.completed

    def slow(self: Any) -> bool:
        time.sleep(0.05)
        return completed(self)

    monkeypatch.setattr(ventilator.ConcurrentVentilator, "completed", slow)
    pq.write_table(pa.table({"x": range(3)}), tmp_path / "three", row_group_size=1)
    assert [group.x.tolist() for group in groups(tmp_path, ["three"])] == [[0], [1], [2]]


# -- files that are damaged --------------------------------------------------------------------------------------------
def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def removed(path: Path) -> None:
    path.unlink()


def footer_flipped(path: Path) -> None:
    data = bytearray(path.read_bytes())
    start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    data[start:-8] = bytes(byte ^ 0xFF for byte in data[start:-8])
    path.write_bytes(data)


def names_not_utf8(path: Path) -> None:
    path.write_bytes(path.read_bytes().replace(b"item_index", b"item\xffindex"))


def page_overwritten(path: Path) -> None:
    """Of the last row group: the footer is sound, and the reader's thread meets it."""
    data = bytearray(path.read_bytes())
    column = pq.read_metadata(path).row_group(pq.read_metadata(path).num_row_groups - 1).column(1)
    start = column.dictionary_page_offset or column.data_page_offset
    data[start : start + 16] = b"\xff" * 16
    path.write_bytes(data)


@pytest.fixture
def two(tmp_path: Path) -> list[SampleFile]:
    users = sequences(20, 5, ordered=True)
    return [write_runs(tmp_path / f"{name}.parquet", users, row_group_size=2) for name in ("good", "bad")]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", [truncated, emptied, removed, footer_flipped, names_not_utf8, page_overwritten])
def test_a_damaged_file_is_named_and_the_reader_ends(
    two: list[SampleFile], damage: Callable[[Path], None], capfd: pytest.CaptureFixture[str]
) -> None:
    damage(Path(two[1].url.removeprefix("file://")))
    with pytest.raises(DataRefused, match=r"cannot read file:///.*/bad\.parquet: .*: run `recall samples` again"):
        list(read_segments([file.url for file in two], FEATURES, SAMPLES))
    assert not [thread for thread in threading.enumerate() if type(thread).__name__ == "WorkerThread"]
    assert capfd.readouterr().err == ""


@pytest.mark.timeout(60)
def test_a_reader_that_is_left_early_ends_although_its_thread_has_met_damage(tmp_path: Path) -> None:
    write_runs(tmp_path / "bad", sequences(3, 5, ordered=True), row_group_size=1)
    page_overwritten(tmp_path / "bad")
    stream = groups(tmp_path, ["bad"], schema_fields=["item_index"], results_queue_size=3)
    next(stream)
    time.sleep(0.5)  # the two sound row groups have filled the queue: the error has no room
    stream.close()


@pytest.mark.parametrize("mask", [0x01, 0xFF])
def test_a_byte_of_the_footer_that_is_wrong_does_what_it_does_to_pyarrow(tmp_path: Path, mask: int) -> None:
    """The same rows or an error in both, never other rows and never a reader that waits."""
    path = tmp_path / "one"
    pq.write_table(pa.table({"x": pa.array(range(9), pa.int64())}), path, row_group_size=3, store_schema=False)
    sound = path.read_bytes()
    start = len(sound) - 8 - int.from_bytes(sound[-8:-4], "little")
    outcomes = set()
    for place in range(start, len(sound), 5):
        data = bytearray(sound)
        data[place] ^= mask
        path.write_bytes(data)
        found, expected = outcome(lambda: [g.x.tolist() for g in groups(tmp_path, ["one"])]), outcome(lambda: plain(path))
        assert found == expected, place
        outcomes.add(found is None)
    assert outcomes == {True, False}


def plain(path: Path) -> list[list[int]]:
    file = pq.ParquetFile(path)
    return [file.read_row_group(number, columns=["x"])["x"].to_pylist() for number in range(file.num_row_groups)]


def outcome(read: Callable[[], list[list[int]]]) -> list[list[int]] | None:
    try:
        return read()
    except Exception:
        return None
