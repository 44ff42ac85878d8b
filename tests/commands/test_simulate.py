import csv

import numpy as np
import pyarrow.parquet as pq
import pytest

from recall_lib.commands import simulate, simulator
from recall_lib.config import Features
from recall_lib.store import schemas
from recall_lib.store.digests import content_digests

PLAN = simulator.Plan(users=4100, items=96, days=3, visit=0.2, pace=2.0, live=0.2, robot=500)


@pytest.fixture(scope="module")
def written(spark, tmp_path_factory):
    folder = tmp_path_factory.mktemp("simulated") / "log"
    return folder, simulate.write(spark, PLAN, str(folder), 3)


def test_clicks_are_the_blocks_clicks_whatever_the_partitions(spark):
    frames = [simulate.clicks(spark, PLAN, partitions) for partitions in (1, 5)]
    assert frames[0].schema.simpleString() == schemas.events(Features()).simpleString()
    assert [frame.rdd.getNumPartitions() for frame in frames] == [1, 5]
    digests = [content_digests(frame) for frame in frames]
    assert digests[0] == digests[1]
    assert digests[0] != content_digests(simulate.clicks(spark, simulator.Plan(**vars(PLAN) | {"seed": 1})))
    rows = {(row.user_id, row.item_id, int(row.ts)) for row in frames[1].selectExpr("*", "unix_seconds(event_ts) ts").collect()}
    want = set()
    for number in range(PLAN.blocks):
        done = simulator.block(PLAN, number)
        clicked = done.click == 1
        users = done.readers["user_id"][done.user[clicked]].tolist()
        want |= set(zip(users, [f"a{i:05d}" for i in done.item[clicked]], done.time[clicked].tolist(), strict=True))
    assert rows == want
    assert len(rows) == digests[0][""][0]


def test_files_hold_a_day_and_a_range_of_readers_each(written):
    folder, counts = written
    files = sorted((folder / "clicks").iterdir())
    assert [file.name for file in files] == [f"2024-03-0{day}-0000{part}.parquet" for day in (1, 2, 3) for part in range(3)]
    assert counts["files"] == len(files)
    users = [set(), set(), set()]
    clicks = impressions = 0
    for i, file in enumerate(files):
        table = pq.read_table(file)
        assert set(np.array(table["expo_time"], "datetime64[s]").astype("datetime64[D]").astype(str)) == {file.name[:10]}
        users[i % 3] |= set(table["user_id"].to_pylist())
        clicks += np.sum(table["click"])
        impressions += len(table) - np.sum(table["click"])
    assert (clicks, impressions) == (counts["clicks"], counts["impressions"])
    assert max(users[0]) < min(users[1])
    assert max(users[1]) < min(users[2])
    assert sum((np.array(pq.read_table(file)["user_id"]) == "u04100").sum() for file in files) == PLAN.robot


def test_the_log_does_not_depend_on_the_files(spark, written, tmp_path):
    counts = simulate.write(spark, PLAN, str(tmp_path / "log"), 1)
    assert counts == written[1] | {"files": 3}
    digests = [content_digests(spark.read.parquet(f"{folder}/clicks")) for folder in (written[0], tmp_path / "log")]
    assert digests[0] == digests[1]
    assert (tmp_path / "log" / "items.parquet").read_bytes() == (written[0] / "items.parquet").read_bytes()


def test_rows_are_those_of_the_demos_writer(spark, tmp_path):
    small = {"users": 60, "items": 48, "days": 2}
    simulate.write(spark, simulator.Plan(**small), str(tmp_path / "spark"), 1)
    simulator.write_rows(simulator.simulate(**small), tmp_path / "demo")
    for table in pq.read_table(tmp_path / "spark" / "clicks"), pq.read_table(tmp_path / "spark" / "items.parquet"):
        mine = {tuple(map(str, row.values())) for row in table.to_pylist()}
        files = (tmp_path / "demo" / "clicks").iterdir() if "click" in table.column_names else [tmp_path / "demo" / "items.csv"]
        theirs = {tuple(row[name] for name in table.column_names) for row in _readable(files)}
        assert mine == theirs


def _readable(files):
    for file in files:
        with file.open(encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                if row.get("click", "1") in ("0", "1") and row["article_id"] and row.get("expo_time", "1").isdigit():
                    yield row


def test_an_ordinary_config_reads_it(written, make_config, run_jobs):
    folder, counts = written
    features = {
        "user": [{"name": "city", "min_count": 1}],
        "item": [{"name": "tags", "multi": True, "separator": "_", "min_count": 1}],
    }
    config = make_config(input={"path": str(folder), "items": "items.parquet"}, features=features)
    ctx = run_jobs(config, "2024-03-02", "events")
    log = ctx.tables.get("events", "2024-03-02").manifest["log"]
    assert log["in"] == counts["clicks"] + counts["impressions"]
    assert log["not_clicked"] > 0
    assert log["kept"] + log["not_clicked"] + log["not_in_window"] == log["in"]
    events = ctx.tables.get("events", "2024-03-02").read(schemas.events(config.features))
    assert events.where("size(tags) > 0 AND city IS NOT NULL").count() == log["kept"] > 0


def test_the_command_says_what_it_wrote(spark, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("recall_lib.spark.session.start", lambda *_: spark)  # the tests' session keeps its settings
    out = tmp_path / "log"
    command = ["--out", str(out), "--clicks", "3000", "--heaviest-user", "1000", "--days", "2", "--files", "3"]
    assert simulate.main(command) == 0
    assert "in 4 files" in capsys.readouterr().out
    assert len(list((out / "clicks").iterdir())) == 4
    assert simulate.main(command) == 2
    assert "holds something already" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--clicks", "1000000", "--users", "10"], "too many"),
        (["--clicks", "100", "--items", "47"], "at least 48"),
        (["--clicks", "100", "--skew", "1"], "skew"),
        (["--clicks", "100", "--heaviest-user", "100"], "robot"),
        (["--clicks", "100", "--seed", "-1"], "seed"),
        (["--clicks", "100", "--files", "0"], "--files 0"),
        (["--clicks", "100", "--files", "1000"], "--files 1000"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_written(tmp_path, capsys, arguments, message):
    assert simulate.main(["--out", str(tmp_path / "log"), *arguments]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "log").exists()
