import json

import pytest

from recall_lib.config import load_config, parse_day
from recall_lib.process.errors import UsageError
from tests.conftest import ROOT


@pytest.mark.parametrize("path", sorted((ROOT / "conf").glob("*.yaml")), ids=lambda path: path.name)
def test_shipped_configs_load(path):
    assert load_config(str(path)).paths.root == f"build/{path.stem}"


def test_presets_have_the_published_numbers():
    f, p = (load_config(str(ROOT / "conf" / f"{name}.yaml")) for name in ("fun_rec", "paddle"))
    assert {feature.dim for feature in f.features.user} | {f.features.item_id.dim} == {8}
    assert (f.model.tower, f.training.num_negatives, f.training.batch_size, f.training.epochs, f.top_n.n) == (
        (64, 8),
        5,
        64,
        1,
        200,
    )
    assert (f.samples.max_history, f.samples.subsample_threshold, f.samples.max_targets_per_user) == (50, 0.001, 30)
    dims = {feature.name: feature.dim for feature in (*p.features.user, *p.features.item)}
    assert dims == {"user_id": 64, "province": 8, "city": 16, "phone": 16, "category": 8, "tags": 64}
    assert (p.features.item_id.dim, p.model.encoder_dim, p.model.tower, p.model.embedding_std) == (64, 64, (256, 31), 0.001)
    assert (p.training.loss, p.training.num_negatives, p.samples.window_size, p.samples.start_token) == ("nce", 5, 20, True)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("training.epoch=3", "unknown key training.epoch"),
        ("training.epochs=many", "training.epochs"),
        ("top_n.n=true", "top_n.n"),
        ("top_n.n='10'", "top_n.n"),
        ("top_n.filter_seen='yes'", "filter_seen"),
        ("training.learning_rate=.inf", "learning_rate"),
        ("model.tower=[0, 64]", "model.tower"),
        ("input.path=7", "input.path"),
        ("features.user=[{name: city_index}]", "reserved"),
        ("training.epochs", "not section.key=value"),
        ("samples.order=sideways", "samples.order"),
        ("input.format=sessions", "no timestamps|session lines"),
        ("training.ranks=2", "launcher"),
        ("training.negatives=samples", "negatives_per_positive"),
        ("model.tower=[]", "model.item_output tied"),
        ("features.user=[{name: item_id}]", "reserved"),
        ("features.user.x=1", "user is not a section"),
        ("features.user=[{name: a}, {name: a}]", "used twice"),
        ("seed.x=1", "seed: Input should be"),
    ],
)
def test_bad_settings_are_named(override, message):
    with pytest.raises(UsageError, match=message):
        load_config(str(ROOT / "conf" / "fun_rec.yaml"), [override])


@pytest.mark.parametrize("character", "*?[]{}\\")
def test_a_root_that_is_a_pattern_is_refused(character):
    with pytest.raises(UsageError, match=r"paths\.root.*patterns"):
        load_config(str(ROOT / "conf/demo.yaml"), [f"paths.root={json.dumps(f'/data/a{character}b')}"])


def test_overrides_reach_new_sections(tmp_path):
    (tmp_path / "c.yaml").write_text("paths: {root: x}\n")
    config = load_config(
        str(tmp_path / "c.yaml"), ["training.epochs=3", "seed=7", "input.clicks=2017.csv", "spark.conf={a.b: c}"]
    )
    assert (config.training.epochs, config.seed, config.input.clicks, config.spark.conf) == (3, 7, "2017.csv", {"a.b": "c"})


@pytest.mark.parametrize("text", ["[1, 2]", "a: [", "\x00"])
def test_unreadable_config(tmp_path, text):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UsageError):
        load_config(str(tmp_path / "c.yaml"))


@pytest.mark.parametrize("text", ["2026-02-30", "20260101", "2026-1-1", "today", ""])
def test_days(text):
    assert parse_day("2024-02-29") == "2024-02-29"
    with pytest.raises(UsageError, match="not a day"):
        parse_day(text)
