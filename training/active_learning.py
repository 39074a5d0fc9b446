"""Measure how many labels it takes to tell real from bogus, when stamps to label are chosen in different ways.

The stamps of one image are the pool, those of the other the test, in turn. A model is fitted to the pool without its
labels (as `real_stamps.py` does it; once, kept in --cache). Labelling begins with five stamps of each class at random,
and goes on ten at a time. After each ten a logistic probe is fitted to the codes of the labelled stamps, and ranks the
test stamps. All ways begin with the same ten, so that differences are paired.

`random` draws at random, `uncertain` takes the largest entropy of the label, `apart` what lies farthest from what has
a label, and `suggested` is what `stream-vae label --suggest` does. Mix `natural` is the file's; in `rare` real stamps
are one in twenty.

    python training/active_learning.py --stamps FILE.npz --model survey --cache DIR --out results.json --figure FILE.png
"""

import argparse
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from stream_vae.learning.measures import roc_auc
from stream_vae.learning.progress import reporter
from stream_vae.learning.suggest import Uncertainty, choose, draw_codes, fit_probe, uncertainty

from real_stamps import fit

Floats = NDArray[np.float64]
Rows = NDArray[np.intp]

OF_EACH_CLASS = 5
"""Labels to begin with: fewer, and a probe knows nothing."""
STEP, MOST = 10, 200
DRAWS = 32
RARE_SHARE = 0.05
SHOWN = (20, 50, 100, 200)
"""Numbers of labels in the table."""
COLOURS = {"random": "0.4", "uncertain": "tab:orange", "apart": "tab:green", "suggested": "tab:blue"}


class Problem(NamedTuple):
    """One pool and one test set; codes are standardised by the pool."""

    z: Floats
    log_var: Floats
    real: NDArray[np.bool_]
    z_test: Floats
    real_test: NDArray[np.bool_]


def codes_of(model: str, path: Path, image: int, cache: Path) -> dict[str, Any]:
    """Give the codes of all stamps by a model that was fitted to one image; fit it if need be."""
    kept = cache / f"{model}-{image}.npz"
    if not kept.is_file():
        with reporter() as report:
            found, data = fit(model, path, image, None, report)
        own = np.arange(len(data) - data.added)
        z_mean, z_log_var = found.encode(data.take(own))
        z_log_var = np.full_like(z_mean, -30.0) if z_log_var is None else z_log_var
        cache.mkdir(parents=True, exist_ok=True)
        np.savez(kept, z_mean=z_mean, z_log_var=z_log_var, labels=data.labels[own], groups=data.groups[own])
    with np.load(kept) as file:
        return dict(file)


def problem_of(codes: dict[str, Any], image: int, mix: str, random: np.random.Generator) -> Problem:
    """Choose the pool, and standardise."""
    real, inside = codes["labels"] == 1, codes["groups"] == image
    pool = np.flatnonzero(inside)
    if mix == "rare":
        bogus = pool[~real[pool]]
        count = round(len(bogus) * RARE_SHARE / (1.0 - RARE_SHARE))
        pool = np.sort(np.concatenate([random.choice(pool[real[pool]], count, replace=False), bogus]))
    z_mean = codes["z_mean"].astype(np.float64)
    center, spread = z_mean[pool].mean(axis=0), z_mean[pool].std(axis=0) + 1e-6
    z = (z_mean - center) / spread
    log_var = codes["z_log_var"][pool].astype(np.float64) - 2.0 * np.log(spread)
    return Problem(z[pool], log_var, real[pool], z[~inside], real[~inside])


def judged(problem: Problem, labelled: Rows, left: Rows, random: np.random.Generator) -> Uncertainty:
    """Tell how uncertain labels are, as `stream_vae.learning.suggestions` does."""
    probe = fit_probe(problem.z, problem.z[labelled], problem.real[labelled])
    drawn = draw_codes(problem.z[left], problem.log_var[left], DRAWS, random)
    return uncertainty(probe.probabilities(drawn, probe.draw(DRAWS, random)))


def at_random(problem: Problem, labelled: Rows, left: Rows, random: np.random.Generator) -> Rows:
    """Draw at random."""
    del problem, labelled
    return random.choice(len(left), STEP, replace=False)


def uncertain(problem: Problem, labelled: Rows, left: Rows, random: np.random.Generator) -> Rows:
    """Take the largest entropies."""
    return np.argsort(-judged(problem, labelled, left, random).entropy)[:STEP]


def apart(problem: Problem, labelled: Rows, left: Rows, random: np.random.Generator) -> Rows:
    """Take what lies farthest from all that has a label (greedy k-center)."""
    del random
    z = problem.z[left]
    distance = np.min([np.linalg.norm(z - code, axis=1) for code in problem.z[labelled]], axis=0)
    rows: list[int] = []
    while len(rows) < STEP:
        rows.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(z - z[rows[-1]], axis=1))
    return np.array(rows, np.intp)


def suggested(problem: Problem, labelled: Rows, left: Rows, random: np.random.Generator) -> Rows:
    """Take what `stream-vae label --suggest` would."""
    return choose(problem.z[left], judged(problem, labelled, left, random).entropy, STEP)


Choose = Callable[[Problem, Rows, Rows, np.random.Generator], Rows]
WAYS: dict[str, Choose] = {"random": at_random, "uncertain": uncertain, "apart": apart, "suggested": suggested}


def course(problem: Problem, way: Choose, random: np.random.Generator) -> tuple[list[float], list[int]]:
    """Label step by step; give the AUC after each, and how many of the labelled are real."""
    real = problem.real
    begin = [random.choice(np.flatnonzero(real == kind), OF_EACH_CLASS, replace=False) for kind in (True, False)]
    labelled = np.concatenate(begin)
    aucs, reals = [], []
    while True:
        probe = LogisticRegression(max_iter=1000).fit(problem.z[labelled], real[labelled])
        aucs.append(float(roc_auc(probe.decision_function(problem.z_test).astype(np.float32), problem.real_test)))
        reals.append(int(real[labelled].sum()))
        if len(labelled) >= MOST:
            return aucs, reals
        left = np.setdiff1d(np.arange(len(real)), labelled)
        labelled = np.concatenate([labelled, left[way(problem, labelled, left, random)]])


def measure(
    codes: dict[str, Any], image: int, mix: str, seeds: int, done: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Go through the ways that are not done, and seeds."""
    for name, way in WAYS.items():
        if any((each["image"], each["mix"], each["way"]) == (image, mix, name) for each in done):
            continue
        runs = []
        for seed in range(seeds):
            random = np.random.default_rng((seed, image))  # the same pool and the same first ten for all ways
            runs.append(course(problem_of(codes, image, mix, random), way, random))
        aucs, reals = (np.array(each) for each in zip(*runs, strict=True))
        yield {"image": image, "mix": mix, "way": name, "auc": aucs.tolist(), "real": reals.tolist()}


def labels_needed(aucs: Floats, goal: float) -> str:
    """Tell the least number of labels from which on the mean AUC stays at the goal."""
    reached = aucs.mean(axis=0) >= goal
    late = np.flatnonzero(~reached)
    first = late[-1] + 1 if len(late) else 0
    return str(2 * OF_EACH_CLASS + STEP * first) if first < len(reached) else f"over {MOST}"


def table(results: list[dict[str, Any]]) -> str:
    """Write what was found."""
    counts = list(range(2 * OF_EACH_CLASS, MOST + 1, STEP))
    heads = [f"AUC, {count} labels" for count in SHOWN]
    columns = ["mix", "pool is image", "chosen", *heads, "minus random, 50", "minus random, 200", "real of 200"]
    lines = ["| " + " | ".join([*columns, "labels for random's AUC at 200"]) + " |", "|" + "---|" * (len(columns) + 1)]
    for mix, image in itertools.product(("natural", "rare"), (0, 1)):
        some = {each["way"]: each for each in results if (each["mix"], each["image"]) == (mix, image)}
        if not some:
            continue
        base = np.array(some["random"]["auc"])
        for way, each in some.items():
            aucs = np.array(each["auc"])
            error = aucs.std(axis=0, ddof=1) / np.sqrt(len(aucs))
            cells = [f"{aucs.mean(axis=0)[at]:.4f} ± {error[at]:.4f}" for at in map(counts.index, SHOWN)]
            gains = [(aucs - base)[:, counts.index(count)] for count in (50, 200)]
            told = [f"{gain.mean():+.4f} ± {gain.std(ddof=1) / np.sqrt(len(gain)):.4f}" for gain in gains]
            told = ["-", "-"] if way == "random" else told
            end = [f"{np.mean(each['real'], axis=0)[-1]:.0f}", labels_needed(aucs, base.mean(axis=0)[-1])]
            lines.append("| " + " | ".join([mix, str(image + 1), way, *cells, *told, *end]) + " |")
    return "\n".join(lines)


def draw(results: list[dict[str, Any]], path: Path, model: str) -> None:
    """Draw the mean of 1 - AUC against the number of labels, with its standard error."""
    from matplotlib.figure import Figure

    counts = np.arange(2 * OF_EACH_CLASS, MOST + 1, STEP)
    panels = [pair for pair in itertools.product(("natural", "rare"), (0, 1)) if _has(results, pair)]
    figure = Figure(figsize=(3.1 * len(panels), 3.3), layout="constrained")
    for at, (mix, image) in enumerate(panels):
        axes = figure.add_subplot(1, len(panels), at + 1)
        for each in results:
            if (each["mix"], each["image"]) != (mix, image):
                continue
            missed = 1.0 - np.array(each["auc"])
            mean, error = missed.mean(axis=0), missed.std(axis=0, ddof=1) / np.sqrt(len(missed))
            axes.plot(counts, mean, color=COLOURS[each["way"]], label=each["way"])
            axes.fill_between(counts, mean - error, mean + error, color=COLOURS[each["way"]], alpha=0.2, lw=0)
        axes.set_yscale("log")
        axes.set_title(f"{mix} mix, pool is image {image + 1}", fontsize=9)
        axes.set_xlabel("labels")
        if at == 0:
            axes.set_ylabel("1 - AUC on the other image")
            axes.legend(fontsize=8, frameon=False)
    figure.suptitle(f"Ways to choose what to label; codes of {model}, mean and standard error over seeds", fontsize=10)
    figure.savefig(path, dpi=110)


def _has(results: list[dict[str, Any]], pair: tuple[str, int]) -> bool:
    return any((each["mix"], each["image"]) == pair for each in results)


def main() -> None:
    """Read the arguments and go through images and mixes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stamps", type=Path, required=True, help="an .npz with stamps, labels and groups")
    parser.add_argument("--model", default="survey", help="a recipe or a baseline of real_stamps.py")
    parser.add_argument("--cache", type=Path, required=True, help="a folder for codes: a fit takes minutes")
    parser.add_argument("--mixes", nargs="+", default=["natural", "rare"], choices=["natural", "rare"])
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="a .json file of figures; those that it has are not measured again")
    parser.add_argument("--figure", type=Path, help="a .png")
    arguments = parser.parse_args()
    results: list[dict[str, Any]] = []
    if arguments.out is not None and arguments.out.is_file():
        results = json.loads(arguments.out.read_text("utf-8"))
    for mix, image in itertools.product(arguments.mixes, (0, 1)):
        codes = codes_of(arguments.model, arguments.stamps, image, arguments.cache)
        for found in measure(codes, image, mix, arguments.seeds, results):
            results.append(found)
            if arguments.out is not None:
                arguments.out.write_text(json.dumps(results) + "\n", "utf-8")
    print(table(results))
    if arguments.figure is not None:
        draw(results, arguments.figure, arguments.model)


if __name__ == "__main__":
    main()
