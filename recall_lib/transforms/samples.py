"""Encoded clicks -> runs (SPEC 3): training runs with their kept targets, and one row a user for everything held out."""

from __future__ import annotations

from pyspark.sql import Column, DataFrame, Window
from pyspark.sql import functions as F

from recall_lib.config import Features, Samples
from recall_lib.ids import FIRST_INDEX, UNKNOWN
from recall_lib.transforms.holdout import TRAIN, click_order

# Tokens that are stored together: a user with more is cut into runs that repeat window_size tokens.
RUN_LENGTH = 512
_SECONDS_A_DAY = 86_400
# Clicks of a held-out user's history that are stored however small the window: the item_knn baseline looks at them.
LEAST_HISTORY = 10


def train_runs(clicks: DataFrame, features: Features, settings: Samples, seed: int) -> DataFrame:
    """schemas.runs for training, with `negative_key` and `own` in place of `negatives`.

    Args:
        clicks: encoded events with `split` and `tie`.
    """
    train = clicks.where(F.col("split") == TRAIN)
    totals = train.agg(F.count(F.lit(1)).alias("train_clicks"), F.max("event_ts").alias("newest_ts"))
    tokens = train.where(F.col("item_index") >= FIRST_INDEX).crossJoin(F.broadcast(totals))
    tokens = _with_targets(_with_places(tokens, settings), settings, seed)
    length = max(RUN_LENGTH, 2 * settings.window_size)
    tokens = _cut_into_runs(tokens, length, settings.window_size)
    runs = _collect(tokens, features, F.col("starts") & (F.col("run") == 0))
    runs = runs.where(F.size("target_position") > 0)
    runs = runs.withColumn("negative_key", F.xxhash64(F.lit(seed), F.lit("negatives"), "user_id", "run"))
    if not settings.negatives_per_positive:
        return runs.withColumn("own", F.array().cast("array<int>"))
    if settings.max_history and settings.max_history < length:  # one run holds all of a user's clicks
        own = F.filter("item_index", lambda index: index >= FIRST_INDEX)
        return runs.withColumn("own", F.sort_array(F.array_distinct(own)))
    own_items = tokens.groupBy("user_id").agg(F.sort_array(F.collect_set("item_index")).alias("own"))
    return runs.join(own_items, "user_id")


def _with_places(tokens: DataFrame, settings: Samples) -> DataFrame:
    """The last max_history clicks of each user with `place` (token number) and `starts` (a start token comes first)."""
    by_user = Window.partitionBy("user_id")
    tokens = tokens.withColumn("nth", F.row_number().over(by_user.orderBy(*click_order())))
    tokens = tokens.withColumn("clicks", F.count(F.lit(1)).over(by_user))
    dropped = F.greatest(F.col("clicks") - settings.max_history, F.lit(0)) if settings.max_history else F.lit(0)
    starts = F.lit(settings.start_token) & (dropped == 0)
    tokens = tokens.where(F.col("nth") > dropped)
    return tokens.withColumn("starts", starts).withColumn("place", F.col("nth") - dropped - 1 + starts.cast("int"))


def _with_targets(tokens: DataFrame, settings: Samples, seed: int) -> DataFrame:
    """Adds `is_target`: every token but the first, hot items subsampled, the first max_targets_per_user kept ones."""
    target = F.col("place") >= 1
    if settings.subsample_threshold:
        threshold = F.lit(settings.subsample_threshold)
        share = F.col("item_count") / F.col("train_clicks")
        keep = (F.sqrt(share / threshold) + 1) * threshold / share
        target &= uniform(seed, "subsample", "user_id", "item_id", "event_ts", "position", "tie") < keep
    tokens = tokens.withColumn("is_target", target)
    if settings.max_targets_per_user:
        so_far = F.sum(F.col("is_target").cast("int")).over(Window.partitionBy("user_id").orderBy("place"))
        tokens = tokens.withColumn("is_target", F.col("is_target") & (so_far <= settings.max_targets_per_user))
    return tokens


def uniform(seed: int, *keys: str) -> Column:
    """A number in [0, 1) that is a pure function of the seed, a word and the row's keys."""
    word, *columns = keys
    return F.shiftrightunsigned(F.xxhash64(F.lit(seed), F.lit(word), *columns), 11) / F.lit(float(1 << 53))


def _cut_into_runs(tokens: DataFrame, length: int, window_size: int) -> DataFrame:
    """Adds `run`; the last window_size tokens of a run stand in the next one too, as history alone."""
    own = F.floor(F.col("place") / length).cast("int")
    is_history_of_next = F.col("place") % length >= length - window_size
    runs = F.when(is_history_of_next, F.array(own, own + 1)).otherwise(F.array(own))
    tokens = tokens.withColumn("own_run", own).withColumn("run", F.explode(runs))
    return tokens.withColumn("is_target", F.col("is_target") & (F.col("run") == F.col("own_run")))


def _collect(tokens: DataFrame, features: Features, starts: Column) -> DataFrame:
    """One row a (user_id, run): the tokens in order, laid out as schemas.runs."""
    age = (F.unix_micros("newest_ts") - F.unix_micros("event_ts")) / F.lit(_SECONDS_A_DAY * 1_000_000)
    ready = F.coalesce("example_age", age, F.lit(0.0)).cast("float").alias("age")
    entry = F.struct("place", "is_target", "item_index", ready, *(f"{f.name}_index" for f in (*features.user, *features.item)))
    rows = tokens.groupBy("user_id", "run").agg(
        F.sort_array(F.collect_list(entry)).alias("tokens"), F.first(starts).alias("start")
    )
    first = F.when(F.col("start"), 0).otherwise(F.col("tokens")[0]["place"])
    rows = rows.withColumn("targets", F.filter("tokens", lambda token: token["is_target"])).withColumn("first", first)
    columns: dict[str, Column] = {
        "item_index": _prepend_unknown(_each("tokens", "item_index")),
        "target_position": F.transform("targets", lambda token: (token["place"] - F.col("first")).cast("int")),
        "example_age": _each("targets", "age"),
    }
    columns |= {f"{f.name}_index": _each("targets", f"{f.name}_index") for f in features.user}
    columns |= _item_columns(features, "tokens", _prepend_unknown)
    return rows.select("user_id", "run", *(column.alias(name) for name, column in columns.items()))


def _item_columns(features: Features, tokens: str, extend: object) -> dict[str, Column]:
    columns: dict[str, Column] = {}
    for feature in features.item:
        values = _each(tokens, f"{feature.name}_index")
        if feature.multi:
            columns[f"{feature.name}_length"] = extend(F.transform(values, F.size))  # type: ignore[operator]
            values = F.flatten(values)
        columns[f"{feature.name}_index"] = extend(values)  # type: ignore[operator]
    return columns


def _each(tokens: str, field: str) -> Column:
    return F.transform(tokens, lambda token: token[field])


def _prepend_unknown(values: Column) -> Column:
    """The start token: one unknown item with one unknown value of each feature (its length is 1 too)."""
    return F.when(F.col("start"), F.concat(F.array(F.lit(UNKNOWN)), values)).otherwise(values)


def histories(
    users: DataFrame, clicks: DataFrame, features: Features, settings: Samples, *, start_token: bool = False
) -> DataFrame:
    """schemas.runs with `seen`, one row a user of `users`: what the user clicked, and the held-out target if there is one.

    Args:
        users: user_id, `<user feature>_index` and, for held-out targets, target_index and the target's item features
            `<item feature>_index`; every user gives one row.
        clicks: encoded clicks before the target, with `tie`.
        start_token: whether the history may begin with the start token (samples do, inference does not).
    """
    known = clicks.where(F.col("item_index") >= FIRST_INDEX)
    by_user = Window.partitionBy("user_id")
    known = known.withColumn("from_end", F.row_number().over(by_user.orderBy(*click_order(newest_first=True))))
    stored = max(settings.window_size, LEAST_HISTORY)
    limit = min(stored, settings.max_history or stored)
    entry = F.struct((-F.col("from_end")).alias("place"), "item_index", *(f"{f.name}_index" for f in features.item))
    rows = known.groupBy("user_id").agg(
        F.sort_array(F.collect_list(F.when(F.col("from_end") <= limit, entry))).alias("tokens"),
        F.count(F.lit(1)).alias("clicks"),
        F.sort_array(F.collect_set("item_index")).alias("seen"),
    )
    rows = users.join(rows, "user_id", "left")
    fits = (F.col("clicks") < settings.window_size) & (F.col("clicks") <= F.lit(settings.max_history or settings.window_size))
    rows = rows.withColumn("start", F.coalesce(fits & F.lit(start_token), F.lit(False)))
    has_target = "target_index" in users.columns
    items = _prepend_unknown(_or_empty(_each("tokens", "item_index")))
    columns: dict[str, Column] = {
        "item_index": F.concat(items, F.array("target_index")) if has_target else items,
        "target_position": F.array(F.size(items)),
        "example_age": F.array(F.lit(0.0).cast("float")),
        "negatives": F.array_repeat(F.lit(0), settings.negatives_per_positive).cast("array<int>"),
    }
    columns |= {f"{f.name}_index": F.array(f"{f.name}_index") for f in features.user}
    for name, column in _item_columns(features, "tokens", lambda values: _prepend_unknown(_or_empty(values))).items():
        columns[name] = F.concat(column, _of_target(name, features)) if has_target else column
    columns["seen"] = _or_empty(F.col("seen"))
    return rows.select("user_id", *(column.alias(name) for name, column in columns.items()))


def _of_target(column: str, features: Features) -> Column:
    """The target token's own values of an item column."""
    for feature in features.item:
        if feature.multi and column == f"{feature.name}_length":
            return F.array(F.size(f"{feature.name}_index"))
        if feature.multi and column == f"{feature.name}_index":
            return F.col(column)
    return F.array(column)


def _or_empty(values: Column) -> Column:
    return F.coalesce(values, F.array().cast("array<int>"))


def held_out(clicks: DataFrame, split: str, before: tuple[str, ...], features: Features, settings: Samples) -> DataFrame:
    """The samples of a held-out split: each target with the clicks of the splits `before` it.

    Users without an earlier click have no sample; users whose earlier clicks were all filtered have an empty history.
    """
    history = clicks.where(F.col("split").isin(*before))
    targets = clicks.where(F.col("split") == split).join(history.select("user_id").distinct(), "user_id", "left_semi")
    return histories(_as_targets(targets, features), history, features, settings, start_token=settings.start_token)


def _as_targets(targets: DataFrame, features: Features) -> DataFrame:
    columns = [f"{f.name}_index" for f in (*features.user, *features.item)]
    return targets.select("user_id", F.col("item_index").alias("target_index"), *columns)


def first_clicks(events: DataFrame) -> DataFrame:
    """Each user's first click: the test clicks of protocol `day`. Needs `tie`."""
    first = F.row_number().over(Window.partitionBy("user_id").orderBy(*click_order()))
    return events.withColumn("nth", first).where("nth = 1").drop("nth")


def newest_features(clicks: DataFrame, features: Features) -> DataFrame:
    """user_id and the user features of the newest click, for every user of encoded clicks with `tie`."""
    newest = F.row_number().over(Window.partitionBy("user_id").orderBy(*click_order(newest_first=True)))
    columns = [f"{f.name}_index" for f in features.user]
    return clicks.withColumn("nth", newest).where("nth = 1").select("user_id", *columns)
