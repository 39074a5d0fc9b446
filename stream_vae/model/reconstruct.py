"""Latent codes back to stamps, for people who look: serving never decodes.

A release's ``decoder.onnx`` runs without TensorFlow; one without it still has ``cvae.keras``, which needs Keras.
"""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from stream_vae.alert import FloatArray
from stream_vae.backends.onnx import open_session
from stream_vae.errors import ConfigError
from stream_vae.model.release import KERAS, Release

DECODER = "decoder.onnx"


class Reconstructor:
    """A release's decoder.

    Parameters
    ----------
    release : Release
        Verified.

    Raises
    ------
    ConfigError
        If the release has no decoder that can run here; says which and what to install.
    """

    def __init__(self, release: Release) -> None:
        wanted = release.card.preprocessing
        self._shape = (wanted.stamp_size, wanted.stamp_size, len(wanted.cutouts))
        self._id = release.id
        self._session: Any = None
        self._network: Any = None
        if path := release.path(DECODER):
            self._session = open_session(path)
        elif path := release.path(KERAS):
            self._network = load_keras(path, release.id).decoder
        else:
            raise ConfigError(f"release {release.id} has neither {DECODER} nor {KERAS}.")

    def reconstruct(self, codes: FloatArray) -> FloatArray:
        """Decode latent codes.

        Parameters
        ----------
        codes : ndarray
            (n, latent size), usually posterior means.

        Returns
        -------
        ndarray
            (n, size, size, channels) float32 in the units of the release's scaled stamps.

        Raises
        ------
        ConfigError
            If the decoder does not give stamps of the release's shape.
        """
        codes = np.ascontiguousarray(codes, np.float32)
        if self._session is not None:
            (stamps,) = self._session.run(["reconstruction"], {self._session.get_inputs()[0].name: codes})
        else:
            from stream_vae.model.backend import keras

            stamps = keras.ops.convert_to_numpy(self._network(codes, training=False))
        result: FloatArray = np.asarray(stamps, np.float32)
        if result.shape[1:] != self._shape:
            raise ConfigError(f"The decoder of {self._id} gives {result.shape[1:]}; its card says {self._shape}.")
        return result


def load_keras(path: Path, release_id: str) -> Any:
    """Load a release's ``cvae.keras``.

    Parameters
    ----------
    path : Path
        The file.
    release_id : str
        For messages.

    Returns
    -------
    Autoencoder
        On Keras' backend of this process.

    Raises
    ------
    ConfigError
        If Keras is not installed, or the file cannot be loaded.
    """
    if find_spec("keras") is None:
        raise ConfigError(
            f"Keras is not installed to run {KERAS} of release {release_id}.",
            remedy="Install it: pip install 'stream-vae[train]'.",
        )
    from stream_vae.model.backend import keras
    from stream_vae.model.cvae import CVAE
    from stream_vae.model.scae import SCAE

    try:
        # safe_mode: nothing in the file is run but layers that are known by name.
        return keras.saving.load_model(path, custom_objects={"CVAE": CVAE, "SCAE": SCAE}, compile=False, safe_mode=True)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"{KERAS} of {release_id} cannot be loaded: {error}.") from error
