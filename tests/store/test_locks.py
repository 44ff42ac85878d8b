"""One holder at a time, in processes of their own; nothing that died keeps a lock."""

from __future__ import annotations

import json
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from recall_lib.config import Config
from recall_lib.process.errors import Busy
from recall_lib.store import locks
from recall_lib.store.tables import Tables

ROUNDS = 20
HOLDER = """
import sys, time
from recall_lib.store import locks
from recall_lib.store.tables import Tables
with locks.held(sys.argv[1], "dt=2024-01-02", "first"):
    print("held", flush=True)
    time.sleep(600)
"""
NAME = "dt=2024-01-02"


def contend(root: str, barrier: Any, won: Any) -> None:
    for n in range(ROUNDS):
        barrier.wait()
        try:
            with locks.held(root, f"lock {n}", "r"):
                won.put(n)
                barrier.wait()  # until the other one has tried too
        except Busy:
            barrier.wait()


def write(root: Path, owner: locks.Owner, name: str = NAME, number: int = 1) -> None:
    folder = root / "_locks" / name
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{number}.json").write_text(json.dumps(asdict(owner)))


def myself(**changes: Any) -> locks.Owner:
    return replace(locks._myself("other"), **changes)


def take(root: Path | str, name: str = NAME) -> None:
    with locks.held(str(root), name, "mine"):
        assert locks.holders(str(root))[name].run_id == "mine"


@pytest.mark.parametrize("dead_owner", [False, True])
def test_of_two_contenders_exactly_one_wins(tmp_path: Path, dead_owner: bool) -> None:
    for n in range(ROUNDS if dead_owner else 0):
        write(tmp_path, myself(started=1), f"lock {n}", number=n + 1)
    spawn = multiprocessing.get_context("spawn")
    barrier, won = spawn.Barrier(2, timeout=60), spawn.Queue()
    contenders = [spawn.Process(target=contend, args=(str(tmp_path), barrier, won), daemon=True) for _ in range(2)]
    for process in contenders:
        process.start()
    winners = [won.get(timeout=60) for _ in range(ROUNDS)]
    for process in contenders:
        process.join(60)
    assert [process.exitcode for process in contenders] == [0, 0]
    assert sorted(winners) == list(range(ROUNDS))  # the queue does not keep the order of two processes
    assert won.empty()
    assert locks.holders(str(tmp_path)) == {}


def test_a_living_holder_is_named_and_a_killed_one_taken_over(tmp_path: Path) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(
            Busy, match=rf"{NAME} is held by run first \(pid {holder.pid} on .*\) since 20..-.*: run"
        ) as refused:
            take(tmp_path)
        assert refused.value.exit_code == 75
        take(tmp_path, "another")
    finally:
        holder.send_signal(signal.SIGKILL)
    while locks._start_of(holder.pid) is not None:
        time.sleep(0.01)
    assert Path(f"/proc/{holder.pid}").exists(), "nobody has waited for it: it is a zombie"
    take(tmp_path)
    holder.wait()
    take(tmp_path)
    assert [path.name for path in (tmp_path / "_locks" / NAME).iterdir()] == ["3.json"]


def test_a_pid_that_is_another_process_by_now_holds_nothing(tmp_path: Path) -> None:
    write(tmp_path, myself())
    with pytest.raises(Busy):
        take(tmp_path)
    write(tmp_path, myself(started=1))
    take(tmp_path)


def test_on_another_host_heartbeats_decide(tmp_path: Path) -> None:
    far = {"processes": "another boot", "host": "far", "pid": os.getpid()}
    write(tmp_path, myself(**far, beat=time.time() - locks.DEAD_AFTER_S / 2))
    with pytest.raises(Busy, match="on far"):
        take(tmp_path)
    write(tmp_path, myself(**far, beat=time.time() - locks.DEAD_AFTER_S - 1))
    take(tmp_path)


def test_a_holder_beats_and_lets_go_after_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "HEARTBEAT_S", 0.02)
    with pytest.raises(ZeroDivisionError), locks.held(str(tmp_path), NAME, "mine"):
        first = locks.holders(str(tmp_path))[NAME].beat
        deadline = time.monotonic() + 10
        while locks.holders(str(tmp_path))[NAME].beat == first:
            assert time.monotonic() < deadline
        1 / 0  # noqa: B018
    assert locks.holders(str(tmp_path)) == {}


def test_waiting_is_bounded_and_ends_with_the_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, myself())
    said: list[str] = []

    def sleep(_: float) -> None:
        write(tmp_path, myself(released=True))

    with pytest.raises(Busy), locks.held(str(tmp_path), NAME, "mine", wait_s=0.6, say=said.append):
        pass
    monkeypatch.setattr(time, "sleep", sleep)
    with locks.held(str(tmp_path), NAME, "mine", wait_s=60, say=said.append):
        pass
    assert len(said) == 2
    assert said[0].startswith(f"waiting for {NAME}, held by run other")


def test_who_was_slow_does_not_take_what_others_took_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the creation the lock changes hands twice, and the number is free again."""
    write(tmp_path, myself(started=1))
    create = locks._create

    def slowly(*arguments: Any) -> None:
        monkeypatch.setattr(locks, "_create", create)
        take(tmp_path)
        write(tmp_path, myself(), number=3)
        (tmp_path / "_locks" / NAME / "2.json").unlink()
        create(*arguments)

    monkeypatch.setattr(locks, "_create", slowly)
    with pytest.raises(Busy, match="run other"):
        take(tmp_path)
    assert [path.name for path in (tmp_path / "_locks" / NAME).glob("[2-9].json")] == ["3.json"]


def test_a_file_that_is_not_written_yet_is_held_for_a_while(tmp_path: Path) -> None:
    folder = tmp_path / "_locks" / NAME
    folder.mkdir(parents=True)
    (folder / "1.json").write_text("")
    with pytest.raises(Busy, match="host unknown yet"):
        take(tmp_path)
    long_ago = time.time() - locks.DEAD_AFTER_S - 1
    os.utime(folder / "1.json", (long_ago, long_ago))
    take(tmp_path)


def test_a_root_that_is_no_disk() -> None:
    with locks.held("memory://locks-test", NAME, "first"):
        with pytest.raises(Busy, match="run first"):
            take("memory://locks-test")
        assert list(locks.holders("memory://locks-test")) == [NAME]
    take("memory://locks-test")


def test_who_stood_still_until_another_took_over_publishes_nothing(
    tmp_path: Path, make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    tables = Tables(make_config())
    root = tables.config.paths.root
    with pytest.raises(Busy, match=f"{NAME} was taken over"), locks.held(root, NAME, tables.run_id):
        with tables.publishing("index", "2024-01-02") as staged:
            (staged.folder / "x").write_text("first")
        monkeypatch.setattr(locks, "_processes", lambda: "another host")  # from which our pid cannot be looked at
        monkeypatch.setattr(locks, "DEAD_AFTER_S", 0.0)
        take(root)
        with tables.publishing("index", "2024-01-02") as staged:
            (staged.folder / "x").write_text("second")
    monkeypatch.undo()
    assert (Path(tables.get("index", "2024-01-02").folder) / "x").read_text() == "first"
    take(root)


def test_a_lock_that_is_removed_by_hand_is_lost(tmp_path: Path) -> None:
    with locks.held(str(tmp_path), NAME, "mine"):
        locks.require_kept()
        shutil.rmtree(tmp_path / "_locks")
        with pytest.raises(Busy, match="its lock was removed"):
            locks.require_kept()


def test_a_full_disk_leaves_no_lock_and_hides_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, unlimited[1]))  # bytes of a file
    try:
        with pytest.raises(OSError, match="too large"):
            take(tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    assert list((tmp_path / "_locks" / NAME).iterdir()) == []

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with locks.held(str(tmp_path), NAME, "mine"):
        monkeypatch.setattr(locks, "_write", full)
