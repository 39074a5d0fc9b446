"""The graphs of a release say what Keras says, to 1e-5, of every real stamp that there is.

Models are fitted briefly to real stamps, at the sizes that recipes use: rounding grows with the weights, and random
ones are small. Differences are absolute, in the units of scaled stamps, latent codes and probabilities.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from stream_vae import surveys
from stream_vae.alert import Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.avro.limits import DEFAULT_LIMITS
from stream_vae.avro.registry import open_registry
from stream_vae.learning.classifier import Posterior, fit_scorer
from stream_vae.learning.data.stampfile import stamps_from_file
from stream_vae.learning.data.stamps import StampSet, read_stamps
from stream_vae.learning.export import export_networks
from stream_vae.learning.fit import decode, encode, fit_model
from stream_vae.learning.positive_unlabelled import fit_positive_unlabelled
from stream_vae.learning.recipe import Recipe, ScorerSection, build_recipe
from stream_vae.model.release import Preprocessing
from stream_vae.stages.decode import Decoder
from stream_vae.stages.encode import open_session
from stream_vae.stages.stamp import Stamper

from lsst_layouts import write_lsst_schemas

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning"),
    pytest.mark.timeout(600),  # three models and six scorers are fitted
]

TOLERANCE = 1e-5
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
