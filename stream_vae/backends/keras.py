"""Keras: a release's ``cvae.keras`` compiled by XLA, on TensorFlow or on JAX, whichever the machine has for its GPU."""

import os
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, Literal

import numpy as np

from stream_vae.alert import Codes, FloatArray
from stream_vae.backends import in_chunks
from stream_vae.errors import ConfigError
from stream_vae.model.release import KERAS, Release

Backend = Literal["tensorflow", "jax"]
Heads = Callable[[FloatArray], tuple[FloatArray, FloatArray]]

_CPU_ROWS = 64
"""Stamps at a time on a CPU: what is filled up to that costs a millisecond at most, and calls are not many."""


def check_backend(backend: Backend, *, gpu: bool) -> None:
    """Choose Keras' backend for this process, and check that it has what was asked for.

    Parameters
    ----------
    backend : str
        ``tensorflow`` or ``jax``.
    gpu : bool
        Whether a GPU is to be used.

    Raises
    ------
    ConfigError
        If it is not installed, another one is in use already, or there is no GPU.
    """
    lacking = [name for name in ("keras", backend) if find_spec(name) is None]
    if lacking:
        raise ConfigError(
            f"encoder.backend is {backend}, and {' and '.join(lacking)} is not installed.",
            remedy=f"pip install keras {backend}, or set encoder.backend = 'onnx', which needs neither.",
        )
    if "keras" not in sys.modules:
        os.environ["KERAS_BACKEND"] = backend
        # Several processes may share a GPU, as encoder.gpus says: neither may take all of its memory.
        os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    from stream_vae.model.backend import keras

    if (found := keras.backend.backend()) != backend:
        raise ConfigError(
            f"encoder.backend is {backend}, and Keras runs on {found} in this process already.",
            remedy="A process has one backend: set KERAS_BACKEND to the same.",
        )
    if gpu and not _gpus(backend):
        raise ConfigError(
            f"encoder.device is gpu, and {backend} finds none.",
            remedy="Install it with its CUDA libraries, look at nvidia-smi, or set encoder.device = 'cpu'.",
        )


def _gpus(backend: Backend) -> list[Any]:
    if backend == "jax":
        import jax

        try:
            return list(jax.devices("gpu"))
        except RuntimeError:
            return []
    from tensorflow import config

    found = list(config.list_physical_devices("GPU"))
    for gpu in found:
        config.experimental.set_memory_growth(gpu, True)
    return found


class KerasNetwork:
    """A release's ``cvae.keras``.

    Parameters
    ----------
    release : Release
        Verified.
    backend : str
        ``tensorflow`` or ``jax``.
    gpu : bool
        Run it on a GPU.
    rows : int
        Stamps at a time on a GPU.

    Raises
    ------
    ConfigError
        If the release has no such file, it does not take the stamps that the card says, or `check_backend` fails.
    """

    def __init__(self, release: Release, backend: Backend, *, gpu: bool = False, rows: int = 1024) -> None:
        path = release.path(KERAS)
        if path is None:
            raise ConfigError(
                f"encoder.backend is {backend}, and release {release.id} has no {KERAS}.",
                remedy="Set encoder.backend = 'onnx', or train the release again.",
            )
        check_backend(backend, gpu=gpu)
        from stream_vae.model.reconstruct import load_keras

        encoder = load_keras(path, release.id).encoder
        shape = tuple(encoder.input_shape[1:])
        release.check_input(shape)
        self._rows = rows if gpu else min(rows, _CPU_ROWS)
        self.name = f"Keras on {backend}, on the {'GPU' if gpu else 'CPU'}"
        compiled = _on_jax if backend == "jax" else _on_tensorflow
        self._heads = compiled(encoder, (self._rows, *shape), gpu=gpu)

    def run(self, stamps: FloatArray) -> Codes:
        """Encode stamps.

        Parameters
        ----------
        stamps : ndarray
            (n, size, size, channels) scaled float32, n at least 1.

        Returns
        -------
        Codes
            (n, latent size) each.
        """
        return in_chunks(self._heads, stamps, self._rows)


def _on_jax(encoder: Any, shape: tuple[int, ...], *, gpu: bool) -> Heads:
    import jax

    from stream_vae.model.backend import full_precision

    device = jax.devices("gpu" if gpu else "cpu")[0]
    parts = (encoder.trainable_variables, encoder.non_trainable_variables)
    weights = jax.device_put([[variable.value for variable in part] for part in parts], device)

    def heads(weights: list[list[Any]], stamps: Any) -> Any:
        return encoder.stateless_call(*weights, stamps, training=False)[0]

    with full_precision():  # it is in the program that is compiled here
        program = jax.jit(heads).lower(weights, jax.ShapeDtypeStruct(shape, np.float32)).compile()

    def run(stamps: FloatArray) -> tuple[FloatArray, FloatArray]:
        z_mean, z_log_var = jax.device_get(program(weights, jax.device_put(stamps, device)))
        return z_mean, z_log_var

    return run


def _on_tensorflow(encoder: Any, shape: tuple[int, ...], *, gpu: bool) -> Heads:
    import tensorflow as tf

    from stream_vae.model.backend import full_precision

    device = "/GPU:0" if gpu else "/CPU:0"
    form = [tf.TensorSpec(shape, tf.float32)]
    program = tf.function(lambda stamps: encoder(stamps, training=False), input_signature=form, jit_compile=True)

    def run(stamps: FloatArray) -> tuple[FloatArray, FloatArray]:
        with full_precision(), tf.device(device):
            z_mean, z_log_var = program(tf.convert_to_tensor(stamps))
        return z_mean.numpy(), z_log_var.numpy()

    return run
