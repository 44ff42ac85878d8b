"""A process of test_catalog: `publish` serves the metastore and publishes reruns of a day, `poll` reads them meanwhile.

    python -m tests.store.catalog_process publish|poll FOLDER PORT

The two wait for each other by files in FOLDER. What `poll` saw is FOLDER/polls.jsonl.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from pyspark.sql import functions as F

from recall_lib.commands import gc
from recall_lib.commands.forget import forget
from recall_lib.config import Config, Paths, Spark, TablesInCatalog
from recall_lib.spark.session import start
from recall_lib.store import schemas
from recall_lib.store.tables import Tables
from tests.publish import publish
from tests.store import metastore

DT, OTHER = "2024-03-03", "2024-03-04"
RERUNS = 4  # the last one is empty
JVM = "-XX:TieredStopAtLevel=1 -Duser.timezone=UTC"  # lives for seconds: it is started sooner than it would be compiled


def rows_of(version: int) -> int:
    return 0 if version == RERUNS else 1000 + 100 * version


def wait_for(path: Path) -> None:
    for _ in range(2400):
        if path.exists():
            return
        time.sleep(0.05)
    raise TimeoutError(path.name)


def publish_version(tables: Tables, version: int, dt: str = DT) -> None:
    rows = (
        tables.start_spark()
        .range(rows_of(version), numPartitions=3)
        .selectExpr("'all' window", "int(id) rank", "string(id) item_id", f"bigint({version}) count")
    )
    publish(tables, rows, schemas.POPULAR, "popular", dt)


def publish_reruns(spark: Any, config: Config, folder: Path) -> None:
    tables = Tables(config, start_spark=lambda: spark)
    assert tables.catalog
    publish_version(Tables(config.model_copy(update={"tables": TablesInCatalog()}), start_spark=lambda: spark), 0, OTHER)
    publish_version(tables, 0)  # with which the day before is in the catalog too
    (folder / "published").touch()
    wait_for(folder / "reading")
    publish_version(tables, 1)
    (folder / "rerun").touch()
    wait_for(folder / "read")
    for version in range(2, RERUNS + 1):
        publish_version(tables, version)
        time.sleep(0.5)
    (folder / "done").touch()
    assert len(tables.catalog.versions("popular", DT, {})) == 2, "the newest, and the one that may still be read"
    assert spark.read.parquet(f"{config.paths.root}/popular").count() == rows_of(0), "the plain folders hold one version"
    assert spark.table("recall.popular").where(f"dt = '{OTHER}'").count() == rows_of(0)
    both_kinds(spark, tables)
    collect_garbage(tables)


def both_kinds(spark: Any, tables: Tables) -> None:
    """Tables with a second key, and files that lack some of the columns."""
    items = spark.createDataFrame([(2, "i", [0.5])], schemas.ITEM_VECTORS)
    publish(tables, items, schemas.ITEM_VECTORS, "vectors", DT, kind="item")
    publish(
        tables, spark.createDataFrame([("u", [1.0])], schemas.USER_VECTORS), schemas.USER_VECTORS, "vectors", DT, kind="user"
    )
    rows = spark.table("recall.vectors").orderBy("kind").collect()
    assert [tuple(row) for row in rows] == [(None, 2, "i", [0.5], DT, "item"), ("u", None, None, [1.0], DT, "user")]
    assert list(forget(tables, "u")) == [(f"vectors/dt={DT}/kind=user", 1)]
    assert [row["kind"] for row in spark.table("recall.vectors").collect()] == ["item"]
    assert tables.catalog
    assert len(tables.catalog.versions("vectors", DT, {"kind": "user"})) == 1, "no version has the user"


def collect_garbage(tables: Tables) -> None:
    """gc keeps what the catalog points to, and takes days that go out of their table."""
    catalog = tables.catalog
    assert catalog
    assert list(gc.garbage(tables)) == []
    for path in [one for folder in catalog.versions("popular", DT, {}) for one in (*tables.fs.find(folder), folder)]:
        os.utime(path, (0, 0))
    old = list(gc.garbage(tables))
    assert [item.path for item in old] == sorted({*catalog.versions("popular", DT, {})} - {catalog.location("popular", DT, {})})
    for item in [*old, *gc.garbage(tables, keep_days=1)]:
        if tables.fs.exists(item.path):
            gc.remove(tables, item)
    table = tables.start_spark().table("recall.popular")
    assert [row["dt"] for row in table.select("dt").distinct().collect()] == [OTHER]
    assert table.count() == rows_of(0)
    assert not catalog.versions("popular", DT, {})


def poll(spark: Any, config: Config, folder: Path) -> None:
    day = spark.table("recall.popular").where(f"dt = '{DT}'")
    held = day.rdd
    held.getNumPartitions()  # lists the files, and reads them later
    (folder / "reading").touch()
    wait_for(folder / "rerun")
    assert held.map(lambda row: row["count"]).collect() == [0] * rows_of(0), (
        "who began before the swap ends with the old version"
    )
    (folder / "read").touch()
    with (folder / "polls.jsonl").open("w") as polls:
        last = False
        while not last:
            last = (folder / "done").exists()
            day = spark.table("recall.popular").where(f"dt = '{DT}'")
            row = day.agg(F.count(F.lit(1)), F.min("count"), F.max("count"), F.countDistinct("item_id")).first()
            polls.write(json.dumps(list(row)) + "\n")


if __name__ == "__main__":
    role, work, port = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    conf = metastore.client_conf(port, work) | {"spark.driver.memory": "700m", "spark.driver.extraJavaOptions": JVM}
    settings = Config(
        paths=Paths(root=f"{work}/root"),
        tables=TablesInCatalog(database="recall"),
        spark=Spark(master="local[1]", partitions=1, conf=conf),
    )
    if role == "poll":
        wait_for(work / "published")
    session = start(settings.spark, role)
    if role == "publish":
        metastore.serve(session, port, work)
    {"publish": publish_reruns, "poll": poll}[role](session, settings, work)
    session.stop()
