"""What the benchmark's longer runs need of Kafka: topics' configuration."""

from collections.abc import Mapping, Sequence

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from servers import Kafka


def configure(kafka: Kafka, topics: Sequence[str], settings: Mapping[str, object]) -> None:
    """Set topics' configuration."""
    entries = [
        ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries) for name in topics]
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})  # kept until it has answered
    for future in admin.incremental_alter_configs(resources).values():
        future.result(timeout=30)
