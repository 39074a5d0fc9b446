"""The alert rules: they are valid, each is tested, each says what to do, and the runbook has a section for it."""

import re

import pytest
import yaml

from monitoring import PROMETHEUS_FILES, RULES, RUNBOOK, alerts, hastened, promtool

pytestmark = pytest.mark.usefixtures("monitoring_tools")
TESTS = PROMETHEUS_FILES / "rules.test.yaml"
SCENARIOS = yaml.safe_load(TESTS.read_text(encoding="utf-8"))["tests"]


def anchors(page: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_the_rules_and_the_example_configuration_are_valid():
    promtool("check", "rules", "--lint-fatal", RULES)
    promtool("check", "config", "--lint-fatal", PROMETHEUS_FILES / "prometheus.yaml")


def test_each_alert_fires_for_its_reason_alone_not_too_soon_and_resolves():
    promtool("test", "rules", TESTS)


@pytest.mark.parametrize("name", alerts())
def test_each_alert_is_seen_to_fire_and_to_be_quiet(name):
    fires, is_quiet = False, False
    for scenario in SCENARIOS:
        seen = [
            name in str(check["exp_samples"])
            for check in scenario["promql_expr_test"]
            if check["expr"] == 'ALERTS{alertstate="firing"}'
        ]
        fires |= any(seen)
        is_quiet |= any(seen) and not seen[0]
    assert fires
    assert is_quiet, "no scenario in which it fires begins without it"


@pytest.mark.parametrize(("name", "alert"), alerts().items())
def test_each_alert_says_how_bad_it_is_what_is_wrong_where_and_how_much(name, alert):
    assert re.fullmatch(r"StreamVae[A-Z][A-Za-z]+", name)
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in {"critical", "warning"}
    assert alert["annotations"].keys() == {"summary", "description", "runbook_url"}
    assert "$labels" in alert["annotations"]["summary"]
    assert {"$value", "$labels.job"} <= set(re.findall(r"\$[\w.]+", alert["annotations"]["description"]))


@pytest.mark.parametrize(("name", "alert"), alerts().items())
def test_each_alert_names_a_section_of_the_runbook(name, alert):
    base, _, anchor = alert["annotations"]["runbook_url"].partition("#")
    assert base == "deploy/README.md"
    page = RUNBOOK.read_text(encoding="utf-8")
    incidents = page[page.index("\n## Incidents\n") :]
    assert anchor in anchors(incidents)
    assert name in incidents


def test_a_hastened_file_differs_in_durations_alone():
    plain, hasty = yaml.safe_load(RULES.read_text(encoding="utf-8")), hastened(RULES, 30)
    durations = re.compile(r"(?<=\[)[0-9smhd]+(?=\])|(?<=offset )[0-9smhd]+")
    assert hasty["groups"][1]["rules"][0]["for"] == "10s"
    changed = 0
    for group, hasty_group in zip(plain["groups"], hasty["groups"], strict=True):
        for rule, hasty_rule in zip(group["rules"], hasty_group["rules"], strict=True):
            changed += rule["expr"] != hasty_rule["expr"]
            assert durations.sub("", rule.pop("expr")) == durations.sub("", hasty_rule.pop("expr"))
            assert ("for" in rule) == ("for" in hasty_rule)
            assert hasty_rule.pop("for", None) != rule.pop("for", "")
            assert rule == hasty_rule
    assert changed > 10
