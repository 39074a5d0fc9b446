"""A backend that cannot do as it was told says so; that all say the same is a test on real stamps."""

import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from stream_vae.backends import in_chunks, network_of, padded
from stream_vae.backends import keras as keras_backend
from stream_vae.errors import ConfigError
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.settings import EncoderSettings

from releases import make_release


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    folder = tmp_path_factory.mktemp("releases")
    store = ReleaseStore(str(folder / "store"))
    make_release(store, folder / "new")
    return store.load()


@pytest.fixture
def with_keras(release: Release) -> Release:
    """A release that names a cvae.keras, whatever is in it."""
    files = {**release.card.files, "cvae.keras": "0" * 64}
    return Release(release.card.model_copy(update={"files": files}), release.folder)


def test_onnx_runtime_without_cuda_refuses_a_gpu(release: Release) -> None:
    with pytest.raises(ConfigError, match=r"knows only the CPU.*onnxruntime-gpu"):
        network_of(EncoderSettings(device="gpu"), release)


@pytest.mark.filterwarnings("ignore:Specified provider")
def test_onnx_runtime_that_goes_over_to_the_cpu_is_found_out(release: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    known = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    with pytest.raises(ConfigError, match=r"encoder.device is gpu.*on the CPU"):
        network_of(EncoderSettings(device="gpu"), release)


def test_keras_without_a_gpu_refuses_one(with_keras: Release) -> None:
    from stream_vae.model.backend import keras

    backend = keras.backend.backend()
    with pytest.raises(ConfigError, match=f"encoder.device is gpu, and {backend} finds none"):
        network_of(EncoderSettings(backend=backend, device="gpu"), with_keras)


def test_a_process_has_one_keras(with_keras: Release) -> None:
    from stream_vae.model.backend import keras

    other = {"tensorflow": "jax", "jax": "tensorflow"}[keras.backend.backend()]
    with pytest.raises(ConfigError, match=f"encoder.backend is {other}, and Keras runs on"):
        network_of(EncoderSettings(backend=other), with_keras)


def test_a_backend_that_is_not_installed_is_named(with_keras: Release, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keras_backend, "find_spec", lambda name: None if name == "jax" else sys)
    with pytest.raises(ConfigError, match=r"jax is not installed.*encoder.backend = 'onnx'"):
        network_of(EncoderSettings(backend="jax"), with_keras)


def test_a_release_without_keras_file_needs_onnx(release: Release) -> None:
    with pytest.raises(ConfigError, match=r"has no cvae\.keras.*encoder\.backend = 'onnx'"):
        network_of(EncoderSettings(backend="tensorflow"), release)


def test_a_keras_file_that_is_none_is_refused(with_keras: Release, tmp_path: Path) -> None:
    from stream_vae.model.backend import keras

    (tmp_path / "cvae.keras").write_bytes(b"no model")
    with pytest.raises(ConfigError, match=r"cvae\.keras of .* cannot be loaded"):
        network_of(EncoderSettings(backend=keras.backend.backend()), Release(with_keras.card, tmp_path))


@pytest.mark.parametrize("count", [1, 7, 8, 9, 16, 20])
def test_chunks_always_have_the_same_number_of_rows_and_nothing_is_mixed_up(count: int) -> None:
    stamps = np.arange(count * 4, dtype=np.float32).reshape(count, 2, 2, 1)
    seen = []

    def run(chunk):
        seen.append(len(chunk))
        return chunk[:, 0, 0], chunk[:, 1, 1]

    codes = in_chunks(run, stamps, 8)
    assert set(seen) == {8}
    np.testing.assert_array_equal(codes.z_mean, stamps[:, 0, 0])
    np.testing.assert_array_equal(codes.z_log_var, stamps[:, 1, 1])


def test_full_batches_are_not_copied() -> None:
    stamps = np.zeros((8, 2, 2, 1), np.float32)
    assert padded(stamps, 8) is stamps
    assert padded(stamps, 9).shape == (9, 2, 2, 1)


def test_the_default_is_onnx_runtime_on_the_cpu(release: Release) -> None:
    assert network_of(EncoderSettings(), release).name == f"ONNX Runtime {onnxruntime.__version__} on the CPU"
