"""What a Prometheus finds on the pages of a worker, a fleet and a trainer: all that rules and dashboards ask for."""

import contextlib
import re
from collections.abc import Iterator

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from stream_vae.sky.packets import simulate_packets

from deployment import deploy
from fleets import Fleet, descendants, end, wait_for
from flow import Record, running, send
from monitoring import RULES, dashboards, metric_names, panels, promtool
from servers import free_ports

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("monitoring_tools")]

RAY = {"ray_node_cpu_utilization", "ray_node_mem_used", "ray_node_mem_total", "ray_object_store_used_memory"}
"""Ray's own, from the exporter of its dashboard agent (`ray[default]`), which a fleet does without."""
PROMETHEUS = {"up", "ALERTS"}


def names_on(page: str) -> set[str]:
    """The names under which a page's series may appear, also of those that have none yet."""
    found = set()
    for family in text_string_to_metric_families(page):
        kinds = {"counter": ["_total"], "histogram": ["_bucket", "_sum", "_count"]}.get(family.type, [""])
        found |= {family.name + kind for kind in kinds} | {sample.name for sample in family.samples}
    return found


def asked_for() -> set[str]:
    groups = yaml.safe_load(RULES.read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    targets = [target for each in dashboards().values() for panel in panels(each) for target in panel["targets"]]
    names = {name for each in [*rules, *targets] for name in metric_names(each["expr"])}
    return names - {rule.get("record") for rule in rules}


@pytest.fixture(scope="module")
def pages(kafka, redis_server, tmp_path_factory) -> Iterator[dict[str, str]]:
    """The page of a fleet with a shared encoder, and that of a trainer, after a few alerts."""
    pytest.importorskip("ray", reason="no Ray: pip install 'stream-vae[ray]'")
    folder, (port, trainer_port) = tmp_path_factory.mktemp("pages"), free_ports(2)
    deployment = deploy(
        kafka,
        folder,
        metrics={"port": port, "statistics_interval_s": 0.5},
        encoder={"actors": 1},
        reservoir={"url": redis_server.url},
    )
    packets = [each.packet for each in simulate_packets(40, seed=5)]
    send(kafka, deployment.input, [Record(packet) for packet in (*packets, b"no alert")])
    fleet = Fleet(deployment, folder, "--workers", 1)
    try:
        environment = {"STREAM_VAE_METRICS__PORT": str(trainer_port)}
        with running(folder / "trainer.log", "retrain", "-s", deployment.file, environment=environment):
            consumed = "stream_vae_alerts_consumed_total"
            wait_for(lambda: fleet.samples(consumed).get("0") == 41, "all are settled", process=fleet.process)
            yield {"fleet": page(port), "trainer": page(trainer_port)}
    finally:
        end(fleet.process, descendants(fleet.process.pid))


def page(port: int) -> str:
    def got() -> str:
        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"http://127.0.0.1:{port}/metrics", timeout=10, trust_env=False).text
        return ""

    text: str = wait_for(got, "a page")
    return text


@pytest.mark.parametrize("which", ["fleet", "trainer"])
def test_promtool_finds_nothing_wrong_with_a_page(pages, which):
    assert "stream_vae_build_info" in pages[which]
    promtool("check", "metrics", stdin=pages[which])


def test_every_metric_of_rules_and_dashboards_is_on_a_page(pages):
    there = names_on(pages["fleet"]) | names_on(pages["trainer"])
    assert "stream_vae_encoder_waiting_stamps" in there
    assert asked_for() - there == RAY | PROMETHEUS


def test_every_metric_on_a_page_is_one_of_ours_or_the_processs(pages):
    for text in pages.values():
        assert all(re.match(r"stream_vae_|process_|python_", name) for name in names_on(text))
