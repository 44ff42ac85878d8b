"""Whose model serves a day, and which one a day starts from: decided by manifests."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from recall_lib.config import Config, load_config
from recall_lib.process.errors import UsageError
from recall_lib.store.tables import Tables
from recall_lib.training.promotion import decide
from recall_lib.training.spec import first_weights

DAYS = ["2024-03-02", "2024-03-03", "2024-03-04"]
DT = "2024-03-05"

Published = Callable[..., Tables]


@pytest.fixture
def published(make_config: Callable[..., Config]) -> Published:
    """Models and vocabularies of DAYS as manifests; `changes` of the models' by day."""

    def make(changes: dict[str, dict[str, Any]] | None = None, **sections: Any) -> Tables:
        config = make_config(**sections)
        for day in DAYS:
            common = {"config": config.model_dump(mode="json"), "files": [], "digest": f"v{day}"}
            model = common | {"version": f"m{day}", "digest": f"m{day}", "inputs": {"vocab": f"v{day}"}}
            model |= {"validation": {"hr@10": 0.2}, "serving_dt": day} | (changes or {}).get(day, {})
            for dataset, found in (("vocab", common), ("models", model)):
                folder = Path(config.paths.root, dataset, f"dt={day}")
                folder.mkdir(parents=True)
                (folder / "_manifest.json").write_text(json.dumps(found))
        return Tables(config)

    return make


GATE = {"max_hr_drop": 0.1}


@pytest.mark.parametrize(
    ("drop", "hr", "serving"),
    [(0.1, 0.21, DT), (0.1, 0.181, DT), (0.1, 0.179, DAYS[2]), (0.1, None, DAYS[2]), (0.0, 0.2, DT), (0.0, 0.199, DAYS[2])],
)
def test_a_model_that_is_too_much_worse_does_not_serve(
    published: Published, drop: float, hr: float | None, serving: str
) -> None:
    tables = published(training={"max_hr_drop": drop})
    verdict = decide(tables, DT, "new", {} if hr is None else {"hr@10": hr})
    assert (verdict.serving_dt, verdict.version) == (serving, "new" if serving == DT else f"m{serving}")
    assert verdict.inputs == {f"models/dt={DAYS[2]}": f"m{DAYS[2]}"}
    assert verdict.why.startswith("not promoted: validation hr@10" if serving != DT else "")
    assert (f"which serves {DT} in its place" in verdict.why) == (serving != DT)


def test_the_earlier_model_is_the_one_that_serves(published: Published) -> None:
    """The 4th was not promoted, so that the 5th is compared with the 2nd; nothing of the 5th's past is after it."""
    tables = published({DAYS[2]: {"serving_dt": DAYS[0], "validation": {"hr@10": 0.01}}}, training=GATE)
    verdict = decide(tables, DT, "new", {"hr@10": 0.1})
    assert verdict.serving_dt == DAYS[0]
    assert verdict.inputs == {f"models/dt={day}": f"m{day}" for day in (DAYS[0], DAYS[2])}
    assert decide(tables, DAYS[1], "new", {"hr@10": 0.1}).serving_dt == DAYS[0]
    assert decide(tables, DAYS[0], "new", {"hr@10": 0.0}).serving_dt == DAYS[0], "there is no earlier one"


def test_without_a_gate_every_model_serves(published: Published) -> None:
    verdict = decide(published(), DT, "new", {})
    assert (verdict.serving_dt, verdict.why, verdict.inputs) == (DT, "", {})


@pytest.mark.parametrize(
    "change", [{"config": Config(model={"layers": 3}).model_dump(mode="json")}, {"inputs": {"vocab": "x"}}]
)
def test_a_model_that_cannot_serve_is_no_measure(published: Published, change: dict[str, Any]) -> None:
    tables = published({DAYS[2]: change}, training=GATE)
    verdict = decide(tables, DT, "new", {"hr@10": 0.0})
    assert verdict.serving_dt == DT
    assert "promoted without a comparison: models/dt=2024-03-04" in verdict.why


WARM = {"init": "yesterday"}


def test_a_day_starts_from_the_one_before(published: Published) -> None:
    tables = published({DAYS[2]: {"serving_dt": DAYS[0]}}, training=WARM | {"scratch_every": 7})
    first = first_weights(tables, DT)
    assert first is not None
    assert (first.dt, first.version) == (DAYS[2], f"m{DAYS[2]}")
    assert first.folder == f"file://{tables.root}/models/dt={DAYS[2]}"
    assert first_weights(tables, "2024-03-03") is None, "its number is divisible by 7"
    assert tables.config.target_days(DT) == 1
    assert tables.config.target_days("2024-03-03") is None


@pytest.mark.parametrize(
    ("dt", "change", "message"),
    [
        ("2024-03-07", {}, "models/dt=2024-03-06, which is not published: run 2024-03-06, or start 2024-03-07 anew with --set"),
        (
            DT,
            {"config": Config(model={"layers": 3}).model_dump(mode="json")},
            "made with other settings in model: .*; or start",
        ),
        (DT, {"config": Config(samples={"window_size": 3}).model_dump(mode="json")}, "other settings in samples.window_size"),
        (
            DT,
            {"inputs": {"vocab": "another"}},
            "trained on another vocabulary than vocab/dt=2024-03-04: run 2024-03-04 again, or",
        ),
    ],
)
def test_what_a_day_cannot_start_from_is_refused(published: Published, dt: str, change: dict[str, Any], message: str) -> None:
    tables = published({DAYS[2]: change}, training=WARM)
    with pytest.raises(UsageError, match=message):
        first_weights(tables, dt)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"input": {"ordering": "position"}, "samples": {"look_back_days": 3}}, "need timestamps"),
        ({"input": {"ordering": "position"}, "training": WARM}, "need timestamps"),
        (
            {"samples": {"look_back_days": 3}, "training": WARM | {"yesterday_days": 4}},
            "further back than samples.look_back_days",
        ),
        ({"training": {"max_hr_drop": 1.0}}, "max_hr_drop"),
    ],
)
def test_settings_that_do_not_go_together(make_config: Callable[..., Config], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        make_config(**sections)


def test_one_day_of_a_chain_can_be_started_anew(make_config: Callable[..., Config], tmp_path: Path) -> None:
    make_config(training=WARM | {"yesterday_days": 2, "scratch_every": 7})
    config = load_config(str(tmp_path / "config.yaml"), ["training.init=scratch"])
    assert first_weights(Tables(config), DT) is None
    assert config.target_days(DT) is None
