"""The whole loop on a real Kafka and a real Redis: reservoir, retraining, gates, promotion, swap, drift, rollback.

A worker and a trainer run as an operator runs them, and are killed on the way. Nothing that was sent is missing at the
end, every message says which release scored it, and store and reservoir are whole.
"""

import io
import signal
import urllib.request
from collections import Counter

import fastavro
import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families
from stream_vae.cli import releases, reservoir  # noqa: F401 - their import makes the commands
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.train import train
from stream_vae.model.release import problems
from stream_vae.model.store import ReleaseStore
from stream_vae.sky.packets import simulate_packets

from deployment import answered, command, deploy
from flow import Record, check_books, check_same, count_messages, read, running, send, until
from servers import free_ports

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

TINY = {
    "name": "tiny",
    "data": {"simulated_stamps": 400, "min_stamps": 32},
    "model": {"filters": 4, "latent_size": 6, "linear_skip": True, "linear_start": "pca"},
    "loss": {"kl_weight": 0.1},
    "fit": {"epochs": 4, "batch_size": 32, "learning_rate": 3e-3},
    "scorer": {"hidden": 8, "draws": 8, "epochs": 3},
    "retrain": {"epochs": 4},
}
RETRAINED_S = 240
"""A retraining takes seconds, and minutes on a machine that is busy with other tests."""


@pytest.fixture(scope="module")
def packets():
    return [each.packet for each in simulate_packets(1000, shape="candidate", seed=3)]


def striped(packets, seed):
    """The same alerts from a detector whose readout is broken."""
    random = np.random.default_rng(seed)
    for packet in packets:
        reader = fastavro.reader(io.BytesIO(packet))
        record = next(reader)
        side = (record["height"], record["width"])
        image = random.normal(0, 0.15, side)
        image[np.arange(side[0]) % 3 == random.integers(0, 3)] += 1.0
        record["difference"] = image.astype("<f4").tobytes()
        record["candidate_id"] += 10**9 * seed
        stream = io.BytesIO()
        fastavro.writer(stream, reader.writer_schema, [record])
        yield stream.getvalue()


class Stream:
    """Sends alerts and keeps count."""

    def __init__(self, deployment):
        self.deployment, self.sent = deployment, 0

    def send(self, packets):
        records = [Record(packet, str(self.sent + row).encode()) for row, packet in enumerate(packets)]
        send(self.deployment.kafka, self.deployment.input, records)
        self.sent += len(records)

    def settled(self):
        """Wait until everything that was sent is published."""
        until(self._all_published, what=f"{self.sent} alerts are published")

    def _all_published(self):
        return count_messages(self.deployment.kafka, self.deployment.output) >= self.sent

    def scored_by(self, last):
        """Which releases scored the last so many messages."""
        published = read(self.deployment.kafka, self.deployment.output)
        return Counter(record.header("stream_vae.release").decode() for record in published[-last:])


def metric(port, name):
    text = urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10).read().decode()
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def swapped(stream, packets, release):
    """Wait until a release scores, sending a few alerts now and then; a worker takes it between two batches."""

    def scores():
        stream.send(packets[:4])
        stream.settled()
        return set(stream.scored_by(4)) == {release}

    until(scores, what=f"{release} scores", timeout_s=60)


@pytest.fixture
def loop(kafka, redis_server, tmp_path):
    """A deployment whose release knows simulated stamps, with an empty reservoir, and the ports of its metrics."""
    worker_port, trainer_port = free_ports(2)
    sections = {
        "release": {"poll_s": 0.3},
        "reservoir": {"url": redis_server.url},
        "drift": {"window_alerts": 300, "least_alerts": 200, "window_s": 5, "post_interval_s": 0.5},
        "retrain": {
            "after_alerts": 500,
            "on_drift": True,
            "least_interval_s": 0,
            "poll_s": 0.3,
            "lock_s": 3,
            "work": str(tmp_path / "work"),
            "trial_alerts": 100,
            "trial_share": 1.0,
        },
    }
    deployment = deploy(kafka, tmp_path, survey="candidate", **sections, metrics={"port": worker_port})
    train(build_recipe(TINY), "sim", deployment.settings.release.store, promote=True, progress=False)
    assert command("reservoir", "clear", "--settings", deployment.file, "--yes").exit_code == 0
    yield deployment, worker_port, trainer_port
    assert command("reservoir", "clear", "--settings", deployment.file, "--yes").exit_code == 0


def trainer(deployment, port, log):
    arguments = ("retrain", "--settings", deployment.file)
    return running(log, *arguments, environment={"STREAM_VAE_METRICS__PORT": str(port)})


def check_whole(store):
    assert [problems(store.fetch(name)) for name in store.folders()] == [[]] * len(store.folders())


def test_the_loop_goes_round_with_nothing_lost_and_each_message_names_its_release(loop, packets, tmp_path):
    deployment, worker_port, trainer_port = loop
    stream, store = Stream(deployment), ReleaseStore(deployment.settings.release.store)
    first = store.current()
    with running(tmp_path / "worker", "run", "--settings", deployment.file) as worker:
        # The reservoir fills, and enough new alerts ask for a retraining, in the middle of which the trainer is killed.
        stream.send(packets[:600])
        stream.settled()
        assert set(stream.scored_by(600)) == {first}
        with trainer(deployment, trainer_port, tmp_path / "trainer-killed") as killed:
            until((tmp_path / "work" / "candidate" / "job.json").exists, what="a retraining has begun")
            killed.kill()
        assert store.current() == first
        check_whole(store)

        with trainer(deployment, trainer_port, tmp_path / "trainer") as training:
            check_it_goes_on(stream, store, packets, first)
            assert metric(trainer_port, "stream_vae_retrainings_total") == 1
            check_gates_are_shown(trainer_port, store)
            assert metric(worker_port, "stream_vae_release_swaps_total") >= 1
            drifted = check_drift_asks_for_another(stream, store, packets)
            until(
                lambda: metric(trainer_port, "stream_vae_retraining_running") == 0,
                what="the retraining has ended",
                timeout_s=RETRAINED_S,
            )
            assert training.running, training.text

        # A person takes it back: what scored before it scores again.
        store.promote(drifted, reason="to be taken back")
        swapped(stream, packets, drifted)
        there = answered("releases", "rollback", "--store", store.url, "--reason", "a test")["current"]
        assert there != drifted
        swapped(stream, packets, there)
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0, worker.text
    check_nothing_is_missing(stream, store)
    assert not (tmp_path / "work" / "candidate").exists()


def check_it_goes_on(stream, store, packets, first):
    """What was killed is finished by the next trainer, and serves."""
    until(lambda: store.current() != first, what="a better release is served", timeout_s=RETRAINED_S)
    card = store.load(store.current()).card
    assert card.data["trigger"] == "resumed"
    assert card.metrics["verdict"]["incumbent"] == first
    assert card.latent_space == store.load(first).card.latent_space
    swapped(stream, packets, card.id)


def check_gates_are_shown(port, store):
    """What the gates said of the release that serves now stands on the trainer's page."""
    words = {"passed": 1, "undecided": 0, "failed": -1}
    gates = store.load(store.current()).card.metrics["verdict"]["gates"]
    judged = {gate["name"]: words[gate["outcome"]] for gate in gates if gate["outcome"] in words}
    assert len(judged) > 5

    def shown():
        families = text_string_to_metric_families(httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text)
        samples = [sample for family in families for sample in family.samples]
        return {each.labels["gate"]: each.value for each in samples if each.name == "stream_vae_gate_outcome"}

    until(lambda: shown() == judged, what=f"{judged} are shown")


def check_drift_asks_for_another(stream, store, packets):
    """A detector breaks; give the release of the retraining that the drift asked for."""
    stream.send(list(striped(packets[:400], 1)))
    stream.settled()

    def asked():
        return [card for card in store.cards() if card.data.get("trigger") == "drift"]

    (card, *_) = until(asked, what="drift asks for a retraining", timeout_s=RETRAINED_S)
    assert card.metrics["verdict"]["decision"] in ("promote", "shadow", "reject")
    return card.id


def check_nothing_is_missing(stream, store):
    deployment = stream.deployment
    published = read(deployment.kafka, deployment.output)
    assert check_same(published) == 0
    assert len(published) == stream.sent
    known = set(store.ids())
    assert {record.header("stream_vae.release").decode() for record in published} <= known
    check_books(deployment.settings, consumed=stream.sent)
    check_whole(store)
    events = [event["event"] for event in store.history()]
    assert events.count("created") == len(known)
    assert events[-1] == "rolled_back"
    stats = answered("reservoir", "stats", "--settings", deployment.file)
    assert stats["seen"] == 1000  # 600 of one kind and 400 of another, however often some were sent
