import fsspec
import pytest
from fsspec.implementations.local import LocalFileSystem
from fsspec.implementations.memory import MemoryFileSystem

from recall_lib.store.filesystems import resolve


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
