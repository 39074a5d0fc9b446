"""Messages read back: alerts, enrichments, lite messages, in every framing."""

import json
from importlib.util import find_spec

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper, save
from stream_vae import surveys
from stream_vae.alert import Packet
from stream_vae.avro.framing import FrameReader
from stream_vae.cli.dlq import hex_lines
from stream_vae.errors import ConfigError, Reason, RejectedAlertError
from stream_vae.model.reconstruct import Reconstructor
from stream_vae.model.release import Preprocessing
from stream_vae.model.store import ReleaseStore, write_release
from stream_vae.sky.packets import simulate_packets
from stream_vae.tools.inspection import inspect
from stream_vae.tools.messages import Reader, guess_profile
from stream_vae.tools.send_back import _next_of
from stream_vae.tools.topics import Position

from releases import LATENTS, make_release, write_encoder


def packet_of(value, topic="alerts"):
    return Packet(value, topic, 0, 0)


@pytest.fixture(scope="module")
def simulated():
    return [each.packet for each in simulate_packets(6, shape="ztf", seed=4)]


@pytest.mark.parametrize("shape", ["ztf", "candidate"])
def test_the_survey_of_a_simulated_alert_is_told(shape):
    (sent,) = simulate_packets(1, shape=shape, seed=1)
    assert guess_profile(packet_of(sent.packet)).name == shape


def test_the_survey_of_a_foreign_record_cannot_be_told():
    import io

    import fastavro

    stream = io.BytesIO()
    schema = {"type": "record", "name": "weather", "fields": [{"name": "rain", "type": "int"}]}
    fastavro.writer(stream, schema, [{"rain": 1}])
    with pytest.raises(ConfigError, match="--survey"):
        guess_profile(packet_of(stream.getvalue()))


def test_a_damaged_alert_is_rejected_and_not_guessed_at(simulated):
    with pytest.raises(RejectedAlertError) as caught:
        guess_profile(packet_of(simulated[0][:-40]))
    assert caught.value.reason is Reason.TRUNCATED


def test_fields_are_in_the_units_of_the_lite_schema(simulated):
    fields = Reader(surveys.load("ztf")).read(packet_of(simulated[0])).fields()
    frame = FrameReader().open(simulated[0])
    record = frame.writer.decode(frame.body)
    assert fields["midpoint_mjd"] == pytest.approx(record["candidate"]["jd"] - 2_400_000.5, abs=1e-9)
    assert fields["band"] in {"g", "r", "i"}
    assert fields["date"].startswith("20")


def test_an_alert_without_a_store_has_no_scores_and_says_so(simulated):
    found = inspect(packet_of(simulated[0]), Reader(surveys.load("ztf")))
    assert found.verdict is None
    assert found.reconstruction is None
    assert any("--store" in note for note in found.notes)
    assert [panel.pixels.shape for panel in found.panels] == [(21, 21)] * 3
    whole = inspect(packet_of(simulated[0]), Reader(surveys.load("ztf")), whole=True)
    assert [panel.pixels.shape for panel in whole.panels] == [(63, 63)] * 3
    np.testing.assert_array_equal(whole.panels[0].pixels[21:42, 21:42], found.panels[0].pixels)


def write_decoder(path, channels):
    """A linear decoder, whose output can be told by heart."""
    weights = np.random.default_rng(7).normal(0, 0.05, (LATENTS, 441 * channels)).astype(np.float32)
    shape = numpy_helper.from_array(np.array([-1, 21, 21, channels], np.int64), "shape")
    nodes = [
        helper.make_node("MatMul", ["z", "w"], ["flat"]),
        helper.make_node("Reshape", ["flat", "shape"], ["reconstruction"]),
    ]
    inputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, ["n", LATENTS])]
    outputs = [helper.make_tensor_value_info("reconstruction", TensorProto.FLOAT, ["n", 21, 21, channels])]
    graph = helper.make_graph(nodes, "decoder", inputs, outputs, [numpy_helper.from_array(weights, "w"), shape])
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    return weights


def release_with_decoder(tmp_path, channels):
    store, folder = ReleaseStore(str(tmp_path / "store")), tmp_path / "release"
    make_release(store, folder, promote=False)
    cutouts = ("difference", "science", "template")[:channels]
    write_encoder(folder / "encoder.onnx", 21, channels)
    weights = write_decoder(folder / "decoder.onnx", channels)
    card = write_release(
        store,
        folder,
        name="decoded",
        latent_size=LATENTS,
        recipe={},
        data={},
        metrics={},
        preprocessing=Preprocessing(cutouts=cutouts),
    )
    return store.load(card.id), weights


@pytest.mark.parametrize("channels", [1, 3])
def test_stamp_and_reconstruction_share_a_grey_scale(channels, simulated, tmp_path):
    release, weights = release_with_decoder(tmp_path, channels)
    found = inspect(packet_of(simulated[1]), Reader(surveys.load("ztf")), release)
    expected = (found.verdict.enrichment.latent_mean @ weights).reshape(21, 21, channels)
    np.testing.assert_allclose(found.reconstruction, expected, rtol=1e-4, atol=1e-5)
    error = np.sum((found.verdict.stamp - found.reconstruction) ** 2)
    assert found.reconstruction_error() == pytest.approx(float(error))
    assert len(found.panels) == 3 + 3 * channels
    encoded, reconstruction, residual = found.panels[3:6]
    assert encoded.limits == reconstruction.limits
    np.testing.assert_allclose(residual.pixels, encoded.pixels - reconstruction.pixels, atol=1e-6)
    assert json.dumps(found.document())


def test_a_decoder_of_another_shape_is_an_error(tmp_path):
    release, _ = release_with_decoder(tmp_path, 1)
    wrong = release.card.preprocessing.model_copy(update={"stamp_size": 31})
    card = release.card.model_copy(update={"preprocessing": wrong})
    with pytest.raises(ConfigError, match="its card says"):
        Reconstructor(type(release)(card, release.folder)).reconstruct(np.zeros((1, LATENTS), np.float32))


@pytest.mark.skipif(find_spec("keras") is None, reason="Keras is not installed")
@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # TensorFlow's, with numpy 2
def test_the_keras_model_stands_in_for_a_missing_decoder(tmp_path):
    from stream_vae.learning.export import write_decoder as export_decoder
    from stream_vae.model.cvae import CVAE

    model = CVAE()
    model(np.zeros((1, 21, 21, 1), np.float32))
    store, folder = ReleaseStore(str(tmp_path / "store")), tmp_path / "release"
    make_release(store, folder, promote=False)
    model.save(folder / "cvae.keras")
    codes = np.random.default_rng(2).normal(size=(4, LATENTS)).astype(np.float32)
    stamps = []
    for name in ("keras", "onnx"):
        card = write_release(
            store,
            folder,
            name=name,
            latent_size=LATENTS,
            recipe={},
            data={},
            metrics={},
            preprocessing=Preprocessing(),
        )
        stamps.append(Reconstructor(store.load(card.id)).reconstruct(codes))
        export_decoder(model, folder / "decoder.onnx")
    np.testing.assert_allclose(*stamps, atol=1e-5)


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("ztf-alerts/3/1041", Position("ztf-alerts", 3, 1041)),
        ("a.b_c/0/0", Position("a.b_c", 0, 0)),
        ("ztf-alerts/3", None),
        ("ztf/alerts/3/4", None),
        ("ztf-alerts/3/-1", None),
        ("folder/0/alert.avro", None),
    ],
)
def test_positions_are_read(text, position):
    assert Position.parse(text) == position


def test_bytes_are_shown_as_numbers_and_characters():
    lines = hex_lines(b"Obj\x01" + bytes(range(14)))
    assert lines[0].startswith("00000000  4f 62 6a 01 00 01")
    assert lines[0].endswith(" Obj.............")
    assert lines[1].split() == ["00000010", "0c", "0d", ".."]
    assert hex_lines(b"") == ["(no bytes)"]


@pytest.mark.parametrize("metadata", [None, "", "{}", "[]", '{"stream_vae":2,"replayed":{"a":1}}', '{"stream_vae":1}'])
def test_offsets_that_others_committed_remember_nothing(metadata):
    assert _next_of(metadata) == {}


def test_what_was_sent_back_is_remembered_by_reason():
    assert _next_of('{"stream_vae":1,"replayed":{"empty":4,"framing":9}}') == {"empty": 4, "framing": 9}
