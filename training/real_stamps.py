"""Judge recipes and baselines on labelled real stamps of several images: learn from one, test on the others, in turn.

A model is fitted to the stamps of one image without their labels (a tenth is held out to stop on); a recipe with
`data.add_simulated` sees simulated stamps, and their labels, too. Then, on the other images: reconstruction, active
units, mutual information, and the AUC of a logistic probe on the code that was shown some labels of the first image.

    python training/real_stamps.py --stamps FILE.npz --models pca pca-turned sdl pixels scae survey --seeds 1 2 3

`pca-turned` is fitted to the stamps in all eight orientations, which the networks are trained on as well. A seed
decides a network's start, the order of its batches and its simulated stamps; the draws of labels are the same for all.
"""

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from stream_vae.learning import baselines, few_labels, measures
from stream_vae.learning.batches import orientations
from stream_vae.learning.data.source import simulated
from stream_vae.learning.data.stampfile import stamps_from_file
from stream_vae.learning.data.stamps import REAL, UNKNOWN, StampSet, read_stamps
from stream_vae.learning.fit import fit_model
from stream_vae.learning.progress import Reporter, reporter
from stream_vae.learning.recipe import Recipe, load_recipe
from stream_vae.learning.representation import Representation, of_model
from stream_vae.learning.train import ADDED_SEED, balanced

Array = NDArray[np.float32]
Rows = NDArray[np.int64]


def fit(model: str, path: Path, image: int, seed: int | None, report: Reporter) -> tuple[Representation, StampSet]:
    """Fit a baseline or a recipe to one image; give it, and the whole file."""
    recipe = Recipe() if model in BASELINES else load_recipe(model)
    if seed is not None:
        recipe = recipe.model_copy(update={"seed": seed})
    data = read(recipe, path, report)
    own = np.flatnonzero(data.groups[: len(data) - data.added] == image)
    if model in BASELINES:
        return BASELINES[model](data.take(own)), data
    hidden = np.asarray(data.labels).copy()
    hidden[: len(data) - data.added] = UNKNOWN  # a recipe may learn from labels: here from simulated ones alone
    shuffled = np.random.default_rng(recipe.seed).permutation(own)
    held_out, kept = np.sort(shuffled[: len(own) // 10]), np.sort(shuffled[len(own) // 10 :])
    rows = balanced(np.concatenate([kept, np.arange(len(data) - data.added, len(data))]), len(data) - data.added)
    blind = StampSet(data.stamps, hidden, data.groups, data.snapshot, added=data.added)
    found = fit_model(recipe, blind, rows, held_out, report=report)
    return of_model(recipe.name, found.model), data


def read(recipe: Recipe, path: Path, report: Reporter) -> StampSet:
    """Read the file, and simulate what the recipe adds."""
    added = None
    if recipe.data.add_simulated:
        seed = recipe.seed + ADDED_SEED
        count, fading = recipe.data.add_simulated, recipe.data.fading
        added = simulated(count, recipe.preprocessing, seed=seed, fading=fading, report=report)
    source = stamps_from_file(path, recipe.preprocessing)
    return read_stamps(source, max_stamps=None, min_stamps=64, seed=recipe.seed, added=added, report=report)


def judge(found: Representation, data: StampSet, image: int, *, counts: list[int], draws: int) -> dict[str, Any]:
    """Measure what a model makes of the other images."""
    own = np.arange(len(data) - data.added)
    inside, outside = own[data.groups[own] == image], own[data.groups[own] != image]
    test = data.take(outside)
    real_train, real_test = data.labels[inside] == REAL, data.labels[outside] == REAL
    (z_train, _), (z_test, log_var) = found.encode(data.take(inside)), found.encode(test)
    curve = few_labels.curve(z_train, real_train, z_test, real_test, counts=counts, draws=draws)
    spread = z_train.std(axis=0) + 1e-6
    probe = LogisticRegression(max_iter=3000, class_weight="balanced").fit(z_train / spread, real_train)
    score = probe.decision_function(z_test / spread).astype(np.float32)
    result: dict[str, Any] = {
        "auc": {line.labels: (line.mean, line.std) for line in curve},
        "auc_all": measures.roc_auc(score, real_test),
        "mdr_all": measures.missed_detection_rate(score, real_test),
    }
    decoded = found.decode(z_test)
    if decoded is not None:
        result["squared_error"] = float(np.square(decoded - test).sum(axis=(1, 2, 3)).mean())
    if log_var is not None and log_var.min() > -20.0:  # at -20 the code is a point
        information, cap = measures.mutual_information(z_test, log_var)
        kl = float(measures.kl_per_unit(z_test, log_var).sum())
        result |= {"kl": kl, "mutual_information": information, "mutual_information_cap": cap}
        result["active_units"] = measures.active_units(z_test)
    return result


def row(model: str, image: int, seed: int | None, result: dict[str, Any], seconds: float) -> str:
    """Write a result as a row of a table."""
    aucs = [f"{mean:.3f} ± {std:.3f}" for mean, std in result["auc"].values()]
    latent = "-"
    if "active_units" in result:
        latent = f"{result['active_units']}, {result['mutual_information']:.2f}"
    error = f"{result['squared_error']:.3f}" if "squared_error" in result else "-"
    end = [f"{result['auc_all']:.4f}", f"{100 * result['mdr_all']:.1f}%", latent, f"{seconds:.0f}"]
    run = [Path(model).stem, str(image), "-" if seed is None else str(seed)]
    return "| " + " | ".join([*run, error, *aucs, *end]) + " |"


BASELINES = {
    "pca": lambda stamps: baselines.fit_pca(baselines.Batches(stamps)),
    "pca-turned": lambda stamps: baselines.fit_pca(orientations(stamps)),
    "sdl": lambda stamps: baselines.fit_dictionary(baselines.Batches(stamps), passes=max(1, 20_000 // len(stamps))),
    "pixels": lambda _: baselines.raw_pixels(),
}


def main() -> None:
    """Read the arguments and go through models and images."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="an .npz with stamps, labels and groups")
    parser.add_argument("--models", nargs="+", default=[*BASELINES, "scae", "survey"], help="baselines and recipes")
    parser.add_argument("--labels", type=int, nargs="+", default=list(few_labels.COUNTS))
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the recipe's own; baselines have none")
    parser.add_argument("--out", type=Path, help="a .json file for the figures, written after each row")
    arguments = parser.parse_args()
    with np.load(arguments.stamps) as file:
        images = [int(image) for image in np.unique(np.unique(file["groups"], return_inverse=True)[1])]
    heads = [f"AUC, {count} labels" for count in arguments.labels]
    columns = ["model", "learned from", "seed", "squared error", *heads, "AUC, all", "MDR at 1% FPR", "units, MI", "s"]
    print("| " + " | ".join(columns) + " |\n|" + "---|" * len(columns))
    results = []
    for model in arguments.models:
        seeds = [None] if model in BASELINES or arguments.seeds is None else arguments.seeds
        for image, seed in itertools.product(images, seeds):
            began = time.monotonic()
            with reporter() as report:
                found, data = fit(model, arguments.stamps, image, seed, report)
            result = judge(found, data, image, counts=arguments.labels, draws=arguments.draws)
            print(row(model, image, seed, result, time.monotonic() - began), flush=True)
            results.append({"model": model, "image": image, "seed": seed} | result)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(results, indent=2) + "\n", "utf-8")


if __name__ == "__main__":
    main()
