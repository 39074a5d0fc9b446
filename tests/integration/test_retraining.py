"""The whole loop, small: a worker fills the reservoir, a release is trained on it, judged and promoted."""

import contextlib
import json
import socket
import time

import numpy as np
import onnx
import pytest
import redis
from onnx import TensorProto, helper, numpy_helper
from pydantic import SecretStr
from stream_vae import assembly
from stream_vae.cli import releases, reservoir, retrain  # noqa: F401 - their import makes the commands
from stream_vae.errors import ConfigError, FatalError
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.retrain import retrain_now
from stream_vae.model.release import Preprocessing, problems
from stream_vae.model.store import ReleaseStore, write_release
from stream_vae.sky.packets import simulate_packets
from stream_vae.tools.audit import audit_of

from deployment import answered, command, deploy
from flow import running, until
from ray_attempts import attempted
from releases import write_encoder
from servers import free_ports, redis_binary, start_redis

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
]

LOCK_S = 4  # of one that dies: longer than a busy machine keeps its thread from renewing it
ALERTS = 500
TINY = {
    "name": "tiny",
    "data": {"simulated_stamps": 300, "min_stamps": 32},
    "model": {"filters": 4, "latent_size": 6, "linear_skip": True, "linear_start": "pca"},
    "loss": {"kl_weight": 0.1},
    "fit": {"epochs": 3, "batch_size": 32, "learning_rate": 3e-3},
    "retrain": {"epochs": 2},
    "scorer": {"hidden": 8, "draws": 8, "epochs": 2},
}


@pytest.fixture(scope="module")
def packets():
    return list(simulate_packets(ALERTS, shape="candidate", seed=3))


@pytest.fixture(scope="module")
def filled(embedded_kafka, redis_server, packets, tmp_path_factory):
    """A deployment whose worker saw all packets, with an empty reservoir before."""
    deployment = deploy(
        embedded_kafka, tmp_path_factory.mktemp("filled"), survey="candidate", reservoir={"url": redis_server.url}
    )
    with contextlib.closing(assembly.reservoir_of(deployment.settings)) as opened:
        opened.clear()
        deployment.publish(each.packet for each in packets)
        deployment.run_worker()
        yield deployment
        opened.clear()


@pytest.fixture(scope="module")
def poor(filled, tmp_path_factory):
    """An incumbent of random weights: whatever was trained at all is better."""
    folder, store = tmp_path_factory.mktemp("poor"), ReleaseStore(filled.settings.release.store)
    random = np.random.default_rng(0)
    write_encoder(folder / "encoder.onnx", latents=2)
    _write_decoder(folder / "decoder.onnx", random.normal(size=(2, 441)).astype(np.float32))
    np.savez(
        folder / "reference.npz",
        real_z_mean=np.zeros((0, 2), np.float32),
        center=np.zeros(2, np.float32),
        whitening=np.eye(2, dtype=np.float32),
        novelty_quantiles=np.linspace(0, 9, 1001, dtype=np.float32),
        stamps=random.uniform(-1, 1, (50, 21, 21, 1)).astype(np.float16),
    )
    about = {"recipe": build_recipe(TINY).model_dump(mode="json"), "data": {"source": "random"}, "metrics": {}}
    card = write_release(store, folder, name="poor", latent_size=2, preprocessing=Preprocessing(), **about)
    store.promote(card.id)
    return card


def _write_decoder(path, weights):
    nodes = [
        helper.make_node("MatMul", ["z", "weights"], ["pixels"]),
        helper.make_node("Reshape", ["pixels", "shape"], ["reconstruction"]),
    ]
    constants = {"weights": weights, "shape": np.array([-1, 21, 21, 1], np.int64)}
    graph = helper.make_graph(
        nodes,
        "decoder",
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", 2])],
        [helper.make_tensor_value_info("reconstruction", TensorProto.FLOAT, ["n", 21, 21, 1])],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)


@pytest.fixture(scope="module")
def retrained(filled, poor):
    """What the command says."""
    return answered("retrain", "--settings", filled.file, "--now", "--from-scratch")


def test_a_worker_fills_the_reservoir_with_what_it_scored(filled, tmp_path):
    stats = answered("reservoir", "stats", "--settings", filled.file)
    assert (stats["survey"], stats["stamps"], stats["seen"], stats["capacity"]) == ("candidate", ALERTS, ALERTS, 50_000)
    out = tmp_path / "all.npz"
    assert answered("reservoir", "export", "--settings", filled.file, "--out", out)["stamps"] == ALERTS
    with np.load(out, allow_pickle=False) as file:
        assert len(set(file["alert_ids"])) == ALERTS
        assert np.abs(file["stamps"]).max(axis=(1, 2, 3)) == pytest.approx(1.0)


def test_the_same_alerts_once_more_change_nothing(filled, packets):
    before = answered("reservoir", "draw", "--settings", filled.file, "-n", 5)["alert_ids"]
    filled.publish(each.packet for each in packets)
    filled.run_worker()
    assert answered("reservoir", "stats", "--settings", filled.file)["stamps"] == ALERTS
    assert answered("reservoir", "draw", "--settings", filled.file, "-n", 5)["alert_ids"] == before


def test_without_redis_every_alert_is_published_all_the_same(embedded_kafka, packets, tmp_path):
    with socket.socket() as refusing:
        refusing.bind(("127.0.0.1", 0))
        url = f"redis://127.0.0.1:{refusing.getsockname()[1]}"
        deployment = deploy(embedded_kafka, tmp_path, survey="candidate", reservoir={"url": url})
        deployment.publish(each.packet for each in packets[:100])
        deployment.run_worker()
    (line,) = audit_of(deployment.settings.kafka)
    assert (line.page.published, line.lag, line.balanced) == (100, 0, True)


def gate(document, name):
    (found,) = (each for each in document["verdict"]["gates"] if each["name"] == name)
    return found


def test_a_better_release_is_trained_on_the_reservoir_and_promoted(filled, poor, retrained):
    store = ReleaseStore(filled.settings.release.store)
    assert (retrained["incumbent"], retrained["promoted"]) == (poor.id, True), retrained["reason"]
    error = gate(retrained, "squared error, held out")
    assert error["passed"]
    assert error["challenger"] < error["incumbent"]
    assert store.current() == retrained["release"]
    assert store.history()[-1]["reason"] == f"retrained: {retrained['reason']}"


def test_the_card_tells_what_a_retrained_release_comes_from(filled, poor, retrained):
    card = ReleaseStore(filled.settings.release.store).load(retrained["release"]).card
    lineage = card.data["reservoir"]
    assert (card.data["kind"], card.data["incumbent"], card.data["trigger"]) == ("reservoir", poor.id, "hand")
    assert (lineage["survey"], lineage["drawn"], lineage["held_out"]) == ("candidate", ALERTS, retrained["held_out"])
    assert card.data["used"] == ALERTS - retrained["held_out"]
    assert build_recipe(card.recipe) == build_recipe(TINY)  # the incumbent's own
    assert card.metrics["score"]["labels_from"] == "simulation"
    assert card.metrics["verdict"] == retrained["verdict"]


def test_the_next_one_goes_on_in_the_same_latent_space(filled, retrained):
    store = ReleaseStore(filled.settings.release.store)
    found = retrain_now(filled.settings, progress=False, promote=False)
    assert found.verdict["continuity"]["same"]
    assert found.release.latent_space == retrained["latent_space"]
    assert (found.fate, store.history()[-1]["event"]) == ("not_promoted", "not_promoted")
    assert "asked not to promote" in store.history()[-1]["reason"]
    # The same stamps are held out each time.
    error = gate(found.document(), "squared error, held out")
    assert error["incumbent"] == pytest.approx(gate(retrained, "squared error, held out")["challenger"])
    compared = answered("releases", "compare", retrained["release"], found.release.id, "--store", store.url)
    assert compared["same_latent_space"]
    assert compared["retrieval"]["new_against_old"] > 0.9 * compared["retrieval"]["old_against_old"]


def test_a_release_that_is_worse_stays_back_and_its_card_and_the_history_say_why(filled, retrained):
    store = ReleaseStore(filled.settings.release.store)
    weak = build_recipe(
        TINY
        | {
            "name": "weak",
            "model": TINY["model"] | {"linear_start": "random"},
            "fit": {"epochs": 1, "batch_size": 256, "learning_rate": 1e-6},
        }
    )
    found = retrain_now(filled.settings, weak, from_scratch=True, progress=False)
    assert (found.incumbent, found.fate) == (retrained["release"], "not_promoted")
    assert found.verdict["decision"] == "reject"
    assert gate(found.document(), "squared error, held out")["outcome"] == "failed"
    assert store.current() == retrained["release"]
    assert (store.history()[-1]["event"], store.history()[-1]["reason"]) == ("not_promoted", found.reason)
    shown = command("releases", "show", "--store", store.url, found.release.id).output
    assert "squared error, held out" in shown
    assert "reject" in shown

    compared = answered("releases", "compare", retrained["release"], found.release.id, "--store", store.url)
    assert not compared["same_latent_space"]
    assert compared["squared_error_a"] < compared["squared_error_b"]
    assert 0 < compared["retrieval"]["chance"] < compared["retrieval"]["old_against_old"] < 1
    said = command("releases", "compare", retrained["release"], found.release.id, "--store", store.url)
    assert "B turned against A" in said.output


def test_a_release_on_trial_is_tried_and_not_served(filled, retrained):
    store = ReleaseStore(filled.settings.release.store)
    section = filled.settings.retrain.model_copy(update={"promotion": "shadow"})
    found = retrain_now(filled.settings.model_copy(update={"retrain": section}), progress=False)
    if found.verdict["decision"] == "reject":
        pytest.fail(f"the gates reject a release that goes on from its like: {found.reason}")
    assert found.fate == "on_trial"
    assert store.current() == retrained["release"]
    assert store.challenger().release == found.release.id
    store.withdraw()


def test_a_release_that_was_promoted_meanwhile_is_not_overtaken(filled, poor, retrained, monkeypatch):
    store = ReleaseStore(filled.settings.release.store)
    from stream_vae.learning import train as training

    trained = training.train

    def meanwhile(*arguments, **options):
        card = trained(*arguments, **options)
        store.promote(poor.id, reason="somebody else")
        return card

    monkeypatch.setattr(training, "train", meanwhile)
    try:
        found = retrain_now(filled.settings, progress=False)
        assert (found.fate, store.current()) == ("superseded", poor.id)
        assert f"{poor.id} was promoted meanwhile" in store.history()[-1]["reason"]
    finally:
        store.promote(retrained["release"])


def test_a_redis_that_forgets_the_lock_in_the_middle_costs_the_promotion_and_nothing_else(
    filled, retrained, redis_server, monkeypatch
):
    store = ReleaseStore(filled.settings.release.store)
    from stream_vae.learning import train as training

    trained = training.train

    def meanwhile(*arguments, **options):
        card = trained(*arguments, **options)
        with contextlib.closing(redis_server.client()) as client:
            client.delete("{vae}:candidate:retraining")
        return card

    monkeypatch.setattr(training, "train", meanwhile)
    there = set(store.ids())
    with pytest.raises(FatalError, match="lock of this retraining was lost"):
        retrain_now(filled.settings, progress=False)
    assert store.current() == retrained["release"]
    (made,) = set(store.ids()) - there
    assert (store.history()[-1]["event"], store.history()[-1]["release"]) == ("not_promoted", made)
    monkeypatch.undo()
    with contextlib.closing(redis_server.client()) as client:
        assert client.get("{vae}:candidate:retraining") is None


def test_a_retraining_may_be_a_task_of_a_ray_cluster(filled, retrained, tmp_path):
    section = filled.settings.retrain.model_copy(update={"promotion": "none", "cpus": 1.0})
    settings = filled.settings.model_copy(update={"retrain": section})
    (ended,) = attempted(settings, tmp_path, "count")
    found = ended["found"]
    assert (found["incumbent"], found["fate"]) == (retrained["release"], "not_promoted")
    assert found["data"]["trigger"] == "count"
    assert found["release"] in ReleaseStore(settings.release.store).ids()


def test_a_redis_that_dies_in_the_middle_costs_the_promotion_and_one_that_comes_back_empty_is_told(
    filled, retrained, tmp_path, monkeypatch
):
    store = ReleaseStore(filled.settings.release.store)
    (port,) = free_ports(1)
    url = f"redis://127.0.0.1:{port}/0"
    section = filled.settings.reservoir.model_copy(update={"url": SecretStr(url)})
    settings = filled.settings.model_copy(update={"reservoir": section})
    from stream_vae.learning import train as training

    trained = training.train

    def meanwhile(*arguments, **options):
        card = trained(*arguments, **options)
        server.kill()
        server.wait()
        return card

    monkeypatch.setattr(training, "train", meanwhile)
    server = start_redis(redis_binary(), port, tmp_path)
    try:
        with (
            contextlib.closing(assembly.reservoir_of(settings)) as own,
            contextlib.closing(assembly.reservoir_of(filled.settings)) as other,
        ):
            until(lambda: answers(own), what="the server answers")
            own.merge(other)
            assert own.stats().stamps == ALERTS
        with pytest.raises(FatalError, match="lock of this retraining was lost"):
            retrain_now(settings, progress=False)
        assert (store.current(), store.history()[-1]["event"]) == (retrained["release"], "not_promoted")
        assert all(problems(store.fetch(name)) == [] for name in store.folders())
        with pytest.raises(ConfigError, match="No Redis answers"):
            retrain_now(settings, progress=False)
        server = start_redis(redis_binary(), port, tmp_path)
        with contextlib.closing(assembly.reservoir_of(settings)) as own:
            until(lambda: answers(own), what="the server answers again")
            assert own.stats().stamps == 0
        with pytest.raises(ConfigError, match="is empty"):
            retrain_now(settings, progress=False)
    finally:
        server.kill()
        server.wait()


def answers(opened):
    with contextlib.suppress(redis.RedisError):
        return opened.client.ping()
    return False


DEATHS = {
    "after the first epoch": """
from stream_vae.learning.course import Checkpoint
save = Checkpoint.save
def dies(*arguments, **options):
    save(*arguments, **options)
    os._exit(9)
Checkpoint.save = dies
""",
    "with the release in the store": """
from stream_vae.learning import retrain
retrain._settle = lambda *_, **__: os._exit(9)
""",
    "with the pointer moved and nothing said of it": """
from stream_vae.model.store import ReleaseStore
record = ReleaseStore.record
def dies(self, event, *arguments, **details):
    if event != "created":
        os._exit(9)
    record(self, event, *arguments, **details)
ReleaseStore.record = dies
""",
}


@pytest.mark.parametrize("moment", DEATHS)
def test_whenever_a_retraining_is_killed_store_and_reservoir_are_whole_and_the_next_one_ends_well(
    filled, retrained, tmp_path, moment
):
    store = ReleaseStore(filled.settings.release.store)
    served, events = store.current(), len(store.history())
    environment = {"STREAM_VAE_RETRAIN__WORK": str(tmp_path / "work")}
    arguments = ("retrain", "--settings", filled.file, "--now", "--json")
    with running(
        tmp_path / "killed",
        *arguments,
        before=f"import os\n{DEATHS[moment]}",
        environment=environment | {"STREAM_VAE_RETRAIN__LOCK_S": str(LOCK_S)},
    ) as died:
        assert died.wait(300) == 9, died.text
    assert all(problems(store.fetch(name)) == [] for name in store.folders())
    assert store.current() in (served, store.ids()[-1])
    assert len(store.history()) - events <= 1
    assert answered("reservoir", "stats", "--settings", filled.file)["stamps"] == ALERTS
    time.sleep(LOCK_S + 0.2)  # the lock of the dead one
    with running(tmp_path / "next", *arguments, environment=environment) as following:
        assert following.wait(300) == 0, following.text
    found = json.loads(following.text[following.text.index("{") :])
    # With the pointer moved the incumbent is another one, and the job of the last is nobody's.
    assert found["resumed"] is (moment != "with the pointer moved and nothing said of it")
    assert found["release"] in store.ids()
    assert not (tmp_path / "work" / "candidate").exists()
    assert all(problems(store.fetch(name)) == [] for name in store.folders())
    store.promote(retrained["release"])


def test_clearing_forgets_and_an_empty_reservoir_is_no_ground_to_train_on(filled):
    assert answered("reservoir", "clear", "--settings", filled.file)["cleared"] == ALERTS
    assert answered("reservoir", "stats", "--settings", filled.file)["stamps"] == 0
    result = command("retrain", "--settings", filled.file, "--now")
    assert "is empty" in str(result.exception)
