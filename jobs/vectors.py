"""Model -> vectors/dt: one vector for every item and every user, whose inner product is the score."""

import sys
from functools import partial

from pyspark.sql import DataFrame
from pyspark.sql import functions as F

from recall_lib import schemas
from recall_lib.ids import UNKNOWN
from recall_lib.inference import fingerprints
from recall_lib.inference.shipping import ship_published
from recall_lib.inference.vectors import item_vectors, user_vectors
from recall_lib.io import raw
from recall_lib.job import Context, main
from recall_lib.transforms import samples
from recall_lib.transforms.holdout import tie_breaker
from recall_lib.transforms.vocab import encode, known_items


def run(ctx: Context) -> None:
    """Publish vectors/dt for kind=item and kind=user."""
    stamp = fingerprints.model_of_vocab(ctx.tables, ctx.dt)
    model = ship_published(ctx.tables, "models", ctx.dt)
    vocab, _ = ctx.vocab()
    items = known_items(vocab).repartitionByRange(ctx.config.spark.partitions, "item_index")
    made_from = {"vocab": stamp["vocab"], "models": model.digest}
    vectors = items.mapInArrow(partial(item_vectors, model=model), schemas.ITEM_VECTORS)
    published = ctx.tables.publish(vectors, schemas.ITEM_VECTORS, "vectors", ctx.dt, inputs=made_from, facts=stamp, kind="item")
    histories, inputs = read_histories(ctx)
    vectors = histories.mapInArrow(partial(user_vectors, model=model), schemas.USER_VECTORS)
    users = ctx.tables.publish(
        vectors, schemas.USER_VECTORS, "vectors", ctx.dt, inputs=inputs | made_from, facts=stamp, kind="user"
    )
    ctx.say(f"{published['rows']} items, {users['rows']} users")


def read_histories(ctx: Context) -> tuple[DataFrame, dict[str, str]]:
    """One row a user that gets a top-N (schemas.runs with `seen`), from the clicks before dt, and the inputs' digests.

    The users are those of the events, or of `input.users`; one without clicks has an empty history and unknown features.
    """
    config = ctx.config
    features = config.features
    events, inputs = ctx.history()
    vocab, inputs["vocab"] = ctx.vocab()
    clicks = encode(tie_breaker(events), vocab, features)
    users = samples.newest_features(clicks, features)
    if config.input.users:
        table = raw.read_rows(ctx.spark, config.input, config.input.users)
        wanted = table.select(F.col(f"`{config.input.columns.user_id}`").cast("string").alias("user_id")).distinct()
        users = wanted.where("user_id <> ''").join(users, "user_id", "left").fillna(UNKNOWN)
    rows = samples.histories(users, clicks, features, config.samples)
    return rows.repartition(config.spark.partitions, "user_id").sortWithinPartitions("user_id"), inputs


if __name__ == "__main__":
    sys.exit(main(run))
