"""What no command here runs: the DAG, the Dockerfile and the manifests agree with the project."""

import ast
import re
import subprocess
import sys
import types
from datetime import date, timedelta

import jinja2
import pytest
import yaml

from recall_lib import __version__
from recall_lib.commands.cli import JOBS, TOOLS
from recall_lib.commands.submit import MANAGERS, ROOT
from recall_lib.process.errors import EXIT_CODES
from recall_lib.store import datasets
from tests.test_setup import PINS

DEPLOY = ROOT / "deploy"
DAG = (DEPLOY / "airflow/recall_daily.py").read_text(encoding="utf-8")
DOCKERFILE = (DEPLOY / "Dockerfile").read_text(encoding="utf-8")
DRIVER = yaml.safe_load((DEPLOY / "driver_pod.yaml").read_text(encoding="utf-8"))
CLUSTER = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")))


def test_make_help_lists_every_target():
    (declared,) = re.findall(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    said = subprocess.check_output(["make", "--no-print-directory", "help"], cwd=ROOT, text=True)
    assert [line.split()[1] for line in said.splitlines()] == declared.split()


def steps():
    (found,) = (
        node.value for node in ast.walk(ast.parse(DAG)) if isinstance(node, ast.AnnAssign) and node.target.id == "STEPS"
    )
    return ast.literal_eval(found)


def waits_for(given, job):
    """The jobs of the same run that a job waits for, directly or by way of others."""
    _, earlier = given[job]
    return set(earlier).union(*(waits_for(given, before) for before in earlier))


def test_the_dag_runs_every_job_once_after_what_it_reads():
    given = steps()
    assert set(given) == set(datasets.jobs())
    done = set()
    for job, (shift, earlier) in given.items():
        assert set(earlier) <= done, job  # an order, so that there is no circle
        assert (ROOT / f"jobs/{job}.py").exists()
        assert shift == (-1 if job in ("events", "metrics", "report") else 0)
        done.add(job)
    for row in datasets.DATASETS.values():
        made_by = {datasets.DATASETS[name].job for name in datasets.inputs_of(row.name)}
        for job in {row.job_of(part) for part in row.parts()}:
            # A table of a later day than the reader's is none of its inputs; the day before was made by the run before.
            in_this_run = {other for other in made_by if given[other][0] <= given[job][0]} - {job}
            assert in_this_run <= waits_for(given, job), row.name


def test_the_dag_wires_what_its_steps_say(dag):
    """`before >> after`, and not the other way round."""
    assert dag.tasks.keys() == dag.STEPS.keys()
    for job, (_, earlier) in dag.STEPS.items():
        after = [name for name, (_, before) in dag.STEPS.items() if job in before]
        assert dag.tasks[job].followed_by == [dag.tasks[name] for name in after]
        assert all(dag.tasks[job] in dag.tasks[before].followed_by for before in earlier)


class _Anything:
    """Takes the place of Airflow's classes: allows everything, and remembers what follows it alone."""

    def __init__(self, *args, **kwargs):
        self.followed_by = []

    def __call__(self, *args, **kwargs):
        return self

    def __getattr__(self, name):
        return _Anything()

    def __rshift__(self, other):
        self.followed_by.append(other)
        return other

    def __enter__(self):
        return self

    def __exit__(self, *args):
        return None


@pytest.fixture
def dag(monkeypatch, tmp_path):
    """The DAG's module as Airflow 3 would load it, with a `recall` that prints $ANSWER."""

    class Fail(Exception): ...

    for name, members in {
        "airflow": {},
        "airflow.sdk": {"DAG": _Anything, "CronTriggerTimetable": _Anything, "task": lambda function: _Task(function)},
        "airflow.exceptions": {"AirflowFailException": Fail},
    }.items():
        module = types.ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    recall = tmp_path / ".venv/bin/recall"
    recall.parent.mkdir(parents=True)
    recall.write_text('#!/bin/sh\n[ -z "$REFUSED" ] || exit 2\necho "$ANSWER"\n')
    recall.chmod(0o755)
    monkeypatch.setenv("RECALL_HOME", str(tmp_path))
    module = {"__name__": "recall_daily"}
    exec(compile(DAG, "recall_daily.py", "exec"), module)
    return types.SimpleNamespace(**module, Fail=Fail)


class _Task(_Anything):
    def __init__(self, function=None):
        super().__init__()
        self.function = function

    def override(self, **_):
        """A task factory: each call is a task of its own."""
        return lambda *_: _Task(self.function)


def filled_in(template):
    """As Airflow does in the run of 2024-03-01."""
    macros = types.SimpleNamespace(ds_add=lambda day, days: str(date.fromisoformat(day) + timedelta(days)))
    return jinja2.Template(template).render(ds="2024-03-01", macros=macros)


@pytest.mark.parametrize(("code", "hopeless"), [(2, True), (3, True), (1, False), (4, False), (75, False)])
def test_the_dag_retries_what_a_retry_can_mend(dag, monkeypatch, code, hopeless):
    monkeypatch.setenv("ANSWER", f"bash -c 'exit {code}'")
    with pytest.raises(dag.Fail if hopeless else RuntimeError, match=f"exit code {code}"):
        dag.submitted.function(filled_in(dag.command("top_n", 0)))


def test_the_dag_submits_nothing_when_the_config_is_refused(dag, monkeypatch):
    monkeypatch.setenv("ANSWER", "true")
    dag.submitted.function(filled_in(dag.command("top_n", 0)))
    monkeypatch.setenv("REFUSED", "1")
    with pytest.raises(dag.Fail, match="exit code 2"):
        dag.submitted.function(filled_in(dag.command("top_n", 0)))


def test_the_dag_s_days(dag):
    assert "--job events " in filled_in(dag.command("events", dag.STEPS["events"][0]))
    assert "--dt 2024-02-29 " in filled_in(dag.command("events", dag.STEPS["events"][0]))
    assert "--dt 2024-03-01 " in filled_in(dag.command("top_n", dag.STEPS["top_n"][0]))
    assert "catchup=True" in DAG


def test_the_image_s_versions_are_the_pinned_ones():
    spark, *pythons = re.findall(r"^FROM (\S+)", DOCKERFILE, re.M)
    assert spark.startswith(f"apache/spark:{PINS['pyspark']}-")
    assert "java17" in spark
    (python,) = {re.match(r"python:(\d+\.\d+)-", image)[1] for image in pythons}
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    low, high = re.search(r'python_requires=">=3\.(\d+),<3\.(\d+)"', setup).groups()
    assert int(low) <= int(python.removeprefix("3.")) < int(high)
    assert f"python{python}/site-packages/pyspark" in DOCKERFILE
    assert DOCKERFILE.count("openjdk-17-jre-headless") == 2
    assert len({image.rsplit("-", 1)[-1] for image in pythons}) == 1  # one Debian: what is built on it runs on it
    assert not re.search(r":latest|://", DOCKERFILE)
    assert re.findall(r"^USER (\S+)", DOCKERFILE, re.M)[-1] == "185"


def test_the_image_is_built_from_files_that_exist():
    ignored = (DEPLOY / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE, re.M):
        for source in line.split():
            assert (ROOT / source).exists()
            assert f"!{source}" in ignored


def test_the_manifests_fit_the_rendered_command():
    conf = MANAGERS["kubernetes"].conf
    pod, (container,) = DRIVER["spec"], DRIVER["spec"]["containers"]
    assert container["image"] == conf["spark.kubernetes.container.image"] == f"recall:{__version__}"
    assert f"--tag recall:{__version__}" in DOCKERFILE
    assert container["name"] == "base"  # the one whose arguments Airflow replaces
    given = {f"${entry['name']}" for entry in container["env"]}
    assert given == {value for value in conf.values() if value.startswith("$")}
    volumes = "spark.kubernetes.executor.volumes.persistentVolumeClaim.data"
    assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == conf[f"{volumes}.options.claimName"]
    assert container["volumeMounts"][0]["mountPath"] == conf[f"{volumes}.mount.path"]
    named = {(entry["kind"], entry["metadata"]["name"]) for entry in CLUSTER}
    assert {("ServiceAccount", pod["serviceAccountName"]), ("PersistentVolumeClaim", "recall-data")} <= named
    metadata = [entry["metadata"] for entry in [*CLUSTER, DRIVER]]
    spaces = {entry.get("namespace") or entry["name"] for entry in metadata}
    assert spaces == {conf["spark.kubernetes.namespace"]}
    assert re.search(r"--job (\w+)", container["args"][0])[1] in JOBS


def test_the_runbook_names_every_job_s_exit_code_and_no_missing_command():
    runbook = (DEPLOY / "RUNBOOK.md").read_text(encoding="utf-8")
    for code in EXIT_CODES:
        assert re.search(rf"^\| {code} \|", runbook, re.M)
    commands = set(re.findall(r"`recall (\w+)", runbook))
    assert commands <= {*JOBS, *TOOLS}
    links = re.findall(r"\]\(([^)#]+)\)", runbook)
    assert not [link for link in links if not (DEPLOY / link).exists()]
