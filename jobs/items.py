"""Events and vocabulary -> items/dt: each item's features as of dt, which a model with item_content makes vectors from."""

import sys

from recall_lib import schemas
from recall_lib.job import Context, main
from recall_lib.transforms.holdout import tie_breaker
from recall_lib.transforms.items import newest_features
from recall_lib.transforms.vocab import encode


def run(ctx: Context) -> None:
    """Publish items/dt, where the model asks for it."""
    features = ctx.config.features
    if not ctx.config.model.item_content:
        return ctx.say("model.item_content is off: nothing to write")
    events, inputs = ctx.history()
    vocab, inputs["vocab"] = ctx.vocab()
    items = newest_features(encode(tie_breaker(events), vocab, features), features)
    manifest = ctx.tables.publish(items, schemas.items(features), "items", ctx.dt, inputs=inputs)
    ctx.say(f"{manifest['rows']} items")


if __name__ == "__main__":
    sys.exit(main(run))
