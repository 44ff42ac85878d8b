"""Every row of a log is kept, rejected with a reason or dropped by name, and the numbers add up."""

import gzip

import pytest

from recall_lib.process.errors import DataRefused, NoInput
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
    write_log("bad.csv", ["user_id,article_id,expo_time,click", "1,2,1700006400,1", "1,2,x,1", "1,2,y,1"])
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


def test_values_stay_text(make_config, write_log, run_jobs):
    write_log("clicks.csv", ["user_id,article_id,expo_time,click", "007,1e3,1700006400,1"])
    ctx = run_jobs(make_config(input={"clicks": "clicks.csv"}), DT, "events")
    assert [(row["user_id"], row["item_id"]) for row in rows_of(ctx)] == [("007", "1e3")]


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
    write_log("differ/b.csv", ["article_id,account,expo_time,click", "a,1,1700006400,1"])
    whole = gzip.compress("\n".join([header, *(f"{n},a,{1700006400 + n},1" for n in range(9999))]).encode())
    (tmp_path / "log" / "cut.csv.gz").write_bytes(whole[: len(whole) // 2])
    for clicks, words in (("differ", "differ/b.csv has no column 'user_id'"), ("cut.csv.gz", "cut.csv.gz cannot be read")):
        config = make_config(input={"clicks": clicks})
        assert guarded("events", lambda config=config: run_jobs(config, DT, "events")) == 3
        said = capsys.readouterr().err
        assert words in said
        assert said.count("\n") == 1


CLICKS = "user_id,article_id,expo_time,click"


def said(capsys) -> str:
    return capsys.readouterr().out


def test_an_item_that_stands_twice_keeps_what_is_known_of_it(make_config, write_log, run_jobs):
    write_log("clicks.csv", [CLICKS, *(f"u,{item},1700006400,1" for item in "abcd")])
    write_log("items/2.csv", ["article_id,city,tags", "a,late,late", "b,x,"])
    write_log("items/1.csv", ["tags,article_id,city", "y_z,b,NULL", ",a,first", "w,b,", "q,a,second"])
    features = {"item": [*FEATURES["user"], *FEATURES["item"]]}
    ctx = run_jobs(make_config(input={"clicks": "clicks.csv", "items": "items"}, features=features), DT, "events")
    assert [(r["item_id"], r["city"], r["tags"]) for r in rows_of(ctx)] == [
        ("a", "first", ["q"]), ("b", "x", ["y", "z"]), ("c", None, []), ("d", None, []),
    ]  # fmt: skip
    facts = ctx.tables.get("events", DT).manifest
    assert facts["items"] == {"in_log": 4, "in_table": 2}
    assert facts["item_table"] == {"in": 6, "kept": 6}


def test_rows_of_the_item_table_are_counted_and_limited(make_config, write_log, run_jobs, capsys):
    write_log("clicks.csv", [CLICKS, "u,0001,1700006400,1", "u,0002,1700006401,1"])
    good = [f"{n},x" for n in range(7)]
    write_log("items.csv", ["article_id,city", *good, "", "7,x,more", ",x", '"8,x'])
    settings = {"clicks": "clicks.csv", "items": "items.csv"}
    features = {"item": FEATURES["user"]}
    ctx = run_jobs(make_config(input=settings, features=features), DT, "events")
    counts = {"in": 11, "kept": 7, "blank": 1, "rejected_malformed": 2, "rejected_no_item": 1}
    assert ctx.tables.get("events", DT).manifest["item_table"] == counts
    text = said(capsys)
    assert "the item table: read 11: 7 kept, 1 blank, 2 rejected_malformed, 1 rejected_no_item" in text
    assert "warning: only 0 of 2 items of the log are in the item table" in text
    with pytest.raises(DataRefused, match=r"3 of 11 rows are unreadable .* mend the item table"):
        run_jobs(make_config(input=settings | {"max_reject_share": 0.1}, features=features), DT, "events")


def test_catalog_tables(spark, make_config, run_jobs):
    rows = [("u", 1.0, "2023-11-15 01:02:03", True, "x"), (None, 2.5, "2023-11-15", None, "y")]
    frame = spark.createDataFrame(rows, "user_id string, article_id double, expo_time string, click boolean, `a``b.c` string")
    frame.selectExpr("*", "named_struct('a', 1) AS nested", "INTERVAL 1 DAY AS odd").createOrReplaceTempView("log_of_clicks")
    features = {"user": [{"name": "city", "column": "a`b.c", "min_count": 1}]}
    source = {"file_format": "table", "clicks": "log_of_clicks", "time_unit": "iso"}
    ctx = run_jobs(make_config(input=source, features=features), DT, "events")
    assert [(r["user_id"], r["item_id"], r["city"]) for r in rows_of(ctx)] == [("u", "1", "x")]
    (reject,) = ctx.tables.get("rejects", DT).read(schemas.REJECTS).collect()
    assert (reject.source, reject.reason) == ("log_of_clicks", "fractional_id")
    assert '"article_id": 2.5' in reject.raw
    with pytest.raises(NoInput, match="there is no table absent"):
        run_jobs(make_config(input=source | {"clicks": "absent"}), DT, "events")
    with pytest.raises(DataRefused, match=r"column 'nested' of log_of_clicks is struct<.*cannot be read as an id"):
        run_jobs(make_config(input=source | {"columns": {"user_id": "nested"}}), DT, "events")


def test_session_lines_in_another_encoding_and_rejects_that_any_reader_reads(make_config, tmp_path, run_jobs):
    import pandas as pd

    (tmp_path / "log").mkdir()
    lines = "u1\t上海\t上海\tv1:c1:t1\tx\n\nNaN\tp\tc\tv1:c1:t1\tx\nnan\tp\tc\tnull:c1:t1\tx\n"
    (tmp_path / "log" / "s.txt").write_bytes(lines.encode("gbk"))
    source = {"format": "sessions", "ordering": "position", "clicks": "s.txt", "max_reject_share": 1.0}
    features = {"user": [{"name": "city"}]}
    ctx = run_jobs(make_config(input=source | {"options": {"encoding": "GBK"}}, features=features), DT, "events")
    assert log_of(ctx) == {"in": 4, "kept": 1, "blank": 1, "rejected_no_user": 2}
    assert [r["city"] for r in rows_of(ctx)] == ["上海"]
    ctx = run_jobs(make_config(input=source, features=features), DT, "events")
    assert log_of(ctx) == {"in": 4, "blank": 1, "rejected_bad_utf8": 1, "rejected_no_user": 2}
    stored = pd.read_parquet(str(tmp_path / "root" / "rejects" / f"dt={DT}"))
    assert "u1\t\\xc9\u03fa\\xa3\t\\xc9\u03fa\\xa3\tv1:c1:t1\tx" in set(stored["raw"])


def test_a_wrong_unit_is_refused_and_the_right_one_named(make_config, write_log, run_jobs):
    write_log("clicks.csv", [CLICKS, *(f"u,{n},{1700006400 + n},1" for n in range(5))])
    with pytest.raises(DataRefused, match=r"5 of 5 rows are unreadable \(bad_time 5\).*the times look like s"):
        run_jobs(make_config(input={"clicks": "clicks.csv", "time_unit": "ms"}), DT, "events")


def test_what_looks_odd_is_said(make_config, write_log, run_jobs, capsys):
    lines = [f"{n % 3}.0,i{n},2023-11-15,1," for n in range(12)]
    write_log("clicks/1.csv", [CLICKS, *(line[:-1] for line in lines[:6])])
    write_log("clicks/2.csv", [f"{CLICKS},city", *lines[6:]])
    features = {"user": FEATURES["user"]}
    run_jobs(make_config(input={"time_unit": "iso"}, features=features), DT, "events")
    text = said(capsys)
    assert "12 of 12 times have no time of day" in text
    assert "75% of the clicks have the time of another click of their user" in text
    assert "12 of 12 rows have an id such as 123.0" in text
    assert "1 of 2 files of the click log have no column 'city' (1.csv)" in text
    assert "no row has a value of feature city" in text
    write_log("clicks/1.csv", [CLICKS, *(f"u{n},i,{1700006401 + n},1" for n in range(9))])
    write_log("clicks/2.csv", [CLICKS])
    ctx = run_jobs(make_config(), DT, "events")
    assert log_of(ctx) == {"in": 9, "kept": 9}
    assert "warning" not in said(capsys), "nothing is odd about this log"


def test_a_business_day_is_the_same_everywhere(make_config, write_log, run_jobs):
    day = ["2023-11-15 03:59:59", "2023-11-15 04:00:00", "2023-11-16 03:59:59", "2023-11-16 04:00:00"]
    write_log("clicks.csv", [CLICKS, *(f"u{n},i{n},{time},1" for n, time in enumerate(day))])
    source = {"clicks": "clicks.csv", "time_unit": "iso", "timezone": "America/New_York", "day_starts_at": "04:00"}
    ctx = run_jobs(make_config(input=source), DT, "events")
    assert log_of(ctx) == {"in": 4, "kept": 2, "not_in_window": 2}
    begins, ends = ctx.config.input.day_begins(DT), ctx.config.input.day_begins("2023-11-16")
    micros = [r["event_ts"].timestamp() * 1e6 for r in rows_of(ctx)]
    assert (min(micros), max(micros)) == (begins, ends - 1e6)


def test_the_position_orders_clicks_of_one_time(make_config, write_log, run_jobs):
    write_log("clicks.csv", [f"{CLICKS},n", *(f"u,{item},1700006400,1,{n}" for n, item in enumerate("cab"))])
    ctx = run_jobs(make_config(input={"clicks": "clicks.csv", "columns": {"order": "n"}}), DT, "events")
    from recall_lib.transforms.holdout import click_order, tie_breaker

    events = tie_breaker(ctx.tables.get("events", DT).read(schemas.events(ctx.config.features)))
    assert [row.item_id for row in events.orderBy(*click_order()).collect()] == ["c", "a", "b"]
