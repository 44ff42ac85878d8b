"""What decides a dataset is declared once: status, staleness and what the jobs refuse follow from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recall_lib.config import Config, load_config
from recall_lib.io.tables import Tables
from recall_lib.report.facts import collect
from recall_lib.status import PUBLISHED, STALE, Days, publications

DAYS = ("2024-01-01", "2024-01-02", "2024-01-03")
DT = DAYS[-1]
SECTIONS: dict[str, Any] = {
    "features": {
        "user": [{"name": "user_id"}],
        "item": [{"name": "tags", "multi": True, "dim": 64}],
        "item_id": {"min_count": 2},
    },
    "model": {"item_rows": "both"},
    "top_n": {"user_id_only": True},
    "evaluation": {"protocol": "day"},
}


def publish(config: Config, dataset: str, dt: str, *keys: str, **facts: Any) -> None:
    """A publication without files."""
    folder = Path(config.paths.root, dataset, f"dt={dt}", *keys)
    folder.mkdir(parents=True)
    name = "/".join([dataset, *keys])
    common = {"digest": name, "inputs": {}, "published_at": "2024-02-01T10:00:00+00:00", "seconds": 1.0, "run_id": "r"}
    common |= {"dataset": dataset, "dt": dt, "files": [], "config": config.model_dump(mode="json")}
    (folder / "_manifest.json").write_text(json.dumps(common | facts))


@pytest.fixture
def config_file(tmp_path: Path) -> str:
    """A config, whose day DT has every publication that the config asks for, made with this config."""
    file = tmp_path / "config.yaml"
    file.write_text(json.dumps(SECTIONS | {"paths": {"root": str(tmp_path / "root")}}))
    config = load_config(str(file))
    for day in DAYS:
        publish(config, "events", day, rows=5)
    clicks = {f"events/dt={day}": "events" for day in DAYS if day < DT}
    for name in [name for names in publications(config).values() for name in names if name != "events"]:
        dataset, *keys = name.split("/")
        publish(config, dataset, DT, *keys, rows=5, inputs=clicks if dataset == "vocab" else {}, status="final", users=0)
    return str(file)


def why(config_file: str, *changes: str) -> str:
    day = Days(load_config(config_file, changes)).day(DT)
    assert (day.state == PUBLISHED) == (not day.why), day
    assert day.state in (PUBLISHED, STALE)
    return day.why


@pytest.mark.parametrize(
    ("change", "setting"),
    [
        ("seed=7", "seed"),
        ("input.columns={user_id: other}", "input.columns"),
        ("input.time_unit=ms", "input.time_unit"),
        ("input.users=users.csv", "input.users"),
        ("features.item_id.min_count=3", "features.item_id.min_count"),
        ("features.item=[{name: tags, dim: 64, multi: true, separator: '|'}]", "features.item.separator"),
        ("evaluation.recent_hours=3", "evaluation"),
        ("top_n.n=5", "top_n.n"),
        ("training.epochs=9", "training.epochs"),
        ("model.dropout=0.1", "model"),
    ],
)
def test_a_changed_setting_makes_the_day_stale(config_file: str, change: str, setting: str) -> None:
    assert why(config_file) == ""
    found = why(config_file, change)
    assert found.startswith("made with other settings: ")
    assert setting in found.removeprefix("made with other settings: ").split(", ")


@pytest.mark.parametrize(
    "change",
    ["input.path=/elsewhere", "training.device=cpu", "training.resume=false", "retention.tables_days=9", "spark.partitions=3"],
)
def test_what_decides_no_table_makes_nothing_stale(config_file: str, change: str) -> None:
    assert why(config_file, change) == ""


def test_the_report_has_every_publication_of_the_day(config_file: str) -> None:
    config = load_config(config_file)
    (Path(config.paths.root) / f"metrics/dt={DT}/metrics.json").write_text("{}")
    expected = {name for names in publications(config).values() for name in names} - {"events", "reports"}
    shown = {name.replace("split=", "").replace("kind=", "").replace("/", " ") for name in expected}
    assert collect(Tables(config), DT)["digests"].keys() == shown
