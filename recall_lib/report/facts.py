"""The facts in a day's report, collected from manifests, the training log and the metrics; no table is read."""

from __future__ import annotations

import json
from typing import Any

from recall_lib.store import datasets
from recall_lib.store.publication import Publication
from recall_lib.store.tables import Tables

# Entries that every manifest may have; the others are a stage's own facts.
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
    """The facts of one day, as `render` takes them; tables that are not published yet are left out.

    Returns:
        {"dt", "account": {fate: rows} of the newest ingestion, "account_days": the days it published,
        "events": clicks per day {day: rows},
        "stages": [{"name", "bytes", "seconds", "facts": {name: value}}], "digests": {stage: digest},
        "training": records of the training log, "metrics": metrics.json or {}, "config", "versions"}
    """
    days = tables.days("events")
    ordered = tables.config.input.ordering == "time"
    manifests = {day: tables.get("events", day).manifest for day in days if (day <= dt if ordered else day == dt)}
    newest = max(manifests.values(), key=lambda manifest: manifest["published_at"], default={})
    # Events and rejects belong to all days and are shown separately; the report cannot show itself.
    rows = [row for row in datasets.in_order() if row.job not in ("events", "report")]
    looked = [tables.look(row.name, dt, **part) for row in rows for part in row.parts()]
    found = {_named(one): one for one in looked if one}
    return {
        "dt": dt,
        "account": newest.get("log", {}),
        "account_days": [day for day, manifest in manifests.items() if manifest["run_id"] == newest["run_id"]],
        "events": {day: manifest["rows"] for day, manifest in manifests.items()},
        "stages": [_stage(one) for one in found.values()],
        "digests": {name: one.digest for name, one in found.items()},
        "training": _training_log(tables, found.get("models")),
        "metrics": tables.read_json(f"{found['metrics'].folder}/metrics.json") if "metrics" in found else {},
        "config": tables.config.model_dump(mode="json"),
        "versions": newest.get("versions", {}),
    }


def _named(publication: Publication) -> str:
    return " ".join([publication.dataset, *publication.keys.values()])


def _stage(publication: Publication) -> dict[str, Any]:
    manifest = publication.manifest
    facts = flatten({key: value for key, value in manifest.items() if key not in {*_COMMON, *publication.keys}})
    targets = [file["values"]["example_age"] for file in manifest["files"] if "example_age" in file.get("values", {})]
    return {
        "name": _named(publication),
        "bytes": sum(file["bytes"] for file in manifest["files"]),
        "seconds": manifest["seconds"],
        "facts": facts | ({"targets": sum(targets)} if targets else {}),
    }


def flatten(facts: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested facts as one level: {"sizes": {"city": 8}} becomes {"sizes city": 8}; lists do not change."""
    flat: dict[str, Any] = {}
    for key, value in facts.items():
        name = f"{prefix} {key}".strip()
        flat |= flatten(value, name) if isinstance(value, dict) else {name: value}
    return flat


def _training_log(tables: Tables, model: Publication | None) -> list[dict[str, Any]]:
    if model is None or not tables.fs.exists(f"{model.folder}/log.jsonl"):
        return []
    return [json.loads(line) for line in tables.fs.cat_file(f"{model.folder}/log.jsonl").splitlines() if line.strip()]
