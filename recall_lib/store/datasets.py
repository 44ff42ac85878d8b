"""The datasets, each declared once: the job that makes it, its inputs, the settings that decide it, and how long it is kept.

The following derive from these rows: the order of the jobs, `recall status`, staleness, the tables that a job refuses to read,
`gc`, `forget`, the catalog's tables, and the report's list. A test compares the DAG with them. To add a dataset, add one row
here and one job.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter
from typing import Any, Literal

from recall_lib.config import Config, Feature, TopN, Training

EVERYTHING = ("*",)  # as `inputs`: all other datasets


@dataclass(frozen=True)
class Dataset:
    """One dataset.

    Attributes:
        name: also the name of its folder below the root.
        job: the job that makes it.
        inputs: the datasets that it is made from, of its own day or of other days.
        settings: the settings that decide its content, as `section`, `section.key` or, for every entry of a list,
            `section.list.key`. A job refuses to read the dataset if one of them has changed.
        tuning: settings that decide only how good it is. If one has changed, the dataset is stale, but jobs still read it.
        retention: the setting in section `retention` that says how many days are kept.
        columns: the name of its Parquet files' schema in schemas.py; empty: it has other files.
        key: the name of its further key; empty: a day is one publication.
        values: the values of the further key.
        by_other_jobs: {value of the further key: job}, for the values that another job makes.
        user_column: the column with the user's id; empty: it has no users, or a user cannot be removed from it.
        asked_for: whether every day must have it.
        may_lack: the values of the further key that a day may lack.
    """

    name: str
    job: str
    inputs: tuple[str, ...] = ()
    settings: tuple[str, ...] = ()
    tuning: tuple[str, ...] = ()
    retention: Literal["events_days", "models_days", "tables_days"] = "tables_days"
    columns: str = ""
    key: str = ""
    values: tuple[str, ...] = ()
    by_other_jobs: Mapping[str, str] = field(default_factory=dict)
    user_column: str = ""
    asked_for: Callable[[Config], bool] = lambda _: True
    may_lack: Callable[[Config], tuple[str, ...]] = lambda _: ()

    def parts(self) -> list[dict[str, str]]:
        """The further keys of each publication of a day."""
        return [{self.key: value} for value in self.values] or [{}]

    def job_of(self, keys: Mapping[str, str]) -> str:
        """The job that makes the publications with these further keys."""
        return self.by_other_jobs.get(keys.get(self.key, ""), self.job)

    def required(self, config: Config, job: str) -> list[str]:
        """The names of the publications that a job must make for a day."""
        optional = self.may_lack(config)
        parts = [part for part in self.parts() if self.job_of(part) == job and part.get(self.key) not in optional]
        return [name_of(self.name, part) for part in parts] if self.asked_for(config) else []


def _all_of(section: type[Training | TopN], name: str, *, but: set[str]) -> tuple[str, ...]:
    return tuple(f"{name}.{key}" for key in section.model_fields if key not in but)


# Settings that decide the text of the features' values, and then their ids. Their widths belong to the model.
_TEXT = (
    *(f"features.{kind}.{key}" for kind in ("user", "item") for key in ("name", "column", "multi", "separator")),
    *(f"features.numbers.{key}" for key in ("name", "column")),
)

_IDS = (
    *_TEXT,
    *(f"features.{kind}.{key}" for kind in ("user", "item") for key in ("min_count", "buckets")),
    "features.item_id.min_count",
    *(f"features.numbers.{key}" for key in ("of", "form", "buckets")),
    "features.time.name",
    *(f"features.sequences.{key}" for key in ("name", "column", "events", "tokens", "min_count")),
)
# How clicks are read. Where the log and its tables lie (path, clicks, items, user_table) may change every day.
_CLICKS = tuple(
    f"input.{key}"
    for key in (
        *("format", "file_format", "options", "header", "null_values", "ordering", "time_unit", "time_format"),
        *("timezone", "day_starts_at", "columns", "item_columns.item_id", "item_columns.header", "events"),
    )
)
_ACTIVITY = ("samples.negatives", *(f"features.sequences.{key}" for key in ("name", "column", "events", "tokens")))
_DAY = ("input.timezone", "input.day_starts_at")
_HOLD_OUT = ("input.ordering", *_DAY, "evaluation.protocol", "seed")
_LISTS = ("input.users", *_all_of(TopN, "top_n", but={"user_id_only"}))

_ROWS = (
    Dataset(
        name="events",
        job="events",
        settings=(*_CLICKS, *_TEXT),
        retention="events_days",
        columns="events",
        user_column="user_id",
    ),
    Dataset(
        name="activity",
        job="events",
        settings=(*_CLICKS, *_ACTIVITY),
        retention="events_days",
        columns="ACTIVITY",
        user_column="user_id",
        asked_for=lambda config: config.asks_for_activity,
    ),
    Dataset(
        name="rejects",
        job="events",
        settings=(*_CLICKS, *_TEXT),
        retention="events_days",
        columns="REJECTS",
        user_column="raw",
        asked_for=lambda _: False,
    ),
    Dataset(
        name="vocab",
        job="vocab",
        inputs=("events", "activity"),
        settings=(*_IDS, *_HOLD_OUT, "samples.look_back_days", "input.events.weigh_counts"),
        columns="VOCAB",
        user_column="value",
    ),
    Dataset(
        name="items",
        job="items",
        inputs=("events", "vocab"),
        settings=(*_IDS, *_DAY, "model.recency.half_life_hours", "model.recency.feature"),
        columns="items",
        asked_for=lambda config: config.model.asks_for_items,
    ),
    Dataset(
        name="samples",
        job="samples",
        inputs=("events", "activity", "vocab"),
        settings=(
            *_IDS,
            *_HOLD_OUT,
            "samples",
            "features.sequences.window_size",
            "input.columns.example_age",
            "input.columns.order",
        ),
        columns="segments",
        key="split",
        values=("train", "validation", "test"),
        user_column="user_id",
        # With protocol `day` the test split needs the clicks of dt, which come after the day's other tables. So a day may lack
        # it. The job `metrics` makes it, with the code of the job `samples`, when these clicks have come or have changed.
        may_lack=lambda config: ("test",) if config.evaluation.protocol == "day" else (),
    ),
    Dataset(
        name="models",
        job="train",
        inputs=("samples", "vocab", "items"),
        settings=("features", "samples", "model"),
        # Settings that never make a day stale: how to train (resume, launcher, device), and those that legitimately differ
        # between the days of a chain (init, scratch_every).
        tuning=(
            *_all_of(Training, "training", but={"resume", "launcher", "device", "init", "scratch_every"}),
            "top_n.filter_seen",
            "seed",
        ),
        retention="models_days",
    ),
    Dataset(
        name="vectors",
        job="vectors",
        inputs=("vocab", "models", "items"),
        settings=("input.users",),
        columns="VECTORS",
        key="kind",
        values=("item", "user"),
        by_other_jobs={"user": "top_n"},  # in the pass that also writes the lists
        user_column="user_id",
    ),
    Dataset(
        name="index",
        job="index",
        inputs=("events", "activity", "vocab", "models", "vectors"),
        settings=("index", "top_n.n", "seed", "input.users"),
    ),
    Dataset(
        name="popular",
        job="popular",
        inputs=("events", "vocab"),
        settings=("evaluation.recent_hours", "input.ordering", *_DAY),
        columns="POPULAR",
    ),
    Dataset(
        name="top_n",
        job="top_n",
        inputs=("events", "activity", "vocab", "models", "index", "popular"),
        settings=_LISTS,
        columns="TOP_N",
        user_column="user_id",
    ),
    Dataset(
        name="top_n_user_id",
        job="top_n",
        inputs=("events", "activity", "vocab", "models", "index", "popular"),
        settings=_LISTS,
        columns="TOP_N",
        user_column="user_id",
        asked_for=lambda config: config.top_n.user_id_only,
    ),
    Dataset(
        name="related",
        job="related",
        inputs=("events", "vocab", "index"),
        settings=("top_n.n",),
        columns="RELATED",
    ),
    Dataset(
        name="metrics",
        job="metrics",
        inputs=("samples", "events", "activity", "vocab", "models", "index"),
        settings=("evaluation", "top_n.filter_seen"),
    ),
    Dataset(name="reports", job="report", inputs=EVERYTHING),
)
DATASETS: dict[str, Dataset] = {row.name: row for row in _ROWS}


def name_of(dataset: str, keys: Mapping[str, str]) -> str:
    """The name of one publication of a day, e.g. samples/split=train."""
    return "/".join([dataset, *(f"{key}={value}" for key, value in keys.items())])


def job_of(name: str) -> str:
    """The job that makes the publication of this name."""
    dataset, *keys = name.split("/")
    return DATASETS[dataset].job_of(dict(key.split("=") for key in keys))


def inputs_of(name: str) -> set[str]:
    """The datasets that a dataset is made from directly."""
    inputs = DATASETS[name].inputs
    return set(DATASETS) - {name} if inputs == EVERYTHING else set(inputs)


def made_from(name: str) -> set[str]:
    """The datasets that a dataset is made from, directly and indirectly."""
    direct = inputs_of(name)
    return direct.union(*(made_from(other) for other in direct))


def in_order() -> Iterator[Dataset]:
    """The datasets, each after its inputs, and otherwise in the order of their declaration."""
    sorter = TopologicalSorter({name: inputs_of(name) for name in DATASETS})
    sorter.prepare()
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=list(DATASETS).index)
        sorter.done(ready[0])
        yield DATASETS[ready.pop(0)]


def jobs() -> list[str]:
    """The jobs in the order of the pipeline."""
    return list(dict.fromkeys(row.job for row in in_order()))


def required(config: Config) -> dict[str, tuple[str, ...]]:
    """The names of the publications that a day must have, by job, in the order of the pipeline."""
    rows = list(in_order())
    return {job: tuple(name for row in rows for name in row.required(config, job)) for job in jobs()}


def other_settings(name: str, then: Mapping[str, Any], config: Config, *, only: tuple[str, ...] = ()) -> list[str]:
    """The settings that decide a dataset and have changed since it was made.

    Args:
        name: the dataset.
        then: the `config` in its manifest. A setting that is missing there (an older version of recall) had its default.
        config: the current config.
        only: compare these settings instead of the dataset's `settings`.
    """
    before, now = _complete(then, Config().model_dump(mode="json")), config.model_dump(mode="json")
    parts = {setting: setting.split(".") for setting in only or DATASETS[name].settings}
    return [setting for setting, part in parts.items() if _value(before, part) != _value(now, part)]


def _complete(then: Any, default: Any) -> Any:
    """Settings with defaults for missing ones, and without settings that no longer exist."""
    if isinstance(then, Mapping) and isinstance(default, Mapping):
        return {key: _complete(then[key], value) if key in then else value for key, value in default.items()}
    return then


def _value(settings: Any, names: list[str]) -> Any:
    """The value at a path of names; for a list, the value of each entry; None below a section that is null."""
    if isinstance(settings, list):
        return [_value(_FEATURE | entry, names) for entry in settings] if names else settings
    if not names or settings is None:
        return settings
    return _value(settings.get(names[0]), names[1:])


_FEATURE = Feature(name="any").model_dump(mode="json")
