"""Locks that several processes, on one host or many, see under `paths.root`: one holder at a time, and none for ever.

A lock is a folder, `<root>/_locks/<name>/`, of numbered files, `7.json`; the newest says who has it, or had it last. To take
a lock is to create the next number, which a file system gives to one of all that try, whether the holder before has let go
or died; a number is never used again, so that a contender who was slow cannot take what is somebody else's by now. The
holder deletes the older ones and writes its file anew as long as it lives. One that was cut off or stood still for so long
that another took the lock over is told so when it comes to publish (`require_kept`).

On local disks and NFS (O_EXCL) and object stores that fsspec knows a conditional write for, exactly one gets a lock. Where
fsspec has only a look before the write (HDFS), two that come within the same few milliseconds may both get it; what they
publish is still whole, as everything is that is published.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fsspec.core import url_to_fs

from recall_lib.process import messages
from recall_lib.process.errors import Busy

FOLDER = "_locks"
HEARTBEAT_S = 20.0
# An owner whose process cannot be looked at from here counts as dead after this. The hosts' clocks may differ by less.
DEAD_AFTER_S = 180.0
_POLL_S = 0.5
# The locks that this process has, by their files, and the file system of each.
_KEPT: dict[str, Any] = {}


@dataclass(frozen=True)
class Owner:
    """Who has a lock, or had it.

    Attributes:
        host: by name, for people.
        processes: where `pid` means something: the host's boot and its process namespace (a container has its own).
        pid: of the process.
        started: when it started, in clock ticks since boot: another one that gets its pid later has another time.
        run_id: as in the manifests.
        since: UTC, ISO 8601.
        beat: of its last heartbeat, seconds since 1970.
        released: whether it has let go.
    """

    host: str
    processes: str
    pid: int
    started: int | None
    run_id: str
    since: str
    beat: float
    released: bool = False

    def lives(self) -> bool:
        """Whether it still has the lock."""
        if self.released:
            return False
        if self.processes and self.processes == _processes():
            return self.started == _start_of(self.pid)
        return time.time() - self.beat < DEAD_AFTER_S

    def __str__(self) -> str:
        """As messages name it."""
        return f"run {self.run_id} (pid {self.pid} on {self.host}) since {self.since}"


def _say(text: str) -> None:
    messages.say("lock", text)


@contextmanager
def held(root: str, name: str, run_id: str, wait_s: float = 0.0, say: Callable[[str], None] = _say) -> Iterator[None]:
    """Have the lock `name` of a root during the block.

    Args:
        wait_s: how long to wait for another living holder.
        say: is told once whom one waits for.

    Raises:
        Busy: another run has it (still).
    """
    fs, path = url_to_fs(root)
    folder, deadline, told = f"{path}/{FOLDER}/{name}", time.monotonic() + wait_s, False
    fs.makedirs(folder, exist_ok=True)
    while True:
        mine = _myself(run_id)
        file, other = _take(fs, folder, mine)
        if other is None:
            break
        if time.monotonic() >= deadline:
            raise Busy(f"{name} is held by {other}: run it again when that has ended")
        if not told:
            say(f"waits for {name}, held by {other}")
            told = True
        time.sleep(_POLL_S)
    ended = threading.Event()
    heart = threading.Thread(target=_beat, args=(fs, file, mine, ended), daemon=True)
    heart.start()
    _KEPT[file] = fs
    try:
        yield
    finally:
        del _KEPT[file]
        ended.set()
        heart.join()
        with suppress(OSError):  # the whole root is gone, or the disk is full: then the lock ends with the process
            _write(fs, file, replace(mine, released=True))


def require_kept() -> None:
    """Raise Busy if another run has taken over a lock of this process, which has shown no sign of life for too long."""
    for file, fs in _KEPT.items():
        folder, _, number = file.removesuffix(".json").rpartition("/")
        if not fs.exists(file) or _newest(fs, folder) > int(number):
            raise Busy(
                f"{folder.rsplit('/', 1)[-1]} was taken over by another run while this one showed no sign of life (or its lock "
                "was removed): nothing more is published; run it again when that has ended"
            )


def holders(root: str) -> dict[str, Owner]:
    """The living holder of every lock of a root that has one."""
    fs, path = url_to_fs(root)
    if not fs.isdir(f"{path}/{FOLDER}"):
        return {}
    folders = [folder.rstrip("/") for folder in fs.ls(f"{path}/{FOLDER}", detail=False)]
    owners = {folder.rsplit("/", 1)[-1]: _owner(fs, folder, _newest(fs, folder)) for folder in folders}
    return {name: owner for name, owner in owners.items() if owner and owner.lives()}


def require_no_other_day(root: str, run_id: str) -> None:
    """Raise Busy if a run other than this one is at work on a day: it may be reading the events."""
    for name, owner in holders(root).items():
        if name.startswith("dt=") and owner.run_id != run_id:
            raise Busy(f"{name} is held by {owner}, which may be reading the events: run it again when that has ended")


def _take(fs: Any, folder: str, mine: Owner) -> tuple[str, Owner | None]:
    """(my file, None), or the file of the owner that has the lock, and the owner."""
    while True:
        newest = _newest(fs, folder)
        owner = _owner(fs, folder, newest)
        if owner and owner.lives():
            return f"{folder}/{newest}.json", owner
        file = f"{folder}/{newest + 1}.json"
        try:
            _create(fs, file, mine)
        except FileExistsError:
            continue
        numbers = _numbers(fs, folder)
        slow = max(numbers) > newest + 1  # others came and went meanwhile, and cleared away the number that we created
        for number in [newest + 1] if slow else [number for number in numbers if number <= newest]:
            with suppress(FileNotFoundError):
                fs.rm_file(f"{folder}/{number}.json")
        if slow:
            continue
        return file, None


def _numbers(fs: Any, folder: str) -> list[int]:
    fs.invalidate_cache(folder)
    names = [path.rsplit("/", 1)[-1].partition(".") for path in fs.ls(folder, detail=False)]
    return [int(number) for number, _, suffix in names if suffix == "json"]


def _newest(fs: Any, folder: str) -> int:
    return max(_numbers(fs, folder), default=0)


def _owner(fs: Any, folder: str, number: int) -> Owner | None:
    """Who wrote a number; None if the file is gone."""
    file = f"{folder}/{number}.json"
    try:
        return Owner(**json.loads(fs.cat_file(file)))
    except FileNotFoundError:
        return None
    except json.JSONDecodeError:  # created a moment ago and not written yet
        with suppress(FileNotFoundError):
            changed: datetime = fs.modified(file)
            return Owner("a host unknown yet", "", 0, None, "unknown", changed.isoformat(), changed.timestamp())
        return None


def _create(fs: Any, file: str, owner: Owner) -> None:
    """Write a file that must not be there (else FileExistsError)."""
    text = json.dumps(asdict(owner)).encode()
    if "file" in fs.protocol:
        with Path(file).open("xb") as out:
            try:
                out.write(text)
                out.flush()
            except OSError:  # a full disk
                Path(file).unlink()
                raise
    else:
        fs.pipe_file(file, text, mode="create")


def _write(fs: Any, file: str, owner: Owner) -> None:
    fs.pipe_file(f"{file}.tmp", json.dumps(asdict(owner)).encode())
    fs.mv(f"{file}.tmp", file)


def _beat(fs: Any, file: str, owner: Owner, ended: threading.Event) -> None:
    while not ended.wait(HEARTBEAT_S):
        with suppress(OSError):  # of a network: the next beat may come through
            _write(fs, file, replace(owner, beat=time.time()))


def _myself(run_id: str) -> Owner:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Owner(socket.gethostname(), _processes(), os.getpid(), _start_of(os.getpid()), run_id, since, time.time())


def _processes() -> str:
    """Names the processes that we can see; "" where there is no /proc, so that heartbeats alone decide."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if there is none, or only its exit code is left."""
    try:
        # After the name, which may hold anything: the 3rd field, the state, is the first here; the 22nd the start.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
