"""Sends models and indexes to the executors as files; nothing is pickled, and a worker loads each only once."""

from __future__ import annotations

import atexit
import json
import shutil
import tarfile
import tempfile
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fsspec.core import url_to_fs

from recall_lib.process.errors import DataRefused

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from recall_lib.model.towers import YouTubeDNN
    from recall_lib.retrieval.index import ItemIndex
    from recall_lib.store.publication import Publication


@dataclass(frozen=True)
class Shipped:
    """A folder of files that every executor can read.

    Attributes:
        name: the folder's path, or the name of the archive that Spark unpacked.
        digest: of the content; it shows a reused worker that the files are new.
        archive: whether `name` is an archive's.
    """

    name: str
    digest: str
    archive: bool = False

    def folder(self) -> Path:
        """The folder of the files on this machine.

        Raises:
            DataRefused: another run has replaced them.
        """
        if self.archive:
            from pyspark import SparkFiles

            return Path(SparkFiles.get(self.name))
        manifest = Path(self.name) / "_manifest.json"
        if manifest.exists() and json.loads(manifest.read_text(encoding="utf-8"))["digest"] != self.digest:
            raise DataRefused(f"{self.name} was published again while it was being used: run this job again")
        return Path(self.name)


def fetch_published(publication: Publication) -> Shipped:
    """A published folder of artefacts, for this process: the folder itself if it is local, else a local copy."""
    if publication.local:
        return Shipped(publication.folder, publication.digest)
    local = _area() / f"{publication.dataset}-{publication.digest}"
    if not local.exists():
        local.mkdir()
        fs, folder = url_to_fs(publication.uri)
        for path in fs.ls(folder, detail=False):  # one by one: whether `get` keeps the folder's name varies
            fs.get_file(path, str(local / path.rsplit("/", 1)[-1]))
    return Shipped(str(local), publication.digest)


def ship_published(spark: SparkSession, publication: Publication) -> Shipped:
    """A published folder of artefacts, for the executors and (by `folder()`) for this process."""
    here = fetch_published(publication)
    return ship_folder(spark, Path(here.name), here.digest)


def ship_folder(spark: SparkSession, folder: Path, digest: str) -> Shipped:
    """A local folder, for the executors: in place with a local master, else as an archive that Spark unpacks."""
    if str(spark.conf.get("spark.master")).split("[")[0] == "local":
        return Shipped(str(folder), digest)
    archive = _area() / str(spark.conf.get("spark.app.id")) / f"{digest}.tar"
    if not archive.exists():
        archive.parent.mkdir(exist_ok=True)
        with tarfile.open(archive, "w") as tar:
            for path in folder.iterdir():  # not the folder as ".": Spark's unpacking refuses it
                tar.add(path, arcname=path.name)
        if spark.version < "4":  # where addArtifacts exists only in Spark Connect
            spark.sparkContext.addArchive(str(archive))
        else:
            spark.addArtifacts(str(archive), archive=True)
    return Shipped(archive.name, digest, archive=True)


@lru_cache(maxsize=1)
def load_model(model: Shipped) -> tuple[YouTubeDNN, dict[str, Any]]:
    """The model in eval mode and the content of model.json, loaded once per Python worker; torch uses the task's CPUs."""
    import torch

    from recall_lib.model import checkpoint

    torch.set_num_threads(task_cpus())
    return checkpoint.load(model.folder())


@lru_cache(maxsize=1)
def load_index(index: Shipped) -> ItemIndex:
    """The item index, loaded once per Python worker; FAISS uses the task's CPUs."""
    from recall_lib.retrieval.index import ItemIndex

    return ItemIndex.load(index.folder(), task_cpus())


def task_cpus() -> int:
    """spark.task.cpus inside a task, 1 outside."""
    from pyspark import TaskContext

    task = TaskContext.get()
    return task.cpus() if task else 1


@cache
def _area() -> Path:
    """A folder that lives as long as this process: Spark's file server reads the archives from it."""
    folder = tempfile.mkdtemp(prefix="recall-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)
