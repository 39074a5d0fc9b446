"""The dashboards: they are what the program makes, every expression parses, and each panel says what it is."""

import importlib
import itertools
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import yaml

from monitoring import DASHBOARDS, dashboards, filled, panels, promtool

EVERY = [(name, panel) for name, dashboard in dashboards().items() for panel in panels(dashboard)]


@pytest.fixture
def program(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    pytest.importorskip("grafana_foundation_sdk")
    monkeypatch.syspath_prepend(str(DASHBOARDS.parent))
    yield importlib.import_module("dashboards")
    for name in ("dashboards", "panels"):
        sys.modules.pop(name, None)


def test_the_files_are_what_the_program_makes(program):
    assert dashboards().keys() == program.DASHBOARDS.keys() == {"overview", "model", "learning", "infrastructure"}
    for name in program.DASHBOARDS:
        made = program.written(name)
        assert (DASHBOARDS / f"{name}.json").read_text(encoding="utf-8") == made, "run deploy/grafana/dashboards.py"


@pytest.mark.usefixtures("monitoring_tools")
def test_prometheus_understands_every_expression(tmp_path):
    expressions = [filled(target["expr"]) for _, panel in EVERY for target in panel["targets"]]
    assert len(expressions) > 100
    rules = [{"record": f"test:panel:{number}", "expr": each} for number, each in enumerate(expressions)]
    file = tmp_path / "panels.yaml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}), encoding="utf-8")
    promtool("check", "rules", file)


@pytest.mark.parametrize(("name", "panel"), EVERY, ids=[f"{name}: {panel['title']}" for name, panel in EVERY])
def test_each_panel_says_what_it_is_and_in_which_unit(name, panel):
    del name
    assert panel["title"]
    assert len(panel["description"]) > 8
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    if panel["type"] in {"timeseries", "state-timeline"}:
        assert all(target["legendFormat"] for target in panel["targets"])


@pytest.mark.parametrize("name", dashboards())
def test_no_two_panels_lie_on_one_another_and_none_has_another_ones_title(name):
    found = panels(dashboards()[name])
    titles = [panel["title"] for panel in found if panel["type"] != "stat"]
    assert len(titles) == len(set(titles))
    for one, other in itertools.combinations((panel["gridPos"] for panel in found), 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        below = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or below
    assert all(panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24 for panel in found)


@pytest.mark.parametrize("name", dashboards())
def test_each_dashboard_asks_for_data_source_survey_and_job_and_leads_to_the_others(name):
    dashboard = dashboards()[name]
    assert [each["name"] for each in dashboard["templating"]["list"]] == ["datasource", "survey", "job"]
    assert dashboard["uid"] == f"stream-vae-{name}"
    assert dashboard["links"][0]["tags"] == dashboard["tags"] == ["stream_vae"]
