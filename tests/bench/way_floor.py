"""The third way, which does nothing useful: only the library calls that no implementation can leave out.

On the same bytes: librdkafka consumes them, libdeflate unpacks the cutouts that the release needs (found beforehand),
ONNX Runtime encodes stamps (cut beforehand), librdkafka produces messages of the size that stream_vae produces (made
beforehand), without headers. Batches, commits and Kafka's options are those of the other ways.
"""

from pathlib import Path
from time import perf_counter
from typing import Any

import corpus
import deflate
import numpy as np
from confluent_kafka import Consumer, Producer
from job import Job, Meter
from stream_vae import assembly, kafka
from stream_vae.alert import Packet
from stream_vae.backends.onnx import open_session
from stream_vae.metrics import Metrics
from stream_vae.pipeline import enriched
from stream_vae.runtime.process import settle_memory
from way_usual import delivered, next_offsets, taken

GZIP = b"\x1f\x8b"


def run(job: Job) -> dict[str, Any]:
    settings = job.settings()
    release = assembly.release_of(settings)
    stages = assembly.stages_of(settings, release, assembly.registry_of(settings.registry))
    packets = [Packet(value, "warm-up", 0, n) for n, value in enumerate(corpus.load(Path(job.corpus)))]
    alerts = stages.decoder.decode(packets).alerts
    cutouts = [
        [(data, int.from_bytes(data[-4:], "little")) for data in map(bytes, found) if data[:2] == GZIP]
        for found in ([alert.cutout(name) or b"" for name in release.card.preprocessing.cutouts] for alert in alerts)
    ]
    ready = stages.stamper.cut(alerts).stamps
    stamps = np.resize(ready, (settings.batch.max_alerts, *ready.shape[1:]))  # repeats them where there are too few
    outputs = [outcome.messages[0].value for outcome in enriched(packets, stages, Metrics("warm-up"))]
    session = open_session(release.folder / "encoder.onnx")
    del packets, alerts
    consumer = Consumer(kafka.consumer_options(settings.kafka))
    producer = Producer(kafka.producer_options(settings.kafka, settings.delivery))
    meter, done = Meter(), 0
    settle_memory()
    meter.start()
    consumer.subscribe([job.input_topic])
    while done < job.alerts:
        began = perf_counter()
        messages = taken(consumer.consume(settings.batch.max_alerts, settings.batch.max_wait_s))
        if not messages:
            continue
        for n, message in enumerate(messages, start=done):
            message.value()
            for data, size in cutouts[n % len(cutouts)]:
                deflate.gzip_decompress(data, size)
        session.run(["z_mean", "z_log_var"], {"stamp": stamps[: len(messages)]})
        for n in range(done, done + len(messages)):
            producer.produce(job.output_topic, outputs[n % len(outputs)], on_delivery=delivered)
        producer.flush()
        consumer.commit(offsets=next_offsets(messages), asynchronous=True)
        done += len(messages)
        meter.batch(began)
    consumer.close()
    return {"alerts": done, "published": done, **meter.stop()}
