"""The encoder pool without Ray: what is batched, what an actor answers, and whom a worker asks next."""

import asyncio
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from stream_vae.alert import Codes
from stream_vae.errors import ConfigError, RetriableError, StreamVaeError
from stream_vae.model.release import ENCODER, Preprocessing, Release
from stream_vae.model.store import ReleaseStore
from stream_vae.quality import Quality
from stream_vae.runtime.encoder_actor import EncoderActor
from stream_vae.runtime.encoder_pool import Failure, Packed, Pool, PooledNetwork, pack, unpack
from stream_vae.runtime.status import Phase
from stream_vae.settings import EncoderSettings
from stream_vae.stages.encode import Encoder
from stream_vae.stages.stamp import Stamps

from releases import make_release

STAMPS = np.random.default_rng(3).uniform(-1, 1, (300, 21, 21, 1)).astype(np.float32)
SECTION = EncoderSettings(actors=1, max_stamps=128)


class Direct:
    """An actor in this process, with an event loop of its own as Ray would give it."""

    def __init__(self, store: str, section: EncoderSettings = SECTION) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self.actor = self.wait(self._make("candidate", section, store, 30))

    @staticmethod
    async def _make(*arguments: Any) -> EncoderActor:
        return EncoderActor(*arguments)

    def wait(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def load(self, release_id: str, timeout_s: float) -> str:
        assert timeout_s > 0
        answer = self.wait(self.actor.load(release_id))
        if isinstance(answer, StreamVaeError):
            raise answer
        return str(answer)

    def encode(self, release_id: str, stamps: Packed, timeout_s: float) -> Any:
        assert timeout_s == SECTION.timeout_s
        return self.wait(self.actor.encode(release_id, stamps))

    def together(self, release_id: str, parts: list[Packed]) -> list[Any]:
        """Ask for several at once, as many workers would."""

        async def ask() -> list[Any]:
            return list(await asyncio.gather(*(self.actor.encode(release_id, part) for part in parts)))

        return self.wait(ask())

    def batches(self) -> list[float]:
        """Number of batches, and of stamps in them."""
        families = {each.name: each for each in self.wait(self.actor.metrics())}
        samples = {each.name: each.value for each in families["stream_vae_encoder_batch_stamps"].samples}
        return [samples[f"stream_vae_encoder_batch_stamps_{what}"] for what in ("count", "sum")]

    def close(self) -> None:
        async def cancel() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self.wait(cancel())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("releases")
    store = ReleaseStore(str(folder / "store"))
    make_release(store, folder / "new")
    return store.load()


@pytest.fixture
def direct(release: Release) -> Iterator[Direct]:
    direct = Direct(str(release.folder.parents[1]))
    yield direct
    direct.close()


@pytest.fixture
def pool(direct: Direct) -> Pool:
    return Pool([direct], 0, SECTION, 10.0)


# 16 bits


@given(st.lists(st.floats(-1, 1, width=32), min_size=1, max_size=50))
def test_packing_is_off_by_half_a_step_at_most(values: list[float]) -> None:
    stamps = np.array(values, np.float32)
    packed = pack(stamps)
    assert packed.dtype == np.int16
    assert np.abs(unpack(packed) - stamps).max() <= 0.5 / 32767 + 1e-7


def test_float32_is_unpacked_as_it_is() -> None:
    np.testing.assert_array_equal(unpack(STAMPS), STAMPS)


# what comes back


def test_codes_are_what_they_would_be_without_a_pool(pool: Pool, release: Release) -> None:
    network = pool.open(release)
    assert network.name.startswith("ONNX Runtime")
    assert network.name.endswith("1 actor")
    here, there = Encoder(release).run(STAMPS), Encoder(release, network).run(STAMPS)  # three times max_stamps
    # Each code of this network sums 441 pixels with weights of 0.3: half a step each, rarely all in one direction.
    np.testing.assert_allclose(there.z_mean, here.z_mean, atol=6 * 0.3 * 441**0.5 * 0.29 / 32767)
    np.testing.assert_allclose(there.z_log_var, here.z_log_var, atol=1e-5)
    there.z_mean[0] = 0  # it is the caller's


def test_a_stamp_gets_the_same_bytes_whoever_sends_beside_it(direct: Direct, release: Release) -> None:
    packed = pack(STAMPS)
    alone = direct.encode(release.id, packed[40:60], SECTION.timeout_s)
    parts = [packed[:40], packed[40:60], packed[60:61], packed[100:140]]
    answers = direct.together(release.id, parts)
    assert [len(each) for each in answers] == [40, 20, 1, 40]
    assert answers[1].tobytes() == alone.tobytes()


def test_what_many_workers_send_meanwhile_is_one_batch_up_to_the_most(direct: Direct, release: Release) -> None:
    direct.load(release.id, 1.0)
    packed = pack(STAMPS)
    direct.together(release.id, [packed[30 * n : 30 * n + 30] for n in range(10)])
    count, stamps = direct.batches()
    assert stamps == 300
    assert count == 3  # 120 of 128 at a time


def test_stamps_that_might_not_fit_into_16_bits_travel_whole(direct: Direct, release: Release) -> None:
    sent: list[Packed] = []

    class Watched:
        load = staticmethod(direct.load)

        def encode(self, release_id: str, stamps: Packed, timeout_s: float) -> Any:
            sent.append(stamps)
            return direct.encode(release_id, stamps, timeout_s)

    pool = Pool([Watched()], 0, SECTION, 1.0)
    pool.open(release).run(STAMPS[:20])
    filled = release.card.model_copy(update={"preprocessing": Preprocessing(fill=-3.0)})
    PooledNetwork(pool, Release(filled, release.folder), "").run(STAMPS[:20])
    assert [each.dtype for each in sent] == [np.int16, np.float32]


# what goes wrong


class Picky:
    """A network that fails on stamps with a mark."""

    name = "picky"

    def run(self, stamps: Any) -> Codes:
        if (stamps[:, 0, 0, 0] == 1).any():
            raise RuntimeError("a mark")
        return Codes(stamps[:, 0, :2, 0], stamps[:, 1, :2, 0])


def test_a_stamp_on_which_the_encoder_fails_costs_only_the_worker_that_sent_it(
    direct: Direct, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(direct.actor, "_open", lambda _: Picky())
    marked = STAMPS.clip(-0.9, 0.9)
    marked[7, 0, 0, 0] = 1
    answers = direct.together(release.id, [pack(marked[:20]), pack(marked[20:40])])
    assert answers[0] == Failure("RuntimeError: a mark")
    assert answers[1].shape == (20, 4)
    # And in the worker it is one dead letter, found by halving.
    small = release.card.model_copy(update={"latent_size": 2})
    pool = Pool([direct], 0, SECTION, 10.0)
    encoder = Encoder(Release(small, release.folder), pool.open(release))
    codes, _, poison = encoder.encode(Stamps(marked[:20], np.zeros(20, np.uint32)))
    assert poison == [7]
    assert np.isfinite(np.delete(codes.z_mean, 7, axis=0)).all()


def test_a_pool_that_does_not_answer_is_no_stamps_fault_and_another_actor_is_asked_next(
    direct: Direct, release: Release
) -> None:
    class Dead:
        load = staticmethod(direct.load)

        def encode(self, *_: Any) -> Any:
            raise RetriableError("The encoder pool does not answer.")

    pool = Pool([direct, Dead()], 1, SECTION, 10.0)
    with pytest.raises(RetriableError, match="does not answer"):
        Encoder(release, pool.open(release))
    encoder = Encoder(release, pool.open(release))  # asks the other one
    batch = Stamps(STAMPS[:20], np.zeros(20, np.uint32))
    pool.renew([Dead()])
    with pytest.raises(RetriableError, match="does not answer"):
        encoder.encode(batch)
    pool.renew([direct])
    codes, after, poison = encoder.encode(batch)
    assert (poison, after.quality.tolist()) == ([], [Quality(0)] * 20)
    assert np.isfinite(codes.z_mean).all()


def test_a_release_that_cannot_be_used_is_refused_and_tried_again_when_the_store_is_mended(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    release = store.load(make_release(store, tmp_path / "new").id)
    graph = release.folder / ENCODER
    whole = graph.read_bytes()
    direct = Direct(str(tmp_path / "store"))
    try:
        pool = Pool([direct], 0, SECTION, 10.0)
        graph.write_bytes(whole[:-9])
        with pytest.raises(ConfigError, match=f"{ENCODER} is not the file that was released"):
            pool.open(release)
        # One that was in use, and that a new actor cannot fetch: the alerts wait for it.
        network = PooledNetwork(pool, release, "")
        with pytest.raises(RetriableError, match="is damaged"):
            network.run(STAMPS[:5])
        graph.write_bytes(whole)
        assert network.run(STAMPS[:5]).z_mean.shape == (5, 21)
    finally:
        direct.close()


def test_an_actor_keeps_the_releases_that_were_used_last(tmp_path: Path) -> None:
    store = ReleaseStore(str(tmp_path / "store"))
    ids = [make_release(store, tmp_path / str(seed), seed=seed).id for seed in range(4)]
    direct = Direct(str(tmp_path / "store"))
    try:
        for release_id in (*ids[:3], ids[0], ids[3]):
            direct.load(release_id, 1.0)
        assert list(direct.actor._networks) == [ids[2], ids[0], ids[3]]
    finally:
        direct.close()


def test_requests_that_nobody_waits_for_are_not_encoded(direct: Direct, release: Release) -> None:
    direct.load(release.id, 1.0)

    async def give_up() -> None:
        tasks = [asyncio.create_task(direct.actor.encode(release.id, pack(STAMPS[:10]))) for _ in range(3)]
        await asyncio.sleep(0)  # they are in the queue, or about to be
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    before = direct.batches()
    direct.wait(give_up())
    direct.encode(release.id, pack(STAMPS[:10]), SECTION.timeout_s)
    count, stamps = direct.batches()
    assert (count - before[0], stamps - before[1]) == (1, 10)


def test_too_long_a_queue_is_refused(direct: Direct, release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    from stream_vae.runtime import encoder_actor

    monkeypatch.setattr(encoder_actor, "_LONGEST_QUEUE", -1)
    answer = direct.encode(release.id, pack(STAMPS[:10]), SECTION.timeout_s)
    assert isinstance(answer.error, RetriableError)
    with pytest.raises(RetriableError, match="overloaded"):
        PooledNetwork(Pool([direct], 0, SECTION, 1.0), release, "").run(STAMPS[:10])


def test_an_actor_says_how_it_is_and_when_it_is_done(direct: Direct, release: Release) -> None:
    status = direct.wait(direct.actor.status())
    assert (status.phase, status.standing.progressed) == (Phase.RUNNING, False)
    direct.encode(release.id, pack(STAMPS[:10]), SECTION.timeout_s)
    assert direct.wait(direct.actor.status()).standing.progressed
    direct.wait(direct.actor.stop())
    assert direct.wait(direct.actor.status()).phase is Phase.ENDED


def test_an_actor_whose_device_hangs_is_told_apart_from_a_busy_one(
    direct: Direct, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stream_vae.runtime import encoder_actor

    begun, over = threading.Event(), threading.Event()

    class Hanging(Picky):
        def run(self, stamps: Any) -> Codes:
            begun.set()
            over.wait(20)
            return super().run(stamps)

    monkeypatch.setattr(direct.actor, "_open", lambda _: Hanging())
    waiting = threading.Thread(target=direct.encode, args=(release.id, pack(STAMPS[:2]), SECTION.timeout_s))
    waiting.start()
    try:
        assert begun.wait(10)
        assert direct.wait(direct.actor.status()).alive
        monkeypatch.setattr(encoder_actor, "_STUCK_S", 0.0)
        assert not direct.wait(direct.actor.status()).alive
    finally:
        over.set()
        waiting.join(20)
    assert direct.wait(direct.actor.status()).alive


def test_what_is_wrong_with_a_release_in_no_foreseen_way_is_told_too(
    direct: Direct, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    from stream_vae.runtime import encoder_actor

    def fails(*_: Any) -> Any:
        raise MemoryError("no room")

    monkeypatch.setattr(encoder_actor, "network_of", fails)
    with pytest.raises(ConfigError, match="MemoryError: no room"):
        direct.load(release.id, 1.0)
