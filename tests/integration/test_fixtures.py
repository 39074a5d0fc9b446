"""The fixtures themselves: what the other integration tests stand on."""

from confluent_kafka.admin import AdminClient, ConfigResource


def test_the_real_kafka_makes_topics_as_configured(kafka):
    topic = kafka.fresh_topic(3, max_message_bytes=1000)
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    config = admin.describe_configs([resource])[resource].result(timeout=10)
    assert len(admin.list_topics(topic, timeout=10).topics[topic].partitions) == 3
    assert config["max.message.bytes"].value == "1000"


def test_the_real_redis_answers(redis_server):
    with redis_server.client() as client:
        key = "stream-vae-test-fixtures"
        assert client.set(key, b"value", ex=60)
        assert client.getdel(key) == b"value"


def test_real_packets_are_files_in_order(real_packets):
    packets = real_packets("ztf")
    assert packets == sorted(packets)
    assert all(packet.is_file() for packet in packets)
