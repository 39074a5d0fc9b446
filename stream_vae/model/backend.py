"""Import Keras quietly, in the one place that does, and set what its backends do not agree on.

TensorFlow greets its user with a page of remarks about CPU features and missing GPUs,
some of which it writes straight to file descriptor 2 before its own log level counts.
Everything else in stream_vae takes Keras from here. Serving never does: it runs the
exported ONNX graphs.
"""

import contextlib
import logging
import os
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager

from stream_vae.errors import ConfigError

_NOISE = re.compile(
    rb"^(WARNING: All log messages before absl::InitializeLog|[IW]\d{4} |\d{4}-\d\d-\d\d [\d:.]+: [IW] |$)"
)


@contextlib.contextmanager
def _without_start_up_noise() -> Iterator[None]:
    """Hold back what libraries write to file descriptor 2, and pass on what is not their greeting."""
    # A default for TensorFlow's own reader: a user who set it keeps their value. Its C++ log calls a missing GPU
    # an error, so 3 it is; what truly fails comes as a Python exception as well.
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)  # it warns of every second graph of a second model
    sys.stderr.flush()
    kept = os.dup(2)
    with tempfile.TemporaryFile() as held:
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            held.seek(0)
            for line in held:
                if not _NOISE.match(line):
                    os.write(2, line)


with _without_start_up_noise():
    try:
        import keras
    except ImportError as error:
        raise ConfigError(
            f"Training needs Keras and a backend for it ({error}).",
            remedy="Install them: pip install 'stream-vae[train]'.",
        ) from error


def full_precision() -> AbstractContextManager[object]:
    """Compute with all bits of float32 inside a `with`.

    A GPU's matrix units round factors to TF32 unless told otherwise, which moves codes in the fourth digit. Fitting
    does not mind. What is compared with a release's graphs, or says how good it is, must not depend on it.

    Returns
    -------
    context manager
        For JAX and TensorFlow; on other backends it does nothing.
    """
    if keras.backend.backend() == "jax":
        import jax

        return jax.default_matmul_precision("highest")  # type: ignore[no-any-return]
    return _without_tf32() if keras.backend.backend() == "tensorflow" else contextlib.nullcontext()


@contextlib.contextmanager
def _without_tf32() -> Iterator[None]:
    from tensorflow import config

    allowed = config.experimental.tensor_float_32_execution_enabled()
    config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        config.experimental.enable_tensor_float_32_execution(allowed)


__all__ = ["full_precision", "keras"]
