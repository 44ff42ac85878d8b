"""Which days of a log are stored, what happens when the log or the mapping changes, and what a day costs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs import events
from recall_lib.commands import cli
from recall_lib.commands.status import LATE, PUBLISHED, STALE, Days
from recall_lib.config import Config, load_config
from recall_lib.day import log_days
from recall_lib.day.context import Context
from recall_lib.day.log_days import days_later, is_complete
from recall_lib.process.errors import DataRefused
from recall_lib.store.tables import Tables

FIRST, DAY = "2024-03-01", 86_400
START = 1_709_251_200  # FIRST 00:00 UTC
DT = "2024-03-04"
HEADER = "user_id,article_id,expo_time,click,city,device"
Log = Mapping[int, int]  # clicks of the nth day since FIRST


def lines(log: Log) -> list[str]:
    """Different clicks, the nth of a day always the same one."""
    return [
        f"u{n % 7},i{n % 5},{START + day * DAY + n},1,c{n % 3},d{n % 2}" for day, clicks in log.items() for n in range(clicks)
    ]


def day(n: int) -> str:
    return days_later(FIRST, n)


@pytest.fixture
def config(make_config: Callable[..., Config]) -> Config:
    return make_config(features={"item_id": {"min_count": 1}}, evaluation={"protocol": "day"})


@pytest.fixture
def ingest(
    spark: Any, config: Config, write_log: Callable[[str, list[str]], Path], tmp_path: Path
) -> Callable[..., dict[str, int]]:
    """Writes a log and ingests it for a day, as a pipeline does; gives {day: stored clicks}."""

    def run(log: Log, dt: str = DT, *overrides: str, also: list[str] = []) -> dict[str, int]:  # noqa: B006
        write_log("clicks/log.csv", [HEADER, *lines(log)])
        changed = load_config(str(tmp_path / "config.yaml"), overrides)
        events.run(Context(changed, dt, "test"), backfill=True, also=also)
        return stored(changed)

    return run


def stored(config: Config) -> dict[str, int]:
    tables = Tables(config)
    return {day: tables.get("events", day).manifest["rows"] for day in tables.days("events")}


# -- one row must not decide for all


@given(
    usual=st.integers(11, 500),
    days=st.integers(1, 40),
    begun=st.floats(0, 1),
    strays=st.dictionaries(st.integers(1, 10_000), st.integers(1, 3), max_size=1),
)
def test_a_stray_click_completes_no_day(usual: int, days: int, begun: float, strays: Log) -> None:
    """However far away; a following day that is as usual does."""
    log = {day(-n): usual for n in range(1, days + 1)} | {day(0): int(begun * usual)}
    clicks = {day(n): max(1, usual // 11 * clicks // 3) for n, clicks in strays.items()}
    assert not is_complete(day(0), log | clicks, slack_days=7)
    assert is_complete(day(0), log | clicks | {day(1): usual}, slack_days=7)


def test_the_slack_says_how_long_a_gap_may_be() -> None:
    log = {day(0): 5, day(9): 5}
    assert [is_complete(day(0), log, slack_days=days) for days in (8, 9)] == [False, True]
    assert not is_complete(day(9), log, slack_days=7), "nothing follows"
    assert is_complete(day(4), log, slack_days=7), "a day without clicks"


@pytest.mark.parametrize("ahead", [1, 30, 15_000])
def test_a_half_full_day_waits_however_wrong_a_clock_is(
    ingest: Callable[..., dict[str, int]], ahead: int, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {0: 144, 1: 150, 2: 140}
    assert ingest(before | {3: 6, 3 + ahead: 1}) == {day(n): clicks for n, clicks in before.items()}
    said = capsys.readouterr().out
    assert f"{DT} is not stored" in said
    assert ("clocks are wrong" in said) == (ahead > 10_000)
    whole = before | {3: 144, 4: 20}
    assert ingest(whole | {3 + ahead: max(1, whole.get(3 + ahead, 0))})[DT] == 144


# -- late clicks


def test_a_day_that_has_grown_is_late_and_read_again_on_request(
    ingest: Callable[..., dict[str, int]], config: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "config.yaml")
    log = {0: 30, 1: 30, 2: 30, 3: 30}
    ingest(log, day(2))
    assert Days(config).of_events() == {}
    log |= {1: 35}
    assert ingest(log, day(3))[day(1)] == 30
    assert "the log has more clicks of stored days than when they were stored: 2024-03-02 (5 more)" in capsys.readouterr().out
    assert Days(config).of_events() == {day(1): (LATE, "30 clicks when it was stored, 35 in the log now")}
    assert Days(config).day(day(1), ["events"]).state == LATE
    assert cli.main(["status", "--config", file]) == 0
    said = capsys.readouterr().out
    assert f"{day(1)}  late   30 clicks when it was stored, 35 in the log now" in said
    assert "recall backfill --reprocess stale" in said
    # What `backfill --reprocess stale` asks the events job for.
    assert ingest(log, day(3), also=list(Days(config).of_events()))[day(1)] == 35
    assert Days(config).of_events() == {}


def test_the_last_days_are_compared_with_the_log(ingest: Callable[..., dict[str, int]]) -> None:
    log = dict.fromkeys(range(6), 20)
    ingest(log, day(4))
    late = "input.late_days=2"
    found = ingest(log | {1: 21, 2: 22, 3: 23}, day(4), late)
    assert [found[day(n)] for n in range(5)] == [20, 20, 22, 23, 20]


def test_a_file_that_came_twice_is_late_only_once(
    ingest: Callable[..., dict[str, int]], config: Config, write_log: Callable[[str, list[str]], Path], tmp_path: Path
) -> None:
    log = {0: 20, 1: 20, 2: 20, 3: 20}
    ingest(log, day(2))
    write_log("clicks/again.csv", [HEADER, *lines({0: 20})])
    manifest = Path(config.paths.root, "events", f"dt={FIRST}", "_manifest.json").read_text()
    ingest(log, day(2))
    assert list(Days(config).of_events()) == [FIRST]
    assert ingest(log, day(2), also=[FIRST])[FIRST] == 20
    assert Days(config).of_events() == {}
    assert Path(config.paths.root, "events", f"dt={FIRST}", "_manifest.json").read_text() == manifest, "nothing has changed"


def test_what_the_log_no_longer_has_stays(ingest: Callable[..., dict[str, int]], config: Config) -> None:
    found = ingest(dict.fromkeys(range(4), 20), day(2))
    assert ingest({3: 20, 4: 20}, day(2), also=[FIRST]) == found
    assert Days(config).of_events() == {}


# -- another mapping

OTHER = "input.columns={user_id: device}"
MORE = "features.user=[{name: city, min_count: 1}]"


@pytest.mark.parametrize("change", [OTHER, MORE, "input.options={nullValue: x}", "input.columns={click: null}"])
def test_days_of_other_settings_are_refused_before_anything_is_stored(
    ingest: Callable[..., dict[str, int]], change: str, config: Config, tmp_path: Path, run_jobs: Callable[..., Context]
) -> None:
    log = dict.fromkeys(range(5), 20)
    before = ingest(log, day(2))
    refusal = rf"3 days \({FIRST} to {day(2)}\) were read with other settings \((input|features)\..* in one pass, with "
    refusal += f"`recall backfill --reprocess stale --start {day(3)} --end {day(4)}`"
    with pytest.raises(DataRefused, match=refusal):
        ingest(log, day(3), change)
    assert stored(config) == before
    changed = load_config(str(tmp_path / "config.yaml"), [change])
    for job in ("vocab", "popular"):
        with pytest.raises(DataRefused, match=refusal):
            run_jobs(changed, day(3), job)
    assert [state for state, _ in Days(changed).of_events().values()] == [STALE] * 3


def test_a_feature_more_is_one_pass_over_the_log(
    ingest: Callable[..., dict[str, int]], config: Config, tmp_path: Path, run_jobs: Callable[..., Context]
) -> None:
    log = dict.fromkeys(range(6), 20)
    ingest(log, day(3))
    changed = load_config(str(tmp_path / "config.yaml"), [MORE])
    assert ingest(log, day(4), MORE, also=list(Days(changed).of_events())) == {day(n): 20 for n in range(5)}
    tables = Tables(changed)
    assert len({tables.get("events", other).manifest["run_id"] for other in tables.days("events")}) == 1
    assert Days(changed).of_events() == {}
    run_jobs(changed, day(4), "vocab")
    assert tables.get("vocab", day(4)).manifest["sizes"]["city"] == 5


def test_days_of_other_settings_that_the_log_lacks_are_named(ingest: Callable[..., dict[str, int]], config: Config) -> None:
    ingest(dict.fromkeys(range(4), 20), day(2))
    rest = {2: 20, 3: 20, 4: 20}
    ingest(rest, day(3))
    with pytest.raises(DataRefused, match=r"the log lacks 2 days .*: remove these with `recall gc --set retention.events_days"):
        ingest(rest, day(3), MORE, also=[day(2)])


def test_backfill_reads_stale_days_again_at_first(
    ingest: Callable[..., dict[str, int]], config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from recall_lib.commands import backfill

    log = dict.fromkeys(range(5), 20)
    ingest(log, day(2))
    passes: list[list[str]] = []

    def in_process(request: Any, days: list[str], folder: Path) -> None:
        passes.append(days)
        events.run(Context(request.config, days[-1], "test"), backfill=True, also=days)

    monkeypatch.setattr(backfill, "_ingest", in_process)
    monkeypatch.setattr(backfill, "run_days", lambda request, todo: pytest.fail(f"{todo} would be run one by one"))
    arguments = ["--config", str(tmp_path / "config.yaml"), "--start", FIRST, "--end", day(3), "--set", MORE]
    assert cli.main(["backfill", *arguments, "--jobs", "events", "--reprocess", "stale", "--dry-run"]) == 0
    assert passes == []
    assert cli.main(["backfill", *arguments, "--jobs", "events", "--reprocess", "stale"]) == 0
    assert passes == [[day(0), day(1), day(2)]]
    changed = load_config(str(tmp_path / "config.yaml"), [MORE])
    assert {Days(changed).day(day(n), ["events"]).state for n in range(3)} == {PUBLISHED}


# -- what a day costs


def test_a_small_day_is_one_file_and_has_rejects_only_where_there_are_any(
    ingest: Callable[..., dict[str, int]], config: Config, write_log: Callable[[str, list[str]], Path]
) -> None:
    write_log("clicks/bad.csv", [HEADER, f"u1,,{START + 2 * DAY},1,c,d"])
    ingest(dict.fromkeys(range(30), 40), day(28))
    tables = Tables(config)
    files = {other: len(tables.get("events", other).manifest["files"]) for other in tables.days("events")}
    assert files == {day(n): 1 for n in range(29)}
    assert tables.days("rejects") == [day(2), day(28)]
    assert tables.get("rejects", day(2)).manifest["rows"] == 1


def test_rejects_that_are_gone_are_replaced(
    ingest: Callable[..., dict[str, int]], config: Config, write_log: Callable[[str, list[str]], Path]
) -> None:
    log = dict.fromkeys(range(5), 40)
    bad = write_log("clicks/bad.csv", [HEADER, f"u1,,{START},1,c,d"])
    ingest(log, day(2))
    assert Tables(config).get("rejects", FIRST).manifest["rows"] == 1
    bad.unlink()
    ingest(log, day(2), also=[FIRST])
    assert Tables(config).get("rejects", FIRST).manifest["rows"] == 0


def test_an_empty_day_a_giant_day_and_any_order_of_the_log(
    ingest: Callable[..., dict[str, int]],
    config: Config,
    tmp_path: Path,
    write_log: Callable[[str, list[str]], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("recall_lib.transforms.events._FILE_CLICKS", 1_000)
    log = {0: 10, 1: 3_000, 3: 10, 4: 10}  # none on the third day
    ingest(log, day(2))
    tables = Tables(config)
    assert stored(config) == {day(0): 10, day(1): 3_000, day(2): 0}
    assert 1 < len(tables.get("events", day(1)).manifest["files"]) <= config.spark.partitions
    digests = {other: tables.get("events", other).digest for other in tables.days("events")}
    for seed, order in enumerate((lambda rows: rows[::-1], lambda rows: random.Random(1).sample(rows, len(rows)))):
        write_log("clicks/log.csv", [HEADER, *order(lines(log))])
        other = load_config(str(tmp_path / "config.yaml"), [f"paths.root={tmp_path / str(seed)}"])
        events.run(Context(other, day(2), "test"), backfill=True)
        found = Tables(other)
        assert {other: found.get("events", other).digest for other in found.days("events")} == digests


def test_the_counts_are_beside_the_days(ingest: Callable[..., dict[str, int]], config: Config) -> None:
    ingest({0: 3, 1: 4, 2: 5}, day(1))
    found = json.loads(Path(config.paths.root, "events", "_log.json").read_text())
    assert found == {"stored": {day(0): 3, day(1): 4}, "log": {day(0): 3, day(1): 4, day(2): 5}}
    assert log_days.grown(Tables(config), {day(0): 9}) == {day(0): (3, 9)}
