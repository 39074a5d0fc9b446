"""What the benchmark's longer runs need of Kafka: topics' configuration, and where a topic ends."""

from collections.abc import Mapping, Sequence

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from servers import Kafka


def configure(kafka: Kafka, topics: Sequence[str], settings: Mapping[str, object]) -> None:
    """Set topics' configuration."""
    entries = [
        ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries) for name in topics]
    admin = _admin(kafka)  # kept until it has answered
    for future in admin.incremental_alter_configs(resources).values():
        future.result(timeout=30)


def delete(kafka: Kafka, topics: Sequence[str]) -> None:
    """Give the disk back."""
    admin = _admin(kafka)
    for future in admin.delete_topics(list(topics)).values():
        future.result(timeout=30)


def _admin(kafka: Kafka) -> AdminClient:
    return AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})
