import csv

import numpy as np
import pytest

from recall_lib.commands import simulator
from recall_lib.process.errors import UsageError

SMALL = {"users": 120, "items": 96, "days": 4}


@pytest.fixture(scope="module")
def log():
    return simulator.simulate(**SMALL)


def first_order_and_popular_hits(log, places=10):
    """Hit rates of the last click of each reader: by what followed its last-but-one before, and by the most clicked."""
    clicked = log.click == 1
    histories = {}
    for user, item in zip(log.user[clicked].tolist(), log.item[clicked].tolist(), strict=True):
        histories.setdefault(user, []).append(item)
    topic = [tags.split("_")[0] for tags in log.articles["tags"]]
    follows, counts = {}, {}
    for items in histories.values():
        for i, item in enumerate(items[:-1]):
            counts[item] = counts.get(item, 0) + 1
            if i:
                after = follows.setdefault(topic[items[i - 1]], {})
                after[item] = after.get(item, 0) + 1
    hits = np.zeros(2)
    for items in histories.values():
        if len(items) > 1:
            for way, scores in enumerate((follows.get(topic[items[-2]], {}), counts)):
                fresh = [item for item in sorted(scores, key=scores.get, reverse=True) if item not in items[:-1]]
                hits[way] += items[-1] in fresh[:places]
    return hits / len(histories)


def test_equal_arguments_give_equal_logs_and_another_seed_another(log):
    again, other = simulator.simulate(**SMALL), simulator.simulate(**SMALL, seed=1)
    for name in ("user", "item", "time", "click"):
        assert np.array_equal(getattr(log, name), getattr(again, name))
    assert not np.array_equal(log.item[:100], other.item[:100])


def test_log_is_ordered_and_inside_its_days(log):
    start = int(np.datetime64(simulator.FIRST_DAY, "s").astype(np.int64))
    assert (np.diff(log.time) >= 0).all()
    assert log.time.min() >= start
    assert set((log.time - start) // 86_400) == set(range(SMALL["days"]))
    assert set(log.click) == {0, 1}


def test_no_article_is_clicked_twice_or_before_it_is_born(log):
    clicked = log.click == 1
    pairs = list(zip(log.user[clicked].tolist(), log.item[clicked].tolist(), strict=True))
    assert len(pairs) == len(set(pairs))
    first = {}
    for item, time in zip(log.item.tolist(), log.time.tolist(), strict=True):
        first.setdefault(item, time)
    assert max(first.values()) - min(first.values()) > 86_400  # some are fresh


def test_what_comes_next_depends_on_what_was_read_last():
    first_order, popular = first_order_and_popular_hits(simulator.simulate(users=1500, items=480, days=6))
    assert first_order > 1.5 * popular


def test_rows_hold_every_event_and_the_slips(log, tmp_path):
    simulator.write_rows(log, tmp_path)
    files = sorted((tmp_path / "clicks").iterdir())
    assert [file.name for file in files] == [f"2024-03-0{day}.csv" for day in range(1, 5)]
    rows = []
    for file in files:
        header, *body = csv.reader(file.open(encoding="utf-8"))
        assert tuple(header) == simulator.CLICK_COLUMNS
        rows += body
    good = [row for row in rows if len(row) == 7 and row[1] and row[2].isdigit() and row[3] in ("0", "1")]
    assert len(rows) - len(good) == 4 * len(files)
    assert len(good) - len(files) == len(log.user) == len(set(map(tuple, good)))
    with (tmp_path / "items.csv").open(encoding="utf-8") as file:
        articles = list(csv.DictReader(file))
    assert len(articles) == SMALL["items"]
    assert any(article["tags"].count("_") == 2 for article in articles)


def test_sessions_hold_the_same_clicks(log, tmp_path):
    simulator.write_sessions(log, tmp_path / "sessions.txt")
    lines = [line.split("\t") for line in (tmp_path / "sessions.txt").read_text(encoding="utf-8").splitlines()]
    good = {fields[0]: fields[3].split(";") for fields in lines if len(fields) == 5 and ":" in fields[3]}
    assert len(lines) == len(good) + 3  # one line twice, one cut short, one with a click that is none
    clicked = log.click == 1
    for user in range(SMALL["users"]):
        want = log.articles["article_id"][log.item[clicked & (log.user == user)]].tolist()
        assert [click.split(":")[0] for click in good.get(f"u{user:05d}", [])] == want


def test_too_few_items_are_refused():
    with pytest.raises(UsageError, match="at least 48"):
        simulator.simulate(users=1, items=47)


def test_the_demos_log_is_the_one_that_the_readme_was_measured_on():
    log = simulator.simulate()
    assert (len(log.user), log.click.sum()) == (194_325, 129_374)


def test_a_block_does_not_depend_on_the_others_and_a_log_is_its_blocks():
    small, large = simulator.Plan(users=4000, items=96, days=2), simulator.Plan(users=4300, items=96, days=2)
    blocks = [simulator.block(large, number) for number in range(large.blocks)]
    assert np.array_equal(simulator.block(small, 0).item, blocks[0].item)
    assert [len(block.readers["user_id"]) for block in blocks] == [4000, 300]
    assert not np.array_equal(blocks[0].readers["city"][:300], blocks[1].readers["city"])
    log = simulator.simulate(users=4300, items=96, days=2)
    assert (np.diff(log.time) >= 0).all()
    assert log.readers["user_id"].tolist() == [f"u{i:05d}" for i in range(4300)]
    late = log.user >= 4000
    for name in ("item", "time", "click"):
        assert np.array_equal(getattr(log, name)[late], getattr(blocks[1], name))
    assert np.array_equal(log.user[late] - 4000, blocks[1].user)


@pytest.mark.parametrize(
    "wanted",
    [
        {"clicks": 60_000},
        {"clicks": 60_000, "users": 1000, "items": 5000},
        {"clicks": 60_000, "users": 40_000, "days": 3},
        {"clicks": 60_000, "skew": 0.5},
        {"clicks": 60_000, "skew": 0.2, "robot": 20_000},
    ],
)
def test_a_plan_has_the_clicks_and_the_skew_it_was_asked_for(wanted):
    plan = simulator.plan_for(**wanted)
    users, items = [], []
    for number in range(plan.blocks):
        block = simulator.block(plan, number)
        clicked = block.click == 1
        users.append(block.user[clicked] + number * simulator.BLOCK)
        items.append(block.item[clicked])
    users, items = np.concatenate(users), np.concatenate(items)
    assert len(users) == pytest.approx(60_000, rel=0.05)
    assert (users == plan.users).sum() == wanted.get("robot", 0)
    hottest = np.bincount(items[users < plan.users]).max() / (users < plan.users).sum()
    if "skew" in wanted:
        assert hottest == pytest.approx(wanted["skew"], abs=0.02)
    else:
        assert hottest < 0.05


def test_the_robot_reads_what_is_born_and_never_twice_at_a_time():
    plan = simulator.Plan(users=1, items=96, days=2, robot=200_000)  # more than one a second
    block = simulator.block(plan, 0)
    robot = block.user == 1
    assert len(set(zip(block.item[robot].tolist(), block.time[robot].tolist(), strict=True))) == plan.robot
    early = robot & (block.time < block.time[0] + 86_400)
    assert 48 <= len(set(block.item[early])) < len(set(block.item[robot])) == 96


@pytest.mark.parametrize("wanted", [{"users": 10}, {"users": 0}, {"robot": 10_000}, {"skew": 1.0}, {"days": 0}])
def test_what_no_magazine_can_give_is_refused(wanted):
    with pytest.raises(UsageError):
        simulator.plan_for(**{"clicks": 10_000, "items": 96} | wanted)
