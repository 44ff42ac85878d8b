"""A Spark standalone cluster on 127.0.0.1, from pyspark's own jars. Run as a script, it runs the demo's jobs on the cluster.

`make cluster-demo` starts a master and two workers and simulates a log. It runs every job through spark-submit, with the
command that `recall submit` prints, and shows three users and the metrics. All files are written below build/cluster.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
WORKERS = 2
# A worker has one core and 1 GiB, so it has room for one executor.
SIZES = (
    "spark.driver.memory=1g",
    "spark.executor.cores=1",
    "spark.executor.memory=1g",
    "spark.log.level=WARN",
)
# Workers remove the files of a finished application (its unpacked environment) after some seconds.
_CLEANUP = {"enabled": "true", "interval": "5", "appDataTtl": "10"}
_START_S = 60.0
# The pipe to this shell closes when this process ends, even if it is killed. The shell then ends the command that it started.
# The shell has its own process group, so that Ctrl-C does not end it first.
_ENDS_WITH_US = '"$@" & read -r _; kill $!; wait'


def environment() -> dict[str, str]:
    """The environment variables of a login on a machine of the cluster: nothing in them leads to this checkout."""
    from recall_lib.spark.session import find_java

    find_java()
    kept = {name: os.environ[name] for name in ("HOME", "JAVA_HOME", "LANG", "TMPDIR") if name in os.environ}
    return kept | {"PATH": f"{sys.prefix}/bin:{os.environ['PATH']}", "SPARK_LOCAL_IP": "127.0.0.1"}


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """Run a master and WORKERS workers with their files in `folder` during the block; yields the master's address.

    Raises:
        RuntimeError: the master or a worker does not start.
    """
    cleanup = " ".join(f"-Dspark.worker.cleanup.{key}={value}" for key, value in _CLEANUP.items())
    variables = environment() | {"SPARK_WORKER_OPTS": cleanup, "SPARK_DAEMON_MEMORY": "256m"}
    here = ["--host", "127.0.0.1", "--port", "0", "--webui-port", "0"]
    with ExitStack() as stack:

        def start(name: str, role: str, arguments: Sequence[str], answer: str) -> str:
            work = folder / name
            work.mkdir(parents=True)
            command = ["bash", "-c", _ENDS_WITH_US, name, "spark-class", f"org.apache.spark.deploy.{role}", *arguments]
            with (work / "log").open("wb") as log:
                process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=work, env=variables, process_group=0
                )
            stack.callback(shutil.rmtree, work / "work", ignore_errors=True)
            stack.callback(process.communicate)  # closes the pipe, then waits
            return _said(work / "log", answer)

        master = start("master", "master.Master", here, r"Starting Spark master at (\S+)")
        worker = [*here, "--cores", "1", "--memory", "1g", "--work-dir", "work", master]
        for number in range(WORKERS):
            start(f"worker-{number}", "worker.Worker", worker, r"registered with (master)")
        yield master


def _said(log: Path, answer: str) -> str:
    """Wait until a log matches the pattern `answer`; returns the match's first group."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline:
        text = log.read_text(errors="replace")
        if found := re.search(answer, text):
            return found[1]
        time.sleep(0.2)
    raise RuntimeError(f"{log.parent.name} has not started in {_START_S:.0f} s: {text[-1000:]}")


def rendered(master: str, job: str, arguments: Sequence[str]) -> str:
    """The command that `recall submit` prints for a job; `arguments` are --config, --dt and --set."""
    command = [sys.executable, "-m", "recall_lib.commands.cli", "submit", "--to", "standalone", "--master", master]
    command += ["--executors", str(WORKERS), *(word for size in SIZES for word in ("--conf", size)), "--job", job, *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True).stdout


def run(command: str, folder: Path) -> str:
    """Run a command in `folder` and in a clean environment; returns its output.

    Raises:
        RuntimeError: the command failed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        ["bash", "-c", command], cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode:
        raise RuntimeError(f"exit code {done.returncode}: {done.stdout[-4000:]}")
    return done.stdout


def main() -> None:
    """Run the demo's jobs on a cluster and show the results."""
    from recall_lib.commands import demo, simulator
    from recall_lib.commands.cli import JOBS
    from recall_lib.config import load_config
    from recall_lib.day.context import Context

    folder = ROOT / "build/cluster"
    shutil.rmtree(folder, ignore_errors=True)
    simulator.write_rows(simulator.simulate(), folder / "log")
    # The log is one snapshot: with ordering `time`, the demo's ten days would need ten applications of `events`.
    overrides = [f"paths.root={folder}/tables", f"input.path={folder}/log", "training.launcher=spark"]
    overrides += ["input.ordering=position", "evaluation.protocol=last_click"]
    config = str(ROOT / demo.CONFIG)
    arguments = ["--config", config, "--dt", demo.DAY, *(word for override in overrides for word in ("--set", override))]
    with cluster(folder) as master:
        print(f"cluster-demo: {WORKERS} workers at {master}", flush=True)
        for job in JOBS:
            if job != "pipeline":
                began = time.monotonic()
                run(rendered(master, job, arguments), folder / "driver")
                print(f"cluster-demo: {job} {time.monotonic() - began:.0f} s", flush=True)
    print(demo.shown(Context(load_config(config, overrides), demo.DAY, "demo")))


if __name__ == "__main__":
    main()
