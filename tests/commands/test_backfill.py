"""Which days a backfill runs, how it ends, and that no kill shows in what is published."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from jobs import events
from recall_lib.commands import backfill, cli, simulator
from recall_lib.commands.backfill import TAKEN_UP, Asked, Attempt, Incomplete, days_between, require_published
from recall_lib.commands.status import FAILED, MISSING, PUBLISHED, STALE, Day, Days
from recall_lib.config import Config, Training
from recall_lib.day.context import Context
from recall_lib.process.errors import UsageError
from recall_lib.store import locks
from tests.conftest import ROOT

DAYS = ["2024-03-02", "2024-03-03", "2024-03-04"]
JOBS = ["events", "vocab"]


def test_a_range_is_half_open() -> None:
    assert days_between("2024-02-28", "2024-03-02") == ["2024-02-28", "2024-02-29", "2024-03-01"]
    for start, end in (("2024-03-02", "2024-03-02"), ("2024-03-02", "2024-03-01"), ("2024-02-30", "2024-03-02")):
        with pytest.raises(UsageError, match="--start"):
            days_between(start, end)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("--jobs", "vocab,pipeline", "--jobs pipeline: choose from events"),
        ("--jobs", "", "--jobs : choose from events"),
        ("--max-active", "0", "at least 1"),
    ],
)
def test_bad_usage(argument: str, value: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    config = str(ROOT / "conf" / "globo.yaml")
    arguments = ["backfill", "--config", config, "--start", DAYS[0], "--end", DAYS[1], argument, value]
    assert cli.main(arguments) == 2
    assert message in capsys.readouterr().err


def test_what_is_reprocessed() -> None:
    states = [PUBLISHED, STALE, FAILED, MISSING]
    taken = {name: [state for state in states if state in TAKEN_UP[name]] for name in TAKEN_UP}
    assert taken == {"missing": [FAILED, MISSING], "failed": [FAILED], "stale": [STALE, FAILED, MISSING], "all": states}


@pytest.mark.parametrize(
    ("states", "codes", "reprocess", "exit_code"),
    [
        ([PUBLISHED, STALE], [], "missing", 0),
        ([PUBLISHED, PUBLISHED], [0, 75], "missing", 0),  # who had the lock has published it
        ([PUBLISHED, STALE], [0, 75], "stale", 75),
        ([PUBLISHED, PUBLISHED], [0, 75], "all", 75),  # perhaps with other settings
        ([PUBLISHED, MISSING], [0, 75], "missing", 75),
        ([MISSING, MISSING], [75], "missing", 1),
        ([FAILED, MISSING], [3, 75], "missing", 3),
        ([FAILED, FAILED], [4, 3], "missing", 4),
        ([FAILED, MISSING], [137], "missing", 137),
        ([MISSING, PUBLISHED], [], "failed", 1),
    ],
)
def test_exit_codes(states: list[str], codes: list[int], reprocess: str, exit_code: int) -> None:
    after = {day: Day({}, None, state, "") for day, state in zip(DAYS, states, strict=False)}
    attempts = {day: Attempt(code, 1.0, "") for day, code in zip(DAYS, codes, strict=False)}
    found = 0
    try:
        require_published(after, attempts, TAKEN_UP[reprocess])
    except Incomplete as error:
        found = error.exit_code
    assert found == exit_code


class Fake:
    """A process that ends when it is asked for the third time, with its day's code."""

    codes: ClassVar[dict[str, int]] = {}
    active: ClassVar[list[str]] = []
    most = 0

    def __init__(self, arguments: list[str], log: Path) -> None:
        self.day, self.asked = arguments[arguments.index("--dt") + 1], 0
        Fake.active.append(self.day)
        Fake.most = max(Fake.most, len(Fake.active))

    def ended(self) -> bool:
        self.asked += 1
        return self.asked > 2

    def end(self) -> None:
        assert self.asked > 2, "it still ran in the end"

    def attempt(self) -> Attempt:
        Fake.active.remove(self.day)
        return Attempt(Fake.codes.get(self.day, 0), 1.0, "words")


@pytest.fixture
def request_of(make_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Asked]]:
    """A backfill of DAYS whose processes are fakes."""

    def make(codes: dict[str, int], **options: Any) -> Asked:
        Fake.codes, Fake.most = codes, 0
        defaults = {"jobs": ["vocab"], "reprocess": "missing", "max_active": 1, "stop": True}
        return Asked(make_config(), ["--config", "c.yaml"], DAYS, **(defaults | options))

    monkeypatch.setattr(backfill, "Process", Fake)
    monkeypatch.setattr(backfill, "_POLL_S", 0.001)
    yield make
    assert Fake.active == []


@pytest.mark.parametrize(("code", "stop", "ran"), [(0, True, DAYS), (3, True, DAYS[:2]), (3, False, DAYS), (75, True, DAYS)])
def test_a_failure_stops_and_a_lock_does_not(request_of: Callable[..., Asked], code: int, stop: bool, ran: list[str]) -> None:
    request = request_of({DAYS[1]: code}, stop=stop)
    attempts = backfill.run_days(request, DAYS)
    assert list(attempts) == ran
    assert Fake.most == 1
    found = Days(request.config).day(DAYS[1], ["vocab"])
    assert (found.state, found.why) == ((FAILED, "exit 3: words") if code == 3 else (MISSING, ""))
    backfill.run_days(request_of({}), DAYS)
    assert Days(request.config).day(DAYS[1], ["vocab"]).state == MISSING, "a success takes the record away"


def test_the_line_that_ended_a_day_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backfill.children, "start", lambda *_, **__: SimpleNamespace(wait=lambda: 3))
    for line in (
        '{"level": "error", "message": "no"}\n{"level": "info", "message": "x"}',
        "no",
        "no\n\n",
        "x\nrecall pipeline: no\nx",
    ):
        (tmp_path / "day.log").write_text(f"5\n{line}\n")
        attempt = backfill.Process([], tmp_path / "day.log").attempt()
        assert (attempt.code, attempt.message.removeprefix("recall pipeline: ")) == (3, "no")


def test_days_at_once_are_limited(request_of: Callable[..., Asked]) -> None:
    assert sorted(backfill.run_days(request_of({}, max_active=2), DAYS)) == DAYS
    assert Fake.most == 2


@pytest.mark.parametrize("training", [{"init": "yesterday"}, {"max_hr_drop": 0.1}])
def test_days_that_need_the_one_before_are_run_one_after_another(
    request_of: Callable[..., Asked], training: dict[str, Any]
) -> None:
    request = request_of({}, max_active=2, jobs=None)
    request = replace(request, config=request.config.model_copy(update={"training": Training(**training)}))
    with pytest.raises(UsageError, match="--max-active 2: with training"):
        backfill.run(request)
    backfill.require_in_order(replace(request, jobs=["vocab"]), DAYS)


@pytest.mark.parametrize(
    ("published", "todo", "every", "refused"),
    [
        ([], DAYS, None, DAYS[0]),
        (["2024-03-01"], DAYS, None, None),
        ([], DAYS, date(2024, 3, 2).toordinal(), None),  # the first day starts from scratch
        ([], DAYS, date(2024, 3, 3).toordinal(), DAYS[0]),
        (["2024-03-01"], [DAYS[0], DAYS[2]], None, DAYS[2]),
        ([DAYS[1]], [DAYS[2]], None, None),
    ],
)
def test_a_chain_without_a_beginning_is_refused(
    request_of: Callable[..., Asked], published: list[str], todo: list[str], every: int | None, refused: str | None
) -> None:
    request = request_of({}, jobs=None)
    training = Training(init="yesterday", scratch_every=every)
    request = replace(request, config=request.config.model_copy(update={"training": training}))
    for day in published:
        folder = Path(request.config.paths.root, "models", f"dt={day}")
        folder.mkdir(parents=True)
        (folder / "_manifest.json").write_text("{}")
    if refused is None:
        return backfill.require_in_order(request, todo)
    with pytest.raises(UsageError, match=f"starts {refused} from models/dt=.*neither published nor to be run"):
        backfill.require_in_order(request, todo)


def test_days_at_once_share_one_ingestion_at_first(request_of: Callable[..., Asked]) -> None:
    with pytest.raises(Incomplete, match="events are not ingested: words") as error:
        backfill.run_days(request_of({DAYS[-1]: 4}, max_active=2, jobs=None), DAYS)
    assert (error.value.exit_code, Fake.most) == (4, 1)
    Fake.active.clear()


@pytest.fixture(scope="module")
def log() -> simulator.Log:
    return simulator.simulate(users=40, items=60, days=5)


@pytest.fixture
def config(make_config: Callable[..., Config], log: simulator.Log) -> Config:
    features = {"item_id": {"min_count": 1}}
    made = make_config(input={"max_reject_share": 0.2}, features=features, evaluation={"protocol": "day"})
    simulator.write_rows(log, Path(made.input.path))
    return made


def contents(root: Path, *without: str) -> dict[str, str]:
    """Every published file's digest, but of folders whose path holds one of `without`."""
    found = {str(path.parent.relative_to(root)): path.read_text() for path in root.rglob("_manifest.json")}
    return {name: text for name, text in found.items() if not any(part in name for part in without)}


def digests(root: Path) -> dict[str, tuple[str, dict[str, str]]]:
    loaded = {name: json.loads(text) for name, text in contents(root).items()}
    return {name: (found["digest"], found["inputs"]) for name, found in loaded.items()}


def run_day(run_jobs: Callable[..., Context], config: Config, day: str) -> None:
    events.run(Context(config, day, "test"), backfill=True)
    run_jobs(config, day, "vocab")


@pytest.mark.proof
def test_an_old_day_changes_that_day_alone(run_jobs: Callable[..., Context], config: Config) -> None:
    root = Path(config.paths.root)
    run_day(run_jobs, config, DAYS[2])
    before = contents(root)
    run_day(run_jobs, config, DAYS[0])
    assert contents(root, f"vocab/dt={DAYS[0]}", f"rejects/dt={DAYS[0]}") == {
        name: text for name, text in before.items() if name != f"rejects/dt={DAYS[0]}"
    }
    states = {day: Days(config).day(day, JOBS) for day in DAYS}
    assert [states[day].state for day in DAYS] == [PUBLISHED, MISSING, PUBLISHED]
    file = Path(config.input.path) / "clicks" / f"{DAYS[0]}.csv"
    header, *lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join([header, *lines[10:]]))
    events.run(Context(config, DAYS[0], "test"), backfill=True)
    found = Days(config).day(DAYS[2], JOBS)
    assert (found.state, found.why) == (STALE, f"changed since: events/dt={DAYS[0]}")
    assert Days(config).day(DAYS[0], JOBS).state == PUBLISHED, "it knows the days before it alone"


def start(config_file: Path, end: str, *options: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "recall_lib.commands.cli", "backfill", "--config", str(config_file)]
    command += ["--start", DAYS[0], "--end", end, *options]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, process_group=0
    )


def run_whole(config_file: Path, end: str, *options: str) -> str:
    process = start(config_file, end, *options)
    said, _ = process.communicate(timeout=600)
    assert process.returncode == 0, said
    return said


@pytest.mark.proof
@pytest.mark.timeout(3000)
def test_a_backfill_killed_three_times_ends_as_one_that_never_was(config: Config, tmp_path: Path) -> None:
    file, root, undisturbed = tmp_path / "config.yaml", Path(config.paths.root), tmp_path / "undisturbed"
    jobs = ["--jobs", ",".join(JOBS)]
    run_whole(file, DAYS[2], *jobs, "--set", f"paths.root={undisturbed}")
    expected, seed = digests(undisturbed), time.time_ns()
    rng = random.Random(seed)
    for published in sorted(rng.sample(range(len(expected)), 3)):
        killed = start(file, DAYS[2], *jobs)
        deadline = time.monotonic() + 240
        while len(list(root.glob("[a-z]*/dt=*/_manifest.json"))) < published:
            assert killed.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 2))
        os.killpg(killed.pid, signal.SIGKILL)
        killed.communicate()
        deadline = time.monotonic() + 10
        while locks.holders(str(root)):
            assert time.monotonic() < deadline, "the day's process outlived the backfill"
    run_whole(file, DAYS[2], *jobs)
    assert digests(root) == expected, f"seed {seed}"
    before = contents(root)
    assert "nothing to do: no day is failed or missing" in run_whole(file, DAYS[2], *jobs)
    assert contents(root) == before


@pytest.mark.proof
@pytest.mark.timeout(3000)
def test_of_two_backfills_at_once_one_publishes_and_the_other_says_so(config: Config, tmp_path: Path) -> None:
    file, jobs = tmp_path / "config.yaml", ["--jobs", ",".join(JOBS)]
    run_whole(file, DAYS[1], *jobs)
    expected = digests(Path(config.paths.root))
    assert expected.keys() >= {f"events/dt={DAYS[0]}", f"vocab/dt={DAYS[0]}"}
    for n in range(20):
        root = tmp_path / f"root-{n}"
        options = [*jobs, "--set", f"paths.root={root}"]
        processes = []
        for _ in range(2):
            processes.append(start(file, DAYS[1], *options))
            time.sleep(0.1 * n)  # the second one comes when the first is at something else each time
        said = [process.communicate(timeout=300)[0] for process in processes]
        assert sorted(process.returncode for process in processes) in ([0, 75], [0, 0]), said
        assert any(f"dt={DAYS[0]} is held by run" in text for text in said) or "nothing to do" in said[1], said
        assert digests(root) == expected
        assert locks.holders(str(root)) == {}
        assert not list(root.glob("_staging/*"))
        assert not list(root.glob("_retired/*"))
