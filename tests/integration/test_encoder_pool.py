"""A fleet whose workers share an encoder, on a real Kafka: its codes, a killed encoder, a new release.

What runs on a GPU could not be tried here; that one which is asked for and not there stops the start, is.
"""

import itertools
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil
import pytest
from stream_vae.model.store import ReleaseStore
from stream_vae.sky.packets import simulate_packets

from deployment import Deployment, deploy
from fleets import Fleet, Stream, descendants, end, wait_for
from flow import check_books, decode_file, read, running, work
from releases import make_release
from servers import Kafka

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

pytest.importorskip("ray", reason="no Ray: pip install 'stream-vae[ray]'")

PUBLISHED = "stream_vae_alerts_published_total"


@dataclass
class Story:
    """What was seen of one fleet with an encoder pool."""

    releases: list[str]
    shared: list[str] = field(default_factory=list)
    stamps: float = 0.0
    restarts: dict[str, float] = field(default_factory=dict)
    recovered_s: float = 0.0
    exit_code: int | None = None
    left: list[psutil.Process] = field(default_factory=list)
    sent: int = 0
    scored_by: list[str] = field(default_factory=list)
    worst: float = 0.0
    log: str = ""


def codes(kafka: Kafka, topic: str) -> dict[tuple[str, str], np.ndarray]:
    """Codes by alert and release."""
    found = {}
    for record in read(kafka, topic):
        lite = decode_file(record.value or b"")
        enrichment = lite["stream_vae"]
        key = enrichment["release"], lite["alert_id"]
        found[key] = np.array([*enrichment["latent_mean"], *enrichment["latent_log_var"]])
    return found


@pytest.fixture(scope="module")
def story(kafka: Kafka, tmp_path_factory: pytest.TempPathFactory) -> Story:
    packets = [each.packet for each in simulate_packets(60, shape="candidate", seed=3)]
    folder = tmp_path_factory.mktemp("pool")
    sections = {"metrics": {"port": 0, "statistics_interval_s": 1}, "encoder": {"actors": 1}}
    deployment = deploy(kafka, folder, survey="candidate", partitions=2, release={"poll_s": 0.5}, **sections)
    store = ReleaseStore(str(folder / "store"))
    first, second = store.ids()[0], make_release(store, folder / "second", seed=4, promote=False).id
    seen = Story([first, second])
    deployment.publish(itertools.islice(itertools.cycle(packets), 300))
    fleet, family = Fleet(deployment, folder, "--workers", 2), []
    try:
        wait_for(lambda: sum(fleet.samples(PUBLISHED).values()) >= 300, "the first alerts", process=fleet.process)
        family = descendants(fleet.process.pid)
        # While an actor answers a call, its process is named after that: ray::EncoderActor.status.
        names = [each.name().partition(".")[0] for each in family]
        seen.shared = [name for name in names if name.startswith("ray::Encoder")]
        seen.stamps = fleet.samples("stream_vae_encoder_batch_stamps_sum")["encoder-0"]
        stream = Stream(deployment, packets)
        _kill_the_encoder(fleet, seen)
        store.promote(second)
        swapped = "stream_vae_release_swaps_total"
        wait_for(lambda: fleet.samples(swapped).get("1", 0) + fleet.samples(swapped).get("0", 0) == 2, "both to swap")
        before = sum(fleet.samples(PUBLISHED).values())  # each of the sixty is to come by the new release, too
        wait_for(lambda: sum(fleet.samples(PUBLISHED).values()) >= before + 180, "alerts of the new release")
        family += descendants(fleet.process.pid)
        seen.sent = 300 + stream.end()
        wait_for(lambda: sum(fleet.samples("stream_vae_lag_messages").values()) == 0, "the end of the lag")
        fleet.process.terminate()
        seen.exit_code = fleet.wait(60)
    finally:
        seen.left = end(fleet.process, family)
        seen.log = fleet.said()
    deployment.run_worker()  # whatever is left
    seen.scored_by = [record.header("stream_vae.release").decode() for record in read(kafka, deployment.output)]
    seen.worst = _compare(deployment, folder)
    check_books(deployment.settings, consumed=seen.sent, duplicates=None)
    return seen


def _kill_the_encoder(fleet: Fleet, seen: Story) -> None:
    published = sum(fleet.samples(PUBLISHED).values())
    wait_for(lambda: sum(fleet.samples(PUBLISHED).values()) > published, "alerts of the stream", process=fleet.process)
    (victim,) = [each for each in descendants(fleet.process.pid) if each.name().startswith("ray::Encoder")]
    victim.kill()
    began = time.monotonic()
    name = "stream_vae_fleet_restarts_total"
    wait_for(lambda: fleet.samples(name).get("encoder-0") == 1, "a new encoder", process=fleet.process)
    published = sum(fleet.samples(PUBLISHED).values())
    wait_for(lambda: sum(fleet.samples(PUBLISHED).values()) > published + 20, "alerts again", process=fleet.process)
    seen.recovered_s = time.monotonic() - began
    seen.restarts = fleet.samples(name)


def _compare(deployment: Deployment, folder: Path) -> float:
    """Score the same alerts by a worker that encodes for itself; give the largest difference of a code."""
    (folder / "alone").mkdir()
    sections = {"release": {"store": str(folder / "store")}}
    alone = deploy(deployment.kafka, folder / "alone", survey="candidate", partitions=2, **sections)
    packets = [each.packet for each in simulate_packets(60, shape="candidate", seed=3)]
    alone.publish(packets)
    work(alone.settings)
    ours, theirs = codes(alone.kafka, alone.lite), codes(deployment.kafka, deployment.lite)
    shared = ours.keys() & theirs.keys()
    assert len(shared) == 60
    return max(float(np.abs(ours[key] - theirs[key]).max()) for key in shared)


def test_the_workers_share_one_encoder(story: Story) -> None:
    assert story.shared == ["ray::EncoderActor"]
    assert story.stamps >= 300


def test_codes_are_what_a_worker_alone_would_give(story: Story) -> None:
    # Random weights of 0.3 on 441 pixels that are rounded to 16 bits.
    assert story.worst < 6 * 0.3 * 441**0.5 * 0.29 / 32767


def test_a_killed_encoder_is_replaced_and_the_workers_live_on(story: Story) -> None:
    assert story.restarts == {"encoder-0": 1, "0": 0, "1": 0}
    assert story.recovered_s < 60


def test_a_new_release_scores_without_a_restart(story: Story) -> None:
    assert set(story.scored_by) == set(story.releases)
    assert story.scored_by[-1] == story.releases[1]


def test_it_drains_and_leaves_nothing_behind(story: Story) -> None:
    assert story.exit_code == 0, story.log[-3000:]
    assert story.left == []


@pytest.mark.parametrize("actors", [0, 1])
def test_a_gpu_that_is_not_there_stops_the_start(kafka: Kafka, tmp_path: Path, actors: int) -> None:
    encoder = {"actors": actors, "device": "gpu", "gpus": 0.5}
    deployment = deploy(kafka, tmp_path, survey="candidate", encoder=encoder)
    with running(tmp_path / "log", "run", "-s", deployment.file, "--workers", 1) as process:
        assert process.wait(60) == 2
    assert "0.5 GPUs and the Ray cluster has 0" in process.text


def test_an_encoder_pool_is_for_a_fleet(kafka: Kafka, tmp_path: Path) -> None:
    deployment = deploy(kafka, tmp_path, survey="candidate", encoder={"actors": 1})
    with running(tmp_path / "log", "run", "-s", deployment.file) as process:
        assert process.wait(60) == 2
    assert "encoder.actors = 1 is for a fleet" in process.text
