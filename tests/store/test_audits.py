"""A table that fails its audit is not published, and the old one stays."""

import math
from collections import Counter

import pytest

from recall_lib.config import Audits
from recall_lib.process.errors import DataRefused
from recall_lib.store import schemas
from recall_lib.store.audits import top_n_audits
from recall_lib.store.tables import Tables
from tests.publish import publish

DT = "2024-01-02"


@pytest.fixture
def tables(make_config, spark):
    return lambda **audits: Tables(make_config(audits=audits), start_spark=lambda: spark)


def row(user="u1", items=(("i1", 1.0),), source="model"):
    return (user, list(items), source, "v1")


def top_n(spark, *rows):
    return spark.createDataFrame(list(rows), schemas.TOP_N)


def test_figures_are_those_of_a_loop(spark):
    rows = [row(f"u{n % 17}", [("i1", math.nan if n % 5 == 0 else 1.0)], "popular" if n % 3 else "model") for n in range(23)]
    rows += [row("a", [("i1", None)]), row("b", [(None, 1.0)]), row("c", []), ("d", None, "model", "v1")]
    found = {audit.name: audit.value for audit in top_n_audits(top_n(spark, *rows), 40, Audits())}
    counted = Counter(user for user, *_ in rows)
    bad = [items for _, items, *_ in rows if items is None or any(i is None or s is None or math.isnan(s) for i, s in items)]
    assert found == {
        "duplicate_users": sum(n - 1 for n in counted.values()),
        "rows_without_a_score": len(bad),
        "min_user_share": len(counted) / 40,
        "max_popular_share": sum(source == "popular" for *_, source, _ in rows) / len(rows),
    }


@pytest.mark.parametrize(
    ("rows", "settings", "message"),
    [
        ([row("u1"), row("u1")], {}, "duplicate_users is 1, must be at most 0"),
        ([row("u1"), row("u2", [("i", math.nan)])], {}, "rows_without_a_score is 1, must be at most 0"),
        ([row("u1")], {}, "min_user_share is 0.5, must be at least 1"),
        ([row("u1"), row("u2", source="popular")], {"max_popular_share": 0.4}, "max_popular_share is 0.5, must be at most 0.4"),
        ([row("u1")], {"max_popular_share": 0.4}, "min_user_share is 0.5"),
    ],
)
def test_a_failed_audit_publishes_nothing(tables, spark, rows, settings, message):
    facts = {"users_in": 2}
    before = publish(tables(), top_n(spark, row("u1"), row("u2")), schemas.TOP_N, "top_n", DT, facts=facts)
    assert before["audits"]["min_user_share"] == {"value": 1.0, "least": 1.0}
    strict = tables(**settings)
    with pytest.raises(DataRefused, match=rf"top_n/dt={DT} was not published: .*{message}"):
        publish(strict, top_n(spark, *rows), schemas.TOP_N, "top_n", DT, facts=facts)
    assert strict.get("top_n", DT).manifest == before
    assert not any(strict.fs.ls(f"{strict.root}/_staging"))


def test_by_the_user_id_alone_many_lists_are_popular(tables, spark):
    frame = top_n(spark, row(source="popular"))
    assert publish(tables(max_popular_share=0.1), frame, schemas.TOP_N, "top_n_user_id", DT)["rows"] == 1


def test_a_day_short_of_clicks_keeps_all_days_back(tables, spark, make_config):
    schema = schemas.events(make_config().features)
    values = [{"user_id": f"u{n}", "item_id": "i", "position": n, "dt": f"2024-01-0{1 + (n > 4)}"} for n in range(7)]
    frame = spark.createDataFrame(values, schema.add("dt", "string"))
    days = ["2024-01-01", "2024-01-02"]

    def publish_days(into):
        with into.publishing("events", days) as staged:
            staged.write(frame, schema)

    strict = tables(min_clicks=5)
    with pytest.raises(DataRefused, match=r"events/dt=2024-01-02 .*min_clicks is 2, must be at least 5"):
        publish_days(strict)
    assert strict.days("events") == []
    publish_days(tables(min_clicks=2))
    assert strict.get("events", days[0]).manifest["audits"] == {"min_clicks": {"value": 5, "least": 2}}


def test_a_model_is_measured_by_the_last_published_day(tables):
    def publish(dt, hr, **audits):
        facts = {"validation": {"hr@10": hr} if hr is not None else {}}
        with tables(**audits).publishing("models", dt, facts=facts):
            pass

    publish("2024-01-03", 0.9)  # a later day has no say
    publish("2024-01-01", 0.2, min_validation_share=0.9)
    with pytest.raises(DataRefused, match=r"models/dt=2024-01-02 .*min_validation_share is 0.85, must be at least 0.9"):
        publish("2024-01-02", 0.17, min_validation_share=0.9)
    assert tables().days("models") == ["2024-01-01", "2024-01-03"]
    publish("2024-01-02", 0.19, min_validation_share=0.9)
    assert tables().get("models", "2024-01-02").manifest["audits"]["min_validation_share"]["value"] == pytest.approx(0.95)
    publish("2024-01-01", None)  # nothing was measured
    publish("2024-01-02", 0.01, min_validation_share=0.9)
