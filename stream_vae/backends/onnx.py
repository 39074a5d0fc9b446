"""ONNX Runtime: the fastest on a CPU, and its CUDA provider."""

from pathlib import Path
from typing import Any

import onnxruntime

from stream_vae.alert import Codes, FloatArray
from stream_vae.backends import in_chunks, padded
from stream_vae.errors import ConfigError
from stream_vae.model.release import ENCODER, Release

SMALLEST = 16
"""Rows that a graph always sees at least on a CPU: with very few rows ONNX Runtime takes other kernels, which
round differently, and a redelivered alert must get the same bytes whatever batch it comes in."""
_CUDA = "CUDAExecutionProvider"
# TF32 would move codes by up to 7e-4; and a search for the fastest algorithm may find another one in the next process.
_CUDA_OPTIONS = {"use_tf32": "0", "cudnn_conv_algo_search": "HEURISTIC"}


def open_session(path: Path, threads: int = 1, *, gpu: bool = False) -> onnxruntime.InferenceSession:
    """Open an ONNX graph.

    Parameters
    ----------
    path : Path
        The graph.
    threads : int
        Threads of one call on a CPU.
    gpu : bool
        Run it on a GPU, by CUDA.

    Returns
    -------
    onnxruntime.InferenceSession
        Ready to run.

    Raises
    ------
    ConfigError
        If the file is no graph that this ONNX Runtime can run, or no GPU is used where one was asked for.
    """
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 3  # warnings about constant folding are nobody's business
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # idle workers must not burn a core
    providers: list[Any] = ["CPUExecutionProvider"]
    if gpu:
        check_gpu()
        providers.insert(0, (_CUDA, _CUDA_OPTIONS))
    try:
        session = onnxruntime.InferenceSession(path, options, providers=providers)
    except Exception as error:  # ONNX Runtime's exceptions share no base class
        raise ConfigError(
            f"ONNX Runtime {onnxruntime.__version__} cannot run {path.name}: {error}.",
            remedy="Export the release again with a lower opset, or update onnxruntime.",
        ) from error
    if gpu and _CUDA not in session.get_providers():  # it goes over to the CPU in silence
        raise ConfigError(
            f"encoder.device is gpu, and ONNX Runtime {onnxruntime.__version__} runs {path.name} on the CPU.",
            remedy="Its CUDA libraries do not load: compare versions, and the driver's, with its manual.",
        )
    return session


def check_gpu() -> None:
    """Check that ONNX Runtime was built for GPUs.

    Raises
    ------
    ConfigError
        If it was not.
    """
    if _CUDA not in onnxruntime.get_available_providers():
        raise ConfigError(
            f"encoder.device is gpu, and ONNX Runtime {onnxruntime.__version__} here knows only the CPU.",
            remedy="Install onnxruntime-gpu instead of onnxruntime, or set encoder.device = 'cpu'.",
        )


class OnnxNetwork:
    """A release's ``encoder.onnx``.

    Parameters
    ----------
    release : Release
        Verified.
    threads : int
        Threads of one call on a CPU.
    gpu : bool
        Run it on a GPU.
    rows : int
        Stamps at a time on a GPU.

    Raises
    ------
    ConfigError
        If the graph does not run here, or does not take the stamps that the card says.
    """

    def __init__(self, release: Release, *, threads: int = 1, gpu: bool = False, rows: int = 1024) -> None:
        self.name = f"ONNX Runtime {onnxruntime.__version__} on the {'GPU' if gpu else 'CPU'}"
        self._session = open_session(release.folder / ENCODER, threads, gpu=gpu)
        self._rows = rows if gpu else None
        (graph_input, *_) = self._session.get_inputs()
        self._input = graph_input.name
        release.check_input(tuple(graph_input.shape[1:]))

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
        if self._rows is not None:
            return in_chunks(self._heads, stamps, self._rows)
        z_mean, z_log_var = self._heads(padded(stamps, max(SMALLEST, len(stamps))))
        return Codes(z_mean[: len(stamps)], z_log_var[: len(stamps)])

    def _heads(self, stamps: FloatArray) -> tuple[FloatArray, FloatArray]:
        z_mean, z_log_var = self._session.run(["z_mean", "z_log_var"], {self._input: stamps})
        return z_mean, z_log_var
