"""What a day's report tells, gathered from manifests, the training log and the metrics: no table is read."""

from __future__ import annotations

import json
from typing import Any

from recall_lib import datasets
from recall_lib.io.tables import Tables

# What every manifest holds; the rest are a stage's own facts.
_COMMON = {
    "dataset",
    "dt",
    "digest",
    "inputs",
    "vocab",
    "files",
    "config",
    "versions",
    "run_id",
    "published_at",
    "seconds",
}


def collect(tables: Tables, dt: str) -> dict[str, Any]:
    """The facts of one day, as `render` takes them; what is not published yet is left out.

    Returns:
        {"dt", "account": {fate: rows} of the newest ingestion, "account_days": the days it was for,
        "events": clicks per day {day: rows},
        "stages": [{"name", "bytes", "seconds", "facts": {name: value}}], "digests": {stage: digest},
        "training": records of the training log, "metrics": metrics.json or {}, "config", "versions"}
    """
    days = tables.days("events")
    ordered = tables.config.input.ordering == "time"
    manifests = {day: tables.manifest("events", day) for day in days if (day <= dt if ordered else day == dt)}
    newest = max(manifests.values(), key=lambda manifest: manifest["published_at"], default={})
    # Events and rejects are of all days, and shown apart; the report cannot show itself.
    rows = [row for row in datasets.in_order() if row.job not in ("events", "report")]
    found = [(row.name, part) for row in rows for part in row.parts() if tables.find(row.name, dt, **part)]
    return {
        "dt": dt,
        "account": newest.get("log", {}),
        "account_days": [day for day, manifest in manifests.items() if manifest["run_id"] == newest["run_id"]],
        "events": {day: manifest["rows"] for day, manifest in manifests.items()},
        "stages": [_stage(tables, dt, name, keys) for name, keys in found],
        "digests": {_named(name, keys): tables.manifest(name, dt, **keys)["digest"] for name, keys in found},
        "training": _training_log(tables, dt),
        "metrics": tables.read_json(f"{tables.folder('metrics', dt)}/metrics.json") if tables.find("metrics", dt) else {},
        "config": tables.config.model_dump(mode="json"),
        "versions": newest.get("versions", {}),
    }


def _named(name: str, keys: dict[str, str]) -> str:
    return " ".join([name, *keys.values()])


def _stage(tables: Tables, dt: str, name: str, keys: dict[str, str]) -> dict[str, Any]:
    manifest = tables.manifest(name, dt, **keys)
    facts = flatten({key: value for key, value in manifest.items() if key not in {*_COMMON, *keys}})
    targets = [file["values"]["example_age"] for file in manifest["files"] if "example_age" in file.get("values", {})]
    return {
        "name": _named(name, keys),
        "bytes": sum(file["bytes"] for file in manifest["files"]),
        "seconds": manifest["seconds"],
        "facts": facts | ({"targets": sum(targets)} if targets else {}),
    }


def flatten(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts as one level: {"sizes": {"city": 8}} becomes {"sizes city": 8}; lists are left as they are."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        name = f"{prefix} {key}".strip()
        flat |= flatten(value, name) if isinstance(value, dict) else {name: value}
    return flat


def _training_log(tables: Tables, dt: str) -> list[dict[str, Any]]:
    folder = tables.find("models", dt)
    if folder is None or not tables.fs.exists(f"{folder}/log.jsonl"):
        return []
    return [json.loads(line) for line in tables.fs.cat_file(f"{folder}/log.jsonl").splitlines() if line.strip()]
