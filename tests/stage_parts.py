"""Small parts for the tests of the stages: alerts of our own schema, decoded, and the settings around them."""

import io
from collections.abc import Iterable
from typing import Any

import fastavro
import numpy as np
from stream_vae import schemas, surveys
from stream_vae.alert import Alert, Headers, Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.settings import KafkaSettings, Settings
from stream_vae.stages.decode import Decoder
from stream_vae.surveys import Profile

CANDIDATE = fastavro.parse_schema(schemas.load("candidate", "1.0"))


def kafka_settings(**changes: Any) -> KafkaSettings:
    """Settings that reach no broker: port 9 is nobody's."""
    values = {
        "bootstrap_servers": "127.0.0.1:9",
        "input_topics": ["in"],
        "output_topic": "out",
        "dead_letter_topic": "dead",
    }
    return KafkaSettings(**(values | changes))


def complete_settings(survey: str = "candidate", **sections: Any) -> Settings:
    return Settings(**({"survey": survey, "kafka": kafka_settings(), "release": {"store": "unused"}} | sections))


def packet(value: bytes = b"", offset: int = 0, *, topic: str = "in", partition: int = 0, **more: Any) -> Packet:
    return Packet(value, topic, partition, offset, **more)


def avro_file(record: dict[str, Any], schema: Any = CANDIDATE, codec: str = "null") -> bytes:
    buffer = io.BytesIO()
    fastavro.writer(buffer, schema, [record], codec=codec, sync_marker=bytes(range(16)))
    return buffer.getvalue()


def candidate(number: int = 1, stamp: np.ndarray | None = None, **changes: Any) -> dict[str, Any]:
    """A record of our own schema; without a stamp one with a source in the middle."""
    if stamp is None:
        rng = np.random.default_rng(number)
        stamp = rng.normal(0, 1, (21, 21))
        stamp[9:12, 9:12] += 20
    height, width = stamp.shape
    record = {
        "candidate_id": number,
        "object_id": f"object-{number}",
        "ra_deg": 10.0 + number,
        "dec_deg": -20.0,
        "midpoint_mjd": 60_000.25,
        "band": "g",
        "height": height,
        "width": width,
        "difference": stamp.astype("<f4").tobytes(),
    }
    return record | changes


def decoder(profile: Profile | str = "candidate") -> Decoder:
    chosen = surveys.load(profile) if isinstance(profile, str) else profile
    return Decoder(FrameReader(), chosen, DEFAULT_LIMITS)


def decoded(
    values: Iterable[bytes],
    profile: Profile | str = "candidate",
    *,
    headers: Headers = (),
    key: bytes | None = None,
    timestamp_ms: int | None = None,
) -> list[Alert]:
    """Decode packets that must all be good."""
    packets = [
        packet(value, offset, headers=headers, key=key, timestamp_ms=timestamp_ms)
        for offset, value in enumerate(values)
    ]
    alerts, rejected = decoder(profile).decode(packets)
    assert not rejected, rejected
    return alerts


def record_of(value: bytes) -> dict[str, Any]:
    """Decode a packet that is an Avro file with fastavro, whatever illegal defaults its schema has."""
    frame = FrameReader().open(value)
    record = fastavro.schemaless_reader(io.BytesIO(frame.body), fastavro.parse_schema(frame.writer.parsed), None)
    assert isinstance(record, dict)
    return record
