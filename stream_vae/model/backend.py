"""Import Keras quietly, in the one place that does.

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

__all__ = ["keras"]
