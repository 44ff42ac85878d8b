"""One place by two names: fsspec's path, and the address that Spark and other processes are given."""

from __future__ import annotations

from typing import Any

from fsspec.core import url_to_fs


def resolve(address: str) -> tuple[Any, str, str]:
    """The file system of a path or address, the path there, and what makes an address of a path there.

    The last holds the host, which some file systems (HDFS) leave out of their paths, and the scheme as it was given: fsspec
    takes s3:// and s3a:// for the same, Spark does not.
    """
    fs, path = url_to_fs(address)
    return fs, path, "file://" if "file" in fs.protocol else address.rstrip("/").removesuffix(path)
