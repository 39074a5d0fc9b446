"""What the benchmark's longer runs need of Kafka: one beside a fleet, and topics' configuration."""

import contextlib
import importlib.util
from collections.abc import Iterator, Mapping, Sequence

from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource

from servers import Kafka, MissingServiceError, real_kafka


@contextlib.contextmanager
def fleet_kafka() -> Iterator[Kafka]:
    """Start a real Kafka for a fleet of workers, where there can be one."""
    if importlib.util.find_spec("ray") is None:
        raise MissingServiceError("a fleet of workers needs Ray; install stream-vae[ray]")
    with real_kafka() as kafka:
        yield kafka


def configure(kafka: Kafka, topics: Sequence[str], settings: Mapping[str, object]) -> None:
    """Set topics' configuration."""
    entries = [
        ConfigEntry(name, str(value), incremental_operation=AlterConfigOpType.SET) for name, value in settings.items()
    ]
    resources = [ConfigResource(ConfigResource.Type.TOPIC, name, incremental_configs=entries) for name in topics]
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 0})  # kept until it has answered
    for future in admin.incremental_alter_configs(resources).values():
        future.result(timeout=30)
