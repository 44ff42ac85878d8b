"""One run of one day: its config, its tables, and a Spark session that is started at first use."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from recall_lib.config import Config
from recall_lib.process import messages
from recall_lib.process.errors import DataRefused

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession

    from recall_lib.store.publication import Publication
    from recall_lib.store.serving import Serving
    from recall_lib.store.tables import Tables


@dataclass(frozen=True)
class Context:
    """One run of one or more jobs for one day."""

    config: Config
    dt: str
    name: str = "recall"
    run_id: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @cached_property
    def spark(self) -> SparkSession:
        """The Spark session, started at first use."""
        from recall_lib.spark.session import start

        return start(self.config.spark, f"recall {self.name} {self.dt}")

    @cached_property
    def tables(self) -> Tables:
        """The dated tables; Spark is started when a table is first read or written."""
        from recall_lib.store.tables import Tables

        return Tables(self.config, self.run_id, lambda: self.spark)

    @cached_property
    def serving(self) -> Serving:
        """The model and the vocabulary that serve this day (DataRefused if they do not belong together)."""
        from recall_lib.store.serving import serving

        return serving(self.tables, self.dt)

    def days_of_history(self) -> list[Publication]:
        """The days of events that the tables for this day are made from.

        With ordering `time`: all published days before dt. With ordering `position`: the snapshot stored under dt.

        Raises:
            DataRefused: no such day is published, or one was read with other settings than the config has now.
        """
        from recall_lib.day.log_days import require_same_settings

        if self.config.input.ordering == "position":
            return [self.tables.require_settings("events", self.dt)]
        days = [self.tables.get("events", day) for day in self.tables.days("events") if day < self.dt]
        if not days:
            raise DataRefused(
                f"no events before {self.dt} are published: run `recall pipeline --dt {self.dt}`; if the log begins with "
                "that day, choose a later --dt"
            )
        require_same_settings(self.tables, {day.dt: day.manifest for day in days}, self.dt)
        return days

    def history(self) -> tuple[DataFrame, dict[str, str]]:
        """The clicks of `days_of_history`, and each day's digest."""
        from recall_lib.store import schemas
        from recall_lib.store.publication import read_all

        days = self.days_of_history()
        clicks = read_all(days, schemas.events(self.config.features), self.spark)
        return clicks, {day.name: day.digest for day in days}

    def activity(self) -> tuple[DataFrame | None, dict[str, str]]:
        """The other events of the same days (schemas.ACTIVITY) if anything is made of them, and each day's digest.

        Raises:
            DataRefused: a day of events has no activity: it was read before a sequence was added to the config.
        """
        from recall_lib.store import schemas
        from recall_lib.store.publication import read_all

        if not self.config.asks_for_activity:
            return None, {}
        days = [self.tables.get("activity", day.dt) for day in self.days_of_history()]
        return read_all(days, schemas.ACTIVITY, self.spark), {day.name: day.digest for day in days}

    def say(self, text: str) -> None:
        """Print a line of progress."""
        messages.say(self.name, text, dt=self.dt)
