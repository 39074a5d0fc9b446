"""`evaluate` on releases of random weights: which of them, on which rows, and what is refused."""

import json

import numpy as np
import pytest
from onnx import helper
from stream_vae.errors import ConfigError
from stream_vae.learning import merits
from stream_vae.learning.data.split import split_by_group
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.evaluate import LEAST_FITTED, Parts, _taught, evaluate, held_out_by, part, study_on
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.report.training import read_history
from stream_vae.learning.study import ModelView
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore, write_release

import releases
from releases import LATENTS

RANDOM = np.random.default_rng(3)
SIZE, COUNT = 21, 260
PARTS = ("elbo", "reconstruction_loss", "kl_loss")
HISTORY = f"epoch,{','.join(f'{part},val_{part}' for part in PARTS)}\n1,-9,-9,5,5,2,2\n2,-7,-8,4,4,3,3\n"
RECIPE = build_recipe({"name": "tiny"})


def _write_decoder(path, seed):
    rng = np.random.default_rng(seed)
    weights = {
        "w": rng.normal(0, 0.05, (LATENTS, SIZE * SIZE)).astype(np.float32),
        "shape": np.array([-1, SIZE, SIZE, 1], np.int64),
    }
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["pixels"]),
        helper.make_node("Reshape", ["pixels", "shape"], ["reconstruction"]),
    ]
    outputs = [releases._tensor("reconstruction", "n", SIZE, SIZE, 1)]
    releases._save(path, nodes, [releases._tensor("z", "n", LATENTS)], outputs, weights)


def _make(store, folder, *, seed, data=None, cutouts=("difference",), variance=0.05):
    folder.mkdir(parents=True)
    releases.write_encoder(folder / "encoder.onnx", SIZE, len(cutouts), seed=seed)
    releases.write_scorer(folder / "scorer.onnx", seed=seed)
    _write_decoder(folder / "decoder.onnx", seed)
    components, _ = np.linalg.qr(np.random.default_rng(seed).normal(size=(SIZE * SIZE, LATENTS)))
    np.savez(
        folder / "reference.npz",
        real_z_mean=RANDOM.normal(size=(20, LATENTS)).astype(np.float32),
        real_z_log_var=RANDOM.normal(-3, 1, (20, LATENTS)).astype(np.float32),
        center=np.zeros(LATENTS, np.float32),
        whitening=np.eye(LATENTS, dtype=np.float32),
        novelty_quantiles=np.linspace(0, 20, 1001, dtype=np.float32),
        pca_mean=np.zeros(SIZE * SIZE, np.float32),
        pca_components=np.ascontiguousarray(components.T, np.float32),
    )
    (folder / "report").mkdir()
    (folder / "report" / "history.csv").write_text(HISTORY)
    metrics = {} if variance is None else {"reconstruction": {"decoder_variance": variance}}
    return write_release(
        store,
        folder,
        name=f"tiny{seed}",
        latent_size=LATENTS,
        recipe=RECIPE.model_dump(mode="json"),
        data=data or {"name": "other stamps", "used": 9},
        metrics=metrics,
        preprocessing=Preprocessing(cutouts=cutouts),
    )


@pytest.fixture(scope="module", autouse=True)
def small():
    patch = pytest.MonkeyPatch()
    for name, value in {"COUNTS": (20,), "LABEL_DRAWS": 2, "FOUND": 20, "SEEDS": 20, "IWAE_STAMPS": 10}.items():
        patch.setattr(merits, name, value)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def stamps_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "night.npz"
    labels = np.arange(COUNT) % 2
    stamps = RANDOM.normal(size=(COUNT, SIZE, SIZE)) + 8.0 * labels[:, None, None] * (np.arange(SIZE) == 10)[:, None]
    np.savez(path, stamps=stamps.astype(np.float32), labels=labels, groups=np.arange(COUNT) // 10)
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("store")
    store = ReleaseStore(str(folder))
    cards = [_make(store, tmp_path_factory.mktemp("parts") / "x", seed=seed) for seed in (1, 2)]
    store.promote(cards[0].id)
    return store


@pytest.fixture(scope="module")
def alone(store, stamps_file, tmp_path_factory):
    out = tmp_path_factory.mktemp("alone")
    return out, evaluate(store, None, stamps_file, out, command="stream-vae evaluate ...", progress=False)


def test_one_release_keeps_its_figures_at_the_top_and_has_baselines_beside_it(alone, store):
    out, metrics = alone
    assert json.loads((out / "metrics.json").read_text()) == metrics
    assert metrics["release"] == store.current()
    assert {"stamps", "reconstruction", "latent", "score", "models", "split", "provenance"} < set(metrics)
    assert metrics["stamps"] == COUNT
    assert list(metrics["models"]) == [store.current(), f"PCA-{LATENTS}", f"SDL-{LATENTS}", "raw pixels"]
    assert metrics["provenance"]["command"] == "stream-vae evaluate ..."


def test_the_cost_evolution_is_that_of_the_releases_own_training(alone, store):
    out, _ = alone
    assert (out / "figures" / "cost.svg").is_file()
    history = read_history(store.load(None))
    assert (history["epoch"], history["val_elbo"]) == ([1.0, 2.0], [-9.0, -8.0])
    assert "Figure 2d: cost evolution" in (out / "report.html").read_text()


def test_nothing_is_judged_on_what_baselines_and_classifiers_saw(alone):
    _, metrics = alone
    split = metrics["split"]
    assert split["judged"] + split["fitted"] == COUNT
    assert min(split["judged_real"], split["judged_bogus"], split["fitted_real"], split["fitted_bogus"]) > 20


def test_several_releases_stand_side_by_side_on_the_same_stamps(store, stamps_file, tmp_path):
    metrics = evaluate(store, store.ids(), stamps_file, tmp_path, baselines=False, progress=False)
    assert list(metrics["models"]) == metrics["releases"] == store.ids()
    assert "release" not in metrics
    page = (tmp_path / "report.html").read_text()
    assert all(name in page for name in store.ids())
    every = evaluate(store, None, stamps_file, tmp_path / "all", every=True, baselines=False, progress=False)
    errors = [
        [found["models"][name]["reconstruction"]["squared_error"] for name in store.ids()] for found in (metrics, every)
    ]
    assert errors[0] == errors[1]


def test_releases_that_take_other_stamps_are_not_put_side_by_side(store, stamps_file, tmp_path):
    elsewhere = ReleaseStore(str(tmp_path / "store"))
    cards = [_make(elsewhere, tmp_path / str(n), seed=n, cutouts=("difference", "science")[:n]) for n in (1, 2)]
    with pytest.raises(ConfigError, match=r"prepare stamps differently.*--release"):
        evaluate(elsewhere, [card.id for card in cards], stamps_file, tmp_path / "out", progress=False)


def test_a_card_without_a_variance_is_refused_by_name(stamps_file, tmp_path):
    elsewhere = ReleaseStore(str(tmp_path / "store"))
    card = _make(elsewhere, tmp_path / "x", seed=4, variance=None)
    with pytest.raises(ConfigError, match=rf"{card.id} does not say the decoder's variance"):
        evaluate(elsewhere, card.id, stamps_file, tmp_path / "out", progress=False)


def test_an_empty_store_has_nothing_to_evaluate(stamps_file, tmp_path):
    with pytest.raises(ConfigError, match=r"no releases.*stream-vae train"):
        evaluate(str(tmp_path / "store"), None, stamps_file, tmp_path / "out", every=True, progress=False)


def _set(groups, sha="abc", labels=None):
    count = len(groups)
    labels = (np.arange(count) % 2).astype(np.int8) if labels is None else labels
    snapshot = {"name": "x", "sha256": sha, "groups": len(np.unique(groups))}
    return StampSet(np.zeros((count, SIZE, SIZE, 1), np.float32), labels, groups.astype(np.int64), snapshot)


def test_stamps_are_parted_by_image():
    data = _set(np.arange(400) // 20)
    found = part(data)
    assert not set(data.groups[found.fitted]) & set(data.groups[found.judged])
    assert sorted([*found.fitted, *found.judged]) == list(range(400))
    assert found.warnings == ()


def test_stamps_of_one_image_are_all_judged_and_the_page_says_why_nothing_was_fitted():
    found = part(_set(np.zeros(300)))
    assert (len(found.fitted), len(found.judged)) == (0, 300)
    assert "All stamps are of one group" in found.warnings[0]
    assert "train" not in found.warnings[0]


def test_a_few_labels_that_nothing_can_be_learned_from_do_not_keep_stamps_from_being_parted():
    labels = np.full(400, -1, np.int8)
    labels[:3] = [1, 0, 1]
    found = part(_set(np.arange(400), labels=labels))
    assert len(found.fitted) >= LEAST_FITTED
    assert found.warnings == ()


def test_labels_that_a_classifier_gave_are_told_on_the_page():
    data = _set(np.arange(400))
    assert _taught(data) == []
    data.snapshot["labels"] = {"human": {1: 9}, "classifier": {0: 61, 1: 2}}
    assert "63 of the labels are another classifier's" in _taught(data)[0]


def test_too_few_stamps_are_all_judged():
    found = part(_set(np.arange(LEAST_FITTED)))
    assert (len(found.fitted), len(found.judged)) == (0, LEAST_FITTED)


def test_a_release_is_judged_on_what_its_own_training_left_out(tmp_path):
    store = ReleaseStore(str(tmp_path / "store"))
    data = _set(np.arange(600) // 20)
    fractions = RECIPE.data
    split = split_by_group(
        data.groups,
        data.labels,
        validation_fraction=fractions.validation_fraction,
        test_fraction=fractions.test_fraction,
        seed=RECIPE.seed,
    )
    trained = {"name": "x", "sha256": "abc", "split": {"test": len(split.test)}}
    own = store.load(_make(store, tmp_path / "own", seed=5, data=trained).id)
    assert held_out_by(own, data).tolist() == split.test.tolist()
    found = part(data, [own])
    assert found.judged.tolist() == split.test.tolist()
    assert not set(data.groups[found.fitted]) & set(data.groups[found.judged])
    assert held_out_by(own, _set(np.arange(600) // 20, sha="other")) is None


def test_a_set_without_groups_has_none_in_its_study():
    data = _set(np.arange(100))
    data.snapshot["groups"] = None
    view = ModelView("a", real_score=np.zeros(100, np.float32))
    assert study_on(data, (view,), Parts(np.arange(50), np.arange(50, 100))).groups is None
