"""The second way: how alerts are usually processed in Python, written with care.

Decode with fastavro.reader, gunzip with gzip, read FITS with astropy, crop and scale with numpy, encode and score the
batch with the same ONNX graphs, encode the whole record again with fastavro.writer; in Confluent's wire format with
fastavro's schemaless_reader and schemaless_writer, and schemas parsed once an id. Kafka's options are stream_vae's own,
messages carry the same headers, offsets are committed when the batch is acknowledged.
"""

import gzip
import io
from pathlib import Path
from time import perf_counter, time_ns
from typing import Any

import astropy.io.fits
import corpus
import numpy as np
from confluent_kafka import Consumer, KafkaError, Message, Producer, TopicPartition
from job import Job, Meter
from stream_vae import assembly, kafka
from stream_vae.alert import Codes
from stream_vae.avro.registry import SchemaSource
from stream_vae.backends.onnx import open_session
from stream_vae.model.release import Preprocessing, Release
from stream_vae.stages.score import Scorer
from stream_vae.surveys import Profile
from usual_formats import Files, Wire


class UsualWay:
    """A batch of packets to a batch of enriched packets; a registry is for those in wire format."""

    def __init__(self, release: Release, profile: Profile, registry: SchemaSource | None, output_topic: str) -> None:
        self._release = release
        self._wanted: Preprocessing = release.card.preprocessing
        self._paths = [profile.cutouts.paths(name)[0].split(".") for name in self._wanted.cutouts]
        self._session = open_session(release.folder / "encoder.onnx")
        self._scorer = Scorer(release)
        self._format = Files() if registry is None else Wire(registry, f"{output_topic}-value")

    def process(self, packets: list[bytes]) -> list[bytes]:
        alerts = [self._format.read(packet) for packet in packets]
        size = self._wanted.stamp_size
        raw = np.stack(
            [
                np.stack([crop(self._image(alert.record, path), size) for path in self._paths], axis=-1)
                for alert in alerts
            ]
        )
        stamps, scoreable = normalise(raw, self._wanted)
        codes = Codes(*self._session.run(["z_mean", "z_log_var"], {"stamp": stamps}))
        scores = self._scorer.score(codes)
        now_us = time_ns() // 1000
        results = []
        for n, alert in enumerate(alerts):
            known = bool(scoreable[n])
            alert.record["stream_vae"] = {
                "release": self._release.id,
                "latent_space": self._release.card.latent_space,
                "latent_mean": codes.z_mean[n].tolist() if known else None,
                "latent_log_var": codes.z_log_var[n].tolist() if known else None,
                **{name: float(values[n]) if known else None for name, values in scores._asdict().items()},
                "quality": 0,
                "scored_at": now_us,
            }
            results.append(alert.write(alert.record))
        return results

    @staticmethod
    def _image(record: dict[str, Any], path: list[str]) -> Any:
        value: Any = record
        for name in path:
            value = value[name]
        data = gzip.decompress(value) if value[:2] == b"\x1f\x8b" else value
        with astropy.io.fits.open(io.BytesIO(data), memmap=False) as hdus:
            return next(hdu.data for hdu in hdus if hdu.data is not None)


def crop(image: Any, size: int) -> Any:
    """The square around the centre; NaN beyond the image."""
    half = size // 2
    row, column = image.shape[0] // 2, image.shape[1] // 2
    if min(row, column) < half or row + half >= image.shape[0] or column + half >= image.shape[1]:
        image = np.pad(image.astype(np.float32), half, constant_values=np.nan)
        row, column = row + half, column + half
    return image[row - half : row + half + 1, column - half : column + half + 1].astype(np.float32)


def normalise(raw: Any, wanted: Preprocessing) -> tuple[Any, Any]:
    """Minus the median, over the largest absolute value, for the whole batch at once."""
    masked = ~np.isfinite(raw)
    holes = masked.any(axis=(1, 2, 3))
    raw[masked] = np.nan
    median = np.empty((len(raw), 1, 1, raw.shape[3]), np.float32)
    median[~holes] = np.median(raw[~holes], axis=(1, 2), keepdims=True)
    median[holes] = np.nanmedian(raw[holes], axis=(1, 2), keepdims=True)
    shifted = raw - median
    scale = np.nanmax(np.abs(shifted), axis=(1, 2), keepdims=True)
    stamps = np.where(masked, np.float32(wanted.fill), shifted / scale)
    too_many = masked.mean(axis=(1, 2)) > wanted.max_masked_fraction
    return stamps, ~(too_many.any(axis=1) | ~(scale > 0).all(axis=(1, 2, 3)))


def taken(messages: list[Message]) -> list[Message]:
    """Messages without librdkafka's notices of a partition's end."""
    for message in messages:
        if (error := message.error()) is not None and error.code() != KafkaError._PARTITION_EOF:
            raise SystemExit(error.str())
    return [message for message in messages if message.error() is None]


def next_offsets(messages: list[Message]) -> list[TopicPartition]:
    """What to commit behind these messages."""
    last = {(message.topic(), message.partition()): message.offset() for message in messages}
    return [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in last.items()]


def delivered(error: KafkaError | None, message: Message) -> None:
    """Take one acknowledgement: any failure ends the run."""
    if error is not None:
        raise SystemExit(f"not delivered: {message.topic()}: {error.str()}")


def run(job: Job) -> dict[str, Any]:
    settings = job.settings()
    release = assembly.release_of(settings)
    registry = assembly.registry_of(settings.registry)
    way = UsualWay(release, assembly.profile_of(settings), registry, job.output_topic)
    packets = corpus.load(Path(job.corpus))
    for start in range(0, len(packets), settings.batch.max_alerts):
        way.process(packets[start : start + settings.batch.max_alerts])
    consumer = Consumer(kafka.consumer_options(settings.kafka))
    producer = Producer(kafka.producer_options(settings.kafka, settings.delivery))
    meter, done = Meter(), 0
    meter.start()
    consumer.subscribe([job.input_topic])
    while done < job.alerts:
        began = perf_counter()
        messages = taken(consumer.consume(settings.batch.max_alerts, settings.batch.max_wait_s))
        if not messages:
            continue
        values = way.process([message.value() for message in messages])
        for message, value in zip(messages, values, strict=True):
            headers = [
                ("stream_vae.source", f"{message.topic()}/{message.partition()}/{message.offset()}".encode()),
                ("stream_vae.release", release.id.encode()),
            ]
            timestamp = message.timestamp()[1]
            producer.produce(
                job.output_topic, value, message.key(), on_delivery=delivered, timestamp=timestamp, headers=headers
            )
            producer.poll(0)
        producer.flush()
        consumer.commit(offsets=next_offsets(messages), asynchronous=True)
        done += len(messages)
        meter.batch(began)
    consumer.close()
    return {"alerts": done, "published": done, **meter.stop()}
