"""The paper's comparison redone: all models on the same split, the whole report.

    python training/reproduce_paper.py --scale small --out reproduction
    python training/reproduce_paper.py --scale medium --data stamps.npz --test-group 1 --out reproduction
    python training/reproduce_paper.py --scale full --data stamps.npy --out reproduction

Models: the CVAE of the paper (sigma = 1) with its KL weight annealed and without; the CVAE with a calibrated sigma
(recipe `survey`), without labels and with those of the fitted stamps; the sparse convolutional autoencoder (SCAE), PCA
and a sparse dictionary (SDL) of as many components; raw pixels; and with labels a supervised network as the upper
reference. An interrupted run goes on where it stopped.
The report is made by the same functions as that of `stream-vae evaluate`.
"""

import argparse
import hashlib
import json
import logging
import shlex
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from stream_vae.errors import ConfigError, StreamVaeError
from stream_vae.learning.course import fingerprint
from stream_vae.learning.data.source import open_source
from stream_vae.learning.data.split import Split, split_by_group
from stream_vae.learning.data.stamps import BOGUS, REAL, UNKNOWN, StampSet, read_stamps
from stream_vae.learning.evaluate import Parts, fit_baselines, provenance, study_on
from stream_vae.learning.fit import decode, fit_model
from stream_vae.learning.merits import LEAST_OF_A_CLASS, MOST_PROBED, judge
from stream_vae.learning.progress import Reporter, reporter
from stream_vae.learning.recipe import Recipe, build_recipe, load_recipe
from stream_vae.learning.report import write_evaluation
from stream_vae.learning.representation import of_model
from stream_vae.learning.study import MAX_STUDIED, ModelView, view_of

# The paper's setting says batch 128, Nadam at 1e-4 and tens of thousands of steps. A small set has few steps an epoch:
# a larger rate and smaller batches stand for them, alike for all models.
_FEW_STEPS = {"batch_size": 64, "learning_rate": 2e-3, "decay": "cosine"}


@dataclass(frozen=True)
class Scale:
    """How much work is done."""

    simulated: int
    epochs: int
    supervised_epochs: int
    quick: bool
    """Fit as a small set needs it rather than as the recipes say."""


SCALES = {
    "small": Scale(simulated=4000, epochs=20, supervised_epochs=12, quick=True),
    "medium": Scale(simulated=20_000, epochs=60, supervised_epochs=40, quick=True),
    "full": Scale(simulated=200_000, epochs=150, supervised_epochs=60, quick=False),
}


def chosen_scale(arguments: argparse.Namespace) -> Scale:
    """Give the scale that was asked for, with what was asked for instead."""
    scale = SCALES[arguments.scale]
    if arguments.stamps is not None:
        scale = replace(scale, simulated=arguments.stamps)
    if arguments.epochs is not None:
        scale = replace(scale, epochs=arguments.epochs, supervised_epochs=arguments.epochs)
    return scale


def recipes(scale: Scale, *, latent_size: int, seed: int) -> dict[str, tuple[Recipe, str]]:
    """Give the recipes to compare, with what the reader should know of each."""
    paper, survey = (load_recipe(name).model_dump() for name in ("paper", "survey"))
    warm_up = max(2, scale.epochs // 4)
    annealed = {"anneal": "linear", "anneal_epochs": warm_up} if scale.quick else {}
    warmed = scale.quick and survey["loss"]["anneal"] != "none"
    shorter = {"anneal_epochs": min(survey["loss"]["anneal_epochs"], warm_up)} if warmed else {}
    chosen = {
        "CVAE, annealed": (paper | {"loss": paper["loss"] | annealed}, "the paper's: sigma = 1, KL weight annealed"),
        "CVAE, no annealing": (
            paper | {"loss": paper["loss"] | {"anneal": "none", "anneal_epochs": 0}},
            "sigma = 1, KL weight 1 from the first step",
        ),
        "CVAE, calibrated": (
            survey | {"loss": survey["loss"] | shorter | {"label_weight": 0.0}},
            "recipe survey without labels: fitted sigma, KL weight below 1, so it maximises no bound on the evidence",
        ),
        "CVAE, labels too": (
            survey | {"loss": survey["loss"] | shorter},
            "recipe survey as it is: the labels of the fitted stamps take part, so it is no rival of models without",
        ),
        "SCAE": (
            paper | {"model": paper["model"] | {"kind": "scae"}, "loss": {"sparsity": 0.005}},
            "sparse convolutional autoencoder, l1 weight 0.005; no posterior",
        ),
    }
    found = {}
    for name, (content, note) in chosen.items():
        fit = content["fit"] | ({**_FEW_STEPS, "epochs": scale.epochs, "patience": scale.epochs} if scale.quick else {})
        model = content["model"] | {"latent_size": latent_size}
        found[name] = (build_recipe(content | {"name": "reproduction", "seed": seed, "fit": fit, "model": model}), note)
    return found


def read(arguments: argparse.Namespace, scale: Scale, recipe: Recipe, report: Reporter) -> StampSet:
    """Read or simulate the stamps; large sets stay on disk."""
    source = open_source(
        arguments.data,
        recipe.preprocessing,
        simulated_stamps=scale.simulated,
        seed=arguments.seed,
        report=report,
    )
    return read_stamps(source, max_stamps=None, min_stamps=256, seed=arguments.seed, spool=arguments.out, report=report)


def part(data: StampSet, test_group: int | None, seed: int) -> Split:
    """Part by image: 60% to fit, 10% to stop on, 30% to judge; or judge on one image and part the others."""
    if test_group is None:
        return split_by_group(data.groups, data.labels, validation_fraction=0.1, test_fraction=0.3, seed=seed)
    present = np.unique(data.groups)
    if test_group not in present:
        raise ConfigError(
            f"--test-group {test_group}: the {len(present)} groups of {data.snapshot['name']} are counted from 0.",
            remedy=f"Give one from 0 to {len(present) - 1}.",
        )
    rest = np.random.default_rng(seed).permutation(np.flatnonzero(data.groups != test_group))
    if len(rest) < 64:
        raise ConfigError(f"{len(rest)} stamps are left to fit on.", remedy="Give another --test-group.")
    held_out = len(rest) // 10
    test = np.flatnonzero(data.groups == test_group)
    return Split(np.sort(rest[held_out:]), np.sort(rest[:held_out]), test, held_out=True)


def fit_views(
    arguments: argparse.Namespace, scale: Scale, data: StampSet, split: Split, shown: StampSet, report: Reporter
) -> list[ModelView]:
    """Fit every model, or take up what an earlier run left, and look at the shown stamps with each."""
    views = []
    stamps = shown.take(slice(None))
    chosen = recipes(scale, latent_size=arguments.latent_size, seed=arguments.seed)
    for name, (recipe, note) in chosen.items():
        identity = hashlib.sha256(fingerprint(recipe, data, split.train, split.validation).encode()).hexdigest()[:12]
        folder = arguments.out / "models" / f"{name.replace(', ', '-').replace(' ', '-')}-{identity}"

        def tell(step: str, done: int, total: int, text: str = "", name: str = name) -> None:
            report(f"{step} {name}", done, total, text)

        fit = fit_model(recipe, data, split.train, split.validation, checkpoint=folder, resume=True, report=tell)
        draws = np.asarray(fit.model.prior_sample(40)) if recipe.model.kind == "cvae" else None
        views.append(
            view_of(
                of_model(name, fit.model),
                stamps,
                kl_weight=recipe.loss.kl_weight,
                history=fit.history,
                prior_stamps=None if draws is None else decode(fit.model, draws),
                note=f"{note}; {fit.best_epoch} of {len(fit.history['loss'])} epochs, {fit.seconds:.0f} s",
            )
        )
    fitted = fit_baselines(data.stamps, split.train, components=arguments.latent_size, report=report)
    views += [view_of(baseline, stamps, note=note) for baseline, note in fitted]
    supervised = fit_supervised_view(arguments, scale, data, split, stamps, report)
    return views if supervised is None else [*views, supervised]


def fit_supervised_view(
    arguments: argparse.Namespace, scale: Scale, data: StampSet, split: Split, stamps: np.ndarray, report: Reporter
) -> ModelView | None:
    """Fit the upper reference on all labels of the training part, if there are any."""
    from stream_vae.learning.supervised import fit_supervised

    train, validation = (rows[data.labels[rows] != UNKNOWN] for rows in (split.train, split.validation))
    for rows in (train, validation):
        if min((data.labels[rows] == kind).sum() for kind in (REAL, BOGUS)) < LEAST_OF_A_CLASS:
            return None
    scores = arguments.out / "models" / f"supervised-{data.snapshot['sha256'][:12]}-{arguments.seed}-{len(stamps)}.npy"
    if not scores.is_file():
        network = fit_supervised(
            data.stamps,
            data.labels == REAL,
            train,
            validation,
            epochs=scale.supervised_epochs,
            patience=scale.supervised_epochs,
            seed=arguments.seed,
            report=report,
        )
        np.save(scores, network.score(stamps).astype(np.float32))
    note = f"the CVAE's encoder and a hidden layer, trained on all {len(train):,} labels: the upper reference"
    return ModelView("supervised CNN", real_score=np.load(scores), note=note)


def shown_rows(data: StampSet, split: Split, seed: int) -> tuple[StampSet, Parts]:
    """Take what the report looks at: labelled training stamps for probes, and test stamps."""
    random = np.random.default_rng(seed)
    judged = np.sort(random.permutation(split.test)[:MAX_STUDIED])
    known = split.train[data.labels[split.train] != UNKNOWN]
    fitted = np.sort(random.permutation(known if len(known) else split.train)[:MOST_PROBED])
    rows = np.concatenate([fitted, judged])
    parts = Parts(np.arange(len(fitted)), np.arange(len(fitted), len(rows)))
    return data.part(rows), parts


def run(arguments: argparse.Namespace) -> None:
    """Read, part, fit, judge, write."""
    scale = chosen_scale(arguments)
    if arguments.scale == "full" and arguments.data == "sim":
        raise ConfigError("--scale full wants your own stamps.", remedy="Give --data FILE.npy (memory-mapped) or .npz.")
    arguments.out.mkdir(parents=True, exist_ok=True)
    with reporter() as report:
        data = read(arguments, scale, load_recipe("paper"), report)
        split = part(data, arguments.test_group, arguments.seed)
        shown, parts = shown_rows(data, split, arguments.seed)
        views = fit_views(arguments, scale, data, split, shown, report)
        evaluation = judge(study_on(shown, tuple(views), parts), report=report, seed=arguments.seed)
        settings = {
            "scale": arguments.scale,
            "seed": str(arguments.seed),
            "split": f"{len(split.train):,} to fit, {len(split.validation):,} to stop on, {len(split.test):,} to judge",
        }
        warnings = [] if split.held_out else ["The stamps that fits were stopped on are those that are judged."]
        if arguments.scale != "full":
            warnings.append(
                f"Scale {arguments.scale!r}: few stamps, and {scale.epochs} epochs at a rate of 2e-3 for all "
                "networks, where the paper had 10^7 stamps and a rate of 1e-4. What it shows is which way things go."
            )
        command = shlex.join(["python", "training/reproduce_paper.py", *sys.argv[1:]])
        write_evaluation(
            arguments.out,
            evaluation,
            title=f"Latent representations of transient candidates: {data.snapshot['name']}",
            headline={"data": data.snapshot, "scale": arguments.scale},
            provenance=provenance(data, command=command, seconds=evaluation.seconds, **settings),
            warnings=warnings,
        )
    for item in evaluation.judgements:
        latent = item.merits.get("latent", {})
        if "active_units" in latent:
            units = f"{latent['active_units']} active units, {latent['mutual_information']:.2f} nats"
            print(f"{item.view.name}: {units} of at most {latent['mutual_information_cap']:.2f}")
    print(json.dumps({"report": str(arguments.out / "report.html"), "measured_s": round(evaluation.seconds)}))


def main() -> None:
    """Read the arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", choices=SCALES, default="small")
    parser.add_argument("--data", default="sim", help="sim, or a .npy or .npz of stamps, labels, groups")
    parser.add_argument("--test-group", type=int, help="judge on this group, counted from 0 in rising order")
    parser.add_argument("--out", type=Path, default=Path("reproduction"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--latent-size", type=int, default=21)
    parser.add_argument("--stamps", type=int, help="how many to simulate, instead of the scale's number")
    parser.add_argument("--epochs", type=int, help="of all networks, instead of the scale's number")
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    try:
        run(parser.parse_args())
    except StreamVaeError as error:
        sys.exit(f"{error}")


if __name__ == "__main__":
    main()
