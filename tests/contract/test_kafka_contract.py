"""What stream_vae relies on in a Kafka, asked of the embedded one and of a real one alike.

Where the embedded one cannot keep a promise, the test is for the real one alone; where it has a trap of its own,
a test shows that the trap is there and can be seen.
"""

import contextlib
import time
from dataclasses import dataclass

import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from stream_vae.embedded.kafka import RETAINED_BYTES_PER_PARTITION

PACKET = bytes(range(250)) * 240  # 60 kB, as a ZTF alert
TIMEOUT_S = 30


@contextlib.contextmanager
def producing(broker, **options):
    """Give a producer with the at-least-once settings; what it was given is acknowledged at the end."""
    settings = {"bootstrap.servers": broker.bootstrap_servers, "acks": "all", "max.in.flight": 1}
    producer = Producer(settings | options)
    yield producer
    assert producer.flush(TIMEOUT_S) == 0


@contextlib.contextmanager
def consuming(broker, topic, group, **options):
    settings = {
        "bootstrap.servers": broker.bootstrap_servers,
        "group.id": group,
        "auto.offset.reset": "earliest",
        "enable.auto.commit": False,
        "partition.assignment.strategy": "cooperative-sticky",
        "fetch.wait.max.ms": 50,
    }
    consumer = Consumer(settings | broker.consumer_options | options)
    try:
        if topic is not None:
            consumer.subscribe([topic])
        yield consumer
    finally:
        consumer.close()


def take(consumer, count) -> list[Message]:
    """Poll until `count` messages are here."""
    messages, deadline = [], time.monotonic() + TIMEOUT_S
    while len(messages) < count:
        assert time.monotonic() < deadline, f"only {len(messages)} of {count} messages came"
        messages += [checked(message) for message in consumer.consume(count - len(messages), timeout=0.2)]
    return messages


def checked(message) -> Message:
    if message.error():
        raise KafkaException(message.error())
    return message


def next_offsets(messages) -> list[TopicPartition]:
    """Give what to commit once these are done."""
    highest = {}
    for message in messages:
        key = message.topic(), message.partition()
        highest[key] = max(highest.get(key, -1), message.offset())
    return [TopicPartition(topic, partition, offset + 1) for (topic, partition), offset in highest.items()]


def committed(broker, topic, group, partitions) -> list[TopicPartition]:
    with consuming(broker, None, group) as consumer:
        return consumer.committed([TopicPartition(topic, p) for p in range(partitions)], timeout=TIMEOUT_S)


def test_500_packets_come_back_as_they_were_sent(broker):
    topic = broker.fresh_topic(8)  # 500 of 60 kB are 30 MB: on the embedded Kafka 3.75 MB a partition, under its 5
    sent = {}
    with producing(broker) as producer:
        for n in range(500):
            value, key, timestamp = PACKET + str(n).encode(), f"object-{n}".encode(), 1_700_000_000_000 + n
            headers = [
                ("stream_vae.release", b"abc"),
                ("trace", bytes([0, n % 256, 255])),
                ("empty", b""),
                ("none", None),
            ]
            sent[key] = (value, timestamp, headers, n % 8)
            producer.produce(topic, value, key, partition=n % 8, timestamp=timestamp, headers=headers)
            producer.poll(0)
    with consuming(broker, topic, broker.topic("group")) as consumer:
        messages = take(consumer, 500)
    assert {
        message.key(): (message.value(), message.timestamp()[1], message.headers(), message.partition())
        for message in messages
    } == sent


def test_each_partition_keeps_the_order_and_counts_from_0(broker):
    topic = broker.fresh_topic(3)
    with producing(broker) as producer:
        for n in range(300):
            producer.produce(topic, str(n).encode(), partition=n % 3)
    with consuming(broker, topic, broker.topic("group")) as consumer:
        messages = take(consumer, 300)
    for partition in range(3):
        mine = [message for message in messages if message.partition() == partition]
        assert [message.offset() for message in mine] == list(range(100))
        assert [int(message.value()) for message in mine] == list(range(partition, 300, 3))


def test_a_delivery_report_tells_partition_and_offset(broker):
    topic, reports = broker.fresh_topic(), []
    with producing(broker) as producer:
        for _ in range(3):
            producer.produce(topic, b"x", on_delivery=lambda error, message: reports.append((error, message.offset())))
    assert reports == [(None, 0), (None, 1), (None, 2)]


def test_a_restarted_consumer_goes_on_after_what_was_committed(broker):
    topic, group = broker.fresh_topic(2), broker.topic("group")
    with producing(broker) as producer:
        for n in range(100):
            producer.produce(topic, str(n).encode(), partition=n % 2)
    with consuming(broker, topic, group) as consumer:
        done = take(consumer, 60)
        consumer.commit(offsets=next_offsets(done), asynchronous=False)
    with consuming(broker, topic, group) as consumer:
        rest = take(consumer, 40)
    assert sorted(int(message.value()) for message in done + rest) == list(range(100))


def test_what_was_not_committed_comes_again(broker):
    topic, group = broker.fresh_topic(), broker.topic("group")
    with producing(broker) as producer:
        for n in range(10):
            producer.produce(topic, str(n).encode())
    with consuming(broker, topic, group) as consumer:
        take(consumer, 10)
        consumer.commit(offsets=[TopicPartition(topic, 0, 4)], asynchronous=False)
    with consuming(broker, topic, group) as consumer:
        assert [int(message.value()) for message in take(consumer, 6)] == [4, 5, 6, 7, 8, 9]


def test_a_commit_keeps_its_metadata(broker):
    topic, group = broker.fresh_topic(2), broker.topic("group")
    metadata = '{"published": 41, "dead_lettered": 1, "filtered": 0}'
    with consuming(broker, None, group) as consumer:
        consumer.commit(offsets=[TopicPartition(topic, 0, 42, metadata=metadata)], asynchronous=False)
    here, untouched = committed(broker, topic, group, 2)
    assert (here.offset, here.metadata) == (42, metadata)
    assert (untouched.offset, untouched.metadata) == (OFFSET_INVALID, None)


def test_watermarks_tell_how_much_there_is(broker):
    topic = broker.fresh_topic()
    with producing(broker) as producer:
        for _ in range(7):
            producer.produce(topic, b"x")
    with consuming(broker, None, broker.topic("group")) as consumer:
        assert consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=TIMEOUT_S) == (0, 7)


def test_a_topic_that_is_not_there_is_an_error_and_not_a_wait(kafka):
    # The embedded one makes it, with four partitions.
    with consuming(kafka, kafka.topic(), kafka.topic("group")) as consumer:
        message = consumer.poll(TIMEOUT_S)
        assert message.error().code() == KafkaError.UNKNOWN_TOPIC_OR_PART


@dataclass
class Member:
    """A consumer of a group that counts what it is given and what is taken from it."""

    consumer: Consumer
    assigned: set[int]
    revocations: list[set[int]]

    @classmethod
    def join(cls, stack, broker, topic, group, before_revoke=None, **options):
        member = cls(stack.enter_context(consuming(broker, None, group, **options)), set(), [])

        def on_revoke(consumer, partitions):
            if before_revoke is not None:
                before_revoke(consumer, partitions)
            member.on_revoke(consumer, partitions)

        member.consumer.subscribe([topic], on_assign=member.on_assign, on_revoke=on_revoke)
        return member

    def on_assign(self, _, partitions):
        self.assigned |= {partition.partition for partition in partitions}

    def on_revoke(self, _, partitions):
        self.assigned -= {partition.partition for partition in partitions}
        self.revocations.append({partition.partition for partition in partitions})


def poll_until(members, condition, seen=None):
    """Poll each member in turn until the condition holds; what comes is added to `seen`."""
    deadline = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < deadline, [member.assigned for member in members]
        for member in members:
            message = member.consumer.poll(0.02)
            if message is not None and seen is not None:
                seen.append(checked(message))


def test_two_consumers_share_the_partitions_and_keep_what_they_can(broker):
    topic, group, partitions = broker.fresh_topic(6), broker.topic("group"), set(range(6))
    with contextlib.ExitStack() as stack:
        first = Member.join(stack, broker, topic, group)
        poll_until([first], lambda: first.assigned == partitions)
        second = Member.join(stack, broker, topic, group)
        poll_until([first, second], lambda: len(first.assigned) == len(second.assigned) == 3)
        assert first.assigned | second.assigned == partitions
        # Cooperative: the first was never without the three that it kept.
        assert first.revocations == [second.assigned]
        second.consumer.close()
        poll_until([first], lambda: first.assigned == partitions)
        assert len(first.revocations) == 1


def test_nothing_is_lost_or_doubled_when_a_second_consumer_joins(broker):
    topic, group, seen, refused = broker.fresh_topic(4), broker.topic("group"), [], []
    # Who is late on a busy machine must not be taken for dead: its messages would come twice.
    patient = {"session.timeout.ms": 6000}

    def commit_what_is_done(consumer, partitions):
        leaving = {partition.partition for partition in partitions}
        offsets = [offset for offset in next_offsets(seen) if offset.partition in leaving]
        # Refused (the group may be rebalancing anew) means that they come again. It must not leave the callback:
        # confluent-kafka then raises something that cannot even be printed.
        try:
            consumer.commit(offsets=offsets, asynchronous=False)
        except KafkaException:
            refused.append(offsets)

    with contextlib.ExitStack() as stack:
        producer = stack.enter_context(producing(broker))
        for n in range(400):
            producer.produce(topic, str(n).encode(), partition=n % 4)
        first = Member.join(stack, broker, topic, group, before_revoke=commit_what_is_done, **patient)
        poll_until([first], lambda: len(seen) >= 50, seen)
        second = Member.join(stack, broker, topic, group, before_revoke=commit_what_is_done, **patient)
        poll_until([first, second], lambda: len(seen) >= 400 and second.assigned, seen)
        late = [member.consumer.poll(0.2) for member in (first, second)]
        seen += [message for message in late if message is not None and message.error() is None]
    numbers = sorted(int(message.value()) for message in seen)
    assert sorted(set(numbers)) == list(range(400))
    assert numbers == sorted(set(numbers)) or refused, "doubled, though every commit before a revocation was taken"


def test_a_message_over_the_limit_of_the_producer_is_refused_at_once(broker):
    with producing(broker) as producer, pytest.raises(KafkaException) as caught:
        producer.produce(broker.fresh_topic(), bytes(2_000_000))
    assert caught.value.args[0].code() == KafkaError.MSG_SIZE_TOO_LARGE


def test_a_message_over_the_limit_of_the_topic_is_refused_in_the_delivery_report(kafka):
    topic, errors = kafka.fresh_topic(max_message_bytes=100_000), []
    with producing(kafka) as producer:
        producer.produce(topic, bytes(200_000), on_delivery=lambda error, _: errors.append(error.code()))
        producer.produce(topic, bytes(50_000))
    assert errors == [KafkaError.MSG_SIZE_TOO_LARGE]


# The embedded Kafka's trap: 5 MB a partition, and nobody says a word.


def test_the_embedded_kafka_drops_what_nobody_read_and_the_gap_shows_in_the_offsets(embedded_kafka):
    topic, group = embedded_kafka.fresh_topic(), embedded_kafka.topic("group")
    count = 2 * RETAINED_BYTES_PER_PARTITION // len(PACKET)
    with consuming(embedded_kafka, topic, group) as consumer:
        with producing(embedded_kafka) as producer:
            producer.produce(topic, PACKET)
        assert take(consumer, 1)[0].offset() == 0
        consumer.commit(offsets=[TopicPartition(topic, 0, 1)], asynchronous=False)
    with producing(embedded_kafka) as producer:
        for _ in range(count):
            producer.produce(topic, PACKET)
    with consuming(embedded_kafka, topic, group) as consumer:
        first = take(consumer, 1)[0].offset()
        low, high = consumer.get_watermark_offsets(TopicPartition(topic, 0), timeout=TIMEOUT_S)
    assert high == count + 1
    assert first == low > 1, "a gap: the consumer was at 1"
    assert (high - low) * len(PACKET) <= RETAINED_BYTES_PER_PARTITION


def test_a_producer_paced_by_lag_loses_nothing_on_the_embedded_kafka(embedded_kafka):
    topic, group = embedded_kafka.fresh_topic(2), embedded_kafka.topic("group")
    count, most_ahead = 400, RETAINED_BYTES_PER_PARTITION // len(PACKET) // 2
    offsets = {0: [], 1: []}
    with producing(embedded_kafka) as producer, consuming(embedded_kafka, topic, group) as consumer:
        for n in range(count):
            producer.produce(topic, PACKET, partition=n % 2)
            while n + 1 - sum(map(len, offsets.values())) >= most_ahead:
                producer.poll(0)
                for message in consumer.consume(most_ahead, timeout=0.05):
                    offsets[message.partition()].append(checked(message).offset())
        producer.flush(TIMEOUT_S)
        for message in take(consumer, count - sum(map(len, offsets.values()))):
            offsets[message.partition()].append(message.offset())
    assert offsets == {0: list(range(count // 2)), 1: list(range(count // 2))}


# A real Kafka alone: transactions.


@contextlib.contextmanager
def transactional(kafka, name):
    producer = Producer(
        {
            "bootstrap.servers": kafka.bootstrap_servers,
            "transactional.id": name,
            "message.timeout.ms": 20_000,
            "transaction.timeout.ms": 30_000,
        }
    )
    producer.init_transactions(TIMEOUT_S)
    yield producer


def values(kafka, topic, isolation, count) -> list[bytes]:
    """Read to the end of a topic that shows `count` messages, and wait a little for one too many."""
    group = kafka.topic("group")
    with consuming(kafka, topic, group, **{"isolation.level": isolation}) as consumer:
        messages = take(consumer, count)
        extra = consumer.poll(0.3)
    assert extra is None
    return [message.value() for message in messages]


def test_an_aborted_transaction_is_not_seen_by_who_reads_committed(kafka):
    topic = kafka.fresh_topic()
    with transactional(kafka, kafka.topic("txn")) as producer:
        for value, end in ((b"a", producer.commit_transaction), (b"b", producer.abort_transaction)):
            producer.begin_transaction()
            producer.produce(topic, value)
            producer.flush(TIMEOUT_S)
            end(TIMEOUT_S)
    assert values(kafka, topic, "read_committed", 1) == [b"a"]
    assert values(kafka, topic, "read_uncommitted", 2) == [b"a", b"b"]


def test_output_and_input_offsets_are_committed_together_or_not_at_all(kafka):
    source, sink, group = kafka.fresh_topic(), kafka.fresh_topic(), kafka.topic("group")
    with producing(kafka) as producer:
        for n in range(6):
            producer.produce(source, str(n).encode())
    with transactional(kafka, kafka.topic("txn")) as producer, consuming(kafka, source, group) as consumer:
        for end in (producer.commit_transaction, producer.abort_transaction):
            batch = take(consumer, 3)
            producer.begin_transaction()
            for message in batch:
                producer.produce(sink, message.value())
            producer.send_offsets_to_transaction(next_offsets(batch), consumer.consumer_group_metadata(), TIMEOUT_S)
            end(TIMEOUT_S)
    assert committed(kafka, source, group, 1)[0].offset == 3
    assert values(kafka, sink, "read_committed", 3) == [b"0", b"1", b"2"]


def test_offsets_committed_in_a_transaction_keep_their_metadata(kafka):
    topic, group = kafka.fresh_topic(), kafka.topic("group")
    with producing(kafka) as producer:
        producer.produce(topic, b"x")
    with transactional(kafka, kafka.topic("txn")) as producer, consuming(kafka, topic, group) as consumer:
        take(consumer, 1)
        producer.begin_transaction()
        offset = TopicPartition(topic, 0, 1, metadata="published=1")
        producer.send_offsets_to_transaction([offset], consumer.consumer_group_metadata(), TIMEOUT_S)
        producer.commit_transaction(TIMEOUT_S)
    (here,) = committed(kafka, topic, group, 1)
    assert (here.offset, here.metadata) == (1, "published=1")


def test_a_second_producer_of_the_same_transactional_id_fences_the_first(kafka):
    topic, name = kafka.fresh_topic(), kafka.topic("txn")
    with transactional(kafka, name) as first:
        first.begin_transaction()
        first.produce(topic, b"of the first")
        first.flush(TIMEOUT_S)
        with transactional(kafka, name) as second:
            second.begin_transaction()
            second.produce(topic, b"of the second")
            second.commit_transaction(TIMEOUT_S)
        with pytest.raises(KafkaException) as caught:
            first.commit_transaction(TIMEOUT_S)
    assert caught.value.args[0].fatal()
    assert values(kafka, topic, "read_committed", 1) == [b"of the second"]
