"""When each alert of a load was out: what readers find in the output topic, joined with what was sent.

The output topic has `message.timestamp.type=LogAppendTime`, so a message's timestamp there is the moment at which the
broker appended it, which with one replica is when consumers can have it. The input's Kafka timestamp, which the message
carries otherwise, is known from who sent it, by the ``stream_vae.source`` header. Both are of one machine's clock, and
whole milliseconds. The time of scoring in the enrichment divides the way in two, as a witness from within.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, Consumer, KafkaError, TopicPartition
from numpy.typing import NDArray
from stream_vae.stages.enrich import SOURCE_HEADER

from chaos.witness import SYNC_BYTES, VARINT_BYTES
from servers import Kafka

Times = NDArray[np.int64]
QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Sent:
    """The load's place in the input: message `i` is in partition `i % partitions`, behind `first` others."""

    ms: Times
    """(n,) milliseconds since 1970."""
    partitions: int
    first: int

    def number(self, partition: int, offset: int) -> int:
        return (offset - self.first) * self.partitions + partition


@dataclass(frozen=True)
class Out:
    """(n,) when each message was scored and appended; -1 where none came."""

    scored_ms: Times
    appended_ms: Times
    again: int
    """Messages that came once more."""


def ends(kafka: Kafka, topic: str) -> list[TopicPartition]:
    """Where the next message of each partition will be."""
    with contextlib.closing(_reader(kafka)) as consumer:
        places = [
            TopicPartition(topic, number) for number in consumer.list_topics(topic, timeout=30).topics[topic].partitions
        ]
        return [
            TopicPartition(topic, place.partition, consumer.get_watermark_offsets(place, timeout=30)[1])
            for place in places
        ]


def read_out(kafka: Kafka, topic: str, sent: Sent, begin: Sequence[TopicPartition]) -> Out:
    """Read what the topic holds now, from some places on."""
    scored, appended, again = np.full(len(sent.ms), -1), np.full(len(sent.ms), -1), 0
    with contextlib.closing(_reader(kafka)) as consumer:
        pending = {place.partition for place in begin}
        consumer.assign(list(begin))
        while pending:
            for message in consumer.consume(500, timeout=10):
                if message.error() is not None:
                    if message.error().code() != KafkaError._PARTITION_EOF:
                        raise SystemExit(message.error().str())
                    pending.discard(message.partition())
                    continue
                number = sent.number(*_source(message))
                if number < 0:
                    continue  # of what was sent before
                kind, at_ms = message.timestamp()
                assert kind == TIMESTAMP_LOG_APPEND_TIME, "the topic keeps the time that it is told"
                again += bool(appended[number] >= 0)
                scored[number], appended[number] = _scored_at_us(message.value()) // 1000, at_ms
    return Out(scored, appended, again)


def _reader(kafka: Kafka) -> Consumer:
    return Consumer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "group.id": kafka.topic("reader"),
            "enable.auto.commit": False,
            "enable.partition.eof": True,
        }
    )


def _source(message: Any) -> tuple[int, int]:
    _, partition, offset = dict(message.headers())[SOURCE_HEADER].decode().rsplit("/", 2)
    return int(partition), int(offset)


def _scored_at_us(value: bytes) -> int:
    """Take the time of scoring, which an enriched record ends with, from an Avro file or a Confluent message."""
    end = len(value) - SYNC_BYTES if value.startswith(b"Obj\x01") else len(value)
    zigzag = sum((byte & 0x7F) << (7 * n) for n, byte in enumerate(value[end - VARINT_BYTES : end]))
    return (zigzag >> 1) ^ -(zigzag & 1)


def latency(sent: Sent, out: Out) -> dict[str, Any]:
    """Put the load into numbers: seconds, and messages."""
    came = out.appended_ms >= 0
    if not came.any():
        raise SystemExit("Nothing of the load came out.")
    begin, end = sent.ms[0], sent.ms[-1]
    return {
        "missing": int((~came).sum()),
        "again": out.again,
        "all_out_s": float(out.appended_ms.max() - begin) / 1000,
        "backlog_at_end": int(((out.appended_ms > end) | ~came).sum()),
        "latency_s": _quantiles((out.appended_ms - sent.ms)[came]),
        "until_scored_s": _quantiles((out.scored_ms - sent.ms)[came]),
        "scored_to_out_s": _quantiles((out.appended_ms - out.scored_ms)[came]),
        "each_second": {
            "sent": _each_second(sent.ms, begin),
            "scored": _each_second(out.scored_ms[came], begin),
            "out": _each_second(out.appended_ms[came], begin),
        },
    }


def _each_second(ms: Times, begin: int) -> list[int]:
    return np.bincount(np.maximum(ms - begin, 0) // 1000).tolist()  # type: ignore[no-any-return]


def _quantiles(ms: Times) -> dict[str, float]:
    found = {f"p{quantile * 100:g}": float(np.quantile(ms, quantile)) / 1000 for quantile in QUANTILES}
    return found | {"max": float(ms.max()) / 1000}
