"""Every setting, declared once: typed, frozen, with its default, unit and origin.

A config is a YAML file with the sections below plus `--set section.key=value` overrides; an unknown key or a wrong type
is an error. "F" is the fun-rec preset (conf/fun_rec.yaml), "P" the Paddle preset (conf/paddle.yaml).
"""

from __future__ import annotations

import json
from datetime import date, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recall_lib.process.errors import UsageError

# Names with a fixed meaning in the tables; no feature may take them (user_id alone may be both key and feature).
_TABLE_NAMES = {
    "item_id",
    "item",
    "event_ts",
    "position",
    "example_age",
    "dt",
    "split",
    "target",
    "history",
    "negatives",
    "seen",
}
# Columns that the transforms work with. A log's column of such a name is mapped to a feature of another name.
_WORK_NAMES = {"tie", "order", "validates", "is_target", "user", "group", "nth", "from_end", "clicks", "n"}
RESERVED_NAMES = frozenset(_TABLE_NAMES | _WORK_NAMES)
SESSION_USER_COLUMNS = ("user_id", "province", "city", "phone")
SESSION_ITEM_COLUMNS = ("category", "tags")


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and silent type changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Section):
    """Names of the click log's columns (format `rows`)."""

    user_id: str = "user_id"
    item_id: str = "article_id"
    event_ts: str = "expo_time"  # the time, or with ordering `position` an integer counter
    click: str | None = "click"  # 1 = click, 0 = impression; null: every row is a click
    example_age: str | None = None  # days; null: computed from the click's own time


class ItemColumns(Section):
    """Names of the item table's columns."""

    item_id: str = "article_id"
    title: str | None = None


class Input(Section):
    """Where the raw log lies and how it is read."""

    path: str = "."  # root of the raw data
    format: Literal["rows", "sessions"] = "rows"
    clicks: str = "clicks"  # file, folder or glob below `path`; with file_format `table`, a catalog table
    items: str | None = None  # optional item table below `path`, format `rows`
    users: str | None = None  # optional table of the user ids that get a top-N, below `path`
    file_format: Literal["csv", "json", "parquet", "orc", "table"] | None = None  # null: from the files' names
    options: dict[str, str] = {}  # passed to Spark's reader, e.g. {sep: ";"}
    ordering: Literal["time", "position"] = "time"
    time_unit: Literal["s", "ms", "us", "iso"] = "s"  # iso: 2017-10-16 08:00:00, with T and zone allowed, else UTC
    columns: Columns = Columns()
    item_columns: ItemColumns = ItemColumns()
    # Of the rows (lines) of the days that are read; above it the job fails: the mapping is wrong, not the odd row.
    max_reject_share: float = Field(0.5, ge=0, le=1)

    @model_validator(mode="after")
    def _sessions_have_no_clock(self) -> Self:
        if self.format == "sessions" and self.ordering != "position":
            raise ValueError("session lines carry no timestamps: set input.ordering to position")
        return self


class Feature(Section):
    """A categorical feature: its column, vocabulary and embedding."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")  # of the table's column; not ending in _index or _length
    column: str = ""  # column of the log or item table; empty: the name
    min_count: int = Field(20, ge=1)  # rarer values become unknown (P: feat_appear_limit)
    buckets: int | None = Field(None, ge=1)  # hash into this many ids in place of a vocabulary
    dim: int = Field(16, ge=1)  # embedding size

    @property
    def source(self) -> str:
        """Column of the raw log."""
        return self.column or self.name


class ItemFeature(Feature):
    """A feature of items, read in the history of clicks."""

    multi: bool = False  # several values a click
    separator: str = "_"  # between the values of a multi-valued text column


class ItemId(Section):
    """The item id itself: vocabulary and embedding."""

    min_count: int = Field(20, ge=1)
    dim: int = Field(64, ge=1)


class Features(Section):
    """What the model may look at."""

    item_id: ItemId = ItemId()
    user: tuple[Feature, ...] = ()
    item: tuple[ItemFeature, ...] = ()

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        names = [feature.name for feature in (*self.user, *self.item)]
        twice = sorted({name for name in names if names.count(name) > 1})
        taken = {name for name in names if name in RESERVED_NAMES or name.endswith(("_index", "_length"))}
        taken |= {f.name for f in self.item if f.name == "user_id"}
        if twice or taken:
            raise ValueError(f"feature names used twice: {twice}, reserved: {sorted(taken)}")
        return self


class Samples(Section):
    """Windows, subsampling and negatives (SPEC 3)."""

    max_history: int | None = Field(None, ge=1)  # clicks; a user's last ones are kept (F: 50)
    window_size: int = Field(50, ge=1)  # tokens of history before a target (F: 50, P: 20)
    start_token: bool = False  # one unknown before a user's first click (P)
    order: Literal["oldest_first", "newest_first"] = "oldest_first"  # inside a history (P, F)
    subsample_threshold: float | None = Field(None, gt=0)  # t of hot-item subsampling (F: 0.001); null: off
    max_targets_per_user: int | None = Field(None, ge=1)  # active-user cap (F: 30); null: off
    # Vocabulary and training targets are of the clicks of so many days before dt; histories reach further back. null: of all.
    look_back_days: int | None = Field(None, ge=1)
    negatives_per_positive: int = Field(0, ge=0)
    negatives_alpha: float = Field(1.0, ge=0)  # negatives are drawn by count^alpha


class Recency(Section):
    """A prior on items from the clicks before dt, for logs whose right answers are hours old (see transforms/items.py)."""

    half_life_hours: float = Field(0.5, gt=0)  # after which a click counts half
    feature: str | None = None  # of an item, single-valued: how much of the last days' clicks its value has; null: not asked
    weight: float = Field(0.5, ge=0)  # of the model's score beside the prior


class Model(Section):
    """The two towers."""

    encoder: Literal["mean", "lstm", "attention"] = "mean"  # of the history: F mean pooling, P LSTM with max over time
    encoder_dim: int = Field(64, ge=1)  # hidden size of the LSTM; width of attention
    layers: int = Field(2, ge=1)  # attention blocks
    heads: int = Field(2, ge=1)  # of an attention block
    dropout: float = Field(0.0, ge=0, lt=1)  # of attention's inputs and blocks
    # Layer sizes; the last one is the user vector's. Empty: what goes into it is the user vector.
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    output_activation: Literal["relu", "linear"] = "linear"  # of the tower's last layer
    item_output: Literal["tied", "separate"] = "tied"  # F: the history's item table; P: softmax weights of their own
    # What an item's vector is: a row of its own, the sum of its features' mean rows, or both added up.
    item_rows: Literal["own", "content", "both"] = "own"
    item_bias: bool = False  # P: a bias per item, exported as [b, w] against [1, u]
    example_age: bool = False  # the sample's age as a dense input (F); 0 at inference
    embedding_std: float = Field(0.05, gt=0)  # of the normal initialisation (P: 0.001)
    similarity: Literal["inner_product", "cosine"] = "inner_product"  # cosine: vectors L2-normalised at export (F)
    temperature: float | None = Field(None, gt=0)  # trained on cosine / temperature; null: on the inner product
    recency: Recency | None = None  # takes the place of the items' biases in what is exported; null: off

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.similarity == "cosine" and self.item_bias:
            raise ValueError("item_bias has no meaning with similarity cosine")
        if self.similarity == "cosine" and self.recency:
            raise ValueError("recency has no meaning with similarity cosine")
        if self.encoder == "attention" and self.encoder_dim % self.heads:
            raise ValueError("encoder_dim must be a multiple of heads")
        return self

    @property
    def has_bias(self) -> bool:
        """Whether exported vectors begin with the items' biases, [b, w], or the users' 1, [1, u]."""
        return self.item_bias or self.recency is not None

    @property
    def asks_for_items(self) -> bool:
        """Whether items/dt has a part in it."""
        return self.item_rows != "own" or self.recency is not None


class Training(Section):
    """Optimisation and distribution."""

    loss: Literal["sampled_softmax", "nce", "in_batch_softmax", "full_softmax"] = "sampled_softmax"
    negatives: Literal["uniform", "counts", "samples"] = "uniform"  # proposal q; samples: those of samples.negatives_*
    num_negatives: int = Field(5, ge=1)  # drawn per target, ignored by in_batch and full softmax
    alpha: float = Field(1.0, ge=0)  # negatives `counts` follow count^alpha
    # What a batch is made of: `window`: targets in random order, each with its own window; `run`: stretches of users' clicks,
    # each encoded once for all its targets, which see what stands before them in it (up to window_size, less after a cut).
    unit: Literal["window", "run"] = "window"
    batch_size: int = Field(64, ge=1)  # targets per rank and step; with unit `run` about as many
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)  # stops earlier; null: epochs decide
    learning_rate: float = Field(0.001, gt=0)  # Adam
    adam_beta2: float = Field(0.999, gt=0, lt=1)  # of the squared gradients' running mean
    warmup_steps: int = Field(0, ge=0)  # linear, from 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up, down to 0 at the last step
    clip_norm: float | None = Field(None, gt=0)  # of the whole gradient
    # Of the embedding tables. `rows`: only those that a batch looks up are sent between ranks and updated, while Adam's
    # moments of the others stand still.
    gradients: Literal["dense", "rows"] = "dense"
    early_stopping: int | None = Field(None, ge=1)  # epochs without a better validation NDCG@10; null: off
    # Where the ranks run, and what connects them. `process`: one, this process. `local`: processes of this machine; `spark`: an
    # executor each: connected by Horovod where it was built, else by torch.distributed. `horovod` and `torch`: `local`, by this
    # one alone; `spark_torch`: `spark`, by torch.distributed alone.
    launcher: Literal["process", "local", "horovod", "torch", "spark", "spark_torch"] = "process"
    ranks: int = Field(1, ge=1)
    shuffle_row_groups: int = Field(8, ge=1)  # row groups mixed in memory
    resume: bool = True  # from the checkpoint a killed run with the same inputs left
    # What the weights are at first: drawn anew, or those of the model of the day before, carried over by value.
    init: Literal["scratch", "yesterday"] = "scratch"
    yesterday_days: int = Field(1, ge=1)  # with init yesterday: the training targets are of so many days before dt
    scratch_every: int | None = Field(None, ge=1)  # with init yesterday: days whose number it divides start from scratch
    # A model whose validation hr@10 is lower by a larger share than that of the model that serves the day before does not
    # serve: that one goes on. null: every model serves its day.
    max_hr_drop: float | None = Field(None, ge=0, lt=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: bool = False  # matrix products in bfloat16 (on a CPU: where it has units for it), weights in float32

    @model_validator(mode="after")
    def _a_process_is_one_rank(self) -> Self:
        if self.launcher == "process" and self.ranks > 1:
            raise ValueError("training.ranks > 1 needs training.launcher local or spark")
        return self

    @property
    def in_executors(self) -> bool:
        """Whether the ranks run in Spark executors, not on the driver's machine."""
        return self.launcher in ("spark", "spark_torch")

    def starts_from(self, dt: str) -> str | None:
        """The day whose model the training of dt starts from; None: from scratch."""
        day = date.fromisoformat(dt)
        if self.init == "scratch" or (self.scratch_every and day.toordinal() % self.scratch_every == 0):
            return None
        return (day - timedelta(days=1)).isoformat()

    @property
    def needs_the_day_before(self) -> bool:
        """Whether a day's model depends on that of the day before, so that days must be trained in order."""
        return self.init == "yesterday" or self.max_hr_drop is not None


class Index(Section):
    """FAISS."""

    recall_target: float = Field(0.99, gt=0, le=1)  # of the exact top_n.n, on real users: the cheapest index keeps it
    factory: str | None = None  # a FAISS index_factory string in place of that choice; Flat is exact
    nprobe: int | None = Field(None, ge=1)  # lists that an IVF index of this factory visits; null: FAISS's default

    @model_validator(mode="after")
    def _nprobe_is_of_a_factory(self) -> Self:
        if self.nprobe and not self.factory:
            raise ValueError("index.nprobe needs index.factory: without it index.recall_target decides both")
        return self


class TopN(Section):
    """The table that is shipped."""

    n: int = Field(200, ge=1)
    filter_seen: bool = True
    user_id_only: bool = False  # also write top_n_user_id: every other input neutral (P's infer_user)
    # Tables of items below input.path, read as input.items is; their ids stand in the column input.item_columns.item_id.
    # They are read anew each time that lists are made; metrics rank the whole catalogue all the same.
    allow: str | None = None  # nothing else is recommended; null: every item of the vocabulary may be
    deny: str | None = None  # never recommended, e.g. expired or banned, whatever `allow` says


class Evaluation(Section):
    """Hold-out and metrics (SPEC 3.8, 7)."""

    protocol: Literal["last_click", "day"] = "last_click"
    recent_hours: float = Field(24, gt=0)  # window of recent_popular, hours before dt


class Audits(Section):
    """What a table must be like to be published; one that is not ends its job (exit code 3) and leaves the old one."""

    min_clicks: int = Field(0, ge=0)  # of a day of events
    min_user_share: float = Field(1.0, ge=0, le=1)  # users in top_n, of those of the events (or of input.users)
    max_popular_share: float = Field(1.0, ge=0, le=1)  # users in top_n with popular items: the model knows nothing of them
    min_validation_share: float | None = Field(None, gt=0)  # of the last published day's validation hr@10; null: not asked


class Retention(Section):
    """What `recall gc` keeps: as many of the newest days; null: for ever."""

    events_days: int | None = Field(None, ge=1)  # events and rejects: what every later table is made from
    models_days: int | None = Field(None, ge=1)
    tables_days: int | None = Field(None, ge=1)  # everything else


class TablesInCatalog(Section):
    """Tables of Spark's catalog beside the folders."""

    database: str | None = Field(None, pattern=r"^\w+$")  # publish <database>.top_n and the others; null: folders alone


class Paths(Section):
    """Where everything is written."""

    root: str = "build/recall"

    @field_validator("root")
    @classmethod
    def _is_no_pattern(cls, root: str) -> str:
        if set(root) & set("*?[]{}\\"):
            raise ValueError("must hold none of * ? [ ] { } \\, which Spark and fsspec take for patterns")
        return root


class Spark(Section):
    """The Spark session, used when no spark-submit chose otherwise."""

    master: str | None = None  # null: what spark-submit says, else local[*]
    partitions: int = Field(8, ge=1)  # shuffle partitions
    conf: dict[str, str] = {}


class Config(Section):
    """One file of settings, shared by every job."""

    input: Input = Input()
    features: Features = Features()
    samples: Samples = Samples()
    model: Model = Model()
    training: Training = Training()
    index: Index = Index()
    top_n: TopN = TopN()
    evaluation: Evaluation = Evaluation()
    audits: Audits = Audits()
    paths: Paths = Paths()
    tables: TablesInCatalog = TablesInCatalog()
    retention: Retention = Retention()
    spark: Spark = Spark()
    seed: int = 20161003

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        for wrong, message in (*self._faults_of_data(), *self._faults_of_model()):
            if wrong:
                raise ValueError(message)
        return self

    def _faults_of_data(self) -> list[tuple[object, str]]:
        """Settings of different sections that do not fit each other, as (whether this is so, what to say)."""
        sessions, by_position = self.input.format == "sessions", self.input.ordering == "position"
        no_user_field = [f.source for f in self.features.user if f.source not in SESSION_USER_COLUMNS]
        no_item_field = [f.source for f in self.features.item if f.source not in SESSION_ITEM_COLUMNS]
        no_field = "session lines have no field {}; fields for this kind of feature: {}"
        by_day, no_user_id = self.evaluation.protocol == "day", "user_id" not in [f.name for f in self.features.user]
        chained, look_back = self.training.init == "yesterday", self.samples.look_back_days
        too_far = chained and look_back and look_back < self.training.yesterday_days
        no_negatives = self.training.negatives == "samples" and not self.samples.negatives_per_positive
        by_time = "timestamps (input.ordering time)"
        return [
            (sessions and no_user_field, no_field.format(no_user_field, list(SESSION_USER_COLUMNS))),
            (sessions and no_item_field, no_field.format(no_item_field, list(SESSION_ITEM_COLUMNS))),
            (by_position and by_day, f"evaluation.protocol day needs {by_time}"),
            (by_position and (look_back or chained), f"samples.look_back_days and training.init yesterday need {by_time}"),
            (too_far, "training.yesterday_days reaches further back than samples.look_back_days"),
            (no_negatives, "training.negatives samples needs samples.negatives_per_positive > 0"),
            (
                self.top_n.user_id_only and no_user_id,
                "top_n.user_id_only needs user_id among features.user: without it all users get one list",
            ),
        ]

    def _faults_of_model(self) -> list[tuple[object, str]]:
        """The same for model and training."""
        model, training, item_dim = self.model, self.training, self.features.item_id.dim
        width = model.tower[-1] if model.tower else tower_input(self.features, model)
        own_rows, tied = model.item_rows == "own", model.item_output == "tied"
        as_wide = self.features.item and all(f.dim == item_dim for f in self.features.item)
        prior_of = model.recency.feature if model.recency else None
        by_run, one_way = training.unit == "run", model.encoder == "attention" or training.unit == "run"
        least = _STRETCHES * self.samples.window_size
        return [
            (
                training.gradients == "rows" and (training.loss == "full_softmax" or not own_rows),
                "training.gradients rows needs a training.loss other than full_softmax, and model.item_rows own",
            ),
            (
                tied and width != item_dim,
                f"model.item_output tied needs user vectors as wide as features.item_id.dim, not {width}",
            ),
            (
                not own_rows and not (tied and as_wide),
                f"model.item_rows {model.item_rows} needs model.item_output tied, and features.item as wide as "
                "features.item_id",
            ),
            (model.recency and self.input.ordering != "time", "model.recency needs timestamps (input.ordering time)"),
            (
                prior_of and prior_of not in [f.name for f in self.features.item if not f.multi],
                f"model.recency.feature {prior_of!r} is no single-valued feature in features.item",
            ),
            (
                one_way and self.samples.order != "oldest_first",
                "model.encoder attention and training.unit run need samples.order oldest_first",
            ),
            (
                by_run and training.batch_size < least,
                f"training.unit run needs a training.batch_size of at least {_STRETCHES} x samples.window_size",
            ),
        ]

    def target_days(self, dt: str) -> int | None:
        """Of how many days before dt the clicks are training targets; None: of all."""
        return self.training.yesterday_days if self.training.starts_from(dt) else self.samples.look_back_days


# Stretches of clicks that a batch has room for at least: fewer would not fill batches of like size.
_STRETCHES = 4


def tower_input(features: Features, model: Model) -> int:
    """Width of what goes into the tower: the encoded history, the features that stand beside it, the example's age."""
    encoded = features.item_id.dim if model.encoder == "mean" else model.encoder_dim
    beside = (*features.user, *(() if model.encoder == "attention" or model.item_rows != "own" else features.item))
    return encoded + sum(feature.dim for feature in beside) + model.example_age


def parse_day(text: str) -> str:
    """A day `YYYY-MM-DD`, as it was written.

    Raises:
        UsageError: it is not a day of the calendar.
    """
    try:
        if date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise UsageError(f"--dt {text!r} is no day of the calendar: give YYYY-MM-DD")


def load_config(path: str, overrides: list[str] | tuple[str, ...] = ()) -> Config:
    """Read a YAML config and apply `section.key=value` overrides (values are YAML: `8`, `true`, `[64, 8]`).

    Raises:
        UsageError: the file cannot be read, an override is malformed, or the result does not fit the declared settings.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"config {path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise UsageError(f"config {path} must hold sections (key: value), not a {type(raw).__name__}")
    for override in overrides:
        _apply_override(raw, override)
    try:
        # As JSON and strict: 8 is no text, true no number, "8" neither; a YAML date is taken as the text it was.
        return Config.model_validate_json(json.dumps(raw, default=str), strict=True)
    except ValidationError as error:
        problems = "; ".join(_one_line(detail) for detail in error.errors())
        raise UsageError(f"config {path}: {problems}") from None


def _apply_override(raw: dict[str, Any], override: str) -> None:
    key, separator, value = override.partition("=")
    *sections, last = key.strip().split(".")
    if not separator or not last:
        raise UsageError(f"--set {override!r} is not section.key=value")
    node: Any = raw
    for name in sections:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise UsageError(f"--set {override!r}: {name} is not a section")
    try:
        node[last] = yaml.safe_load(value)
    except yaml.YAMLError:
        raise UsageError(f"--set {override!r}: the value is not YAML; quote it") from None


def _one_line(detail: Any) -> str:
    place = ".".join(str(part) for part in detail["loc"])
    if detail["type"] == "extra_forbidden":
        return f"unknown key {place}"
    return f"{place}: {detail['msg']}" if place else str(detail["msg"])
