"""Run in a pod: read input, output and dead letters to their ends, and tell what is missing, as JSON.

witness.py BOOTSTRAP INPUT OUTPUT DEAD_LETTERS
"""

import json
import sys
from collections import Counter

from confluent_kafka import Consumer, TopicPartition


def read(bootstrap, topic):
    """Give every message of a topic as it stands now."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": "witness", "enable.auto.commit": False})
    partitions = consumer.list_topics(topic, timeout=20).topics[topic].partitions
    ends = {number: consumer.get_watermark_offsets(TopicPartition(topic, number), 20) for number in partitions}
    consumer.assign([TopicPartition(topic, number, low) for number, (low, _) in ends.items()])
    left = {number for number, (low, high) in ends.items() if high > low}
    while left:
        message = consumer.poll(20)
        if message is None or message.error():
            raise SystemExit(f"{topic}: {message and message.error()}")
        yield message
        if message.offset() >= ends[message.partition()][1] - 1:
            left.discard(message.partition())
    consumer.close()


bootstrap, source, output, dead = sys.argv[1:]
sent = {f"{m.topic()}/{m.partition()}/{m.offset()}".encode() for m in read(bootstrap, source)}
seen, releases, letters = Counter(), Counter(), 0
for message in read(bootstrap, output):
    headers = dict(message.headers())
    seen[headers["stream_vae.source"]] += 1
    releases[headers["stream_vae.release"].decode()] += 1
for message in read(bootstrap, dead):
    seen[dict(message.headers())["stream_vae.source"]] += 1
    letters += 1
print(
    json.dumps(
        {
            "sent": len(sent),
            "lost": len(sent - set(seen)),
            "twice": sum(seen.values()) - len(seen),
            "dead_letters": letters,
            "releases": releases,
        }
    )
)
