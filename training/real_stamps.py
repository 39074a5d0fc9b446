"""Judge a recipe on labelled real stamps of several images: train on one, test on the others, in turn.

For each image: fit the recipe's CVAE on that image's stamps (a tenth is held out to stop on), then measure the others:
reconstruction beside PCA of the same size fitted on the same stamps, active units, and the AUC of a logistic
probe on the standardised posterior mean that was shown few labels of the training image.

    python training/real_stamps.py --stamps FILE.npz --recipe survey --epochs 60
"""

import argparse
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from stream_vae.learning import measures
from stream_vae.learning.fit import decode, encode, fit_model
from stream_vae.learning.progress import reporter
from stream_vae.learning.recipe import Recipe, build_recipe, load_recipe
from stream_vae.learning.reference import pca_squared_error, principal_components
from stream_vae.learning.stampfile import stamps_from_file
from stream_vae.learning.stamps import REAL, StampSet, read_stamps

Array = NDArray[np.float32]


def probe_auc(
    train: Array, train_real: NDArray[np.bool_], test: Array, test_real: NDArray[np.bool_], *, labels: int, draws: int
) -> tuple[float, float]:
    """Mean and standard deviation of the AUC over draws of a few labels, half of them real."""
    centre, spread = train.mean(axis=0), train.std(axis=0) + 1e-6
    train, test = (train - centre) / spread, (test - centre) / spread
    values = []
    for draw in range(draws):
        random = np.random.default_rng(draw)
        rows = np.concatenate(
            [random.choice(np.flatnonzero(train_real == kind), labels // 2, replace=False) for kind in (True, False)]
        )
        probe = LogisticRegression(max_iter=1000).fit(train[rows], train_real[rows])
        values.append(measures.roc_auc(probe.decision_function(test), test_real))
    return float(np.mean(values)), float(np.std(values))


def codes_of_pca(stamps: Array, mean: Array, components: Array) -> Array:
    """Principal components of stamps."""
    return (stamps.reshape(len(stamps), -1) - mean) @ components.T


def judge(recipe: Recipe, data: StampSet, image: int, *, labels: int, draws: int) -> None:
    """Train on one image, test on the others, print a row for PCA and one for the recipe."""
    inside = np.flatnonzero(data.groups == image)
    outside = np.flatnonzero(data.groups != image)
    shuffled = np.random.default_rng(recipe.seed).permutation(inside)
    held_out, fitted = shuffled[: len(inside) // 10], shuffled[len(inside) // 10 :]
    began = time.monotonic()
    with reporter() as report:
        fit = fit_model(recipe, data, np.sort(fitted), np.sort(held_out), report=report)
    seconds = time.monotonic() - began
    train, test = data.stamps[inside], data.stamps[outside]
    train_real, test_real = data.labels[inside] == REAL, data.labels[outside] == REAL

    mean, components = principal_components(train, recipe.model.latent_size)
    error = pca_squared_error(test, mean, components).mean()
    codes = codes_of_pca(train, mean, components), codes_of_pca(test, mean, components)
    auc, deviation = probe_auc(codes[0], train_real, codes[1], test_real, labels=labels, draws=draws)
    print(f"trained on image {image}, {len(inside)} stamps; tested on {len(outside)}")
    print(f"  PCA-{len(components)}: squared error {error:.3f}, AUC at {labels} labels {auc:.4f} +- {deviation:.4f}")

    (z_train, _), (z_test, log_var) = encode(fit.model, train), encode(fit.model, test)
    error = np.square(decode(fit.model, z_test) - test).sum(axis=(1, 2, 3)).mean()
    auc, deviation = probe_auc(z_train, train_real, z_test, test_real, labels=labels, draws=draws)
    kl, active = measures.kl_per_unit(z_test, log_var).sum(), measures.active_units(z_test)
    print(
        f"  {recipe.name}: squared error {error:.3f}, KL {kl:.1f} nats, {active} active units, "
        f"AUC at {labels} labels {auc:.4f} +- {deviation:.4f}; epoch {fit.best_epoch}, {seconds:.0f} s"
    )


def main() -> None:
    """Read the arguments and go through the images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="an .npz with stamps, labels and groups")
    parser.add_argument("--recipe", default="survey", help="a name or a TOML file")
    parser.add_argument("--epochs", type=int, help="instead of the recipe's")
    parser.add_argument("--labels", type=int, default=100)
    parser.add_argument("--draws", type=int, default=20)
    arguments = parser.parse_args()
    recipe = load_recipe(arguments.recipe)
    if arguments.epochs is not None:
        content = recipe.model_dump()
        content["fit"]["epochs"] = arguments.epochs
        recipe = build_recipe(content)
    source = stamps_from_file(arguments.stamps, recipe.preprocessing)
    data = read_stamps(source, max_stamps=200_000, min_stamps=64, seed=recipe.seed)
    for image in np.unique(data.groups):
        judge(recipe, data, int(image), labels=arguments.labels, draws=arguments.draws)


if __name__ == "__main__":
    main()
