"""Run by test_learning_together.py with KERAS_BACKEND=jax: fit with and without stacks, export, compare."""

import json
import re
import sys
from pathlib import Path

import jax
import numpy as np
from stream_vae.backends.onnx import open_session
from stream_vae.learning import fit, together
from stream_vae.learning.data.stamps import StampSet
from stream_vae.learning.export import write_encoder
from stream_vae.learning.recipe import build_recipe
from stream_vae.model.backend import full_precision


def blobs(count):
    random = np.random.default_rng(5)
    y, x = np.mgrid[-4:5, -4:5]
    stamps = np.exp(-(x**2 + y**2) / random.uniform(2, 12, (count, 1, 1))) + random.normal(0, 0.02, (count, 9, 9))
    labels = random.integers(-1, 2, count).astype(np.int8)
    return StampSet(stamps[..., np.newaxis].astype(np.float32), labels, np.arange(count), {})


def main():
    data = blobs(200)
    recipe = build_recipe(
        {
            "fit": {"epochs": 3, "batch_size": 16},
            "preprocessing": {"stamp_size": 9},
            "loss": {"label_weight": 5.0},
            "model": {"filters": 4, "latent_size": 4, "prior": "vamp", "pseudo_inputs": 4},
        }
    )
    losses = []
    for count in (1, 4):
        fit.batches_together = lambda *_, count=count: count  # on a CPU one would be chosen
        fitted = fit.fit_model(recipe, data, np.arange(184), np.arange(184, 200))
        losses.append(fitted.history["loss"] + fitted.history["val_loss"])
    fit.fit_model(recipe, data, np.arange(16), np.arange(184, 200))  # a single batch an epoch is no stack
    assert together.batches_together(64, 1764) == 1  # and is
    path = Path(sys.argv[1]) / "encoder.onnx"
    write_encoder(fitted.model, path)
    found = open_session(path).run(["z_mean"], {"stamp": data.stamps})[0]
    rounding = float(np.abs(fit.encode(fitted.model, data.stamps)[0] - found).max())
    with full_precision():
        text = jax.jit(fitted.model.encoder).lower(data.stamps[:8]).as_text()
    print(json.dumps({"losses": losses, "rounding": rounding, "precision": "".join(precisions(text))}))


def precisions(text):
    """Every precision that a lowered program's products and convolutions ask for, once."""
    return sorted(set(re.findall(r"precision[^\n]*?(DEFAULT|HIGHEST|HIGH)\b", text)))


if __name__ == "__main__":
    main()
