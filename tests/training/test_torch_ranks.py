import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from recall_lib.process.errors import DataRefused, RecallError
from recall_lib.training.ranks import Ranks
from recall_lib.training.torch_ranks import _own_address, run_in_executors


def test_ranks_are_the_tasks_of_a_stage_and_their_files_come_back_whole(spark: Any) -> None:
    def work(ranks: Ranks, text: str) -> dict[str, bytes]:
        assert ranks.sum([1, ranks.rank]) == [2, 1]
        mine = [os.readlink(path) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        sockets = [line.split() for name in ("tcp", "tcp6") for line in Path("/proc/net", name).read_text().splitlines()[1:]]
        listening = {row[1].split(":")[0] for row in sockets if row[3] == "0A" and f"socket:[{row[9]}]" in mine}
        files = {"large": bytes(1 << 26) + text.encode(), "empty": b"", "listening": " ".join(listening).encode()}
        return files if ranks.rank == 0 else {}

    found = run_in_executors(work, "the end", 2)
    assert found.keys() == {"large", "empty", "listening"}
    assert (len(found["large"]), found["large"][-7:], found["empty"]) == ((1 << 26) + 7, b"the end", b"")
    assert found["listening"] == b"0100007F"


@pytest.mark.parametrize(
    ("end", "error", "message"),
    [
        ("refuse", DataRefused, "^no targets$"),
        ("fail", RecallError, "^rank 1: ValueError: no luck$"),
        ("die", RecallError, "^rank 1: .*; run it again to resume$"),
    ],
)
def test_a_rank_that_fails_ends_the_others(spark: Any, end: str, error: type[Exception], message: str) -> None:
    def work(ranks: Ranks, end: str) -> dict[str, bytes]:
        while ranks.sum([1]) == [2]:
            if ranks.rank == 1 and end == "refuse":
                raise DataRefused("no targets")
            if ranks.rank == 1 and end == "fail":
                raise ValueError("no luck")
            if ranks.rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
        return {}

    started = time.monotonic()
    with pytest.raises(error, match=message):
        run_in_executors(work, end, 2)
    assert time.monotonic() - started < 30


def test_ranks_on_one_host_meet_on_its_loopback() -> None:
    assert _own_address("host", ["host", "host"]) == "127.0.0.1"


@pytest.mark.parametrize("host", ["127.0.0.2", "[::1]"])
def test_a_rank_listens_where_the_first_of_the_other_hosts_reaches_it(host: str) -> None:
    assert _own_address(host, [host, "127.0.0.3"]) == "127.0.0.1"
