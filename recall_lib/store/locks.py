"""Locks under `paths.root`, shared by processes on one host or many: one holder at a time; a dead holder loses its lock.

A lock is a folder, `<root>/_locks/<name>/`, of numbered files such as `7.json`. The newest file names the holder, or the last
one. When the holder has released the lock or died, a process takes it by creating the file with the next number; the file
system lets only one process create that file. A number is never used again, so a slow process cannot take a lock that
another has taken meanwhile. The holder deletes the older files and rewrites its own file as a heartbeat. If a holder was
suspended or cut off for so long that another run took the lock over, `require_kept` raises before it publishes.

On local disks and NFS (O_EXCL), and on object stores for which fsspec has a conditional write, exactly one process gets a
lock. Where fsspec only checks before it writes (HDFS), two processes that come within a few milliseconds of each other may
both get it. Even then every publication is whole, because it is swapped in whole.
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
# Seconds without a heartbeat after which an owner on another host counts as dead. The hosts' clocks must differ by less.
DEAD_AFTER_S = 180.0
_POLL_S = 0.5
# The locks that this process holds: {path of the lock's file: its file system}.
_KEPT: dict[str, Any] = {}


@dataclass(frozen=True)
class Owner:
    """The holder of a lock, or its last holder.

    Attributes:
        host: the host's name, for messages.
        processes: the host's boot and process namespace (a container has its own), within which `pid` is meaningful.
        pid: the process's id.
        started: when the process started, in clock ticks since boot. A later process with the same pid has another value.
        run_id: as in the manifests.
        since: when it took the lock, UTC, ISO 8601.
        beat: the time of its last heartbeat, seconds since 1970.
        released: whether it has released the lock.
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
        """Whether it still holds the lock."""
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
    """Hold the lock `name` of a root during the block.

    Args:
        wait_s: how long to wait while another living run holds the lock, seconds.
        say: called once if this run waits, with a line that names the holder.

    Raises:
        Busy: another run (still) holds the lock.
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
            raise Busy(f"{name} is held by {other}: run this command again when that run has ended")
        if not told:
            say(f"waiting for {name}, held by {other}")
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
        with suppress(OSError):  # the root was deleted, or the disk is full: then the lock ends with the process
            _write(fs, file, replace(mine, released=True))


def require_kept() -> None:
    """Raise Busy if another run has taken over a lock of this process, because its heartbeat stopped for too long."""
    for file, fs in _KEPT.items():
        folder, _, number = file.removesuffix(".json").rpartition("/")
        if not fs.exists(file) or _newest(fs, folder) > int(number):
            raise Busy(
                f"{folder.rsplit('/', 1)[-1]} was taken over by another run while this one sent no heartbeat (or its lock "
                "was removed): this run publishes nothing more; run this command again when that run has ended"
            )


def holders(root: str) -> dict[str, Owner]:
    """The living holder of each lock of a root, by the lock's name; locks that nobody holds are left out."""
    fs, path = url_to_fs(root)
    if not fs.isdir(f"{path}/{FOLDER}"):
        return {}
    folders = [folder.rstrip("/") for folder in fs.ls(f"{path}/{FOLDER}", detail=False)]
    owners = {folder.rsplit("/", 1)[-1]: _owner(fs, folder, _newest(fs, folder)) for folder in folders}
    return {name: owner for name, owner in owners.items() if owner and owner.lives()}


def require_no_other_day(root: str, run_id: str) -> None:
    """Raise Busy if any other run holds the lock of a day: it may be reading the events."""
    for name, owner in holders(root).items():
        if name.startswith("dt=") and owner.run_id != run_id:
            raise Busy(
                f"{name} is held by {owner}, which may be reading the events: run this command again when that run has ended"
            )


def _take(fs: Any, folder: str, mine: Owner) -> tuple[str, Owner | None]:
    """Take the lock: (this process's file, None). If a living owner holds it: (the owner's file, the owner)."""
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
        slow = max(numbers) > newest + 1  # others took the lock meanwhile and had deleted this number before we created it
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
    """The owner in the file of a number; None if the file was deleted."""
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
    """Write a file that must not exist yet (else FileExistsError)."""
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
        with suppress(OSError):  # e.g. a network error: the next heartbeat may succeed
            _write(fs, file, replace(owner, beat=time.time()))


def _myself(run_id: str) -> Owner:
    since = datetime.now(UTC).isoformat(timespec="seconds")
    return Owner(socket.gethostname(), _processes(), os.getpid(), _start_of(os.getpid()), run_id, since, time.time())


def _processes() -> str:
    """An id of the processes visible from here; "" where there is no /proc, so that heartbeats alone decide."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _start_of(pid: int) -> int | None:
    """When a living process started, in clock ticks since boot; None if it does not exist or is a zombie."""
    try:
        # The fields after the name, which may hold any character: field 3 is the state, field 22 (fields[18]) the start.
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return None if state in "ZX" else int(fields[18])
