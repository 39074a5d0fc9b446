"""One process of the burst: ``generator.py JOB.json`` sends packets at a steady pace and tells what that took.

It says that it is ready, and begins with the next line that it reads. It frames nothing and waits for nothing: packets
are read before, message `i` goes to partition `i % partitions`, and the bytes travel in librdkafka's threads. A
message's Kafka timestamp is the moment at which it was handed over; the moments are written beside the job as
`sent.npy`, milliseconds since 1970.
"""

import json
import os
import resource
import sys
import time
from pathlib import Path
from typing import Any

import corpus
import numpy as np
from confluent_kafka import KafkaError, Producer

TURN_S = 0.004
"""Messages that fall due meanwhile go together: four at LSST's peak."""
OPTIONS = {
    "linger.ms": 2,
    "batch.size": 1_000_000,
    "queue.buffering.max.kbytes": 2_000_000,
    "queue.buffering.max.messages": 1_000_000,
    "message.max.bytes": 10_000_000,
    "retries": 0,  # so the order is kept with several requests on their way, and offsets are known without reports
    "delivery.report.only.error": True,
}


def main() -> None:
    path = Path(sys.argv[1])
    job = json.loads(path.read_text(encoding="utf-8"))
    packets = corpus.load(Path(job["corpus"]))
    failures: list[str] = []

    def reported(error: KafkaError | None, _: object) -> None:
        if error is not None:
            failures.append(error.str())

    producer = Producer({"bootstrap.servers": job["bootstrap_servers"], **OPTIONS, "on_delivery": reported})
    producer.list_topics(job["topic"], timeout=30)
    print("ready", flush=True)
    sys.stdin.readline()
    told = send(producer, packets, job)
    np.save(path.with_name("sent.npy"), told.pop("sent_ms"))
    if failures:
        sys.exit(f"Kafka did not take {len(failures)} messages: {failures[0]}")
    print(json.dumps(told))


def send(producer: Producer, packets: list[bytes], job: dict[str, Any]) -> dict[str, Any]:
    """Send all, each when it is due or as soon after as this process can."""
    alerts, rate, partitions = job["alerts"], job["alerts"] / job["over_s"], job["partitions"]
    sent_ms = np.zeros(alerts, np.int64)
    behind = np.zeros(alerts)
    before, start = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    number = 0
    while number < alerts:
        due = min(alerts, int((time.monotonic() - start) * rate) + 1)
        while number < due:
            at_ms = time.time_ns() // 1_000_000
            sent_ms[number], behind[number] = at_ms, time.monotonic() - start - number / rate
            packet = packets[number % len(packets)]
            producer.produce(job["topic"], packet, partition=number % partitions, timestamp=at_ms)
            number += 1
        producer.poll(0)
        time.sleep(TURN_S)
    handed_s = time.monotonic() - start
    if producer.flush(120):
        sys.exit("Kafka did not take everything in two minutes.")
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return {
        "sent_ms": sent_ms,
        "handed_over_s": handed_s,
        "acknowledged_s": time.monotonic() - start,
        "behind_s": {"p99": float(np.quantile(behind, 0.99)), "max": float(behind.max())},
        "cpu_s": usage.ru_utime + usage.ru_stime - before.ru_utime - before.ru_stime,
        "process": os.getpid(),
    }


if __name__ == "__main__":
    main()
