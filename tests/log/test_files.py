"""What is found is read, and nothing else: names, patterns, hidden files, links, folders that are columns, suffixes."""

import bz2
import gzip
import lzma
import os
import zlib

import fsspec
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recall_lib.log.files import find_files, format_of
from recall_lib.process.errors import DataRefused, NoInput
from tests.log.reading import HEADER, NOON, kept, read_log


def write(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"{HEADER}\nu,{path.name.split('.')[0]},{NOON},1\n", encoding="utf-8")


def found(folder, pattern):
    return [place.path.removeprefix(f"{folder}/") for place in find_files(str(folder), pattern)]


ODD = (
    "log [2024].csv",
    "log*.csv",
    "a?.csv",
    "{a,b}.csv",
    "2024-03-01T16:00:00.csv",
    "50%25.csv",
    "a#b.csv",
    "a b.csv",
    "点击.csv",
)


@pytest.mark.parametrize("name", ODD)
def test_a_file_that_exists_is_that_file(tmp_path, name):
    write(tmp_path, "clicks/" + name, "clicks/log1.csv", "clicks/a1.csv", "clicks/a.csv", "clicks/b.csv", "clicks/log 2.csv")
    assert found(tmp_path, f"clicks/{name}") == [f"clicks/{name}"]
    assert len(found(tmp_path, "clicks")) == 6, "a file found in a folder is not looked for again"
    assert len(read_log(tmp_path)) == 6


def test_patterns(tmp_path):
    write(tmp_path, "a/x1.csv", "a/x2.csv", "b/x1.csv", "b/c/x1.csv", "b/y.csv", "b/_tmp/x1.csv", "b/.x1.csv")
    assert found(tmp_path, "a/x?.csv") == ["a/x1.csv", "a/x2.csv"]
    assert found(tmp_path, "a/x[2-9].csv") == ["a/x2.csv"]
    assert found(tmp_path, "{a,b}/x1.csv") == ["a/x1.csv", "b/x1.csv"]
    assert found(tmp_path, "{a/x2,b/{y,none}}.csv") == ["a/x2.csv", "b/y.csv"]
    assert found(tmp_path, "*/x1.csv") == ["a/x1.csv", "b/x1.csv"]
    assert found(tmp_path, "**/x1.csv") == ["a/x1.csv", "b/c/x1.csv", "b/x1.csv"]
    assert found(tmp_path, "b/*") == ["b/c/x1.csv", "b/x1.csv", "b/y.csv"]
    assert found(tmp_path, str(tmp_path / "a/*2.csv")) == ["a/x2.csv"]
    assert found(tmp_path, "b/_tmp/x1.csv") == ["b/_tmp/x1.csv"], "what the pattern names is read"
    with pytest.raises(NoInput, match="no file matches"):
        found(tmp_path, "{c,d}*.csv")


def test_the_root_is_never_a_pattern(tmp_path):
    root = tmp_path / "run [1] {a,b}"
    write(root, "clicks/a1.csv")
    assert found(root, "clicks/a?.csv") == ["clicks/a1.csv"]


def test_hidden_and_half_written_files_are_no_data(tmp_path):
    hidden = "_temporary/0/a.csv", ".ipynb_checkpoints/a.csv", "sub/_SUCCESS", "sub/.a.csv.crc", "sub/b.csv._COPYING_"
    write(tmp_path, "clicks/a.csv", "clicks/sub/b.csv", *(f"clicks/{name}" for name in hidden))
    assert found(tmp_path, "clicks") == ["clicks/a.csv", "clicks/sub/b.csv"]


def test_links_are_followed_once(tmp_path):
    write(tmp_path, "elsewhere/day1/a.csv", "clicks/b.csv")
    (tmp_path / "clicks" / "day1").symlink_to(tmp_path / "elsewhere" / "day1")
    (tmp_path / "clicks" / "day1_again").symlink_to("day1")
    (tmp_path / "elsewhere" / "day1" / "up").symlink_to(tmp_path / "clicks")
    (tmp_path / "clicks" / "c.csv").symlink_to("b.csv")
    assert found(tmp_path, "clicks") == ["clicks/b.csv", "clicks/day1/a.csv"]
    (tmp_path / "clicks" / "gone.csv").symlink_to("nowhere.csv")
    with pytest.raises(DataRefused, match=r"gone\.csv is a link"):
        found(tmp_path, "clicks")


def test_folders_can_be_columns(tmp_path):
    write(tmp_path, "clicks/city=x%20y/_h=1/a.csv", "clicks/city=__HIVE_DEFAULT_PARTITION__/_h=2/b.csv")
    features = {"user": [{"name": "city"}, {"name": "hour", "column": "_h"}]}
    assert kept(read_log(tmp_path, features), "item_id", "city", "hour") == [("a", "x y", "1"), ("b", None, "2")]


def test_a_column_of_the_file_counts_more_than_its_folder(tmp_path):
    write(tmp_path, "clicks/user_id=other/a.csv")
    assert kept(read_log(tmp_path)) == [("u", "a")]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        ("a.csv", "csv"), ("A.CSV", "csv"), ("a.tsv.bz2", "csv"), ("a.txt.gz", "csv"), ("a.JSONL.zst", "json"),
        ("a.ndjson", "json"), ("df.parquet.gzip", "parquet"), ("part.snappy.parquet", "parquet"), ("a.orc", "orc"),
        ("z.md5", None), ("a.csv.1", None), ("README", None), ("a.zip", None),
    ],
)  # fmt: skip
def test_formats(name, form):
    assert format_of(name) == form


def test_a_file_of_no_known_format_is_named(tmp_path):
    write(tmp_path, "clicks/a.csv", "clicks/z.md5")
    with pytest.raises(DataRefused, match=r"z\.md5 does not show its format"):
        read_log(tmp_path)


COMPRESS = {
    "a.csv": lambda data: data,
    "a.csv.gz": gzip.compress,
    "two members.csv.gz": lambda data: gzip.compress(data[:40]) + gzip.compress(data[40:]),
    "a.csv.bz2": bz2.compress,
    "a.csv.xz": lzma.compress,
    "a.csv.deflate": zlib.compress,
    "a.csv.zst": lambda data: pa.compress(data, "zstd", asbytes=True),
    "no suffix.csv": gzip.compress,
}


@pytest.mark.parametrize("name", COMPRESS)
def test_compressed_files(tmp_path, name):
    lines = "".join(f"u{n},i{n},{NOON + n},1\n" for n in range(20_000))
    data = COMPRESS[name](f"{HEADER}\n{lines}".encode())
    (tmp_path / name).write_bytes(data)
    assert len(kept(read_log(tmp_path, clicks=name))) == 20_000
    if name != "a.csv":
        (tmp_path / name).write_bytes(data[: len(data) // 2])
        with pytest.raises(DataRefused, match=f"{name} cannot be read"):
            read_log(tmp_path, clicks=name)


def test_an_archive_is_refused(tmp_path):
    (tmp_path / "a.csv").write_bytes(b"PK\x03\x04 and so on")
    with pytest.raises(DataRefused, match="unpack it"):
        read_log(tmp_path, clicks="a.csv")


def test_other_file_systems():
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/read-log/clicks/x=1/a [1].csv", f"{HEADER}\nu,i,{NOON},1\n".encode())
    memory.pipe_file("/read-log/clicks/_tmp/b.csv", b"?")
    for pattern in ("clicks", "clicks/x=*/a*.csv", "memory://read-log/clicks/x=1/a [1].csv"):
        (place,) = find_files("memory://read-log", pattern)
        assert place.path == "/read-log/clicks/x=1/a [1].csv"
        assert place.folders == {"x": "1"}


NAME = st.text(st.sampled_from("ab1 []{}*?,!:#%^'\"\\~=;&点é-"), min_size=1, max_size=8).filter(lambda name: name.strip())


@settings(max_examples=60, deadline=None)
@given(st.lists(NAME, min_size=1, max_size=5, unique=True))
def test_every_name_is_found_as_it_is_written(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("names")
    write(folder, *(f"clicks/{name}.csv" for name in names))
    assert found(folder, "clicks") == sorted(f"clicks/{name}.csv" for name in names)
    for name in names:
        assert found(folder, f"clicks/{name}.csv") == [f"clicks/{name}.csv"]
    assert os.listdir(folder) == ["clicks"]
