"""`dlq`: dead letters of a worker are listed, shown and sent back once."""

import time

import pytest
from confluent_kafka import Consumer
from stream_vae.errors import ConfigError
from stream_vae.tools import topics
from stream_vae.tools.send_back import REPLAYED_HEADER

from deployment import answered, command, deploy

TRACE = [("traceparent", b"00-1-2-03")]
STAMP_MS = int(time.time() * 1000) - 3_600_000  # a real Kafka deletes what is older than a week


@pytest.fixture
def refused(broker, real_packets, tmp_path):
    """A deployment whose worker read two good alerts and five bad ones in three partitions."""
    deployment = deploy(broker, tmp_path, partitions=3)
    good = [path.read_bytes() for path in real_packets("ztf/kowalski")[:2]]
    bad = [b"", b"junk", b"junk again", good[0][:-50], good[1] + b"tail"]
    deployment.publish([*good, *bad], headers=TRACE, timestamp=STAMP_MS)
    deployment.run_worker()
    return deployment


def messages(deployment, topic):
    return topics.latest(deployment.settings.kafka, topic, 100)


def test_letters_are_counted_by_reason_and_listed(refused):
    found = answered("dlq", "ls", "--settings", refused.file)
    assert found["counts"] == {"framing": 2, "empty": 1, "truncated": 1, "trailing_bytes": 1}
    assert len(found["letters"]) == 5
    assert all(letter["source"].startswith(f"{refused.input}/") for letter in found["letters"])
    only = answered("dlq", "ls", "--settings", refused.file, "--reason", "framing", "-n", 1)
    assert [letter["reason"] for letter in only["letters"]] == ["framing"]
    table = command("dlq", "ls", "--settings", refused.file)
    assert "truncated" in table.stdout
    assert "dlq show" in table.stdout


def test_a_letter_is_shown_with_its_bytes_and_what_decoding_says_today(refused, tmp_path):
    letter = next(
        each
        for each in answered("dlq", "ls", "--settings", refused.file)["letters"]
        if each["error"].startswith("neither an Avro file")
    )
    out = tmp_path / "letter.avro"
    result = command("dlq", "show", letter["at"], "--settings", refused.file, "--out", out)
    assert result.exit_code == 0
    assert "6a 75 6e 6b" in result.stdout  # "junk"
    assert "still refused as framing" in result.stdout
    assert out.read_bytes().startswith(b"junk")
    short = letter["at"].partition("/")[2]
    assert answered("dlq", "show", short, "--settings", refused.file)["at"] == letter["at"]
    alone = command("dlq", "show", "0", "--settings", refused.file)
    assert isinstance(alone.exception, ConfigError)
    assert "3 partitions" in str(alone.exception)


def test_letters_go_back_once_with_bytes_key_time_and_trace_headers(refused):
    before = messages(refused, refused.input)
    first = answered("dlq", "replay", "--settings", refused.file, "--yes")
    assert first["sent"] == 5
    again = answered("dlq", "replay", "--settings", refused.file, "--yes")
    assert (again["sent"], again["already_sent"]) == (0, 5)

    everything = messages(refused, refused.input)
    came = [packet for packet in everything if REPLAYED_HEADER in dict(packet.headers)]
    assert len(everything) == len(before) + 5
    originals = {packet.key: packet for packet in before}
    for packet in came:
        original = originals[packet.key]
        assert (packet.value, packet.partition) == (original.value, original.partition)
        assert packet.timestamp_ms == STAMP_MS
        headers = dict(packet.headers)
        assert headers.pop(REPLAYED_HEADER).startswith(refused.dead_letters.encode())
        assert headers == dict(TRACE)

    forced = answered("dlq", "replay", "--settings", refused.file, "--yes", "--again", "--reason", "empty")
    assert forced["sent"] == 1


def test_each_reason_is_remembered_apart(refused):
    def replay(*arguments):
        return answered("dlq", "replay", "--settings", refused.file, "--yes", *arguments)["sent"]

    assert replay("--reason", "trailing_bytes") == 1
    assert replay("--reason", "framing") == 2
    assert replay() == 2
    assert replay() == 0


def test_what_comes_back_refused_is_a_new_letter(refused):
    assert answered("dlq", "replay", "--settings", refused.file, "--yes", "--reason", "empty")["sent"] == 1
    refused.run_worker()
    assert answered("dlq", "ls", "--settings", refused.file)["counts"]["empty"] == 2
    assert answered("dlq", "replay", "--settings", refused.file, "--yes", "--reason", "empty")["sent"] == 1


def test_a_dry_run_and_a_no_send_nothing(refused):
    before = len(messages(refused, refused.input))
    dry = command("dlq", "replay", "--settings", refused.file, "--dry-run")
    assert dry.exit_code == 0
    assert refused.input in dry.stdout
    declined = command("dlq", "replay", "--settings", refused.file, stdin="n\n")
    assert declined.exit_code == 1
    assert len(messages(refused, refused.input)) == before
    assert answered("dlq", "replay", "--settings", refused.file, "--dry-run")["already_sent"] == 0


def test_letters_sent_to_another_topic_may_still_go_home(refused, broker):
    other = broker.fresh_topic()
    assert answered("dlq", "replay", "--settings", refused.file, "--yes", "--to", other)["sent"] == 5
    assert len(messages(refused, other)) == 5
    assert answered("dlq", "replay", "--settings", refused.file, "--yes")["sent"] == 5


def test_letters_never_go_where_stream_vae_publishes(refused):
    result = command("dlq", "replay", "--settings", refused.file, "--yes", "--to", refused.dead_letters)
    assert isinstance(result.exception, ConfigError)


def test_messages_that_do_not_say_where_they_came_from_need_a_target(broker, tmp_path):
    deployment = deploy(broker, tmp_path)
    deployment.publish([b"foreign"], deployment.dead_letters)
    found = answered("dlq", "replay", "--settings", deployment.file, "--yes")
    assert (found["sent"], found["without_origin"]) == (0, 1)
    assert "nothing to send" in command("dlq", "replay", "--settings", deployment.file).stdout.lower()
    assert answered("dlq", "ls", "--settings", deployment.file)["counts"] == {"unknown": 1}
    target = broker.fresh_topic()
    assert answered("dlq", "replay", "--settings", deployment.file, "--yes", "--to", target)["sent"] == 1


def test_replay_remembers_in_its_own_group_and_leaves_the_workers_alone(refused, broker):
    def committed(group):
        consumer = Consumer({"bootstrap.servers": broker.bootstrap_servers, "group.id": group})
        wanted = [topics.TopicPartition(topic, 0) for topic in (refused.input, refused.dead_letters)]
        offsets = [entry.offset for entry in consumer.committed(wanted, timeout=10)]
        consumer.close()
        return offsets

    group = refused.settings.kafka.group_id
    before = committed(group)
    assert answered("dlq", "replay", "--settings", refused.file, "--yes")["sent"] == 5
    assert committed(group) == before
    assert committed(f"{group}-dlq-replay")[0] < 0


def test_nothing_is_sent_from_behind_the_end_that_was_shown(broker, tmp_path):
    """A worker beside the replay refuses the letters again: they must not go round for ever."""
    from stream_vae.tools.send_back import Choice, Memory, plan_replay, replay

    deployment = deploy(broker, tmp_path)
    source = [("stream_vae.source", f"{deployment.input}/0/0".encode()), ("stream_vae.reason", b"empty")]
    deployment.publish([b"", b""], deployment.dead_letters, headers=source)
    section = deployment.settings.kafka
    memory = Memory(section)
    plan = plan_replay(section, memory, Choice())
    deployment.publish([b""], deployment.dead_letters, headers=source)
    assert replay(section, memory, plan, Choice()) == 2
    assert plan_replay(section, memory, Choice()).total == 1
    memory.close()


def test_an_empty_dead_letter_topic_is_good_news(broker, tmp_path):
    deployment = deploy(broker, tmp_path)
    assert "No dead letters" in command("dlq", "ls", "--settings", deployment.file).stdout
