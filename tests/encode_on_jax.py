"""Run by a test in a process of its own, as Keras has one backend a process: encode stamps as a worker on JAX would.

encode_on_jax.py STORE STAMPS.npy OUT.npz
"""

import sys
from pathlib import Path

import numpy as np
from stream_vae.backends import network_of
from stream_vae.model.store import ReleaseStore
from stream_vae.settings import EncoderSettings
from stream_vae.stages.encode import Encoder

if __name__ == "__main__":
    release = ReleaseStore(sys.argv[1]).load()
    network = network_of(EncoderSettings(backend="jax"), release)
    codes = Encoder(release, network).run(np.load(sys.argv[2]))
    np.savez(Path(sys.argv[3]), name=np.array(network.name), **codes._asdict())
