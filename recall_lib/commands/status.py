"""Show what is published for each day, its metrics, the time it took, and what runs now.

    recall status --config conf/globo.yaml --set paths.root=/data/recall

The state of a day:
  published  every table of the pipeline is there, made from the current inputs and settings
  stale      an input has changed since, such as an earlier day's events, or a setting of a table
             (recall_lib/store/datasets.py lists the settings of each)
  failed     the last backfill of the day ended with an error
  missing    a table is not there

Days of events that are to be read again are listed first:
  late       the log has more clicks of the day than when it was stored
  stale      the day was read with other settings, such as other columns

With --dt it lists the tables of that day with their inputs. It starts no Spark session and reads
only manifests and metrics.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from recall_lib.config import Config, load_config, parse_day
from recall_lib.day import log_days
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command
from recall_lib.store import datasets, locks
from recall_lib.store.datasets import DATASETS
from recall_lib.store.digests import EMPTY_DIGEST
from recall_lib.store.tables import Tables

PUBLISHED, STALE, LATE, FAILED, MISSING = "published", "stale", "late", "failed", "missing"
_EVENTS = "events/dt="
_FAILED = ".failed.json"

Manifests = Mapping[str, Mapping[str, Any]]
Table = list[tuple[str, ...]]  # below its head


@dataclass(frozen=True)
class Day:
    """One day, judged by its manifests.

    Attributes:
        manifests: what is published, by publication.
        failure: the record that the last backfill of the day left, if it failed.
        state: published, stale, failed or missing.
        why: which inputs have changed, what is missing, how it failed; empty if it is published.
    """

    manifests: Manifests
    failure: Mapping[str, Any] | None
    state: str
    why: str


class Days:
    """The days of a root, as they are published at the moment this is made."""

    def __init__(self, config: Config) -> None:
        """Reads the events' manifests, and what the last ingestion knew of the log."""
        self.tables, self.config = Tables(config), config
        found = {day: manifest for day in self.tables.days("events") if (manifest := self._manifest("events", day))}
        self.events = {day: manifest["digest"] for day, manifest in found.items()}
        self.events_with_other_settings = log_days.with_other_settings(found, config)
        self.late = log_days.grown(self.tables)

    def of_events(self) -> dict[str, tuple[str, str]]:
        """{day: (state, why)} of the stored days of events that are to be read again: other settings, or late clicks."""
        found = {
            day: (LATE, f"{then} clicks when it was stored, {now} in the log now") for day, (then, now) in self.late.items()
        }
        for day, settings in self.events_with_other_settings.items():
            found[day] = STALE, f"made with other settings: {', '.join(settings)}"
        return dict(sorted(found.items()))

    def known(self) -> list[str]:
        """The days that anything is published for but clicks, or whose backfill failed; ascending."""
        names = [row.name for row in DATASETS.values() if row.job != "events" and row.asked_for(self.config)]
        found = {day for name in names for day in self.tables.days_with_folders(name)}
        notes = [path.rsplit("/dt=", 1)[-1] for path in self.tables.inside("_backfill")]
        return sorted(found | {note.removesuffix(_FAILED) for note in notes if note.endswith(_FAILED)})

    def day(self, dt: str, jobs: Collection[str] | None = None) -> Day:
        """One day, judged by what the named jobs publish (without any: what every day must have)."""
        by_job = datasets.required(self.config)
        ordered = self.config.input.ordering == "time"
        # The clicks of the day itself are no input of its tables where the days are in order: they may be missing.
        needed = [job for job in by_job if (job in jobs if jobs is not None else job != "events" or not ordered)]
        rows = [row for row in DATASETS.values() if row.asked_for(self.config)]
        names = [datasets.name_of(row.name, part) for row in rows for part in row.parts()]
        manifests = {name: found for name in names if (found := self._manifest(name, dt))}
        path = failure_file(self.tables, dt)
        failure = self.tables.read_json(path) if self.tables.fs.exists(path) else None
        required = [name for job in needed for name in by_job[job]]
        others = self.others(manifests, dt)
        state, why = state_of(required, manifests, self.events, dt, failure, ordered, others)
        if state in (PUBLISHED, STALE) and (said := self._made_with(required, manifests)):
            state, why = STALE, "; ".join(filter(None, (why, *said)))
        if state == PUBLISHED and "events" in required and dt in self.late:
            state, why = self.of_events()[dt]
        return Day(manifests, failure, state, why)

    def _made_with(self, required: Sequence[str], manifests: Manifests) -> list[str]:
        """What is to be said of other settings: of the day's tables, and of the events that they were made from."""
        own = {name for table in required for name in self._other_settings(table.split("/")[0], manifests[table])}
        days = {name.removeprefix(_EVENTS) for table in required for name in manifests[table]["inputs"]}
        days &= self.events_with_other_settings.keys()
        of_events = {name for day in days for name in self.events_with_other_settings[day]}
        said = [f"made with other settings: {', '.join(sorted(own))}"] if own else []
        return said + ([f"from events with other settings: {', '.join(sorted(of_events))}"] if of_events else [])

    def _other_settings(self, dataset: str, manifest: Mapping[str, Any]) -> list[str]:
        row = DATASETS[dataset]
        only = (*row.settings, *row.tuning)
        return datasets.other_settings(dataset, manifest["config"], self.config, only=only) if "config" in manifest else []

    def others(self, manifests: Manifests, dt: str) -> dict[str, str]:
        """Digests of what other days have that a day's tables may be made from: {"models/dt=2024-03-03": ...}."""
        model = manifests.get("models", {})
        serving = model.get("serving_dt", dt)
        names = {name for name in model.get("inputs", ()) if "/dt=" in name}
        names |= {f"{dataset}/dt={serving}" for dataset in ("vocab", "models") if serving != dt}
        found = {name: self._manifest(*name.split("/dt=")) for name in names}
        digests = {name: manifest["digest"] for name, manifest in found.items() if manifest}
        # As with clicks: a model older than all that are stored has passed its retention, and changes no more.
        oldest = f"models/dt={min(self.tables.days('models'), default='~')}"
        past = {name: digest for name, digest in model.get("inputs", {}).items() if "models/dt=" <= name < oldest}
        return past | digests

    def _manifest(self, name: str, dt: str) -> Mapping[str, Any] | None:
        """A publication's manifest, None without one."""
        dataset, *rest = name.split("/")
        keys = dict(part.split("=") for part in rest)
        found = self.tables.look(dataset, dt, **keys)
        return found.manifest if found else None


def failure_file(tables: Tables, dt: str) -> str:
    """Where a backfill notes down that a day failed."""
    return f"{tables.root}/_backfill/dt={dt}{_FAILED}"


def state_of(
    required: Sequence[str],
    manifests: Manifests,
    events: Mapping[str, str],
    dt: str,
    failure: Mapping[str, Any] | None,
    ordered: bool = True,
    others: Mapping[str, str] = MappingProxyType({}),
) -> tuple[str, str]:
    """(state, why) of a day.

    Args:
        required: the publications that it must have.
        manifests: those that it has.
        events: digest of every published day of events.
        failure: a failed backfill's record: it counts until everything required has been published after it.
        ordered: whether the days' clicks are in order of time; else each day has a snapshot of its own.
        others: what `Days.others` gives.
    """
    absent = [name for name in required if name not in manifests]
    if failure and (absent or any(manifests[name]["published_at"] <= failure["at"] for name in required)):
        return FAILED, f"exit {failure['code']}: {failure['message']}"
    if absent:
        return MISSING, "" if len(absent) == len(required) else f"without {', '.join(absent)}"
    changed = sorted({name for table in required for name in _changed_inputs(table, manifests, events, dt, ordered, others)})
    return (STALE, f"changed since: {', '.join(changed)}") if changed else (PUBLISHED, "")


def _changed_inputs(
    table: str, manifests: Manifests, events: Mapping[str, str], dt: str, ordered: bool, others: Mapping[str, str]
) -> list[str]:
    """The inputs of a publication that are published otherwise than it knew them, or not at all."""
    manifest = manifests[table]
    now = {_EVENTS + day: digest for day, digest in events.items()}
    now |= {name: other["digest"] for name, other in manifests.items() if name != "events"}
    now |= others
    serving = manifests.get("models", {}).get("serving_dt", dt)
    # With the serving day's model and vocabulary; what no model has part in is of the day's own vocabulary.
    if serving != dt and "models" in datasets.made_from(table.split("/")[0]):
        now |= {name: others.get(f"{name}/dt={serving}", "") for name in ("vocab", "models")}
    then = dict(manifest["inputs"])
    days = {name for name in then if name.startswith(_EVENTS)}
    changed = [name for name, digest in then.items() if now.get(name) != digest]
    if ordered:  # what is older than all stored clicks has passed its retention, and changes no more
        changed = [name for name in changed if not name.startswith(_EVENTS) or name >= _EVENTS + min(events, default="~")]
    if ordered and any(name < _EVENTS + dt for name in days):  # it knows all clicks before dt, or did
        before = {name for name, digest in now.items() if _EVENTS <= name < _EVENTS + dt and digest != EMPTY_DIGEST}
        changed += before - days
    if manifest.get("status") == "pending" and dt in events:
        changed.append(_EVENTS + dt)
    return changed


def main(argv: Sequence[str] | None = None) -> int:
    """`recall status --config F [--dt D]`; returns the exit code."""

    def show(args: argparse.Namespace) -> None:
        days = Days(load_config(args.config, args.overrides))
        for result in details(days, parse_day(args.dt)) if args.dt else overview(days):
            messages.show("status", result)

    return run_command(parser("status", __doc__, "--config", optional=["--dt"]), show, argv)


def overview(days: Days) -> list[str | Table]:
    """A line a day, with what is there and what runs before and after it."""
    running = locks.holders(days.config.paths.root)
    known = sorted({*days.known(), *(name.removeprefix("dt=") for name in running if name.startswith("dt="))})
    clicks = f"{days.tables.root}: {len(days.events)} days of events" + (
        f", {min(days.events)} to {max(days.events)}" if days.events else ""
    )
    rows: Table = [("day", "state", "model", "validation", "test hr@10", "seconds", "note")]
    for dt in known:
        day = days.day(dt)
        note = f"running: {running[f'dt={dt}']}" if f"dt={dt}" in running else day.why
        serving = day.manifests.get("models", {}).get("serving_dt", dt)
        note = "; ".join(filter(None, (f"serves: {serving}" if serving != dt else "", note)))
        rows.append((dt, day.state, *facts(days.tables, dt, day.manifests), note))
    others = [f"{name} is held by {owner}" for name, owner in running.items() if not name.startswith("dt=")]
    if latest := days.tables.latest("models"):
        others.append(f"latest model: {latest['dt']}")
    return [clicks, *events_to_read_again(days), rows if known else "no day is published", *others]


def events_to_read_again(days: Days) -> list[str | Table]:
    """The stored days of events that are late or were read with other settings, and the command that reads them again."""
    found = days.of_events()
    if not found:
        return []
    rows: Table = [("events", "state", "note"), *((day, state, why) for day, (state, why) in found.items())]
    return [rows, "`recall backfill --reprocess stale --start D --end D+1` reads these days of events again, in one pass"]


def facts(tables: Tables, dt: str, manifests: Manifests) -> tuple[str, str, str, str]:
    """Model version, NDCG@10 on validation, HR@10 on test, and seconds of all stages; `-` for what is not known."""
    model = manifests.get("models", {})
    validation = model.get("validation") or {}
    took: dict[str, float] = {}
    for name, manifest in manifests.items():
        # What a job writes in one pass has the seconds of all each; events may have been for other days too.
        job = datasets.job_of(name)
        took[job] = max(took.get(job, 0.0), manifest["seconds"] if job != "events" else 0.0)
    seconds = f"{sum(took.values()):.1f}"
    return model.get("version", "-")[:12], figure(validation.get("ndcg@10")), hit_rate(tables, dt, manifests), seconds


def hit_rate(tables: Tables, dt: str, manifests: Manifests) -> str:
    """HR@10 of the day's model on its test clicks, `pending` until there are any."""
    if "metrics" not in manifests or manifests["metrics"]["status"] == "pending":
        return manifests.get("metrics", {}).get("status", "-")
    metrics = json.loads(tables.fs.cat_file(f"{tables.get('metrics', dt).folder}/metrics.json"))
    return figure(metrics["model"]["hr@10"] if metrics["users"] else None)


def figure(value: float | None) -> str:
    """Four digits, or `-`."""
    return "-" if value is None else f"{value:.4f}"


def details(days: Days, dt: str) -> list[str | Table]:
    """One day: its publications with their inputs, metrics and times."""
    day = days.day(dt)
    lines: list[str | Table] = [f"{dt}: {day.state}" + (f" ({day.why})" if day.why else "")]
    owner = locks.holders(days.config.paths.root).get(f"dt={dt}")
    lines += [f"running now: {owner}"] if owner else []
    rows: Table = [("table", "rows", "seconds", "published (UTC)", "run", "digest", "from")]
    of_other_days = days.others(day.manifests, dt)
    ordered = days.config.input.ordering == "time"
    for name, manifest in sorted(day.manifests.items(), key=lambda found: found[1]["published_at"]):
        changed = _changed_inputs(name, day.manifests, days.events, dt, ordered, of_other_days)
        clicks = [key for key in manifest["inputs"] if key.startswith(_EVENTS)]
        others = [key for key in manifest["inputs"] if key not in clicks]
        source = ([f"{len(clicks)} days of events"] if clicks else []) + others
        at = manifest["published_at"].removesuffix("+00:00").replace("T", " ")
        row = [name, str(manifest.get("rows", "-")), f"{manifest['seconds']:.1f}", at, manifest["run_id"]]
        note = f"; changed since: {', '.join(sorted(changed))}" if changed else ""
        rows.append((*row, manifest["digest"][:12], ", ".join(source) + note))
    if len(rows) > 1:
        lines.append(rows)
        model, validation, test, seconds = facts(days.tables, dt, day.manifests)
        lines.append(f"model {model}, validation ndcg@10 {validation}, test hr@10 {test}, {seconds} s in all")
    if trained := day.manifests.get("models"):
        hit_share = figure((trained.get("validation") or {}).get("hr@10"))
        lines.append(f"init: {trained.get('init', '-')}, validation hr@10 {hit_share}, serves: {trained.get('serving_dt', dt)}")
    return lines
