"""Frames that several jobs read, put together from a day's tables; each comes with the digests of its inputs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from pyspark.sql import DataFrame, Window
from pyspark.sql import functions as F
from pyspark.sql.types import StructType

from recall_lib.day.context import Context
from recall_lib.day.raw import read_ids
from recall_lib.process.errors import DataRefused
from recall_lib.samples.build import TEST
from recall_lib.samples.ids import FIRST_INDEX, ITEM_ID
from recall_lib.samples.ragged import Bools
from recall_lib.spark.grouping import partitions_for
from recall_lib.store import schemas
from recall_lib.store.datasets import other_settings
from recall_lib.store.digests import EMPTY_DIGEST, content_digests
from recall_lib.store.publication import Publication
from recall_lib.transforms import holdout, samples
from recall_lib.transforms.holdout import click_order, tie_breaker
from recall_lib.transforms.metrics import repeated_users
from recall_lib.transforms.numbers import at_moment
from recall_lib.transforms.samples import Work
from recall_lib.transforms.vocab import encode, encode_activity, known_items


def map_histories(
    ctx: Context, work: Work, schema: StructType, users: DataFrame | None = None
) -> tuple[DataFrame, dict[str, str]]:
    """What `work` makes of the users' histories before dt, one row per user of schemas.segments, and the inputs' digests.

    Args:
        ctx: the day's context.
        work: see transforms.samples.map_histories.
        schema: of the rows that `work` yields.
        users: the users; None: all users of the events. A user without clicks has an empty history and unknown features.
    """
    config = ctx.config
    events, inputs = ctx.history()
    vocab = ctx.serving.vocab
    inputs["vocab"] = vocab.digest
    if users is not None:
        # Each user also gets a "click" on no item, older than all others, so that users without clicks have a row too.
        events = events.join(users, "user_id", "left_semi").unionByName(users, allowMissingColumns=True)
    clicks = encode(tie_breaker(events), vocab.read(schemas.VOCAB), config.features)
    clicks = at_moment(clicks, config.input.day_begins(ctx.dt), config.features)
    clicks = samples.columns(clicks, config.features, *_order(ctx))
    clicks = clicks.fillna({"order": _BEFORE_ALL, "item_id": ""})
    clicks, of_activity = with_activity(ctx, clicks, vocab)
    inputs |= of_activity
    partitions = partitions_of_history(ctx)
    return samples.map_histories(clicks, partitions, config.features, config.samples, work, schema), inputs


def _order(ctx: Context) -> list[str]:
    """The column that orders clicks of one time, where the log has one."""
    return ["position"] * bool(ctx.config.input.columns.order)


def with_activity(ctx: Context, clicks: DataFrame, vocab: Publication) -> tuple[DataFrame, dict[str, str]]:
    """The clicks (transforms.samples.columns) and the events of the further sequences, and the digests of these."""
    activity, inputs = ctx.activity()
    if activity is None:
        return clicks, inputs
    encoded = encode_activity(activity, vocab.read(schemas.VOCAB), ctx.config.features)
    return samples.with_activity(clicks, encoded), inputs


def with_priors(items: DataFrame, table: DataFrame, vocab: DataFrame) -> DataFrame:
    """Items (item_index, item_id) with their `prior` from a table; an item that is not in the table gets the smallest prior.

    Args:
        items: item_index, item_id by any day's vocabulary.
        table: rows of schemas.items.
        vocab: the vocabulary of the table's item_index.
    """
    priors = table.join(known_items(vocab), "item_index").select("item_id", "prior")
    least = priors.agg(F.min("prior").alias("least"))
    found = items.join(priors, "item_id", "left").crossJoin(F.broadcast(least))
    return found.select("item_index", "item_id", F.coalesce("prior", "least").alias("prior"))


def read_allowed_items(ctx: Context) -> tuple[Bools, dict[str, str], dict[str, Any]]:
    """Whether each item index may be recommended (top_n.allow without top_n.deny), bool [n], the lists' digests and counts.

    Raises:
        DataRefused: a list has no column of item ids, or the lists leave no item.
    """
    config, vocab = ctx.config, ctx.serving.vocab
    items, inputs, counts = known_items(vocab.read(schemas.VOCAB)), {}, {}
    for name, path, join in (("allow", config.top_n.allow, "left_semi"), ("deny", config.top_n.deny, "left_anti")):
        if path:
            column = config.input.item_columns.item_id
            ids, counts[f"top_n.{name}"] = read_ids(ctx, path, column, "item_id", f"top_n.{name}")
            inputs[f"top_n.{name}"] = content_digests(ids).get("", (0, EMPTY_DIGEST))[1]
            items = items.join(ids, "item_id", join)
    allowed = np.arange(vocab.manifest["sizes"][ITEM_ID]) >= FIRST_INDEX
    if not inputs:
        return allowed, inputs, counts
    allowed[:] = False
    allowed[items.select("item_index").toPandas()["item_index"]] = True
    if not allowed.any():
        raise DataRefused(
            f"top_n.allow and top_n.deny leave none of the {len(allowed) - FIRST_INDEX} items of {vocab.name}: check the "
            f"ids in column {config.input.item_columns.item_id} of these tables"
        )
    return allowed, inputs, counts


def listed_users(ctx: Context) -> tuple[DataFrame, dict[str, Any]]:
    """The distinct ids of the users that get a list: those of `input.users`, whose rows are counted, or of the events."""
    settings = ctx.config.input
    if settings.users:
        users, counts = read_ids(ctx, settings.users, settings.columns.user_id, "user_id", "input.users")
        return users, {"input.users": counts}
    return ctx.history()[0].select("user_id").distinct(), {}


def partitions_of_history(ctx: Context, multiple_of: int = 1) -> int:
    """Number of partitions for all clicks before dt, also those that the vocabulary does not count (samples.look_back_days)."""
    if ctx.config.samples.look_back_days:
        clicks = sum(day.manifest["rows"] for day in ctx.days_of_history())
    else:
        clicks = ctx.tables.get("vocab", ctx.dt).manifest["train_clicks"]
    return partitions_for(clicks, multiple_of)


# The `order` of a row without a click: before any time or position.
_BEFORE_ALL = -(1 << 62)


def test_of_day(ctx: Context, vocab: Publication) -> tuple[DataFrame, dict[str, str], dict[str, int]]:
    """Protocol `day`: each user's first click of dt with the clicks before dt, the inputs' digests, and counts.

    The counts: `users_new` have no click before dt; `users_repeat` click first on an item that they clicked before.
    """
    events, inputs = ctx.history()
    of_day = ctx.tables.require_settings("events", ctx.dt)
    inputs |= {"vocab": vocab.digest, of_day.name: of_day.digest}
    firsts = _first_clicks(of_day.read(schemas.events(ctx.config.features)))
    clicks = tie_breaker(events).withColumn("is_target", F.lit(False)).unionByName(firsts.withColumn("is_target", F.lit(True)))
    frame, of_activity = _test_rows(ctx, clicks, vocab)
    facts = {
        "users_new": firsts.join(events.select("user_id").distinct(), "user_id", "left_anti").count(),
        "users_repeat": repeated_users(firsts, events).count(),
    }
    return frame, inputs | of_activity, facts


def _test_of_last_click(ctx: Context, vocab: Publication) -> tuple[DataFrame, dict[str, str], dict[str, int]]:
    """Protocol `last_click`: each user's last click with the clicks before it, the inputs' digests, and no counts."""
    events, inputs = ctx.history()
    inputs["vocab"] = vocab.digest
    from_end = F.row_number().over(Window.partitionBy("user_id").orderBy(*click_order(newest_first=True)))
    frame, of_activity = _test_rows(ctx, tie_breaker(events).withColumn("is_target", from_end == 1), vocab)
    return frame, inputs | of_activity, {}


def _test_rows(ctx: Context, clicks: DataFrame, vocab: Publication) -> tuple[DataFrame, dict[str, str]]:
    """Rows of schemas.segments, from clicks in which `is_target` marks the targets, and the digests of the activity."""
    features, settings = ctx.config.features, ctx.config.samples
    clicks = encode(clicks, vocab.read(schemas.VOCAB), features)
    clicks, of_activity = with_activity(ctx, samples.columns(clicks, features, "is_target", *_order(ctx)), vocab)
    return samples.samples_of_day(clicks, partitions_of_history(ctx), features, settings), of_activity


def _first_clicks(events: DataFrame) -> DataFrame:
    """Each user's first click, with `tie`."""
    first = F.row_number().over(Window.partitionBy("user_id").orderBy(*click_order()))
    return tie_breaker(events).withColumn("_nth", first).where("_nth = 1").drop("_nth")


def test_of_day_is_current(ctx: Context) -> bool:
    """Whether samples/split=test of protocol `day` was made from the current vocabulary and the current events of dt."""
    stored = ctx.tables.look("samples", ctx.dt, split=TEST)
    return stored is not None and _test_inputs(ctx).items() <= stored.inputs.items()


def _test_inputs(ctx: Context) -> dict[str, str]:
    inputs = {"vocab": ctx.tables.get("vocab", ctx.dt).digest}
    if ctx.config.evaluation.protocol == "day":
        of_day = ctx.tables.get("events", ctx.dt)
        inputs[of_day.name] = of_day.digest
    return inputs


def read_test(ctx: Context) -> tuple[DataFrame, dict[str, Any], dict[str, str]]:
    """The test rows to score, the head of metrics.json, and the inputs' digests.

    If an earlier day's model serves dt, the rows are made again with its vocabulary, and are not stored.

    Raises:
        DataRefused: the split is missing or was made with another vocabulary.
    """
    tables, protocol, features = ctx.tables, ctx.config.evaluation.protocol, ctx.config.features
    facts: Mapping[str, Any]
    if ctx.serving.dt == ctx.dt:
        stored, made_from = tables.get("samples", ctx.dt, split=TEST), _test_inputs(ctx)
        if not made_from.items() <= stored.inputs.items():
            raise DataRefused(
                f"{stored.name} was made from other tables than the current ones: run `recall samples --dt {ctx.dt}`"
            )
        test, facts = stored.read(schemas.segments(features)), stored.manifest
        made_from[stored.name_in_day] = stored.digest
    else:
        test, made_from, facts = (test_of_day if protocol == "day" else _test_of_last_click)(ctx, ctx.serving.vocab)
    head = {"protocol": protocol, "status": "final", "users_new": facts.get("users_new", 0), "users_repeat": 0}
    if protocol == "day" and ctx.config.top_n.filter_seen:
        # By raw ids: a repeated item may be missing from the vocabulary, and then it is not in `seen`.
        events, _ = ctx.history()
        firsts = _first_clicks(tables.require_settings("events", ctx.dt).read(schemas.events(features)))
        test = test.join(repeated_users(firsts, events), "user_id", "left_anti")
        head["users_repeat"] = facts["users_repeat"]
    return test, head, made_from


def baseline_clicks(ctx: Context) -> DataFrame:
    """The clicks that the baselines may use, with `tie`: `last_click`: without held-out clicks; `day`: all before dt."""
    events, _ = ctx.history()
    return tie_breaker(events) if ctx.config.evaluation.protocol == "day" else holdout.training_clicks(events)


def changed_days(ctx: Context, dataset: str, schema: StructType, frame: DataFrame, days: list[str]) -> list[str]:
    """The days whose rows, or the settings they were read with, differ from what is published.

    The other days are not published again: even equal files would replace those that jobs of later days are reading.
    """
    before = {day: old for day in days if (old := ctx.tables.look(dataset, day))}
    same = [day for day, old in before.items() if not other_settings(dataset, old.manifest["config"], ctx.config)]
    columns = [*schema.names, "dt"]
    now = content_digests(frame.where(F.col("dt").isin(same)).select(columns), "dt") if same else {}
    kept = {day for day in same if before[day].digest == now.get(day, (0, EMPTY_DIGEST))[1]}
    return [day for day in days if day not in kept]
