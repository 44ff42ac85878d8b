"""A small log of every kind of user, through the real jobs, with an untrained model in place of a trained one."""

import importlib
import random
import shutil

import pytest

from recall_lib.config import Config
from recall_lib.day.context import Context
from recall_lib.inference.shipping import ship_published
from recall_lib.store import schemas

DT = "2024-03-05"
FEATURES = {
    "item_id": {"min_count": 2, "dim": 8},
    "user": [{"name": "user_id", "min_count": 1, "dim": 4}, {"name": "city", "min_count": 2, "dim": 4}],
    "item": [{"name": "tags", "min_count": 1, "dim": 4, "multi": True}],
}
LAST_SECOND = 1709596799  # 2024-03-04 23:59:59 UTC


def make_log(users=40, items=30, seed=3):
    """Lines user, item, time, click, city, tags; user `lonely` has clicked one item that nobody else has."""
    rng = random.Random(seed)
    lines = ["user_id,article_id,expo_time,click,city,tags"]
    for user in range(users):
        for item in rng.sample(range(items), rng.randint(1, items - 4)):
            time = LAST_SECOND - rng.randrange(3 * 86_400)
            lines.append(f"u{user},i{item},{time},1,c{user % 3},t{item % 5}_t{item % 7}")
    return [*lines, f"lonely,odd,{LAST_SECOND},1,c1,t1", f"heavy,odd2,{LAST_SECOND},1,,"] + [
        f"heavy,i{item},{LAST_SECOND - item},1,c0,t{item % 5}" for item in range(items - 2)
    ]


STAGES = ("vectors", "index", "popular", "top_n")


def publish_untrained(ctx, vocab=None, seed=0):
    """Publishes an untrained model as models/dt, stamped with the vocabulary's fingerprint or another."""
    import torch

    from recall_lib.model import checkpoint
    from recall_lib.model.towers import YouTubeDNN

    manifest = ctx.tables.get("vocab", ctx.dt).manifest
    config, digest = ctx.config, vocab or manifest["digest"]
    torch.manual_seed(seed)
    settings = config.model.model_copy(update={"embedding_std": 1.0})
    model = YouTubeDNN(config.features, settings, manifest["sizes"], config.samples.window_size)
    with ctx.tables.publishing("models", ctx.dt, inputs={"vocab": digest}) as staged:
        staged.facts["version"] = checkpoint.save(
            staged.folder, model, config.features, config.samples, manifest["sizes"], digest
        )


def read_vocab(ctx):
    return ctx.tables.get("vocab", DT).read(schemas.VOCAB)


def ship(ctx, dataset):
    return ship_published(ctx.spark, ctx.tables.get(dataset, DT))


def run_job(ctx, job, dt=DT):
    importlib.import_module(f"jobs.{job}").run(Context(ctx.config, dt, "test"))


@pytest.fixture(scope="session")
def published(spark, tmp_path_factory):
    """The folder of a log and of every table of its day."""
    folder = tmp_path_factory.mktemp("published")
    (folder / "clicks.csv").write_text("\n".join(make_log()) + "\n", encoding="utf-8")
    ctx = Context(make_config(folder), DT, "test")
    for day in ("2024-03-02", "2024-03-03", "2024-03-04"):
        run_job(ctx, "events", day)
    run_job(ctx, "vocab")
    publish_untrained(ctx)
    for job in STAGES:
        run_job(ctx, job)
    return folder


def make_config(folder, **sections):
    base = {
        "input": {"path": str(folder), "clicks": "clicks.csv"},
        "features": FEATURES,
        "samples": {"window_size": 5},
        "model": {"tower": (8,)},
        "top_n": {"n": 7},
        "paths": {"root": str(folder / "root")},
        "spark": {"master": "local[2]", "partitions": 3},
    }
    return Config(**{name: {**base.get(name, {}), **sections.get(name, {})} for name in {*base, *sections}})


@pytest.fixture
def prepared(published, tmp_path):
    """A context on a copy of the published tables; sections override its config."""
    shutil.copytree(published, tmp_path / "copy")
    return lambda **sections: Context(make_config(tmp_path / "copy", **sections), DT, "test")
