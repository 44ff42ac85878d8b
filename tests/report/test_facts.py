import json

from recall_lib.config import Config
from recall_lib.report.facts import collect, flatten
from recall_lib.report.html import render
from recall_lib.store.tables import Tables

DT = "2024-03-09"


def publish(tables, dataset, files=None, facts=None, dt=DT, **keys):
    with tables.publishing(dataset, dt, facts=facts or {}, **keys) as staged:
        for name, text in (files or {}).items():
            (staged.folder / name).write_text(text)


def test_flatten():
    assert flatten({"a": {"b": 1, "c": {"d": 2}}, "e": [3]}) == {"a b": 1, "a c d": 2, "e": [3]}


def test_collect_tells_what_is_published_and_leaves_out_the_rest(tmp_path):
    tables = Tables(Config.model_validate({"paths": {"root": str(tmp_path)}}))
    for day, rows in (("2024-03-08", 5), (DT, 7), ("2024-03-10", 9)):
        publish(tables, "events", facts={"rows": rows, "log": {"in": 30, "kept": 21}}, dt=day)
    publish(tables, "vocab", facts={"rows": 3, "sizes": {"city": 8}})
    publish(tables, "models", {"log.jsonl": '{"step": 1, "epoch": 1, "loss": 2.5}\n'}, {"version": "abc"})
    metrics = {"protocol": "day", "status": "pending", "users": 0}
    publish(tables, "metrics", {"metrics.json": json.dumps(metrics)})
    facts = collect(tables, DT)
    assert facts["events"] == {"2024-03-08": 5, DT: 7}
    assert facts["account"] == {"in": 30, "kept": 21}
    assert facts["account_days"] == ["2024-03-08", DT]
    assert [stage["name"] for stage in facts["stages"]] == ["vocab", "models", "metrics"]
    assert facts["stages"][0]["facts"] == {"rows": 3, "sizes city": 8}
    assert facts["digests"] == {name: tables.get(name, DT).manifest["digest"] for name in ("vocab", "models", "metrics")}
    assert facts["training"] == [{"step": 1, "epoch": 1, "loss": 2.5}]
    assert facts["metrics"] == metrics
    assert "abc" in render(facts)


def test_nothing_published_is_no_error(tmp_path):
    facts = collect(Tables(Config.model_validate({"paths": {"root": str(tmp_path)}})), DT)
    assert facts["stages"] == []
    assert DT in render(facts)
