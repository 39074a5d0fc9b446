"""One tiny release, made once, and what can be done with it."""

import json
import re
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from stream_vae.backends.onnx import open_session
from stream_vae.errors import ConfigError, FatalError
from stream_vae.learning import export, merits
from stream_vae.learning.classifier import Scorer as FittedScorer
from stream_vae.learning.classifier import quasi_random_offsets
from stream_vae.learning.encode import encode_to_npz
from stream_vae.learning.evaluate import evaluate
from stream_vae.learning.fit import encode, new_model
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.reference import pca_squared_error, principal_components, whiten
from stream_vae.learning.train import train
from stream_vae.model.store import ReleaseStore
from stream_vae.sky import simulate_stamps
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

TINY = {
    "name": "tiny",
    "data": {"simulated_stamps": 400, "min_stamps": 32},
    "model": {"filters": 4, "latent_size": 6, "linear_skip": True},
    "fit": {"epochs": 2, "batch_size": 32, "learning_rate": 3e-3},
    "scorer": {"hidden": 8, "draws": 8, "epochs": 20},
}


# Fewer draws than a report takes: the ways are the same.
FEW = {"COUNTS": (20,), "LABEL_DRAWS": 2, "FOUND": 20, "SEEDS": 20, "IWAE_STAMPS": 10}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    for name, value in FEW.items():
        monkeypatch.setattr(merits, name, value)


@pytest.fixture(scope="module")
def simulated():
    return simulate_stamps(400, seed=11, fading=0.0)  # as recipes have it


@pytest.fixture(scope="module")
def difference(simulated):
    return np.ascontiguousarray(simulated.stamps[..., 0])


@pytest.fixture(scope="module")
def stamps_file(difference, simulated, tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "night.npz"
    np.savez(path, stamps=difference, labels=simulated.labels, groups=simulated.groups)
    return str(path)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return ReleaseStore(str(tmp_path_factory.mktemp("store")))


@pytest.fixture(scope="module")
def release(store, stamps_file):
    card = train(build_recipe(TINY), stamps_file, store, promote=True, progress=False)
    return store.load(card.id)


def test_training_leaves_a_verified_release_that_is_current(store, release):
    assert store.current() == release.id
    assert {"encoder.onnx", "decoder.onnx", "scorer.onnx", "cvae.keras", "reference.npz"} < set(release.card.files)
    assert {"report/report.html", "report/metrics.json"} < set(release.card.files)


def test_the_card_says_what_the_release_was_made_of(release):
    card = release.card
    assert build_recipe(card.recipe) == build_recipe(TINY)
    assert (card.data["name"], card.data["used"], card.latent_size) == ("night.npz", 400, 6)
    assert sum(card.data["split"][part] for part in ("train", "validation", "test")) == 400
    assert card.metrics["score"]["labels_from"] == "data"
    assert 0.5 < card.metrics["score"]["auc"] <= 1.0
    assert card.metrics["fit"]["epochs"] == 2


def test_nothing_in_the_card_tells_where_it_was_made(release, stamps_file):
    assert "/" not in json.dumps([release.card.data, release.card.recipe, release.card.metrics])


def test_serving_takes_the_release(release, difference):
    from stream_vae.stages.stamp import Stamps, normalise

    stamps, quality = normalise(difference[:40, :, :, np.newaxis], release.card.preprocessing)
    codes = Encoder(release).encode(Stamps(stamps, quality))[0]
    scores = Scorer(release).score(codes)
    assert codes.z_mean.shape == (40, 6)
    assert ((scores.real_score >= 0) & (scores.real_score <= 1)).all()
    assert (scores.real_score_std >= 0).all()
    assert (scores.reference_distance >= 0).all()
    assert ((scores.novelty >= 0) & (scores.novelty <= 1)).all()


def test_novelty_is_evenly_spread_over_stamps_like_those_of_training(release, stamps_file):
    with np.load(release.folder / "reference.npz", allow_pickle=False) as reference:
        codes = reference["z_mean"]
    from stream_vae.alert import Codes

    novelty = Scorer(release).score(Codes(codes, np.zeros_like(codes))).novelty
    assert np.quantile(novelty, [0.1, 0.5, 0.9]) == pytest.approx([0.1, 0.5, 0.9], abs=0.02)


def test_the_graphs_take_any_number_of_stamps(release):
    session = open_session(release.folder / "encoder.onnx")
    for rows in (0, 1, 3, 50):
        z_mean, _ = session.run(["z_mean", "z_log_var"], {"stamp": np.zeros((rows, 21, 21, 1), np.float32)})
        assert z_mean.shape == (rows, 6)


def test_the_graphs_are_of_an_opset_that_older_runtimes_know(release):
    for name in ("encoder.onnx", "decoder.onnx", "scorer.onnx"):
        graph = onnx.load(release.folder / name)
        assert (graph.ir_version, graph.opset_import[0].version) == (8, 17)


@pytest.mark.parametrize("linear_skip", [False, True])
@pytest.mark.parametrize(("size", "channels"), [(21, 1), (21, 3), (30, 2), (9, 1)])
def test_the_graphs_say_what_keras_says_for_every_shape_of_stamp(size, channels, linear_skip, tmp_path):
    cutouts = ("difference", "science", "template")[:channels]
    recipe = build_recipe(
        {
            "preprocessing": {"stamp_size": size, "cutouts": cutouts},
            "model": {"filters": 6, "latent_size": 5, "linear_skip": linear_skip},
        }
    )
    random = np.random.default_rng(1)
    stamps = random.uniform(-1, 1, (20, size, size, channels)).astype(np.float32)
    draw = random.normal(size=(5 * 4 + 4 + 4)).astype(np.float32)
    scorer = FittedScorer(draw[:20].reshape(5, 4), draw[20:24], draw[24:], 0.3, quasi_random_offsets(8, 5, seed=1))
    # export_networks raises where a graph differs from its network.
    export.export_networks(tmp_path, new_model(recipe, steps_per_epoch=1), scorer, stamps)


def test_a_graph_that_differs_from_keras_is_never_released(tmp_path):
    model = new_model(build_recipe(TINY), steps_per_epoch=1)
    stamps = np.random.default_rng(1).uniform(-1, 1, (8, 21, 21, 1)).astype(np.float32)
    export.write_encoder(model, tmp_path / "encoder.onnx")
    z_mean, _ = encode(model, stamps)
    with pytest.raises(FatalError, match="z_mean differs from Keras"):
        export._compare(tmp_path / "encoder.onnx", {"stamp": stamps}, {"z_mean": z_mean + 1e-3})


def test_the_reference_holds_the_pca_of_the_same_size_and_it_is_the_best_linear_one(release):
    from sklearn.decomposition import PCA

    stamps = np.random.default_rng(3).normal(size=(300, 9, 9, 1)).astype(np.float32) * np.arange(
        1, 10, dtype=np.float32
    )
    flat = stamps.reshape(300, -1)
    pca = PCA(6, svd_solver="full").fit(flat)
    expected = np.square(flat - pca.inverse_transform(pca.transform(flat))).sum(axis=1)
    assert pca_squared_error(stamps, *principal_components(stamps, 6)) == pytest.approx(expected, rel=1e-3)
    with np.load(release.folder / "reference.npz", allow_pickle=False) as reference:
        components = reference["pca_components"]
    assert components @ components.T == pytest.approx(np.eye(6), abs=1e-4)


def test_whitened_codes_have_unit_covariance_and_a_collapsed_unit_does_not_blow_up():
    codes = np.random.default_rng(2).normal(size=(2000, 4)) @ np.random.default_rng(4).normal(size=(4, 4))
    codes = np.column_stack([codes, np.full(2000, 0.5)]).astype(np.float32)
    center, whitening = whiten(codes)
    white = (codes - center) @ whitening.T
    assert np.cov(white[:, :4], rowvar=False) == pytest.approx(np.eye(4), abs=1e-3)
    assert np.abs(whitening).max() <= 100.5


def test_the_reference_remembers_real_transients_codes_and_anchor_stamps(release):
    with np.load(release.folder / "reference.npz", allow_pickle=False) as reference:
        shapes = {name: reference[name].shape for name in reference.files}
        assert reference["stamps"].dtype == np.float16
        assert (np.diff(reference["novelty_quantiles"]) >= 0).all()
    assert shapes["real_z_mean"][0] > 20
    assert shapes["center"] == (6,)
    assert shapes["whitening"] == (6, 6)
    assert shapes["novelty_quantiles"] == (1001,)
    assert shapes["stamps"][1:] == (21, 21, 1)


def test_stamps_without_labels_get_a_scorer_from_the_simulator_and_the_card_says_so(difference, store, tmp_path):
    np.savez(tmp_path / "unlabelled.npz", stamps=difference[:150])
    card = train(build_recipe(TINY | {"name": "unlabelled"}), str(tmp_path / "unlabelled.npz"), store, progress=False)
    assert card.metrics["score"]["labels_from"] == "simulation"
    assert (card.data["real"], card.data["unlabelled"]) == (0, 150)
    with np.load(store.load(card.id).folder / "reference.npz", allow_pickle=False) as reference:
        assert len(reference["real_z_mean"]) > 20


def test_labels_of_one_class_are_refused_with_what_to_do(difference, store, tmp_path):
    np.savez(tmp_path / "real.npz", stamps=difference, labels=np.ones(len(difference), int))
    with pytest.raises(ConfigError, match=r"say real: a scorer needs both.*leave `labels` out"):
        train(build_recipe(TINY), str(tmp_path / "real.npz"), store, progress=False)


def test_a_bad_recipe_or_data_leave_no_release_behind(store, tmp_path):
    before = store.ids()
    for recipe, data in (("nonsense", "sim"), ("quick", str(tmp_path / "nothing.npz"))):
        with pytest.raises(ConfigError):
            train(recipe, data, store, progress=False)
    assert store.ids() == before


def test_encoding_a_file_keeps_the_order_and_marks_what_cannot_be_scored(release, store, difference, tmp_path):
    stamps = difference.copy()
    stamps[[2, 7]] = np.nan
    np.save(tmp_path / "stamps.npy", stamps)
    count = encode_to_npz(store, None, str(tmp_path / "stamps.npy"), tmp_path / "codes.npz", progress=False)
    assert count == 398
    with np.load(tmp_path / "codes.npz", allow_pickle=False) as codes:
        arrays = {name: codes[name] for name in codes.files}
    assert {name: (a.shape, a.dtype.name) for name, a in arrays.items()} == {
        "z_mean": ((400, 6), "float32"),
        "z_log_var": ((400, 6), "float32"),
        "real_score": ((400,), "float32"),
    }
    for array in arrays.values():
        assert np.flatnonzero(np.isnan(array.reshape(400, -1)).any(axis=1)).tolist() == [2, 7]
    np.save(tmp_path / "one.npy", stamps[100:101])
    encode_to_npz(store, release.id, str(tmp_path / "one.npy"), tmp_path / "one.npz", progress=False)
    with np.load(tmp_path / "one.npz") as one:
        assert one["z_mean"][0] == pytest.approx(arrays["z_mean"][100], abs=1e-5)
        assert one["real_score"][0] == pytest.approx(arrays["real_score"][100], abs=1e-5)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("value", [np.nan, 7.0])
def test_stamps_of_which_none_can_be_encoded_leave_no_file(value, release, store, tmp_path):
    np.save(tmp_path / "blank.npy", np.full((5, 21, 21), value, np.float32))
    with pytest.raises(ConfigError, match=r"None of the 5 stamps of blank\.npy can be encoded"):
        encode_to_npz(store, release.id, str(tmp_path / "blank.npy"), tmp_path / "codes.npz", progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["blank.npy"]


def test_codes_that_the_disk_has_no_room_for_are_refused_before_the_work(
    release, store, stamps_file, tmp_path, monkeypatch
):
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match=r"GB are free\. Name a file on a larger disk"):
        encode_to_npz(store, release.id, str(stamps_file), tmp_path / "codes.npz", progress=False)


def test_codes_are_written_to_a_npz_file_and_to_nothing_else(release, store, stamps_file, tmp_path):
    for out in (tmp_path, tmp_path / "codes.csv"):
        with pytest.raises(ConfigError, match=r"written as a \.npz file"):
            encode_to_npz(store, release.id, str(stamps_file), out, progress=False)


def test_encoding_into_a_folder_that_is_not_there_is_refused_before_any_work(release, store, stamps_file, tmp_path):
    with pytest.raises(ConfigError, match="there is no folder"):
        encode_to_npz(store, None, stamps_file, tmp_path / "no" / "codes.npz", progress=False)


def test_an_evaluation_writes_the_figures_of_merit_and_one_self_contained_page(release, store, stamps_file, tmp_path):
    metrics = evaluate(store, None, stamps_file, tmp_path / "out", progress=False)
    assert json.loads((tmp_path / "out" / "metrics.json").read_text()) == metrics
    assert metrics["release"] == release.id
    assert len(metrics["latent"]["kl_per_unit"]) == 6
    assert 0 < metrics["latent"]["mutual_information"] <= metrics["latent"]["mutual_information_cap"] + 1e-6
    low, high = metrics["score"]["auc_interval_95"]
    assert low <= metrics["score"]["auc"] <= high
    assert metrics["warning"] == "these are the stamps that the release was trained on"
    page = (tmp_path / "out" / "report.html").read_text()
    assert {"dnmse", "reconstructions", "roc", "collapse", "few_labels", "reliability"} <= {
        path.stem for path in (tmp_path / "out" / "figures").glob("*.png")
    }
    assert page.count("<img") >= 9
    assert not re.search(r"""(src|href)=["'](?!data:)""", page)


def test_an_evaluation_without_labels_has_no_auc_and_says_so(release, store, difference, tmp_path):
    np.save(tmp_path / "stamps.npy", difference[:60])
    metrics = evaluate(store, None, str(tmp_path / "stamps.npy"), tmp_path / "out", progress=False)
    assert metrics["score"] is None
    assert metrics["reconstruction"]["squared_error"] > 0
    assert "no labels of both classes" in (tmp_path / "out" / "report.html").read_text()


def test_keras_and_onnx_agree_on_the_release_that_was_written(release, difference):
    from stream_vae.learning.fit import keras
    from stream_vae.stages.stamp import normalise

    stamps, _ = normalise(difference[:50, :, :, np.newaxis], release.card.preprocessing)
    model = keras.saving.load_model(release.folder / "cvae.keras", compile=False, safe_mode=True)
    assert Encoder(release).run(stamps).z_mean == pytest.approx(encode(model, stamps)[0], abs=1e-5)


@pytest.mark.slow
def test_encoding_and_evaluating_need_neither_keras_nor_tensorflow(release, store, stamps_file, tmp_path):
    program = (
        "import sys; from pathlib import Path\n"
        "from stream_vae.learning import merits\n"
        "from stream_vae.learning.encode import encode_to_npz\n"
        "from stream_vae.learning.evaluate import evaluate\n"
        f"vars(merits).update({FEW})\n"
        "store, data, out = sys.argv[1:]\n"
        "encode_to_npz(store, None, data, Path(out) / 'codes.npz', progress=False)\n"
        "evaluate(store, None, data, Path(out) / 'report', progress=False)\n"
        "sys.exit(bool({'keras', 'tensorflow'} & set(sys.modules)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", program, store.url, stamps_file, str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.slow
def test_importing_keras_prints_nothing(tmp_path):
    program = "from stream_vae.model.backend import keras; keras.ops.ones((2, 2)) @ keras.ops.ones((2, 2))"
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.slow
def test_what_importing_keras_says_that_is_no_greeting_is_passed_on():
    program = (
        "import os\n"
        "from stream_vae.model import backend\n"
        "with backend._without_start_up_noise():\n"
        "    os.write(2, b'I0000 00:00:1 9 port.cc:153] hello\\nSegmentation of something\\n')\n"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert result.stderr == "Segmentation of something\n"


def test_real_stamps_and_unlabelled_ones_alone_train_a_scorer_if_the_recipe_says_so(difference, simulated, tmp_path):
    labels = np.where((simulated.labels == 1) & (np.arange(400) % 3 > 0), 1, -1)
    path = tmp_path / "asteroids.npz"
    np.savez(path, stamps=difference, labels=labels)
    store = ReleaseStore(str(tmp_path / "store"))
    with pytest.raises(ConfigError, match=r"say real: a scorer needs both.*set scorer.positive_unlabelled = true"):
        train(build_recipe(TINY), str(path), store, progress=False)
    told = TINY | {"scorer": TINY["scorer"] | {"positive_unlabelled": True, "prior": 0.2}}
    card = train(build_recipe(told), str(path), store, progress=False)
    said = card.metrics["score"]
    assert (said["prior"], said["prior_estimated"]) == (0.2, False)
    assert said["unlabelled"] > said["real"] > 0
    assert 0.0 < said["auc"] <= 1.0
    release = store.load(card.id)
    assert release.path("scorer.onnx")
    with np.load(release.folder / "reference.npz", allow_pickle=False) as reference:
        assert reference["real_z_log_var"].shape == reference["real_z_mean"].shape


def test_positive_unlabelled_training_without_a_real_label_is_refused(difference, tmp_path):
    path = tmp_path / "unknown.npz"
    np.savez(path, stamps=difference, labels=np.full(len(difference), -1))
    told = build_recipe(TINY | {"scorer": {"positive_unlabelled": True}})
    with pytest.raises(ConfigError, match=r"0 stamps labelled real and 400 unlabelled"):
        train(told, str(path), ReleaseStore(str(tmp_path / "store")), progress=False)


def test_three_labels_are_too_few_for_a_scorer_and_the_error_says_what_to_do(difference, tmp_path):
    labels = np.full(len(difference), -1)
    labels[:3] = [1, 1, 0]
    path = tmp_path / "three.npz"
    np.savez(path, stamps=difference, labels=labels)
    with pytest.raises(ConfigError, match=r"2 stamps are labelled real and 1 bogus.*Label some dozens"):
        train(build_recipe(TINY), str(path), ReleaseStore(str(tmp_path / "store")), progress=False)
