import re
from pathlib import Path

import yaml

from recall_lib import schemas
from recall_lib.cli import JOBS
from recall_lib.config import Config, Features

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_links_lead_somewhere():
    links = re.findall(r"\]\(([^)]+)\)", README)
    assert len(links) > 20
    assert not [link for link in links if not (ROOT / link).exists()]


def test_the_example_config_is_valid_and_short():
    (example,) = re.findall(r"```yaml\n(.*?)```", README, re.DOTALL)
    assert len(example.splitlines()) <= 10
    assert Config.model_validate(yaml.safe_load(example)).features.item[0].multi


def test_every_job_and_every_column_is_named():
    for job in JOBS:
        assert f"| `{job}` |" in README
    tables = {
        "events": schemas.events(Features()),
        "rejects": schemas.REJECTS,
        "vocab": schemas.VOCAB,
        "vectors/kind=item": schemas.ITEM_VECTORS,
        "vectors/kind=user": schemas.USER_VECTORS,
        "top_n": schemas.TOP_N,
        "popular": schemas.POPULAR,
        "related": schemas.RELATED,
        "samples/split=train": schemas.runs(Features()),
    }
    section = README.split("## Tables")[1].split("\n## ")[0]
    for table, schema in tables.items():
        (described,) = [line for line in section.splitlines() if re.match(rf"\| `{table}[`\\]", line)]
        missing = [field.name for field in schema if field.name not in described]
        assert not missing, (table, missing)
