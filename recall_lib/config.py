"""Every setting, declared once: typed, frozen, with its default, unit and origin.

A config is a YAML file with the sections below, plus `--set section.key=value` overrides. An unknown key or a wrong type is an
error. "F" is the fun-rec preset (conf/fun_rec.yaml), "P" is the Paddle preset (conf/paddle.yaml).
"""

from __future__ import annotations

import json
import re
from datetime import UTC, date, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from recall_lib.process.errors import UsageError

# Names with a fixed meaning in the tables. No feature may have one of them; only user_id may be both a key and a feature.
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
    "weight",
    "impressions",
}
# Columns that the transforms add to clicks. If a log's column has one of these names, map it to a feature with another name.
# Temporary columns have names like `_nth`, which no feature can have.
_ADDED_NAMES = {"tie", "order", "validates", "is_target"}
RESERVED_NAMES = frozenset(_TABLE_NAMES | _ADDED_NAMES)
_SUFFIXES = ("_index", "_length", "_value", "_seen")  # of the samples' columns
SESSION_USER_COLUMNS = ("user_id", "province", "city", "phone")
SESSION_ITEM_COLUMNS = ("category", "tags")


class Section(BaseModel):
    """A frozen group of settings that refuses unknown keys and silent type changes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Columns(Section):
    """Names of the click log's columns (format `rows`)."""

    user_id: str = "user_id"
    item_id: str = "article_id"
    event_ts: str = "expo_time"  # the time; with ordering `position` an integer counter
    click: str | None = "click"  # 1 = click, 0 = impression; null: every row is a click
    example_age: str | None = None  # days; null: computed from the click's time
    order: str | None = None  # an integer that orders a user's clicks of one time; null: the item ids do


class ItemColumns(Section):
    """Names of the item table's columns."""

    item_id: str = "article_id"
    title: str | None = None
    header: tuple[str, ...] | None = None  # the columns of an item table without a header line (CSV); null: it has one


# Values that stand for nothing; blank ones do too.
NULL_VALUES = ("", "NULL", "null", "nan", "NaN", "None", "<NA>", "\\N")
# Spark's names of the options that are read, in lower case. A table ignores those of other formats.
OPTIONS = {
    "csv": ("sep", "delimiter", "quote", "escape", "encoding", "charset", "multiline", "comment", "nullvalue"),
    "json": ("encoding", "charset", "multiline", "nullvalue"),
    "sessions": ("encoding", "charset"),
    "parquet": ("mergeschema", "nullvalue"),  # columns are always read by name
    "orc": ("mergeschema", "nullvalue"),
    "table": ("nullvalue",),
}
# What is often meant by names that are no zone of the IANA's list, or that ignore summer time.
_ZONES = {
    "EST": "America/New_York",
    "EDT": "America/New_York",
    "CST": "America/Chicago or Asia/Shanghai",
    "CDT": "America/Chicago",
    "MST": "America/Denver",
    "PST": "America/Los_Angeles",
    "PDT": "America/Los_Angeles",
    "GMT": "UTC or Europe/London",
    "BST": "Europe/London",
    "CET": "Europe/Paris",
    "CEST": "Europe/Paris",
    "EET": "Europe/Athens",
    "MSK": "Europe/Moscow",
    "IST": "Asia/Kolkata",
    "JST": "Asia/Tokyo",
    "KST": "Asia/Seoul",
}


class Events(Section):
    """What the rows of a log are that holds more than clicks."""

    column: str  # of the log, with the kind of each row, e.g. behaviour
    click: tuple[str, ...] = Field(min_length=1)  # the kinds that are clicks, e.g. [view, buy]
    impressions: tuple[str, ...] = ()  # the kinds that show an item
    weights: dict[str, Annotated[float, Field(gt=0)]] = {}  # of kinds of clicks in the loss; 1 for the others
    weigh_counts: bool = False  # whether the vocabulary's counts are sums of these weights


class Input(Section):
    """Where the raw log lies and how it is read."""

    path: str = "."  # root of the raw data
    format: Literal["rows", "sessions"] = "rows"
    clicks: str = "clicks"  # file, folder or glob below `path`; with file_format `table`, a catalog table
    items: str | None = None  # optional item table below `path`, format `rows`
    users: str | None = None  # optional table of the user ids that get a top-N, below `path`
    # Optional table of users' features below `path`, by columns.user_id; a day's clicks get what it says when they are read.
    user_table: str | None = None
    events: Events | None = None  # for a log of several kinds of events; null: columns.click tells clicks and impressions
    file_format: Literal["csv", "json", "parquet", "orc", "table"] | None = None  # null: the files' names show it
    options: dict[str, str] = {}  # how text files are written, by Spark's names, e.g. {sep: ";", encoding: GBK}
    header: tuple[str, ...] | None = None  # the columns of a click log without a header line (CSV); null: it has one
    null_values: tuple[str, ...] = NULL_VALUES  # texts that mean "no value" in ids and features; blank ones always do
    ordering: Literal["time", "position"] = "time"
    time_unit: Literal["s", "ms", "us", "ns", "iso"] = "s"  # iso: 2017-10-16 08:00:00; T and a zone are allowed
    time_format: str | None = None  # a pattern in place of time_unit, e.g. "%d/%b/%Y:%H:%M:%S %z"
    timezone: str = "UTC"  # of times without a zone, and of the day; a name of the IANA's list, e.g. Europe/Berlin
    day_starts_at: str = Field("00:00", pattern=r"^([01]\d|2[0-3]):[0-5]\d$")  # when a day `dt` begins in this zone
    columns: Columns = Columns()
    item_columns: ItemColumns = ItemColumns()
    # A day is complete once the log holds a tenth of a usual day's clicks in this many days after it. What is later says
    # nothing: clocks may be wrong.
    slack_days: int = Field(7, ge=1)
    late_days: int = Field(0, ge=0)  # so many stored days before dt are read again if they have more clicks in the log by now
    # Share of the rows (lines) of the days that are read. With more rejects the job fails: then the mapping is probably wrong.
    max_reject_share: float = Field(0.5, ge=0, le=1)

    @field_validator("timezone")
    @classmethod
    def _is_a_zone(cls, name: str) -> str:
        meant = _ZONES.get(name.upper(), "a name such as Europe/Berlin")
        if name != "UTC" and "/" not in name:
            raise ValueError(f"{name!r} is not a name of the IANA's list: use {meant}")
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(f"{name!r} is not a name of the IANA's list: use {meant}") from None
        return name

    @field_validator("time_format")
    @classmethod
    def _is_a_pattern(cls, pattern: str | None) -> str | None:
        if pattern is not None and not re.search(r"%[A-Za-z]", pattern):
            raise ValueError(f'{pattern!r} has no % directive: write it as in Python, e.g. "%Y-%m-%d %H:%M:%S"')
        return pattern

    @field_validator("options")
    @classmethod
    def _are_read(cls, options: dict[str, str]) -> dict[str, str]:
        read = sorted({name for names in OPTIONS.values() for name in names})
        strange = sorted(name for name in options if name.lower() not in read)
        if "header" in map(str.lower, options):
            raise ValueError("name the columns of a log without a header in input.header: input.options has no header")
        if strange:
            raise ValueError(f"{strange} are not read; these are: {', '.join(read)}")
        return options

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        if self.format == "sessions" and self.ordering != "position":
            raise ValueError("session lines carry no timestamps: set input.ordering to position")
        if self.format == "sessions" and self.header:
            raise ValueError("session lines have no header: remove input.header")
        if self.time_format and "time_unit" in self.model_fields_set:
            raise ValueError("time_format replaces time_unit: set one of them")
        if self.events and self.columns.click and "click" in self.columns.model_fields_set:
            raise ValueError("events replaces columns.click: set one of them")
        if self.events and (strange := sorted(set(self.events.weights) - set(self.events.click))):
            raise ValueError(f"events.weights names {strange}, which are not in events.click")
        if self.events and self.events.weigh_counts and not self.events.weights:
            raise ValueError("events.weigh_counts needs events.weights")
        if self.columns.order and self.ordering == "position":
            raise ValueError("columns.order breaks ties of times: with ordering position columns.event_ts is the order")
        return self

    @property
    def option(self) -> dict[str, str]:
        """`options` by their names in lower case; Spark does not tell them apart."""
        return {name.lower(): value for name, value in self.options.items()}

    @property
    def nulls(self) -> list[str]:
        """The texts that stand for no value."""
        return [*self.null_values, *filter(None, [self.option.get("nullvalue")])]

    @property
    def day_is_utc(self) -> bool:
        """Whether days begin at 00:00 UTC."""
        return self.timezone == "UTC" and self.day_starts_at == "00:00"

    def day_begins(self, dt: str) -> int:
        """µs since 1970 UTC at which the day dt begins: the clicks before this moment are the clicks before dt."""
        zone = UTC if self.timezone == "UTC" else ZoneInfo(self.timezone)
        begin = datetime.combine(date.fromisoformat(dt), time.fromisoformat(self.day_starts_at), zone)
        return int(begin.timestamp()) * 1_000_000


class Named(Section):
    """Something of the log that the model reads."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]*$")  # of the tables' column


class Feature(Named):
    """A categorical feature: its column, vocabulary and embedding."""

    column: str = ""  # column of the log, item table or user table; empty: the name
    min_count: int = Field(20, ge=1)  # rarer values become unknown (P: feat_appear_limit)
    buckets: int | None = Field(None, ge=1)  # hash values into this many ids; null: use a vocabulary
    dim: int = Field(16, ge=1)  # embedding size
    multi: bool = False  # several values; the model uses their mean
    separator: str = "_"  # between the values of a multi-valued text column

    @property
    def source(self) -> str:
        """Column of the raw log."""
        return self.column or self.name


class Number(Named):
    """A numeric feature. What is unknown has an input of its own, or with `buckets` the id unknown.

    `quantiles`: the value's place among the training clicks' percentiles, in [0, 1], with its square and its root (paper,
    section 4.1). `buckets`: an embedding of the equally filled bucket that the value is in. `raw`: the value as it is (F).
    """

    column: str = ""  # column of the log, item table or user table; empty: the name
    of: Literal["user", "item"] = "user"  # user: the value at the target's click, at inference that of the newest click
    form: Literal["quantiles", "buckets", "raw"] = "quantiles"
    buckets: int = Field(10, ge=2, le=100)
    dim: int = Field(8, ge=1)  # embedding size of a bucket

    multi: ClassVar[bool] = False

    @property
    def source(self) -> str:
        """Column of the raw log."""
        return self.column or self.name

    @property
    def width(self) -> int:
        """Number of inputs of the model, unless the form is `buckets`."""
        return 4 if self.form == "quantiles" else 2


class TimeFeature(Named):
    """The target's hour of day or day of the week. At inference it is that of the moment at which dt begins."""

    name: Literal["hour", "weekday"]
    dim: int = Field(8, ge=1)  # embedding size

    multi: ClassVar[bool] = False

    @property
    def values(self) -> int:
        """Number of different values."""
        return {"hour": 24, "weekday": 7}[self.name]


class Sequence(Named):
    """A further sequence of what a user did before the target, such as searches; the paper treats each sequence alike."""

    events: tuple[str, ...] = ()  # kinds of events (input.events.column) that form it; empty: the clicks
    column: str = ""  # of the log; empty: the name
    # `value`: the column's text is one token. `words`: its words and its pairs of neighbouring words are tokens (paper).
    tokens: Literal["value", "words"] = "value"
    window_size: int = Field(50, ge=1)  # events before the target
    min_count: int = Field(20, ge=1)  # rarer tokens become unknown
    dim: int = Field(16, ge=1)  # embedding size
    pooling: Literal["mean", "encoder"] = "mean"  # of all tokens; encoder: an encoder like the history's reads them in order

    @property
    def source(self) -> str:
        """Column of the raw log."""
        return self.column or self.name

    @model_validator(mode="after")
    def _encoders_read_single_tokens(self) -> Self:
        if self.pooling == "encoder" and self.tokens == "words":
            raise ValueError("pooling encoder needs tokens value: an event of several tokens has no place in an order")
        return self


class ItemId(Section):
    """The item id itself: vocabulary and embedding."""

    min_count: int = Field(20, ge=1)
    dim: int = Field(64, ge=1)


class Features(Section):
    """The features that the model uses."""

    item_id: ItemId = ItemId()
    user: tuple[Feature, ...] = ()
    item: tuple[Feature, ...] = ()  # read with each click of the history
    numbers: tuple[Number, ...] = ()
    time: tuple[TimeFeature, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    weighted: bool = False  # whether each click has a weight in the loss; `load_config` sets it for input.events.weights

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        names = [feature.name for feature in (*self.user, *self.item, *self.numbers, *self.time, *self.sequences)]
        twice = sorted({name for name in names if names.count(name) > 1})
        taken = {name for name in names if name in RESERVED_NAMES or name.endswith(_SUFFIXES)}
        taken |= {name for name in names if name == "user_id"} - {f.name for f in self.user if not f.multi}
        if twice or taken:
            raise ValueError(f"feature names used twice: {twice}, reserved: {sorted(taken)}")
        return self

    # Below, the features by what the model is given for them, whatever they are made from.

    @property
    def target_ids(self) -> tuple[Feature | Number | TimeFeature, ...]:
        """The features with ids of each target."""
        return (*self.user, *self.time, *(n for n in self.numbers if n.of == "user" and n.form == "buckets"))

    @property
    def token_ids(self) -> tuple[Feature | Number, ...]:
        """The features with ids of each token of the history."""
        return (*self.item, *(n for n in self.numbers if n.of == "item" and n.form == "buckets"))

    @property
    def target_numbers(self) -> tuple[Number, ...]:
        """The features with a number of each target."""
        return tuple(n for n in self.numbers if n.of == "user" and n.form != "buckets")

    @property
    def token_numbers(self) -> tuple[Number, ...]:
        """The features with a number of each token of the history."""
        return tuple(n for n in self.numbers if n.of == "item" and n.form != "buckets")


class Samples(Section):
    """Windows, subsampling and negatives (SPEC 3)."""

    max_history: int | None = Field(None, ge=1)  # clicks; a user's last ones are kept (F: 50); null: all
    window_size: int = Field(50, ge=1)  # tokens of history before a target (F: 50, P: 20)
    start_token: bool = False  # put one unknown item before a user's first click (P)
    order: Literal["oldest_first", "newest_first"] = "oldest_first"  # inside a history (P, F)
    subsample_threshold: float | None = Field(None, gt=0)  # t of hot-item subsampling (F: 0.001); null: off
    max_targets_per_user: int | None = Field(None, ge=1)  # active-user cap (F: 30); null: off
    # Vocabulary and training targets come from the clicks of this many days before dt; histories reach further back. null: all.
    look_back_days: int | None = Field(None, ge=1)
    # `impressions`: the last items that the user was shown before the target and since the click before it; the rest is drawn.
    negatives: Literal["drawn", "impressions"] = "drawn"
    negatives_per_positive: int = Field(0, ge=0)
    negatives_alpha: float = Field(1.0, ge=0)  # negatives are drawn by count^alpha


class Recency(Section):
    """A prior on items from the clicks before dt, for logs whose right answers are hours old (see transforms/items.py)."""

    half_life_hours: float = Field(0.5, gt=0)  # a click counts half after this time
    feature: str | None = None  # a single-valued item feature; its value's share of the last days' clicks counts; null: off
    weight: float = Field(0.5, ge=0)  # of the model's score, which is added to the prior


class Model(Section):
    """The two towers."""

    encoder: Literal["mean", "lstm", "attention"] = "mean"  # of the history: F mean pooling, P LSTM with max over time
    encoder_dim: int = Field(64, ge=1)  # hidden size of the LSTM; width of attention
    layers: int = Field(2, ge=1)  # attention blocks
    heads: int = Field(2, ge=1)  # heads of an attention block
    dropout: float = Field(0.0, ge=0, lt=1)  # of attention's inputs and blocks
    # Layer sizes; the last one is the size of the user vector. Empty: the tower's input is the user vector.
    tower: tuple[Annotated[int, Field(ge=1)], ...] = (64, 64)
    output_activation: Literal["relu", "linear"] = "linear"  # of the tower's last layer
    item_output: Literal["tied", "separate"] = "tied"  # F: the history's item table; P: separate softmax weights
    # An item's vector: a row of its own, the sum of its features' mean rows, or both added.
    item_rows: Literal["own", "content", "both"] = "own"
    item_bias: bool = False  # P: a bias per item; the exported vectors are [b, w] for items and [1, u] for users
    example_age: bool = False  # the sample's age as a dense input (F); 0 at inference
    embedding_std: float = Field(0.05, gt=0)  # of the normal initialisation (P: 0.001)
    similarity: Literal["inner_product", "cosine"] = "inner_product"  # cosine: vectors L2-normalised at export (F)
    temperature: float | None = Field(None, gt=0)  # train on cosine / temperature; null: on the inner product
    recency: Recency | None = None  # replaces the items' biases in the exported vectors; null: off

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
        """Whether exported vectors begin with a bias: [b, w] for items and [1, u] for users."""
        return self.item_bias or self.recency is not None

    @property
    def asks_for_items(self) -> bool:
        """Whether the model needs items/dt."""
        return self.item_rows != "own" or self.recency is not None


class Training(Section):
    """Optimisation and distribution."""

    loss: Literal["sampled_softmax", "nce", "in_batch_softmax", "full_softmax"] = "sampled_softmax"
    negatives: Literal["uniform", "counts", "samples"] = "uniform"  # proposal q; samples: drawn by samples.negatives_*
    num_negatives: int = Field(5, ge=1)  # drawn per target; not used by in_batch_softmax and full_softmax
    alpha: float = Field(1.0, ge=0)  # negatives `counts` are drawn by count^alpha
    # The content of a batch. `window`: targets in random order, each with its own window. `run`: stretches of users' clicks.
    # Each stretch is encoded once for all its targets, and a target sees the clicks before it in the stretch: up to
    # window_size, and fewer right after the place where a user's clicks were cut into stretches.
    unit: Literal["window", "run"] = "window"
    batch_size: int = Field(64, ge=1)  # targets per rank and step; with unit `run` approximately
    epochs: int = Field(1, ge=1)
    max_steps: int | None = Field(None, ge=1)  # stop after this many steps; null: after all epochs
    learning_rate: float = Field(0.001, gt=0)  # Adam
    adam_beta2: float = Field(0.999, gt=0, lt=1)  # of the squared gradients' running mean
    warmup_steps: int = Field(0, ge=0)  # the learning rate rises linearly from 0
    schedule: Literal["constant", "linear", "cosine"] = "constant"  # after the warm-up; linear and cosine fall to 0
    clip_norm: float | None = Field(None, gt=0)  # largest norm of the whole gradient; null: off
    # Gradients of the embedding tables. `rows`: only the rows that a batch looks up are sent between ranks and updated;
    # Adam's moments of the other rows do not change.
    gradients: Literal["dense", "rows"] = "dense"
    early_stopping: int | None = Field(None, ge=1)  # epochs without a better validation NDCG@10; null: off
    # Where the ranks run, and what connects them. `process`: one rank, in this process. `local`: several processes on this
    # machine. `spark`: one executor per rank. Horovod connects the ranks if it was built, otherwise torch.distributed.
    # `horovod` and `torch` are `local` with that library only; `spark_torch` is `spark` with torch.distributed only.
    launcher: Literal["process", "local", "horovod", "torch", "spark", "spark_torch"] = "process"
    ranks: int = Field(1, ge=1)
    shuffle_row_groups: int = Field(8, ge=1)  # row groups that are shuffled together in memory
    resume: bool = True  # resume from the checkpoint of an interrupted run with the same inputs
    # The initial weights: drawn at random, or those of the previous day's model, where a row moves with its value.
    init: Literal["scratch", "yesterday"] = "scratch"
    yesterday_days: int = Field(1, ge=1)  # with init yesterday: training targets come from this many days before dt
    scratch_every: int | None = Field(None, ge=1)  # with init yesterday: a day whose ordinal it divides starts from scratch
    # If a model's validation hr@10 is lower than that of the model that serves the last published day, by more than this share,
    # the new model does not serve its day; the earlier model goes on. null: every model serves its day.
    max_hr_drop: float | None = Field(None, ge=0, lt=1)
    device: Literal["auto", "cpu", "cuda"] = "auto"
    mixed_precision: bool = False  # matrix products in bfloat16 (on a CPU only if it supports that); weights stay float32

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
        """The day whose model the training of dt starts from; None if it starts from scratch."""
        day = date.fromisoformat(dt)
        if self.init == "scratch" or (self.scratch_every and day.toordinal() % self.scratch_every == 0):
            return None
        return (day - timedelta(days=1)).isoformat()

    @property
    def needs_the_day_before(self) -> bool:
        """Whether a day's model depends on the previous day's model, so that days must be trained in order."""
        return self.init == "yesterday" or self.max_hr_drop is not None


class Index(Section):
    """The FAISS index."""

    # The cheapest index that finds at least this share of the exact top_n.n, measured on real users, is chosen.
    recall_target: float = Field(0.99, gt=0, le=1)
    factory: str | None = None  # a FAISS index_factory string that replaces this choice; Flat is exact
    nprobe: int | None = Field(None, ge=1)  # lists that an IVF index of `factory` visits; null: FAISS's default

    @model_validator(mode="after")
    def _nprobe_is_of_a_factory(self) -> Self:
        if self.nprobe and not self.factory:
            raise ValueError("index.nprobe needs index.factory: without it index.recall_target decides both")
        return self


class TopN(Section):
    """The top-N table."""

    n: int = Field(200, ge=1)
    filter_seen: bool = True
    user_id_only: bool = False  # also write top_n_user_id: all inputs except the user id are neutral (P's infer_user)
    # Tables of items below input.path, read like input.items; the ids are in the column input.item_columns.item_id. They are
    # read again each time that lists are made. Metrics always rank the whole catalogue.
    allow: str | None = None  # only these items may be recommended; null: every item of the vocabulary
    deny: str | None = None  # these items are never recommended, e.g. expired or banned ones, even if `allow` has them


class Evaluation(Section):
    """Hold-out and metrics (SPEC 3.8, 7)."""

    protocol: Literal["last_click", "day"] = "last_click"
    recent_hours: float = Field(24, gt=0)  # recent_popular counts the clicks of this many hours before dt


class Audits(Section):
    """Limits that a table must keep to be published. If it fails one, its job fails (exit code 3) and the old table stays."""

    min_clicks: int = Field(0, ge=0)  # clicks per day of events
    min_user_share: float = Field(1.0, ge=0, le=1)  # share of the users of the events (or of input.users) that top_n must have
    max_popular_share: float = Field(1.0, ge=0, le=1)  # share of the users in top_n that get popular items, not the model's
    # A model's validation hr@10, as a share of that of the last published day before; null: not checked.
    min_validation_share: float | None = Field(None, gt=0)


class Retention(Section):
    """How many of the newest days `recall gc` keeps; null: all."""

    events_days: int | None = Field(None, ge=1)  # events and rejects; all other tables are made from events
    models_days: int | None = Field(None, ge=1)
    tables_days: int | None = Field(None, ge=1)  # everything else


class TablesInCatalog(Section):
    """Tables in Spark's catalog, in addition to the folders."""

    database: str | None = Field(None, pattern=r"^\w+$")  # also publish tables such as <database>.top_n; null: folders only


class Paths(Section):
    """Where everything is written."""

    root: str = "build/recall"

    @field_validator("root")
    @classmethod
    def _is_no_pattern(cls, root: str) -> str:
        if set(root) & set("*?[]{}\\"):
            raise ValueError("must not contain * ? [ ] { } \\, which Spark and fsspec treat as patterns")
        return root


class Spark(Section):
    """The Spark session."""

    master: str | None = None  # null: the master of spark-submit, else local[*]
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

    @property
    def asks_for_activity(self) -> bool:
        """Whether anything is made of events that are not clicks."""
        return bool(self.features.sequences) or self.samples.negatives == "impressions"

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
        more = self.features.numbers or self.features.sequences or any(f.multi for f in self.features.user) or self.input.events
        kinds = {kind for sequence in self.features.sequences for kind in sequence.events}
        shown = self.samples.negatives == "impressions"
        no_impressions = shown and not (self.input.events.impressions if self.input.events else self.input.columns.click)
        return [
            (
                sessions and (more or shown),
                "session lines hold only clicks: numbers, sequences and events need input.format rows",
            ),
            (
                kinds and not self.input.events,
                "features.sequences.events needs input.events with the column of the kinds",
            ),
            (no_impressions, "samples.negatives impressions needs input.events.impressions or input.columns.click"),
            (
                shown and not self.samples.negatives_per_positive,
                "samples.negatives impressions needs negatives_per_positive > 0",
            ),
            (by_position and self.features.time, f"features.time needs {by_time}"),
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
        as_wide = self.features.token_ids and all(f.dim == item_dim for f in self.features.token_ids)
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
        """The number of days before dt whose clicks are training targets; None: all days."""
        return self.training.yesterday_days if self.training.starts_from(dt) else self.samples.look_back_days


# A batch must have room for at least this many stretches of clicks; with fewer, batches would differ too much in size.
_STRETCHES = 4


def tower_input(features: Features, model: Model) -> int:
    """Width of the tower's input: the encoded history, the features concatenated to it, and the example's age."""
    encoded = features.item_id.dim if model.encoder == "mean" else model.encoder_dim
    width = encoded + sum(f.dim for f in features.target_ids) + sum(n.width for n in features.target_numbers)
    width += sum(s.dim if s.pooling == "mean" or model.encoder == "mean" else model.encoder_dim for s in features.sequences)
    if model.encoder != "attention" and model.item_rows == "own":  # otherwise the encoder reads them
        width += sum(f.dim for f in features.token_ids) + sum(n.width for n in features.token_numbers)
    return width + model.example_age


def parse_day(text: str) -> str:
    """Check that a text is a day, YYYY-MM-DD, and return it.

    Raises:
        UsageError: it is not a day of the calendar.
    """
    try:
        if date.fromisoformat(text).isoformat() == text:
            return text
    except ValueError:
        pass
    raise UsageError(f"--dt {text!r} is not a day of the calendar: give YYYY-MM-DD")


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
    section = raw.get("input")
    events = section.get("events") if isinstance(section, dict) else None
    if isinstance(events, dict) and events.get("weights"):
        _apply_override(raw, "features.weighted=true")
    try:
        # As JSON, in strict mode: 8 is not a text, and neither true nor "8" is a number. A YAML date becomes its text again.
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
