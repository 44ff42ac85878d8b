import subprocess
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from recall_lib.store.filesystems import open_parquet, read_batches, read_parquet, resolve


class Hosted(MemoryFileSystem):
    """Like HDFS's: paths are without the host."""

    protocol = "hosted"

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + path.removeprefix("hosted://").split("/", 1)[-1].rstrip("/")


class Bucketed(MemoryFileSystem):
    """Like object stores': paths begin with the bucket, and one store has two schemes."""

    protocol = ("bucketed", "bucketeda")

    @classmethod
    def _strip_protocol(cls, path):
        return path.split("://")[-1].rstrip("/")


@pytest.fixture(autouse=True)
def protocols():
    for name, fs in (("hosted", Hosted), ("bucketed", Bucketed), ("bucketeda", Bucketed)):
        fsspec.register_implementation(name, fs, clobber=True)


@pytest.mark.parametrize(
    ("address", "path"),
    [
        ("hosted://name:8020/data/recall", "/data/recall"),
        ("bucketed://mine/recall", "mine/recall"),
        ("bucketeda://mine/recall", "mine/recall"),
        ("file:///data/a #1 100%25", "/data/a #1 100%25"),
    ],
)
def test_a_path_becomes_the_address_again(address, path):
    for given in (address, f"{address}/"):
        _, found, prefix = resolve(given)
        assert found == path
        assert f"{prefix}{found}/events" == f"{address}/events"


def test_a_local_path_becomes_an_address(tmp_path):
    fs, path, prefix = resolve(f"{tmp_path}/x")
    assert isinstance(fs, LocalFileSystem)
    assert prefix + path == f"file://{tmp_path}/x"


def test_readers_of_parquet_leave_no_threads_behind(tmp_path):
    """A thread that still holds a Python file when the interpreter ends aborts the process."""
    table = pa.table({"a": range(5_000), "b": [str(n) for n in range(5_000)]})
    pq.write_table(table, tmp_path / "x.parquet", row_group_size=500)
    address = f"file://{tmp_path}/x.parquet"
    assert read_parquet(address).equals(table)
    assert pa.Table.from_batches(read_batches(address, 700)).equals(table)
    with open_parquet(address) as file:
        assert file.read_row_group(1, ["b"], use_threads=False).column("b")[0].as_py() == "500"
    count = f"""
import os
from recall_lib.store.filesystems import read_batches, read_parquet
before = len(os.listdir("/proc/self/task"))
assert read_parquet({address!r}).num_rows == sum(len(batch) for batch in read_batches({address!r}, 700))
print(len(os.listdir("/proc/self/task")) - before)
"""
    if not Path("/proc/self/task").exists():
        pytest.skip("only Linux lists a process's threads there")
    assert subprocess.run([sys.executable, "-c", count], capture_output=True, text=True, check=True).stdout == "0\n"
