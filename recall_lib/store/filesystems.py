"""Two names for one place: the path that fsspec uses, and the address that Spark and other processes use."""

from __future__ import annotations

from typing import Any

from fsspec.core import url_to_fs


def resolve(address: str) -> tuple[Any, str, str]:
    """The file system of a path or address, the path in it, and the prefix that turns such a path into an address.

    The prefix holds the host, which some file systems (HDFS) leave out of their paths. It keeps the scheme as it was given:
    fsspec treats s3:// and s3a:// alike, Spark does not.
    """
    fs, path = url_to_fs(address)
    return fs, path, "file://" if "file" in fs.protocol else address.rstrip("/").removesuffix(path)
