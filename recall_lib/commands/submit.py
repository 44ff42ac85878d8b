"""Print the spark-submit command for a job on a standalone, YARN or Kubernetes cluster.

    recall submit --to yarn --job top_n --config conf/globo.yaml --dt 2017-10-16 \\
        --set paths.root=/data/recall | bash

Nothing is started. Read the command, pipe it into bash, or give it to a scheduler. For standalone
and YARN clusters it sends build/dist/recall.zip and build/dist/environment.tar.gz, which
`python deploy/pack.py` makes. On Kubernetes the image contains both, and the command runs in the
driver's pod (deploy/driver_pod.yaml). deploy/RUNBOOK.md says which sizes to give.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from recall_lib import __version__
from recall_lib.commands.cli import JOBS
from recall_lib.config import Config, load_config, parse_day
from recall_lib.process import messages
from recall_lib.process.command import parser, run_command
from recall_lib.process.errors import UsageError

ROOT = Path(__file__).resolve().parents[2]
_CORES = 4  # of an executor
# Where every executor unpacks the environment: in its working directory.
_SHIPPED_PYTHON = "./environment/bin/python"

# For every cluster. What the session itself sets (recall_lib/spark/session.py) is not repeated here.
_COMMON = {
    "spark.driver.memory": "4g",  # only here: the driver's JVM runs before any config is read
    "spark.driver.maxResultSize": "2g",  # rank 0's model comes back as a task's result; 2 GiB is what a JVM array can hold
    "spark.driver.extraJavaOptions": "-Duser.timezone=UTC",
    "spark.executor.extraJavaOptions": "-Duser.timezone=UTC",
    "spark.executor.cores": str(_CORES),
    "spark.executor.memory": "4g",  # the JVM's heap: shuffles and Parquet
    # Python's share, which Spark's default (a tenth of the heap) starves: 1 GiB a core of Arrow, NumPy and torch,
    # and 2 GiB of models and indexes, of which each of an executor's Python workers loads its own.
    "spark.executor.memoryOverhead": f"{_CORES + 2}g",
    "spark.dynamicAllocation.enabled": "false",  # a site's default may be true; ranks all run at once or wait for ever
}
# For training, beside a task as large as an executor: a rank has it to itself, and PySpark gives torch as many threads.
_TRAINING = {
    "spark.task.maxFailures": "1",  # a rank started again finds no others: the run ends and is resumed from its checkpoint
    "spark.speculation": "false",  # a second copy of a rank is no rank
}


@dataclass(frozen=True)
class Manager:
    """How one kind of cluster is spoken to.

    Attributes:
        deploy_mode: where the driver runs: `client` here, `cluster` there.
        ships: whether code and environment travel with the job; else they are in the image.
        master: the usual address; None: it must be given.
        conf: Spark settings of its own.
    """

    deploy_mode: str
    ships: bool
    master: str | None
    conf: dict[str, str]


MANAGERS = {
    "standalone": Manager(
        deploy_mode="client",  # Spark has no other for Python on standalone clusters
        ships=True,
        master=None,
        conf={
            "spark.pyspark.python": _SHIPPED_PYTHON,
            # Horovod starts a rank as a process beside Spark's worker, which knows of --py-files only what is said here.
            "spark.executorEnv.PYTHONPATH": "recall.zip",
        },
    ),
    "yarn": Manager(
        deploy_mode="cluster",  # a gateway has neither the memory nor the hours that a driver needs
        ships=True,
        master="yarn",
        conf={
            "spark.pyspark.python": _SHIPPED_PYTHON,  # of the driver too: in cluster mode the archive is unpacked for it
            "spark.driver.cores": str(_CORES),
            "spark.driver.memoryOverhead": f"{_CORES + 2}g",  # the driver's Python builds the index, or trains
            "spark.yarn.maxAppAttempts": "1",  # the default, 2, runs a job again whose config or data was refused
        },
    ),
    "kubernetes": Manager(
        # In cluster mode Spark 3.5's spark-submit ends with 0 even if the driver failed. In the driver's own pod the exit
        # code is the job's, and nothing needs to travel.
        deploy_mode="client",
        ships=False,
        master="k8s://https://kubernetes.default.svc",
        conf={
            "spark.pyspark.python": sys.executable,  # the image's, the same in every pod
            "spark.kubernetes.container.image": f"recall:{__version__}",
            "spark.kubernetes.namespace": "recall",
            "spark.kubernetes.driver.pod.name": "$POD_NAME",  # executors end with this pod, however it ends
            "spark.driver.host": "$POD_IP",  # a pod's name is known to nobody else
            "spark.kubernetes.executor.volumes.persistentVolumeClaim.data.options.claimName": "recall-data",
            "spark.kubernetes.executor.volumes.persistentVolumeClaim.data.mount.path": "/data",
        },
    ),
}


def command(
    to: str,
    job: str,
    config: Config,
    config_file: Path,
    dt: str,
    *,
    overrides: Sequence[str] = (),
    executors: int = 4,
    master: str | None = None,
    conf: Sequence[str] = (),
) -> list[str]:
    """The arguments of spark-submit.

    Args:
        to: of MANAGERS.
        job: of jobs/.
        config: what config_file and overrides say; decides how training is spread.
        config_file: where the settings are now; in cluster mode a copy of it travels.
        dt: the day the result is for.
        overrides: `section.key=value`.
        executors: how many; training has one a rank.
        master: the cluster's address; None: the manager's usual one.
        conf: `key=value` of Spark, last and stronger than ours.

    Raises:
        UsageError: a path that means another place on another machine, a missing master, a conf that is not key=value.
    """
    manager = MANAGERS[to]
    _require_absolute(config)
    address = master or manager.master
    if address is None:
        raise UsageError(f"--to {to} needs --master, e.g. --master spark://host:7077")
    travels = manager.deploy_mode == "cluster"
    arguments = ["spark-submit", "--master", address, "--deploy-mode", manager.deploy_mode, "--name", f"recall {job} {dt}"]
    if manager.ships:
        dist = ROOT / "build/dist"
        arguments += ["--py-files", f"{dist}/recall.zip", "--archives", f"{dist}/environment.tar.gz#environment"]
    if travels:
        arguments += ["--files", str(config_file)]
    for key, value in _settings(to, job, config, executors, _pairs(conf)).items():
        arguments += ["--conf", f"{key}={value}"]
    arguments += [f"{ROOT}/jobs/{job}.py", "--config", config_file.name if travels else str(config_file), "--dt", dt]
    return [*arguments, *(part for override in overrides for part in ("--set", override))]


def _settings(to: str, job: str, config: Config, executors: int, given: dict[str, str]) -> dict[str, str]:
    manager, training = MANAGERS[to], config.training
    settings = _COMMON | manager.conf | (_TRAINING if job == "train" else {}) | given
    cores = int(settings["spark.executor.cores"])
    if manager.ships and manager.deploy_mode == "client":
        settings.setdefault("spark.pyspark.driver.python", sys.executable)
    if job == "train":
        settings.setdefault("spark.task.cpus", str(cores))
        executors = training.ranks if training.in_executors else 1  # else the driver's machine trains
    if to == "standalone":  # which counts cores, not executors
        settings.setdefault("spark.cores.max", str(executors * cores))
    else:
        settings.setdefault("spark.executor.instances", str(executors))
    return settings


def _pairs(conf: Sequence[str]) -> dict[str, str]:
    for entry in conf:
        if not entry.partition("=")[0].startswith("spark.") or "=" not in entry:
            raise UsageError(f"--conf {entry!r} is not spark.key=value")
    return dict(entry.split("=", 1) for entry in conf)


def _require_absolute(config: Config) -> None:
    paths = {"paths.root": config.paths.root}
    if config.input.file_format != "table":
        paths["input.path"] = config.input.path
    for name, path in paths.items():
        if not path.startswith("/") and "://" not in path:
            raise UsageError(f"{name} {path!r} is another place on every machine: --set {name}=/a/path/that/all/machines/share")


def quoted(arguments: Sequence[str]) -> str:
    """The arguments as a shell reads them, an option a line; $POD_NAME and $POD_IP are left for the shell to fill in."""
    text = ""
    for argument in arguments:
        key, _, value = argument.partition("=")
        word = f'{key}="{value}"' if value in ("$POD_NAME", "$POD_IP") else shlex.quote(argument)
        starts_line = argument.startswith("--") or argument.startswith(f"{ROOT}/jobs/")
        text += (" \\\n  " if starts_line else " " if text else "") + word
    return text


def _run(args: argparse.Namespace) -> None:
    config, file = load_config(args.config, args.overrides), Path(os.path.abspath(args.config))
    arguments = command(
        args.to,
        args.job,
        config,
        file,
        parse_day(args.dt),
        overrides=args.overrides,
        executors=args.executors,
        master=args.master,
        conf=args.conf,
    )
    missing = [name for name in ("recall.zip", "environment.tar.gz") if not (ROOT / "build/dist" / name).exists()]
    if MANAGERS[args.to].ships and missing:
        raise UsageError(f"build/dist/{missing[0]} is missing: run `python deploy/pack.py`")
    messages.show("submit", quoted(arguments))


def main(argv: Sequence[str] | None = None) -> int:
    """Run `recall submit ...`; returns the exit code."""
    options = parser("submit", __doc__, "--config", "--dt")
    options.add_argument("--to", required=True, choices=MANAGERS, help="the kind of cluster")
    options.add_argument("--job", required=True, choices=JOBS, metavar="JOB", help="a job of `recall --help`")
    options.add_argument(
        "--executors",
        type=int,
        default=4,
        metavar="N",
        help=f"executors of {_CORES} cores (default: 4); train has one per rank",
    )
    options.add_argument("--master", metavar="URL", help="the cluster's address; required for standalone")
    options.add_argument(
        "--conf", action="append", default=[], metavar="spark.key=value", help="override a Spark setting (may be repeated)"
    )
    return run_command(options, _run, argv)
