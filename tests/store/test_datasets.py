"""What decides a dataset is declared once: status, staleness and what the jobs refuse follow from it."""

from __future__ import annotations

import json
import re
from graphlib import CycleError
from pathlib import Path
from typing import Any, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recall_lib.commands.forget import forget
from recall_lib.commands.gc import garbage
from recall_lib.commands.status import MISSING, PUBLISHED, STALE, Days
from recall_lib.config import Config, load_config
from recall_lib.process.errors import DataRefused
from recall_lib.report.facts import collect
from recall_lib.store import datasets, schemas
from recall_lib.store.catalog import declared
from recall_lib.store.datasets import DATASETS, Dataset
from recall_lib.store.tables import Tables

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
    for name in [name for names in datasets.required(config).values() for name in names if name != "events"]:
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
    assert " with other settings: " in found
    assert setting in re.split(r"[ ,;]+", found)


@pytest.mark.parametrize(
    "change",
    ["input.path=/elsewhere", "training.device=cpu", "training.resume=false", "retention.tables_days=9", "spark.partitions=3"],
)
def test_what_decides_no_table_makes_nothing_stale(config_file: str, change: str) -> None:
    assert why(config_file, change) == ""


def test_the_report_has_every_publication_of_the_day(config_file: str) -> None:
    config = load_config(config_file)
    (Path(config.paths.root) / f"metrics/dt={DT}/metrics.json").write_text("{}")
    expected = {name for names in datasets.required(config).values() for name in names} - {"events", "reports"}
    shown = {name.replace("split=", "").replace("kind=", "").replace("/", " ") for name in expected}
    assert collect(Tables(config), DT)["digests"].keys() == shown


def test_a_dataset_is_one_row(config_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything but its job follows from it."""
    row = Dataset(
        name="segments",
        job="segment",
        inputs=("vectors",),
        settings=("index.nprobe",),
        columns="USER_VECTORS",
        user_column="user_id",
    )
    monkeypatch.setitem(DATASETS, row.name, row)
    config = load_config(config_file)
    tables = Tables(config)
    order = datasets.jobs()
    assert order.index("vectors") < order.index("segment") < order.index("report")
    assert Days(config).day(DT).why == "without segments"
    with pytest.raises(DataRefused, match=f"run `recall segment --dt {DT}`"):
        tables.get("segments", DT)
    for day in DAYS[1:]:
        publish(config, "segments", day)
    assert why(config_file) == ""
    assert "index.nprobe" in why(config_file, "index={factory: 'IVF4,Flat', nprobe: 2}")
    (Path(config.paths.root) / f"metrics/dt={DT}/metrics.json").write_text("{}")
    assert "segments" in collect(tables, DT)["digests"]
    assert declared(config.features)["segments"] == (schemas.USER_VECTORS, ("dt",))
    assert f"segments/dt={DAYS[1]}" in {item.path.removeprefix(f"{tables.root}/") for item in garbage(tables, 1)}
    with tables.publishing("segments", DT, facts={"rows": 2}) as staged:
        pq.write_table(pa.table({"user_id": ["a", "b"], "vector": [[0.5], [1.0]]}), staged.folder / "part-0.parquet")
    assert (f"segments/dt={DT}", 1) in forget(tables, "a")


def test_a_further_key_s_value_may_be_made_by_another_job(config_file: str) -> None:
    tables = Tables(load_config(config_file))
    for kind, job in (("user", "top_n"), ("item", "vectors")):
        assert Days(tables.config).day(DT, [job]).state == PUBLISHED
        tables.fs.rm(tables.path("vectors", DT, kind=kind), recursive=True)
        with pytest.raises(DataRefused, match=f"run `recall {job} --dt {DT}`"):
            tables.get("vectors", DT, kind=kind)
        assert datasets.job_of(f"vectors/kind={kind}") == job
        assert Days(tables.config).day(DT, [job]).state == MISSING


def test_the_order_is_that_of_the_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    for row in datasets.in_order():
        assert datasets.inputs_of(row.name) <= seen
        seen.add(row.name)
    assert seen == DATASETS.keys()
    monkeypatch.setitem(DATASETS, "vocab", Dataset(name="vocab", job="vocab", inputs=("index",)))
    with pytest.raises(CycleError):
        list(datasets.in_order())


def test_settings_are_settings() -> None:
    """A name that is misspelt would never differ."""
    for row in DATASETS.values():
        for name in (*row.settings, *row.tuning):
            section, *rest = name.split(".")
            known = Config.model_fields[section].annotation
            for key in rest:
                kinds = [known, *get_args(known)]
                (known,) = [kind.model_fields[key].annotation for kind in kinds if key in getattr(kind, "model_fields", ())]


def test_a_manifest_of_an_earlier_version_has_the_defaults_of_what_it_lacks() -> None:
    then = Config().model_dump(mode="json")
    del then["samples"]["look_back_days"], then["top_n"]
    then["samples"]["of_another_version"] = 1
    assert datasets.other_settings("samples", then, Config()) == []
    newer = Config.model_validate({"samples": {"look_back_days": 3}})
    assert datasets.other_settings("vocab", then, newer) == ["samples.look_back_days"]
    assert datasets.other_settings("samples", then, newer) == ["samples"]
