import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
import torch

import jobs.train
from recall_lib.config import Config, ItemId, Recency
from recall_lib.day.context import Context
from recall_lib.model import checkpoint
from recall_lib.process.errors import DataRefused
from recall_lib.store import schemas
from recall_lib.store.tables import Tables
from recall_lib.training.loader import read_segments
from recall_lib.training.spec import sample_files

CLICKED, DAY = "2024-03-03", "2024-03-04"


@pytest.fixture
def config(make_config: Callable[..., Config], write_log: Callable[[str, list[str]], Path]) -> Config:
    """Users who click the items in a ring."""
    start = int(datetime.fromisoformat(CLICKED).replace(tzinfo=UTC).timestamp())
    lines = [f"u{u},i{(u + step) % 9},{start + 60 * step + u},1,c{u % 2}" for u in range(12) for step in range(6)]
    write_log("clicks/log.csv", ["user_id,article_id,expo_time,click,city", *lines])
    return make_config(
        features={"item_id": {"min_count": 1, "dim": 4}, "user": [{"name": "city", "min_count": 1, "dim": 2}]},
        samples={"window_size": 3},
        evaluation={"protocol": "last_click"},
        model={"tower": [8, 4], "encoder": "lstm"},
        training={"loss": "full_softmax", "batch_size": 16, "epochs": 2, "device": "cpu"},
    )


def root(config: Config) -> Path:
    return Path(config.paths.root)


def test_a_day_is_trained_and_published(config: Config, run_jobs: Callable[..., Context]) -> None:
    ctx = run_jobs(config, CLICKED, "events")
    ctx = run_jobs(config, DAY, "vocab", "samples", "train")
    # The targets that the steps are planned from are those of the files.
    for split in ("train", "validation"):
        for file in sample_files(ctx.tables.get("samples", DAY, split=split)):
            blocks = [runs for runs, _ in read_segments([file.url], config.features, config.samples, seen=split != "train")]
            assert sum(map(len, blocks)) == file.targets
    manifest = ctx.tables.get("models", DAY).manifest
    model, meta = checkpoint.load(ctx.tables.get("models", DAY).folder)
    assert manifest["version"] == meta["version"]
    assert manifest["backend"] is None
    assert manifest["inputs"]["vocab"] == meta["vocab"] == ctx.tables.get("vocab", DAY).manifest["digest"]
    assert len(model.item_vectors()) == meta["sizes"]["item_id"] == 2 + 9
    names = {file["name"] for file in manifest["files"]}
    assert names >= {"model.safetensors", "model.json", "log.jsonl"}
    assert any(name.startswith("events.out.tfevents") for name in names)
    assert not list((root(config) / "_checkpoints").glob("*"))
    assert json.loads((root(config) / "models" / "latest.json").read_text()) == {"dt": DAY, "version": meta["version"]}
    # The same samples give the same model, another vocabulary none at all.
    assert run_jobs(config, DAY, "train").tables.get("models", DAY).manifest["version"] == meta["version"]
    path = root(config) / "vocab" / f"dt={DAY}" / "_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "another"}))
    with pytest.raises(DataRefused, match="another vocabulary: run `recall samples"):
        jobs.train.run(ctx)
    assert ctx.tables.get("models", DAY).manifest["version"] == meta["version"]


def test_another_width_asks_for_another_model_alone(config: Config, run_jobs: Callable[..., Context]) -> None:
    """Vocabulary and samples do not depend on it; other counts they do."""
    run_jobs(config, CLICKED, "events")
    run_jobs(config, DAY, "vocab", "samples")
    wider = {"item_id": ItemId(min_count=1, dim=6)}
    wide = config.model_copy(
        update={
            "features": config.features.model_copy(update=wider),
            "model": config.model.model_copy(update={"tower": (8, 6)}),
        }
    )
    model, _ = checkpoint.load(run_jobs(wide, DAY, "samples", "train").tables.get("models", DAY).folder)
    assert model.item_table.weight.shape[1] == 6
    rarer = config.model_copy(update={"features": config.features.model_copy(update={"item_id": ItemId(min_count=2, dim=4)})})
    with pytest.raises(DataRefused, match=r"samples/dt=.* other settings in features.item_id.min_count"):
        jobs.train.run(Context(rarer, DAY, "test"))


def test_item_content_is_that_of_the_newest_clicks_and_travels_with_the_model(
    config: Config, write_log: Callable[[str, list[str]], Path], run_jobs: Callable[..., Context]
) -> None:
    features = {"item": [{"name": "tags", "min_count": 1, "dim": 4, "multi": True}, {"name": "kind", "min_count": 1, "dim": 4}]}
    sections = config.model_dump(mode="json", exclude={"paths", "spark"})
    sections["features"] |= features
    sections["model"] |= {"item_rows": "both", "recency": {"feature": "kind"}}
    start = int(datetime.fromisoformat(CLICKED).replace(tzinfo=UTC).timestamp())
    lines = [
        f"u{u},i{(u + step) % 9},{start + 60 * step + u},1,c{u % 2},t{(u + step) % 9 % 4}_s,{'old' if step < 2 else 'new'}"
        for u in range(12)
        for step in range(6)
    ]
    write_log("clicks/log.csv", ["user_id,article_id,expo_time,click,city,tags,kind", *lines])
    config = Config.model_validate(
        sections | {"paths": config.paths.model_dump(), "spark": config.spark.model_dump()}, strict=False
    )
    run_jobs(config, CLICKED, "events")
    ctx = run_jobs(config, DAY, "vocab", "items", "samples", "train")
    vocab = {(r["feature"], r["value"]): r["index"] for r in ctx.tables.get("vocab", DAY).read(schemas.VOCAB).collect()}
    items = {r["item_index"]: r for r in ctx.tables.get("items", DAY).read(schemas.items(config.features)).collect()}
    assert set(items) == set(range(2, 11))
    for n in range(9):
        row = items[vocab["item_id", f"i{n}"]]
        assert row["tags_index"] == [vocab["tags", f"t{n % 4}"], vocab["tags", "s"]]
        assert row["kind_index"] == [vocab["kind", "new"]]  # each item is clicked in the last step
    model, _ = checkpoint.load(ctx.tables.get("models", DAY).folder)
    assert not model.get_buffer("mean_user").isnan().any()
    assert model.get_buffer("mean_user").abs().sum() > 0
    run_jobs(config, DAY, "vectors")
    with torch.no_grad():
        expected = model.item_vectors(of_day=True)
    for row in ctx.tables.get("vectors", DAY, kind="item").read(schemas.ITEM_VECTORS).collect():
        item = row["item_index"]
        assert items[item]["prior"] != 0
        assert row["vector"][0] == pytest.approx(float(expected[item][0]) + items[item]["prior"], rel=1e-5)
        assert row["vector"][1:] == pytest.approx(expected[item][1:].tolist())
    assert model.content.get_buffer("kind_values").tolist() == [vocab["kind", "new"]] * 9
    path = root(config) / "items" / f"dt={DAY}" / "_manifest.json"
    manifest = json.loads(path.read_text())
    manifest["inputs"]["vocab"] = "another"
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataRefused, match="another vocabulary: run `recall items"):
        jobs.train.run(ctx)


def test_a_checkpoint_of_another_prior_is_not_resumed(config: Config, run_jobs: Callable[..., Context]) -> None:
    """Validation ranks with the prior of items/dt, even where the weights do not depend on that table."""
    config = config.model_copy(update={"model": config.model.model_copy(update={"recency": Recency()})})
    run_jobs(config, CLICKED, "events")
    ctx = run_jobs(config, DAY, "vocab", "items", "samples", "train")
    items = ctx.tables.get("items", DAY)
    assert ctx.tables.get("models", DAY).inputs["items"] == items.digest
    before = jobs.train._spec(ctx, jobs.train._inputs(ctx))
    assert before.items == items.files
    path = root(config) / "items" / f"dt={DAY}" / "_manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"digest": "another"}))
    again = Context(config, DAY, "test")
    assert jobs.train._spec(again, jobs.train._inputs(again)).fingerprint() != before.fingerprint()


def test_the_latest_model_moves_forward_only(config: Config) -> None:
    tables = Tables(config)
    root(config).joinpath("models").mkdir(parents=True)
    for day, version, expected in [("2024-03-05", "a", "a"), ("2024-03-04", "b", "a"), ("2024-03-05", "c", "c")]:
        tables.point_to_latest("models", day, version=version)
        assert tables.read_json(f"{tables.root}/models/latest.json") == {"dt": "2024-03-05", "version": expected}


def test_no_targets_are_refused(config: Config, run_jobs: Callable[..., Context]) -> None:
    rare = config.model_copy(update={"features": config.features.model_copy(update={"item_id": ItemId(min_count=99, dim=4)})})
    ctx = run_jobs(rare, CLICKED, "events")
    with pytest.raises(DataRefused, match="no target"):
        run_jobs(rare, DAY, "vocab", "samples", "train")
    assert not ctx.tables.days("models")
