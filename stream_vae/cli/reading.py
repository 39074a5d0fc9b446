"""Reading topics from their beginning to their present end, for the commands that look."""

from collections.abc import Iterable, Iterator
from time import monotonic

from confluent_kafka import KafkaError, Message, TopicPartition
from rich.progress import Progress

from stream_vae import kafka
from stream_vae.cli import notes
from stream_vae.errors import RetriableError
from stream_vae.settings import KafkaSettings

_PATIENCE_S = 30.0


def read_all(
    settings: KafkaSettings, topics: Iterable[str], *, what: str, last: int | None = None
) -> Iterator[Message]:
    """Read every message that topics hold now, without a group and without committing.

    Parameters
    ----------
    settings : KafkaSettings
        ``[kafka]``.
    topics : iterable of str
        Topics; those that do not exist are left out.
    what : str
        What the progress bar says.
    last : int, optional
        Only about so many messages from the end of each partition.

    Yields
    ------
    Message
        In offset order within a partition.

    Raises
    ------
    RetriableError
        If the brokers stop answering.
    """
    consumer = kafka.plain_consumer(settings, enable_partition_eof=True, isolation_level="read_committed")
    try:
        spans = {}
        for topic, count in kafka.partitions(settings, topics).items():
            for number in range(count):
                low, high = consumer.get_watermark_offsets(TopicPartition(topic, number), timeout=30)
                start = low if last is None else max(low, high - last)
                if start < high:
                    spans[topic, number] = (start, high)
        consumer.assign([TopicPartition(*where, start) for where, (start, _) in spans.items()])
        total = sum(high - start for start, high in spans.values())
        with Progress(console=notes, transient=True) as progress:
            task = progress.add_task(what, total=total)
            open_spans, heard = set(spans), monotonic()
            while open_spans:
                messages = consumer.consume(500, 0.2)  # it waits for all 500, so not for long
                if messages:
                    heard = monotonic()
                elif monotonic() - heard > _PATIENCE_S:
                    raise RetriableError(f"Kafka sent nothing for {_PATIENCE_S:g} s.", remedy="Try again.")
                for message in messages:
                    where = (message.topic(), message.partition())
                    error = message.error()
                    if error is None:
                        if where in open_spans:
                            progress.advance(task)
                            yield message
                        if message.offset() + 1 >= spans[where][1]:
                            open_spans.discard(where)
                    elif error.code() == KafkaError._PARTITION_EOF:  # noqa: SLF001 - librdkafka's own name
                        open_spans.discard(where)
                    elif error.fatal() or not error.retriable():
                        raise RetriableError(f"Kafka, reading {where[0]}: {error.str()}.")
    finally:
        consumer.close()
