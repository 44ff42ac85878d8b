"""Readers of raw logs: every row with its source file and raw text; nothing is interpreted yet."""

from __future__ import annotations

import glob
from collections.abc import Iterable
from typing import Any

from pyspark.errors import AnalysisException
from pyspark.sql import DataFrame, SparkSession
from pyspark.sql import functions as F
from pyspark.sql.types import StringType, StructField, StructType

from recall_lib.config import Input
from recall_lib.process.errors import DataRefused, NoInput
from recall_lib.store.filesystems import resolve

SOURCE, RAW, MALFORMED = "_source", "_raw", "_malformed"
_SUFFIXES = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".json": "json",
    ".jsonl": "json",
    ".parquet": "parquet",
    ".orc": "orc",
}
_COMPRESSED = (".gz", ".bz2", ".zst", ".snappy", ".lz4", ".deflate")


def read_lines(spark: SparkSession, settings: Input) -> DataFrame:
    """Session lines: columns _source and _raw, one row per line.

    Raises:
        NoInput: no file matches.
    """
    files = input_files(settings, settings.clicks)
    lines = spark.read.text(files)
    return lines.select(_source_file().alias(SOURCE), F.col("value").alias(RAW))


def read_rows(spark: SparkSession, settings: Input, path: str) -> DataFrame:
    """A table of rows with its own columns plus _source, _raw (the row as CSV or JSON) and _malformed (boolean).

    CSV and JSON values stay text: '007' stays '007'.

    Raises:
        NoInput: no file or table matches, or the files do not even have a header.
        DataRefused: the format is not set and the files' names do not show it.
    """
    if settings.file_format == "table":
        try:
            frame = spark.table(path)
        except AnalysisException:
            raise NoInput(f"there is no table {path}: check input.clicks and input.items") from None
        return _with_origin(frame, F.lit(path), F.lit(False))
    files = input_files(settings, path)
    kind = settings.file_format or _format_of(files)
    if kind not in ("csv", "json"):
        frame = spark.read.options(**settings.options).format(kind).load(files)
        return _with_origin(frame, _source_file(), F.lit(False))
    options: dict[str, Any] = {"header": "true", **settings.options} if kind == "csv" else {"primitivesAsString": "true"}
    if kind == "csv" and any(name.split(".gz")[0].endswith(".tsv") for name in files):
        options.setdefault("sep", "\t")
    reader = spark.read.options(**options)
    found = reader.csv(files) if kind == "csv" else reader.json(files)
    columns = [field for field in found.schema if field.name != "_corrupt_record"]
    if not columns:
        raise NoInput(f"{settings.path}/{path} is empty: not even a header; check input.path and input.clicks")
    schema = StructType([*columns, StructField(MALFORMED, StringType())])
    # enforceSchema off: if headers differ between the files of a log, Spark fails instead of reading by position.
    reader = reader.schema(schema).options(mode="PERMISSIVE", columnNameOfCorruptRecord=MALFORMED, enforceSchema="false")
    frame = reader.csv(files) if kind == "csv" else reader.json(files)
    return _with_origin(frame.withColumnRenamed(MALFORMED, "_corrupt"), _source_file(), F.col("_corrupt").isNotNull(), kind)


def _with_origin(frame: DataFrame, source: Any, malformed: Any, kind: str = "json") -> DataFrame:
    columns = [name for name in frame.columns if name != "_corrupt"]
    row = F.struct(*(F.col(f"`{name}`") for name in columns))
    text = F.to_csv(row) if kind == "csv" else F.to_json(row)
    raw = F.coalesce(F.col("_corrupt"), text) if "_corrupt" in frame.columns else text
    return frame.select(
        *(F.col(f"`{name}`") for name in columns), source.alias(SOURCE), raw.alias(RAW), malformed.alias(MALFORMED)
    )


def _source_file() -> Any:
    return F.element_at(F.split(F.input_file_name(), "/"), -1)


def input_files(settings: Input, path: str) -> list[str]:
    """Every file below input.path that a file name, folder or glob matches; hidden files are skipped.

    Raises:
        NoInput: no file matches.
    """
    joined = path if "://" in path or path.startswith("/") else f"{settings.path.rstrip('/')}/{path}"
    fs, pattern, prefix = resolve(joined)
    if fs.isdir(pattern):
        found: Iterable[str] = fs.find(pattern)
    elif fs.exists(pattern):
        found = [pattern]
    else:
        found = fs.glob(pattern) if glob.has_magic(pattern) else []
        found = [name for match in found for name in (fs.find(match) if fs.isdir(match) else [match])]
    relative = [(name, name.rsplit("/", 1)[-1]) for name in sorted(found)]
    files = [name for name, last in relative if not last.startswith((".", "_"))]
    if not files:
        raise NoInput(f"no file matches {joined}: check input.path and input.clicks")
    return [prefix + name for name in files]


def _format_of(files: list[str]) -> str:
    kinds = set()
    for name in files:
        for suffix in _COMPRESSED:
            name = name.removesuffix(suffix)
        kinds.add(next((kind for suffix, kind in _SUFFIXES.items() if name.endswith(suffix)), None))
    if len(kinds) != 1 or None in kinds:
        raise DataRefused(f"the name of {files[0]} does not show its format: set input.file_format (csv, json, parquet, orc)")
    return kinds.pop() or ""
