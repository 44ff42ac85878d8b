"""Every job of every day, on Airflow 2.4 and later, or 3.

A run at 01:00 UTC of day D stores the clicks of D - 1, makes the tables for D from the clicks before D, and scores the lists
for D - 1 with the clicks of that day. Before the first run, run `recall pipeline --dt <the day before start_date>` by hand: it
also stores the log's earlier days. With catchup, the days since start_date then follow one by one.

The environment of Airflow's scheduler and workers sets:
    RECALL_HOME     the project's folder on a worker and in the image, e.g. /opt/recall
    RECALL_TO       standalone, yarn or kubernetes
    RECALL_CONFIG   e.g. /opt/recall/conf/mine.yaml
    RECALL_OPTIONS  further options of `recall submit`, e.g. --executors 16 --set paths.root=/data/recall
On standalone and YARN clusters a worker needs spark-submit in its PATH. On Kubernetes the driver of each job is a pod of its
own (deploy/driver_pod.yaml).
"""

from __future__ import annotations

import os
import subprocess
from datetime import datetime, timedelta, timezone

try:
    from airflow.sdk import DAG, CronTriggerTimetable, task
except ImportError:  # Airflow 2, and 3.0
    from airflow import DAG
    from airflow.decorators import task
    from airflow.timetables.trigger import CronTriggerTimetable
from airflow.exceptions import AirflowFailException

HOME = os.environ.get("RECALL_HOME", "/opt/recall")
TO = os.environ.get("RECALL_TO", "yarn")
CONFIG = os.environ.get("RECALL_CONFIG", f"{HOME}/conf/globo.yaml")
OPTIONS = os.environ.get("RECALL_OPTIONS", "")

# {job: (the job's dt minus the run's day, in days; the jobs that it waits for)}.
STEPS: dict[str, tuple[int, tuple[str, ...]]] = {
    "events": (-1, ()),
    "vocab": (0, ("events",)),
    "items": (0, ("vocab",)),
    "samples": (0, ("vocab",)),
    "train": (0, ("samples", "items")),
    "vectors": (0, ("train",)),
    "index": (0, ("vectors",)),
    "popular": (0, ("vocab",)),
    "top_n": (0, ("index", "popular")),
    "related": (0, ("index",)),
    "metrics": (-1, ("events",)),
    "report": (-1, ("metrics",)),
}
# Exit codes for bad usage or config (2) and refused data (3): a retry does not help. Others (4: the log is late) are retried.
HOPELESS = (2, 3)


def command(job: str, shift: int) -> str:
    """The shell command of a job; if the config is refused, it ends before it submits anything to the cluster."""
    submit = f"{HOME}/.venv/bin/recall submit --to {TO} --job {job} --config {CONFIG}"
    return f'command=$({submit} --dt {{{{ macros.ds_add(ds, {shift}) }}}} {OPTIONS}) && eval "$command"'


@task
def submitted(shell_command: str) -> None:
    """Run spark-submit on this worker; its exit code says whether to retry (on YARN every failure is 1)."""
    code = subprocess.run(["bash", "-c", shell_command], check=False).returncode
    if code in HOPELESS:
        raise AirflowFailException(f"exit code {code}: see deploy/RUNBOOK.md")
    if code:
        raise RuntimeError(f"exit code {code}: see deploy/RUNBOOK.md")


def step(job: str, shift: int):
    """The task of one job."""
    # A day without its clicks would leave a hole in every later history, and one without a model ends a chain of
    # training.init `yesterday`: the next day's wait for it.
    waits = job in ("events", "train")
    if TO != "kubernetes":
        return submitted.override(task_id=job, depends_on_past=waits)(command(job, shift))
    from airflow.providers.cncf.kubernetes.operators.pod import KubernetesPodOperator

    return KubernetesPodOperator(
        task_id=job,
        depends_on_past=waits,
        pod_template_file=f"{HOME}/deploy/driver_pod.yaml",
        arguments=[command(job, shift)],
    )


with DAG(
    "recall_daily",
    # dt is the day a table is for: the day of the run (`ds`), not the interval before it that a plain cron text may mean.
    schedule=CronTriggerTimetable("0 1 * * *", timezone="UTC"),
    start_date=datetime(2024, 3, 10, tzinfo=timezone.utc),  # noqa: UP017, Airflow 2.4 runs on Python 3.7
    catchup=True,
    max_active_runs=1,  # days in order; two at once would only share the executors
    max_active_tasks=1,  # the jobs of a day have one lock: a second one would end with 75
    default_args={"retries": 3, "retry_delay": timedelta(minutes=10)},
    tags=["recall"],
) as dag:
    tasks = {job: step(job, shift) for job, (shift, _) in STEPS.items()}
    for name, (_, earlier) in STEPS.items():
        for before in earlier:
            tasks[before] >> tasks[name]
