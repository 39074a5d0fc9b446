import ctypes.util

import pytest
from confluent_kafka.admin import AdminClient
from stream_vae.embedded import kafka
from stream_vae.embedded.kafka import EmbeddedKafka
from stream_vae.errors import ConfigError


def test_a_topic_has_the_partitions_it_was_made_with():
    with EmbeddedKafka() as cluster:
        cluster.create_topic("alerts", 64)
        topics = AdminClient({"bootstrap.servers": cluster.bootstrap_servers}).list_topics(timeout=10).topics
    assert len(topics["alerts"].partitions) == 64


@pytest.mark.parametrize("partitions", [0, -1, 65])
def test_a_topic_with_too_few_or_too_many_partitions_is_refused(partitions):
    with EmbeddedKafka() as cluster, pytest.raises(ConfigError, match="1 to 64"):
        cluster.create_topic("alerts", partitions)


def test_a_topic_cannot_be_made_twice():
    with EmbeddedKafka() as cluster:
        cluster.create_topic("alerts")
        with pytest.raises(ConfigError, match="already exists"):
            cluster.create_topic("alerts")


def test_a_cluster_can_be_closed_twice_and_then_makes_no_topics():
    cluster = EmbeddedKafka()
    cluster.close()
    cluster.close()
    with pytest.raises(ConfigError, match="is closed"):
        cluster.create_topic("alerts")


def test_each_broker_has_a_port_of_its_own_on_loopback():
    with EmbeddedKafka(brokers=3) as cluster:
        addresses = cluster.bootstrap_servers.split(",")
    assert len(set(addresses)) == 3
    assert all(address.startswith("127.0.0.1:") for address in addresses)


def test_a_cluster_without_brokers_is_refused():
    with pytest.raises(ConfigError, match="at least one"):
        EmbeddedKafka(brokers=0)


def test_a_librdkafka_without_the_mock_cluster_is_told_with_the_remedy(monkeypatch):
    monkeypatch.setattr(kafka, "_candidates", lambda: ["no-such-library.so", ctypes.util.find_library("c")])
    with pytest.raises(ConfigError, match=r"Install the confluent-kafka wheel"):
        EmbeddedKafka()
