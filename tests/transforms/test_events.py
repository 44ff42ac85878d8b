"""Every row of a log is kept, rejected with a reason or dropped by name, and the numbers add up."""

import gzip

import pytest

from recall_lib.process.errors import DataRefused, NoInput
from recall_lib.spark.source import read_rows
from recall_lib.store import schemas

DT = "2023-11-15"  # 1700006400 .. 1700092799
FEATURES = {"user": [{"name": "city", "min_count": 1}], "item": [{"name": "tags", "min_count": 1, "multi": True}]}
ROWS = {"clicks": "clicks.csv", "max_reject_share": 1.0}


def log_of(ctx) -> dict[str, int]:
    log = ctx.tables.get("rejects", ctx.dt).manifest["log"]
    assert log["in"] == sum(n for fate, n in log.items() if fate != "in")
    return {fate: n for fate, n in log.items() if n}


def rows_of(ctx, dt: str = DT) -> list[dict]:
    events = ctx.tables.get("events", dt).read(schemas.events(ctx.config.features))
    return sorted((row.asDict() for row in events.collect()), key=str)


def test_rows_each_fate(make_config, write_log, run_jobs):
    path = write_log(
        "clicks.csv",
        [
            "user_id,article_id,expo_time,click,city,tags",
            "007,a,1700006400,1,北京,x_y",
            "007,a,1700006400,1,北京,x_y",  # duplicate
            "007,a,1700006400,1,Köln,x_y",  # differs in a feature: kept
            "008,b,1700092799.5,1,NULL,",
            "008,b,1700092800,1,,z",  # the next day
            "009,c,1700006400,0,x,x",  # an impression
            "009,c,yesterday,1,x,x",
            "009,c,1700006400000,1,x,x",  # milliseconds under unit s: the year 55840
            "009,c,-5,1,x,x",
            ",c,1700006400,1,x,x",
            "009,,1700006400,1,x,x",
            "009,c,1700006400,2,x,x",
            "009,c,1700006400",
            "009,c,1700006400,1,x,x,more",
        ],
    )
    path.write_bytes(path.read_bytes() + b"009,c,1700006400,1,\xff,x\n")
    ctx = run_jobs(make_config(input=ROWS, features=FEATURES), DT, "events")
    assert log_of(ctx) == {
        "in": 15, "kept": 3, "duplicate": 1, "not_clicked": 1, "not_in_window": 1, "rejected_bad_time": 3,
        "rejected_no_user": 1, "rejected_no_item": 1, "rejected_bad_click": 1, "rejected_malformed": 2,
        "rejected_bad_utf8": 1,
    }  # fmt: skip
    rows = rows_of(ctx)
    assert [(r["user_id"], r["item_id"], r["city"], r["tags"]) for r in rows] == [
        ("007", "a", "Köln", ["x", "y"]), ("007", "a", "北京", ["x", "y"]), ("008", "b", None, []),
    ]  # fmt: skip
    rejects = {(r.source, r.reason, r.raw) for r in ctx.tables.get("rejects", DT).read(schemas.REJECTS).collect()}
    assert ("clicks.csv", "bad_time", "009,c,yesterday,1,x,x") in rejects
    assert ("clicks.csv", "malformed", "009,c,1700006400") in rejects
    assert len(rejects) == 9


def test_sessions_each_fate(make_config, write_log, run_jobs):
    path = write_log(
        "s.txt",
        [
            "u1\t上海\t上海\tv1:c1:t1_t2;v2::;v1:c1:t1_t2\tGO T5",
            "u1\t上海\t上海\tv1:c1:t1_t2;v2::;v1:c1:t1_t2\tGO T5",  # identical: once
            "u2\tp\tc\tv1:c1:t1\tx",
            "u2\tp\tc\tv2:c1:t1\tx",  # another line of u2: both rejected
            "u3\tp\tc\tv1:c1:t1",  # 4 fields
            "u4\tp\tc\tv1:c1:t1;v2:c2\tx",  # one bad click
            "u5\tp\tc\t\tx",
            "\tp\tc\tv1:c1:t1\tx",
            "NULL\tp\tc\tv1:c1:t1\tx",
        ],
    )
    path.write_bytes(path.read_bytes() + b"u6\tp\t\xff\tv1:c1:t1\tx\n")
    features = {"user": [{"name": "city"}], "item": [{"name": "category"}, {"name": "tags", "multi": True}]}
    source = {"format": "sessions", "ordering": "position", "clicks": "s.txt", "max_reject_share": 1.0}
    ctx = run_jobs(make_config(input=source, features=features), DT, "events")
    assert log_of(ctx) == {
        "in": 10, "kept": 1, "duplicate": 1, "rejected_duplicate_user": 2, "rejected_field_count": 1, "rejected_bad_click": 1,
        "rejected_no_clicks": 1, "rejected_no_user": 2, "rejected_bad_utf8": 1,
    }  # fmt: skip
    rows = sorted(rows_of(ctx), key=lambda r: r["position"])
    assert [(r["user_id"], r["item_id"], r["position"], r["city"], r["category"], r["tags"]) for r in rows] == [
        ("u1", "v1", 0, "上海", "c1", ["t1", "t2"]),
        ("u1", "v2", 1, "上海", None, []),
        ("u1", "v1", 2, "上海", "c1", ["t1", "t2"]),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("s", "1700006400.25", "2023-11-15 00:00:00.25"),
        ("ms", "1700006400001", "2023-11-15 00:00:00.001"),
        ("us", "1700006400000001", "2023-11-15 00:00:00.000001"),
        ("iso", "2023-11-15T02:00:00+02:00", "2023-11-15 00:00:00"),
        ("iso", "2023-11-15 01:02:03", "2023-11-15 01:02:03"),
        ("iso", "2023-11-15", "2023-11-15 00:00:00"),
        ("iso", "2023-11", None),
        ("iso", "2023-02-30", None),
        ("ms", "2023-11-15", None),
    ],
)
def test_times(unit, value, expected, spark, make_config, tmp_path):
    from recall_lib.transforms.events import rows_with_fate

    config = make_config(input={"time_unit": unit, "columns": {"click": None}})
    rows = spark.createDataFrame([("u", "i", value, "s", "r", False)], "user_id string, article_id string, expo_time string, "
                                 "_source string, _raw string, _malformed boolean")  # fmt: skip
    found = rows_with_fate(rows, None, config.input, config.features).selectExpr("cast(event_ts as string)", "_fate").first()
    assert tuple(found) == (expected, "kept" if expected else "bad_time")


def test_any_format_gives_the_same_events(spark, make_config, write_log, run_jobs, tmp_path):
    write_log("clicks.csv", ["user_id,article_id,expo_time,click,city,tags", "007,a,1700006400,1,x,p_q", "08,b,1700006401,1,,"])
    frame = spark.read.csv(str(tmp_path / "log" / "clicks.csv"), header=True)
    frame.write.parquet(str(tmp_path / "log" / "p.parquet"))
    frame.write.json(str(tmp_path / "log" / "j.json"), compression="gzip")
    frame.selectExpr(
        "user_id",
        "article_id",
        "timestamp_seconds(bigint(expo_time)) expo_time",
        "int(click) click",
        "city",
        "split(tags, '_') tags",
    ).write.orc(str(tmp_path / "log" / "o.orc"))
    digests = set()
    for clicks in ("clicks.csv", "p.parquet", "j.json", "o.orc"):
        ctx = run_jobs(make_config(input={"clicks": clicks}, features=FEATURES), DT, "events")
        digests.add(ctx.tables.get("events", DT).manifest["digest"])
        assert ctx.tables.get("events", DT).manifest["rows"] == 2
    assert len(digests) == 1


def test_refusals(make_config, write_log, run_jobs, tmp_path):
    with pytest.raises(NoInput, match="no file matches"):
        run_jobs(make_config(input={"clicks": "absent.csv"}), DT, "events")
    write_log("empty.csv", [])
    with pytest.raises(NoInput, match="empty"):
        run_jobs(make_config(input={"clicks": "empty.csv"}), DT, "events")
    write_log("header.csv", ["user_id,article_id,expo_time,click"])
    with pytest.raises(NoInput, match="no row"):
        run_jobs(make_config(input={"clicks": "header.csv"}), DT, "events")
    write_log("other.csv", ["uid,article_id,expo_time,click", "1,2,3,1"])
    with pytest.raises(DataRefused, match=r"no column \['user_id'\]"):
        run_jobs(make_config(input={"clicks": "other.csv"}), DT, "events")
    write_log("bad.csv", ["user_id,article_id,expo_time,click", "1,2,3,1", "1,2,x,1", "1,2,y,1"])
    with pytest.raises(DataRefused, match="2 of 3 rows are unreadable"):
        run_jobs(make_config(input={"clicks": "bad.csv"}), DT, "events")
    assert not (tmp_path / "root" / "events").exists(), "a refused log publishes nothing"


def test_a_day_without_clicks_is_published_empty_and_replaces_stale_rows(make_config, write_log, run_jobs):
    write_log("clicks.csv", ["user_id,article_id,expo_time,click,city,tags", "1,a,1700006400,1,x,"])
    config = make_config(input=ROWS, features=FEATURES)
    assert len(rows_of(run_jobs(config, DT, "events"))) == 1
    write_log("clicks.csv", ["user_id,article_id,expo_time,click,city,tags", "1,a,1800000000,1,x,"])
    assert rows_of(run_jobs(config, DT, "events")) == []


def test_backfill_takes_missing_days_and_waits_for_the_last(make_config, write_log, run_jobs):
    from jobs import events

    header, day = "user_id,article_id,expo_time,click,city,tags", 86400
    lines = [f"1,a,{1700006400 + n * day},1,x," for n in (0, 1, 3)]
    write_log("clicks.csv", [header, *lines])
    config = make_config(input=ROWS, features=FEATURES)
    ctx = run_jobs(config, "2023-11-18")
    events.run(ctx, backfill=True)
    assert ctx.tables.days("events") == ["2023-11-15", "2023-11-16"], "no click after the 18th: it may still grow"
    write_log("clicks.csv", [header, *lines, f"1,a,{1700006400 + 4 * day},1,x,"])
    events.run(ctx, backfill=True)
    assert ctx.tables.days("events") == ["2023-11-15", "2023-11-16", "2023-11-18"]


def test_values_stay_text(spark, make_config, write_log):
    write_log("clicks.csv", ["user_id,article_id,expo_time", "007,1e3,1700006400"])
    config = make_config(input={"clicks": "clicks.csv"})
    row = read_rows(spark, config.input, "clicks.csv").first()
    assert (row.user_id, row.article_id) == ("007", "1e3")


def test_a_few_unreadable_rows_of_a_long_log_refuse_no_day(make_config, write_log, run_jobs):
    """Rows without a readable day belong to the whole log: not to the one day, perhaps empty, that is read of it."""
    rows = [f"1,a,{1700006400 + n},1,x," for n in range(200)]
    write_log("clicks.csv", ["user_id,article_id,expo_time,click,city,tags", *rows, "1,a,never,1,x,"])
    config = make_config(input={"clicks": "clicks.csv", "max_reject_share": 0.01}, features=FEATURES)
    ctx = run_jobs(config, "2023-11-20", "events")
    assert rows_of(ctx, "2023-11-20") == []
    assert log_of(ctx) == {"in": 201, "not_in_window": 200, "rejected_bad_time": 1}


def test_unreadable_files_end_in_one_line(make_config, write_log, run_jobs, capsys, tmp_path):
    from recall_lib.process.command import guarded

    header = "user_id,article_id,expo_time,click"
    write_log("differ/a.csv", [header, "1,a,1700006400,1"])
    write_log("differ/b.csv", ["article_id,user_id,expo_time,click", "a,1,1700006400,1"])
    whole = gzip.compress("\n".join([header, *(f"{n},a,{1700006400 + n},1" for n in range(9999))]).encode())
    (tmp_path / "log" / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    for clicks, words in (("differ", "differ/b.csv cannot be read"), ("cut.csv.gz", "cannot be read")):
        config = make_config(input={"clicks": clicks})
        assert guarded("events", lambda config=config: run_jobs(config, DT, "events")) == 3
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1
