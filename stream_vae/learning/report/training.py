"""The report that a training run leaves in its release: one model beside PCA, in seconds."""

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from stream_vae.errors import ConfigError
from stream_vae.learning import measures
from stream_vae.learning.report import latent, paper, scores
from stream_vae.learning.report.page import Picture, number_table, render
from stream_vae.learning.report.style import styles
from stream_vae.learning.study import Study
from stream_vae.model.release import Release

HISTORY = "history.csv"
"""Written beside the report by `stream_vae.learning.train`."""

EXPLANATIONS = {
    "latent.elbo": "evidence lower bound at KL weight 1, nats a stamp",
    "latent.kl": "divergence of the posterior from the prior, nats",
    "latent.active_units": "units whose mean varies over stamps by more than 0.01",
    "latent.mutual_information": "nats, of code and stamp; cannot exceed its cap, the logarithm of the stamps used",
    "reconstruction.squared_error": "summed over pixels, from the posterior's mean",
    "reconstruction.squared_error_pca": "the same for PCA of the same size, fitted on the training stamps",
    "reconstruction.decoder_variance": "sigma^2 of a pixel, stamps scaled to their largest",
    "score.auc_interval_95": "bootstrap over stamps",
    "score.mdr_at_1pct_fpr": "share of real stamps lost where 1% of the bogus ones pass",
    "score.ece": "expected calibration error, ten intervals",
    "score.labels_from": "simulation: the data have no labels of both classes",
    "score.held_out": "whether these stamps took no part in fitting or choosing",
    "fit.best_epoch": "the epoch whose weights the release has",
}


def write_report(
    folder: Path,
    study: Study,
    metrics: Mapping[str, Any],
    *,
    title: str,
    history: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Write `metrics.json` and `report.html`.

    Parameters
    ----------
    folder : Path
        Where to; made if absent.
    study : Study
        What to draw: from `study_of`.
    metrics : mapping
        What to tabulate; plain numbers.
    title : str
        The page's heading.
    history : mapping of sequences, optional
        What was logged while fitting, to draw it.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", "utf-8")
    if history is not None:
        study = replace(study, views=(replace(study.views[0], history=history), *study.views[1:]))
    table = number_table(metrics, EXPLANATIONS, hidden=("latent.kl_per_unit",))
    page = render(title, lead=(), tables=(table,), pictures=_pictures(study, metrics))
    (folder / "report.html").write_text(page, "utf-8")


def read_history(release: Release) -> Mapping[str, Sequence[float]] | None:
    """Read what was logged while a release was trained.

    Parameters
    ----------
    release : Release
        Verified.

    Returns
    -------
    mapping of sequences, or None
        One value an epoch; None if the release did not keep it.
    """
    path = release.path(f"report/{HISTORY}")
    if path is None:
        return None
    try:
        with path.open(newline="", encoding="utf-8") as file:
            head, *rows = csv.reader(file)
        columns = zip(*([float(cell) for cell in row] for row in rows), strict=True)
        history = {name: list(values) for name, values in zip(head, columns, strict=True)}
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"The history of {release.id} cannot be read: {error}.", remedy="Run: stream-vae releases verify"
        ) from error
    return history


def _pictures(study: Study, metrics: Mapping[str, Any]) -> list[Picture]:
    looks = styles([view.name for view in study.views])
    view, count = study.views[0], len(study.judged)
    found = [
        Picture(
            "reconstructions",
            "Stamps and reconstructions",
            "Scaled stamps from -1 (black) to 1 (white), framed by class, and below them what the model and PCA of the "
            "same size decode from their codes, with the summed squared error.",
            lambda: paper.draw_reconstructions(study, looks),
        ),
        Picture("errors", "Reconstruction error", f"Of {count:,} stamps.", lambda: latent.draw_errors(study, looks)),
        Picture(
            "latent_map",
            "Latent map",
            f"Posterior means of at most 4,000 of {count:,} stamps in the plane in which they vary most.",
            lambda: latent.draw_plane(study),
        ),
    ]
    if view.probabilistic:
        spectrum = measures.covariance_spectrum(study.stamps[study.judged])
        found.insert(
            2,
            Picture(
                "collapse", "Did the code collapse?", COLLAPSE, lambda: latent.draw_collapse(study, spectrum, looks)
            ),
        )
    if metrics.get("score") is not None and view.real_score is not None:
        caption = "The release's own score: histogram; with labels of both classes, ROC and calibration too."
        found.append(Picture("scores", "Scores", caption, lambda: scores.draw_own_scores(study)))
    if view.history is not None:
        found.append(Picture("cost", "Cost evolution", COST, lambda: paper.draw_cost(study.views, looks)))
    return found


COLLAPSE = (
    "Left: variance of the stamps along their principal directions (black), and the variance that a latent unit must "
    "explain to pay for its KL term, the KL weight times the decoder's sigma^2 (lines). Directions above a model's "
    "line can be held by an active unit, those below cannot: the best linear VAE would have as many active units as "
    "predicted (Lucas et al. 2019). Found: units whose mean varies over stamps by more than 0.01. "
    "Middle: KL divergence of each unit from a standard normal; a collapsed unit costs and says nothing (dotted: 0.01 "
    "nats). Right: mutual information of code and stamp, estimated with one draw a stamp; the estimate cannot exceed "
    "its cap, the logarithm of the number of stamps used (end of the grey bar), so a value near it is a lower limit."
)
COST = (
    "Validation stamps as full lines, training stamps dotted, by epoch. Left: negative evidence bound at KL weight 1, "
    "above the lowest of its own validation epochs, as bounds of different sigma are hundreds of nats apart; training "
    "stamps below zero are fitted better than any validation epoch. Middle: "
    "summed squared error of a stamp decoded from a draw. Right: KL term. Each curve is one run with one seed."
)
