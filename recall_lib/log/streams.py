"""The bytes of a text file: decompressed, as UTF-8, from the first whole line of a piece to its last."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from recall_lib.process.errors import DataRefused

_CHUNK = 4 << 20
_MAGIC = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\xfd7zXZ\0": "xz", b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
_BOMS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
# What the libraries raise for a file that is cut off, damaged or not what it is said to be.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowInvalid, pa.ArrowNotImplementedError)


def codec_of(name: str, head: bytes) -> str | None:
    """How a file is compressed, as its first bytes show, whatever its name says; None: it is not.

    Raises:
        DataRefused: it is an archive, or compressed in a way that only Hadoop reads.
    """
    for magic, codec in _MAGIC.items():
        if head.startswith(magic) and (codec != "bz2" or head[4:10] in (b"1AY&SY", b"\x17rE8P\x90")):
            return codec
    last = name.lower().rsplit(".", 1)[-1]
    if head.startswith(b"PK\x03\x04") or (head and last in ("snappy", "lz4")):
        raise DataRefused(f"{name} is compressed in a way that is not read: unpack it, or use gz, bz2, xz or zst")
    return "deflate" if head and last == "deflate" else None


def encoding_of(head: bytes) -> str | None:
    """The encoding that a byte order mark shows; None: there is none, or it is UTF-8's."""
    return next((name for bom, name in _BOMS.items() if head.startswith(bom)), None)


def read_text(
    file: Any, codec: str | None, encoding: str, start: int = 0, end: int | None = None, *, size: int = _CHUNK
) -> Iterator[bytes]:
    """Chunks of a file as UTF-8; what the encoding cannot decode becomes bytes that are no UTF-8.

    Args:
        file: an open binary file.
        codec: what `codec_of` gives.
        encoding: of the text.
        start: of an uncompressed file in UTF-8: lines that begin before this byte are left out.
        end: lines that begin at this byte or later are left out; None: none is.
        size: of a chunk, bytes.
    """
    chunks = _decompressed(file, codec, size) if codec else _lines_between(file, start, end, size)
    if encoding == "utf-8":
        yield from chunks
        return
    # UTF-16 and 32 know no surrogateescape; what they cannot decode becomes U+FFFD.
    errors = "replace" if encoding.startswith(("utf-16", "utf-32")) else "surrogateescape"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for chunk in chunks:
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _lines_between(file: Any, start: int, end: int | None, size: int) -> Iterator[bytes]:
    at = max(start - 1, 0)
    file.seek(at)
    skipping = start > 0
    while chunk := file.read(size):
        ends = end is not None and at + len(chunk) >= end
        stop = chunk.find(b"\n", max((end or 0) - 1 - at, 0)) + 1 if ends else 0
        at += len(chunk)
        kept = chunk[:stop] if stop else chunk
        if skipping:
            first = kept.find(b"\n") + 1
            skipping = not first
            kept = kept[first:] if first else b""
        yield kept
        if stop:
            return


def _decompressed(file: Any, codec: str, size: int) -> Iterator[bytes]:
    if codec == "deflate":
        inflate = zlib.decompressobj()
        while chunk := file.read(size):
            yield inflate.decompress(chunk)
        yield inflate.flush()
        if not inflate.eof:
            raise EOFError("the compressed data is cut off")
    else:
        openers: dict[str, Any] = {"gzip": gzip.open, "bz2": bz2.open, "xz": lzma.open}
        opened = openers[codec](file) if codec in openers else pa.CompressedInputStream(pa.PythonFile(file, "r"), codec)
        while chunk := opened.read(size):
            yield chunk
