"""Every kind of model becomes a release like any other: trained, exported, served, decoded, loaded again."""

import numpy as np
import pytest
from stream_vae.learning.encode import encode_to_npz
from stream_vae.learning.fit import decode, encode
from stream_vae.learning.recipe import build_recipe
from stream_vae.learning.train import train
from stream_vae.model.backend import keras
from stream_vae.model.reconstruct import Reconstructor, load_keras
from stream_vae.model.store import ReleaseStore
from stream_vae.sky import simulate_stamps
from stream_vae.stages.encode import Encoder
from stream_vae.stages.stamp import Stamps, normalise
from stream_vae.surveys import CUTOUTS

# TensorFlow's variables do not know numpy 2's `copy` yet; Keras converts them so when it saves.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")

TRIPLET = {"cutouts": ["difference", "science", "template"]}
KINDS = {
    "sparse": {"model": {"kind": "scae"}},
    "sparse and linear, three channels": {"model": {"kind": "scae", "linear_skip": True}, "preprocessing": TRIPLET},
    "three channels": {"model": {"linear_skip": True}, "preprocessing": TRIPLET},
    "importance-weighted with all that belongs to it": {
        "model": {"prior": "vamp", "pseudo_inputs": 5},
        "loss": {"objective": "iwae", "importance_samples": 3, "noise_map": True, "label_weight": 2.0},
    },
}


def recipe_of(kind):
    sections = KINDS[kind]
    return build_recipe(
        {
            "name": "tiny",
            "data": {"simulated_stamps": 320, "min_stamps": 32},
            "fit": {"epochs": 2, "batch_size": 32},
            "scorer": {"hidden": 8, "draws": 8, "epochs": 4},
            **sections,
            "model": {"filters": 4, "latent_size": 6, **sections["model"]},
        }
    )


@pytest.fixture(scope="module")
def simulated():
    return simulate_stamps(64, seed=5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_release_of_any_kind_is_served_decoded_and_loaded_again(kind, simulated, tmp_path):
    store = ReleaseStore(str(tmp_path / "store"))
    release = store.load(train(recipe_of(kind), "sim", store, progress=False).id)
    wanted = release.card.preprocessing
    raw = np.ascontiguousarray(simulated.stamps[..., [CUTOUTS.index(name) for name in wanted.cutouts]])
    stamps, quality = normalise(raw, wanted)
    served = Encoder(release).encode(Stamps(stamps, quality))[0]
    model = load_keras(release.path("cvae.keras"), release.id)
    z_mean, z_log_var = encode(model, stamps)
    assert served.z_mean == pytest.approx(z_mean, rel=1e-5, abs=1e-5)
    assert served.z_log_var == pytest.approx(z_log_var, rel=1e-5, abs=1e-5)
    again = Reconstructor(release).reconstruct(z_mean)
    assert again.shape == stamps.shape
    assert again == pytest.approx(decode(model, z_mean), rel=1e-5, abs=1e-5)
    np.savez(tmp_path / "night.npz", stamps=raw)
    encode_to_npz(store, release.id, str(tmp_path / "night.npz"), tmp_path / "codes.npz", progress=False)
    with np.load(tmp_path / "codes.npz") as codes:
        assert codes["z_mean"] == pytest.approx(z_mean, rel=1e-5, abs=1e-5)
        assert ((codes["real_score"] >= 0.0) & (codes["real_score"] <= 1.0)).all()
    if kind.startswith("sparse"):
        assert (served.z_log_var == -20.0).all()
        with np.load(release.path("reference.npz"), allow_pickle=False) as reference:
            assert all(np.isfinite(array).all() for array in reference.values() if array.dtype.kind == "f")


def test_the_keras_file_of_a_release_runs_no_code_of_its_own(tmp_path):
    path = tmp_path / "cvae.keras"
    inner = keras.Sequential([keras.Input((2,)), keras.layers.Lambda(lambda x: x * 2)])
    inner.save(path)
    with pytest.raises(Exception, match=r"cannot be loaded"):
        load_keras(path, "r")
