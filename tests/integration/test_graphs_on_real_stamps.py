"""The graphs of a release say what Keras says, to 1e-5, of every real stamp that there is.

Models are fitted briefly to real stamps, at the sizes that recipes use: rounding grows with the weights, and random
ones are small. Differences are absolute, in the units of scaled stamps, latent codes and probabilities.
"""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_vae import surveys
from stream_vae.alert import Codes, Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.avro.registry import open_registry
from stream_vae.backends.keras import KerasNetwork
from stream_vae.backends.onnx import open_session
from stream_vae.learning.classifier import Posterior, fit_scorer
from stream_vae.learning.data.stampfile import stamps_from_file
from stream_vae.learning.data.stamps import StampSet, read_stamps
from stream_vae.learning.export import export_networks
from stream_vae.learning.fit import decode, encode, fit_model
from stream_vae.learning.positive_unlabelled import fit_positive_unlabelled
from stream_vae.learning.recipe import Recipe, ScorerSection, build_recipe
from stream_vae.model.release import Preprocessing, Release
from stream_vae.model.store import ReleaseStore, write_release
from stream_vae.runtime.encoder_pool import pack, unpack
from stream_vae.stages.decode import Decoder
from stream_vae.stages.encode import Encoder
from stream_vae.stages.stamp import Stamper

from lsst_layouts import write_lsst_schemas

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.timeout(600),  # three models and six scorers are fitted
]

TOLERANCE = 1e-5
ENCODE_ON_JAX = Path(__file__).parents[1] / "encode_on_jax.py"
CUTOUTS = ("difference", "science", "template")
FOLDERS = {"ztf": 585, "lsst": 30, "lsst_wire": 3, "winter": 21, "pgir": 17, "turbo": 11, "decam": 1}
LCO = 3444
SCORER = ScorerSection(hidden=32, draws=32, epochs=6)


def recipe_of(channels: int, **model: Any) -> Recipe:
    preprocessing = {"cutouts": CUTOUTS[:channels]}
    loss = {"kl_weight": 0.3}
    return build_recipe(
        {"preprocessing": preprocessing, "model": model, "loss": loss, "fit": {"epochs": 5, "learning_rate": 3e-3}}
    )


def alert_stamps(alerts_dir: Path, folder: str, channels: int, schemas: Path) -> np.ndarray:
    """Every scoreable stamp of a folder's alerts, through the pipeline's decoder and stamper."""
    profile = surveys.load(folder.removesuffix("_wire"))
    reader = FrameReader(schemas=open_registry(schemas.as_uri()))
    packets = [Packet(file.read_bytes(), folder, 0, 0) for file in sorted((alerts_dir / folder).rglob("*.avro"))]
    assert len(packets) == FOLDERS[folder]
    decoded = Decoder(reader, profile, DEFAULT_LIMITS).decode(packets)
    assert not decoded.rejected
    cut = Stamper(Preprocessing(cutouts=CUTOUTS[:channels]), profile.cutouts, 4 << 20).cut(decoded.alerts)
    return cut.stamps[cut.scoreable]


@pytest.fixture(scope="module")
def lco(alerts_dir: Path) -> StampSet:
    source = stamps_from_file(alerts_dir / "stamps" / "lco_pydia_21px.npz", Preprocessing())
    stamps = read_stamps(source, max_stamps=10_000, min_stamps=64, seed=1)
    assert len(stamps.stamps) == LCO
    return stamps


@pytest.fixture(scope="module")
def every_stamp(alerts_dir: Path, lco: StampSet, tmp_path_factory: pytest.TempPathFactory) -> dict[int, np.ndarray]:
    """All of them, by the number of channels."""
    schemas = tmp_path_factory.mktemp("schemas")
    write_lsst_schemas(schemas)
    found = {
        channels: [alert_stamps(alerts_dir, folder, channels, schemas) for folder in FOLDERS] for channels in (1, 3)
    }
    # Every alert but those whose cutouts cannot be scored has a stamp, so that none is passed over in silence.
    assert sum(map(len, found[1])) > 0.97 * sum(FOLDERS.values())
    return {1: np.concatenate([lco.stamps, *found[1]]), 3: np.concatenate(found[3])}


def worst_difference(graph: Path, inputs: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> dict[str, float]:
    """Largest absolute difference of each output."""
    worst = {}
    for name, got in zip(expected, open_session(graph).run(list(expected), inputs), strict=True):
        assert got.dtype == np.float32
        assert got.shape == expected[name].shape
        assert np.isfinite(got).all()
        worst[name] = float(np.abs(got - expected[name]).max())
    return worst


@pytest.fixture(
    scope="module",
    params=[
        pytest.param((1, {"linear_skip": False}), id="difference"),
        pytest.param((1, {"linear_skip": True}), id="difference-linear-skip"),
        pytest.param((3, {"linear_skip": True}), id="three-channels"),
    ],
)
def fitted(request: pytest.FixtureRequest, every_stamp: dict[int, np.ndarray], lco: StampSet) -> tuple[Any, np.ndarray]:
    channels, model = request.param
    stamps = every_stamp[channels]
    count = len(stamps)
    labels = lco.labels if channels == 1 else np.full(count, -1, np.int8)
    data = lco if channels == 1 else StampSet(stamps, labels, np.arange(count), {"name": "alerts"})
    rows = np.arange(0, len(data.stamps), 4 if channels == 1 else 1)  # fitting takes time, comparing does not
    fit = fit_model(recipe_of(channels, **model), data, rows[::2], rows[1::2])
    return fit.model, stamps


def test_encoder_and_decoder_of_every_real_stamp(fitted: tuple[Any, np.ndarray], tmp_path: Path) -> None:
    model, stamps = fitted
    export_networks(tmp_path, model, None, stamps[:64])
    z_mean, z_log_var = encode(model, stamps)
    worst = worst_difference(tmp_path / "encoder.onnx", {"stamp": stamps}, {"z_mean": z_mean, "z_log_var": z_log_var})
    worst |= worst_difference(tmp_path / "decoder.onnx", {"z": z_mean}, {"reconstruction": decode(model, z_mean)})
    print(f"{len(stamps)} stamps, absolute: {worst}")  # shown by pytest -s
    assert z_mean.std() > 0.1, "a model that says nothing would pass"
    assert max(worst.values()) <= TOLERANCE, worst


def test_every_backend_says_the_same_of_every_real_stamp(fitted: tuple[Any, np.ndarray], tmp_path: Path) -> None:
    model, stamps = fitted
    release = released(model, stamps, tmp_path)
    here = Encoder(release).run(stamps)
    on_tensorflow = Encoder(release, KerasNetwork(release, "tensorflow")).run(stamps)
    np.save(tmp_path / "stamps.npy", stamps)
    command = [sys.executable, ENCODE_ON_JAX, tmp_path / "store", tmp_path / "stamps.npy", tmp_path / "codes.npz"]
    subprocess.run(command, check=True, timeout=240)
    with np.load(tmp_path / "codes.npz") as on_jax:
        assert on_jax["name"] == "Keras on jax, on the CPU"
        found = {"tensorflow": on_tensorflow, "jax": Codes(on_jax["z_mean"], on_jax["z_log_var"])}
    # What a pool's workers send is rounded to 16 bits. float16 is shown to tell why it is not taken.
    found["pool"] = Encoder(release).run(unpack(pack(stamps)))
    half = Encoder(release).run(stamps.astype(np.float16).astype(np.float32))
    worst = {name: off(codes, here) for name, codes in found.items()}
    print(f"{len(stamps)} stamps, absolute: {worst}, float16: {off(half, here)}")  # shown by pytest -s
    assert here.z_mean.std() > 0.1, "a model that says nothing would pass"
    assert max(worst["tensorflow"], worst["jax"]) <= TOLERANCE
    assert worst["pool"] <= 1e-4


def released(model: Any, stamps: np.ndarray, folder: Path) -> Release:
    """Put a fitted model into a store of its own; what only scoring needs is not in it."""
    (folder / "new").mkdir()
    export_networks(folder / "new", model, None, stamps[:64])
    np.savez(folder / "new" / "reference.npz", nothing=np.zeros(1))
    store = ReleaseStore(str(folder / "store"))
    nothing: dict[str, Any] = {"recipe": {}, "data": {}, "metrics": {}}
    wanted = Preprocessing(cutouts=CUTOUTS[: stamps.shape[-1]])
    card = write_release(store, folder / "new", name="real", latent_size=21, preprocessing=wanted, **nothing)
    store.promote(card.id)
    return store.load()


def off(codes: Codes, expected: Codes) -> float:
    return max(float(np.abs(one - other).max()) for one, other in zip(codes, expected, strict=True))


@pytest.mark.parametrize("kind", ["labelled", "positive-unlabelled"])
def test_the_scorer_of_every_real_stamp(
    fitted: tuple[Any, np.ndarray], lco: StampSet, kind: str, tmp_path: Path
) -> None:
    model, stamps = fitted
    z_mean, z_log_var = encode(model, stamps)
    # Alerts have no labels here: for three channels the brighter half of the template stands for one class.
    real = lco.labels == 1 if len(stamps) > LCO else stamps[..., 2].mean(axis=(1, 2)) > 0.02
    z_fit, v_fit = z_mean[: len(real)], z_log_var[: len(real)]
    even = np.arange(len(z_fit)) % 2 == 0
    train, held_out = (Posterior(z_fit[part], v_fit[part], real[part]) for part in (even, ~even))
    if kind == "labelled":
        scorer = fit_scorer(train, held_out, SCORER, seed=1)
    else:
        section = SCORER.model_copy(update={"positive_unlabelled": True, "prior": 0.2})
        scorer = fit_positive_unlabelled(train, held_out, section, seed=1).scorer
    export_networks(tmp_path, model, scorer, stamps[:64])
    score, std = scorer.score(z_mean, z_log_var)
    inputs, expected = {"z_mean": z_mean, "z_log_var": z_log_var}, {"real_score": score, "real_score_std": std}
    worst = worst_difference(tmp_path / "scorer.onnx", inputs, expected)
    # And from the stamp on: what serving publishes against what Keras says.
    codes = open_session(tmp_path / "encoder.onnx").run(list(inputs), {"stamp": stamps})
    served = worst_difference(tmp_path / "scorer.onnx", dict(zip(inputs, codes, strict=True)), expected)
    print(f"{len(stamps)} stamps, absolute: {worst}, from the stamp on: {served}")  # shown by pytest -s
    assert score.std() > 0.02, "a scorer that says nothing would pass"
    assert max(*worst.values(), *served.values()) <= TOLERANCE, (worst, served)
