"""Where a Spark job's time goes, from the session's own book-keeping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tests.benchmarks.common import CORES

_MB = 1e6


@dataclass(frozen=True)
class Stage:
    """One stage: what it moved, in bytes, and the time of its tasks, in seconds."""

    number: int
    tasks: int
    seconds: float
    read: int
    fetched: int
    shuffled: int
    written: int

    def __str__(self) -> str:
        moved = {"read": self.read, "fetch": self.fetched, "shuffle": self.shuffled, "write": self.written}
        said = ", ".join(f"{verb} {size / _MB:.0f} MB" for verb, size in moved.items() if size >= _MB / 2)
        return f"stage {self.number} ({self.tasks} tasks{', ' + said if said else ''})"


def last_stage(spark: Any) -> int:
    """The number of the newest stage, -1 before the first."""
    return max((stage.number for stage in stages_after(spark, -1)), default=-1)


def stages_after(spark: Any, number: int) -> list[Stage]:
    """The stages with a higher number that ran."""
    context = spark.sparkContext
    nothing = context._gateway.new_array(context._jvm.double, 0)
    found = context._jsc.sc().statusStore().stageList(None, False, False, nothing, None)
    stages = []
    for i in range(found.length()):
        stage = found.apply(i)
        if stage.stageId() > number and stage.numCompleteTasks():
            moved = (stage.inputBytes(), stage.shuffleReadBytes(), stage.shuffleWriteBytes(), stage.outputBytes())
            stages.append(Stage(stage.stageId(), stage.numTasks(), stage.executorRunTime() / 1000, *moved))
    return stages


def profile(stages: list[Stage], wall: float, most: int = 8) -> str:
    """The stages that took most, each with its share of the cores' time while the wall clock ran, and what was idle."""
    cores = wall * CORES
    ranked = sorted(stages, key=lambda stage: -stage.seconds)
    said = [f"{stage} {stage.seconds / cores:.0%}" for stage in ranked[:most]]
    others = sum(stage.seconds for stage in ranked[most:])
    rest = 1 - sum(stage.seconds for stage in stages) / cores
    return "; ".join([*said, f"{len(ranked[most:])} other stages {others / cores:.0%}", f"idle {rest:.0%}"])
