"""What the doctor says of the Redis behind the reservoir."""

import contextlib

import pytest
from stream_vae.settings import KafkaSettings, ReleaseSettings, ReservoirSettings, Settings
from stream_vae.tools.checks_reservoir import check_reservoir
from stream_vae.tools.checkup import State


def settings_with(url):
    kafka = KafkaSettings(bootstrap_servers="x:1", input_topics=("a",), output_topic="b", dead_letter_topic="c")
    reservoir = ReservoirSettings(url=url)
    return Settings(survey="ztf", kafka=kafka, release=ReleaseSettings(store="x"), reservoir=reservoir)


@contextlib.contextmanager
def policy(server, name):
    with server.client() as client:
        before = client.config_get("maxmemory-policy")["maxmemory-policy"]
        client.config_set("maxmemory-policy", name)
        yield
        client.config_set("maxmemory-policy", before)


def test_no_reservoir_is_nothing_to_worry_about():
    (finding,) = check_reservoir(settings_with(None))
    assert finding.state is State.SKIPPED


def test_a_server_that_keeps_everything_is_good(redis_server):
    with policy(redis_server, "noeviction"):
        (finding,) = check_reservoir(settings_with(redis_server.url))
    assert finding.state is State.GOOD
    assert "0 stamps" in finding.says


def test_a_server_that_evicts_is_reported(redis_server):
    with policy(redis_server, "allkeys-lru"):
        findings = check_reservoir(settings_with(redis_server.url))
    assert [finding.state for finding in findings] == [State.GOOD, State.WARNING]
    assert "noeviction" in findings[1].remedy


@pytest.mark.parametrize("secret", ["hunter2"])
def test_a_dead_server_is_a_warning_without_its_password_since_publishing_goes_on(secret):
    (finding,) = check_reservoir(settings_with(f"redis://user:{secret}@127.0.0.1:1/0"))
    assert finding.state is State.WARNING
    assert secret not in finding.says + finding.remedy


@contextlib.contextmanager
def memory(server, size):
    with server.client() as client:
        before = client.config_get("maxmemory")["maxmemory"]
        client.config_set("maxmemory", size)
        yield
        client.config_set("maxmemory", before)


def test_a_server_that_is_smaller_than_the_strata_may_grow_is_reported(redis_server):
    with policy(redis_server, "noeviction"), memory(redis_server, "50mb"):
        findings = check_reservoir(settings_with(redis_server.url))
    assert [finding.state for finding in findings] == [State.GOOD, State.WARNING]
    assert "maxmemory 50 MiB" in findings[1].says
    assert "capacities lower" in findings[1].remedy
    with policy(redis_server, "noeviction"), memory(redis_server, "500mb"):
        assert len(check_reservoir(settings_with(redis_server.url))) == 1


def test_keys_of_another_version_are_a_warning_with_what_to_do(redis_server):
    meta = "{vae}:ztf:meta"
    with redis_server.client() as client:
        client.hset(meta, mapping={"layout": "1", "capacity": "50000"})
        (finding,) = check_reservoir(settings_with(redis_server.url))
        client.delete(meta)
    assert finding.state is State.WARNING
    assert "layout '1'" in finding.says
    assert "reservoir clear" in finding.remedy
