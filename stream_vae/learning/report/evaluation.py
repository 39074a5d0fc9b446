"""The whole comparison as a page: summary, figures with captions, provenance; and the numbers as files."""

import html
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_vae.learning import merits
from stream_vae.learning.data.stamps import BOGUS, REAL, UNKNOWN
from stream_vae.learning.merits import Evaluation
from stream_vae.learning.report import latent, paper, scores
from stream_vae.learning.report.numbers import plain, summary_table, to_csv, verdicts
from stream_vae.learning.report.page import Picture, number_table, render, text
from stream_vae.learning.report.style import Style, styles
from stream_vae.learning.report.training import COLLAPSE, COST, EXPLANATIONS

FIGURES = "figures"
_MAPS = 3
"""Latent maps side by side: a fourth would be too small to see its stamps."""


def write_evaluation(
    folder: Path,
    evaluation: Evaluation,
    *,
    title: str,
    headline: Mapping[str, Any],
    provenance: Mapping[str, str],
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Write `metrics.json`, `metrics.csv`, `report.html` and `figures/`.

    Parameters
    ----------
    folder : Path
        Where to; made if absent.
    evaluation : Evaluation
        What was measured.
    title : str
        The page's heading.
    headline : mapping
        What `metrics.json` begins with.
    provenance : mapping of str
        What was evaluated, with what, when, by which command.
    warnings : sequence of str
        Sentences that the reader must see first.

    Returns
    -------
    dict
        What `metrics.json` holds: `headline`, ``models`` (all merits by model), ``split``, ``missing`` and
        ``provenance``.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    models = {item.view.name: item.merits for item in evaluation.judgements}
    metrics: dict[str, Any] = plain(
        dict(headline)
        | {"models": models, "split": _split(evaluation), "missing": evaluation.missing, "provenance": provenance}
    )
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", "utf-8")
    (folder / "metrics.csv").write_text(to_csv(metrics["models"]), "utf-8")
    looks = styles(list(models))
    page = render(
        title,
        lead=_lead(evaluation, warnings),
        tables=_tables(evaluation, looks),
        pictures=pictures(evaluation, looks),
        details=_details(evaluation, looks, headline, provenance),
        folder=folder / FIGURES,
    )
    (folder / "report.html").write_text(page, "utf-8")
    return metrics


def _split(evaluation: Evaluation) -> dict[str, Any]:
    study = evaluation.study
    return {
        "judged": len(study.judged),
        "judged_real": int((study.labels[study.judged] == REAL).sum()),
        "judged_bogus": int((study.labels[study.judged] == BOGUS).sum()),
        "fitted": len(study.fitted),
        "fitted_real": int((study.labels[study.fitted] == REAL).sum()),
        "fitted_bogus": int((study.labels[study.fitted] == BOGUS).sum()),
        "resampled": evaluation.resamples.unit,
        "draws": len(evaluation.resamples.rows),
    }


def describe(evaluation: Evaluation) -> str:
    """Say on which stamps everything was measured, and what the intervals are.

    Parameters
    ----------
    evaluation : Evaluation
        What was measured.

    Returns
    -------
    str
        Two sentences.
    """
    split = _split(evaluation)
    unknown = split["judged"] - split["judged_real"] - split["judged_bogus"]
    counts = f"{split['judged_real']:,} real, {split['judged_bogus']:,} bogus"
    counts += f", {unknown:,} unlabelled" if unknown else ""
    fitted = (
        f"Classifiers and probes, and the baselines, saw the other {split['fitted']:,} ({split['fitted_real']:,} real, "
        f"{split['fitted_bogus']:,} bogus), of other images (of alerts: objects) where these are known. "
        if split["fitted"]
        else ""
    )
    meaning = (
        "whole images (of alerts: objects) were drawn, so they are those of new ones"
        if split["resampled"] == "images"
        else "stamps were drawn within each class, so they do not contain what another image would change"
    )
    return (
        f"Everything was measured on the same {split['judged']:,} stamps ({counts}). {fitted}"
        f"Intervals are 95% bootstrap intervals of {split['draws']} draws: {meaning}. Nothing here is an average over "
        "training seeds."
    )


def _lead(evaluation: Evaluation, warnings: Sequence[str]) -> list[str]:
    lead = [f'<p class="lead">{text(describe(evaluation))}</p>']
    lead += [f"<p><b>Mind:</b> {text(warning)}</p>" for warning in warnings]
    lead += [f"<p>{text(sentence)}</p>" for sentence in evaluation.missing.values()]
    return lead


def _tables(evaluation: Evaluation, looks: Mapping[str, Style]) -> list[str]:
    explanation = (
        "Bold: the best of its column. Dotted line: its interval overlaps that of the best. In brackets: raw pixels "
        "where nearness in pixels is what is measured, and what is missed at 1% FPR of fewer than 100 bogus "
        "stamps. Active units and mutual "
        "information have no best: a code may say more than is useful. AUC, code: a one-hidden-layer classifier "
        "on the standardised code (the posterior's mean). A collapsed code keeps a high AUC there, as standardising "
        "magnifies what little it says; on a code drawn from the posterior it does not."
    )
    tables = [summary_table(evaluation, looks), f'<p class="lead"><small>{explanation}</small></p>']
    sentences = verdicts(evaluation, looks)
    if sentences:
        items = "".join(f"<li>{text(sentence)}</li>" for sentence in sentences)
        tables.append(
            "<p>By paired differences on the same stamps, where the 95% interval of the difference leaves out zero:</p>"
            f"<ul>{items}</ul>"
        )
    notes = [
        f"<li><b>{html.escape(looks[name].short)}</b>"
        f"{f' ({html.escape(name)})' if looks[name].short != name else ''}: {html.escape(item.view.note)}</li>"
        for item in evaluation.judgements
        if (name := item.view.name) and item.view.note
    ]
    return [*tables, f"<ul>{''.join(notes)}</ul>"] if notes else tables


def pictures(evaluation: Evaluation, looks: Mapping[str, Style]) -> list[Picture]:
    """List the figures that these models and stamps allow.

    Parameters
    ----------
    evaluation : Evaluation
        What was measured.
    looks : mapping of Style
        By model.

    Returns
    -------
    list of Picture
        In the order of the page: the paper's figure 2 first.
    """
    study, items = evaluation.study, evaluation.judgements
    found = []
    if any(item.search is not None for item in items):
        found.append(_search_picture(evaluation, looks))
    if any(view.reconstruction is not None for view in study.views):
        found.append(_reconstruction_picture(evaluation, looks))
    if any(item.score is not None or "own_score" in item.merits for item in items):
        found.append(_roc_picture(evaluation, looks))
    if any(view.history is not None for view in study.views):
        found.append(Picture("cost", "Figure 2d: cost evolution", COST, lambda: paper.draw_cost(study.views, looks)))
    if any(view.probabilistic for view in study.views):
        spectrum = evaluation.spectrum
        caption = f"{COLLAPSE} On the {len(study.judged):,} judged stamps."
        title = "Did the code collapse, and why?"
        found.append(Picture("collapse", title, caption, lambda: latent.draw_collapse(study, spectrum, looks)))
    found += _score_pictures(evaluation, looks)
    return found + _code_pictures(evaluation, looks)


def _search_picture(evaluation: Evaluation, looks: Mapping[str, Style]) -> Picture:
    search = next(item.search for item in evaluation.judgements if item.search is not None)
    real = merits.searches_with_real(evaluation.study)
    rows, _ = merits.searched(evaluation.study)
    caption = (
        f"The {search.shape[1]} nearest codes of {len(search)} {'real' if real else 'randomly chosen'} stamps among "
        f"{len(rows):,} judged stamps. DNMSE(k): squared difference of found and searched stamp over the latter's "
        "energy, averaged over the k nearest with weights 1/log2(rank + 1), then over searches; this is our reading "
        "of the paper's measure, for which no equation was at hand. Bands and bars: 95% bootstrap interval over "
        "searches (over their images, where these are drawn). Distances are Euclidean in codes as they are; raw "
        "pixels find what is measured, so no code can do better."
    )
    return Picture("dnmse", "Figure 2a: search by example", caption, lambda: paper.draw_search(evaluation, looks))


def _reconstruction_picture(evaluation: Evaluation, looks: Mapping[str, Style]) -> Picture:
    study = evaluation.study
    caption = (
        f"{len(paper.examples(study, 12))} of the {len(study.judged):,} judged stamps, evenly from each class in the "
        "order of the data, not chosen by eye; "
        "scaled to their largest absolute value, drawn from -1 (black) to 1 (white), framed by class (gold: real, dark "
        "blue: bogus, grey: unlabelled). Below, what each model decodes from the mean of the code, and its summed "
        "squared error for this stamp."
    )
    title = "Figure 2b: stamps and reconstructions"
    return Picture("reconstructions", title, caption, lambda: paper.draw_reconstructions(study, looks))


def _roc_picture(evaluation: Evaluation, looks: Mapping[str, Style]) -> Picture:
    real = evaluation.study.real(evaluation.labelled)
    bogus = int((~real).sum())
    caption = (
        f"One-hidden-layer classifier ({merits.HIDDEN} units) on each model's standardised code, fitted on labelled "
        f"stamps that are not judged, tested on {int(real.sum()):,} real and {bogus:,} bogus stamps. A model without "
        "a code (the supervised network) or without stamps to fit a classifier on is drawn by its own score. Bands "
        f"and bars: 95% bootstrap intervals. Grey: fewer than one of the {bogus:,} bogus stamps, so the curve says "
        "nothing there; "
    )
    caption += (
        f"at 1% FPR (dotted) {0.01 * bogus:.0f} bogus stamps pass."
        if paper.tells_one_percent(real)
        else "they are too few to say what is missed at 1% FPR."
    )
    return Picture("roc", "Figure 2c: ROC curves", caption, lambda: paper.draw_roc(evaluation, looks))


def _score_pictures(evaluation: Evaluation, looks: Mapping[str, Style]) -> list[Picture]:
    items = [item for item in evaluation.judgements if "few_labels" in item.merits]
    found = []
    if items:
        caption = (
            f"AUC of a logistic probe on standardised codes, shown so many labels of the fitted stamps, mean of "
            f"{merits.LABEL_DRAWS} draws of the labels (the same for all models), on the judged stamps; half of the "
            "labels are real, or as many as there are of the rarer class. Left: on the mean of the code. Right: on a "
            "code drawn from the posterior, in training and test, which shows what the code says beyond its own "
            "noise; methods without a posterior are repeated. Bars: 95% bootstrap interval of the mean, over draws "
            "of labels and stamps. Points are shifted sideways a little so that they can be told apart. A model whose "
            "own fit used labels (see the list above) has seen more of them than the axis says: it is no rival of "
            "those without."
        )
        found.append(Picture("few_labels", "With few labels", caption, lambda: scores.draw_few_labels(items, looks)))
    if any(item.score is not None or "own_score" in item.merits for item in evaluation.judgements):
        caption = (
            "Share of real stamps among those of like score, in ten equal intervals, with 95% Wilson intervals; on the "
            "diagonal a score is a probability. ECE: expected calibration error with its bootstrap interval; drawing "
            "again scatters the bins, which adds to the error, so a small one lies low in its interval or below. "
            "Scores are probabilities for the mix of classes that they were fitted or calibrated on; another mix "
            "bends the curve."
        )
        found.append(Picture("reliability", "Calibration", caption, lambda: scores.draw_reliability(evaluation, looks)))
    if any(scores.broken_down(item, key) for item in evaluation.judgements for key in ("by_kind", "by_snr")):
        caption = (
            "Share of stamps that pass the threshold at which 1% of all bogus judged stamps pass, by what they are "
            "known to be and by signal to noise of the detection; number of stamps in brackets. Bars: 95% Wilson "
            "intervals, which take stamps as independent and the threshold as given. The classifier is that of "
            "figure 2c."
        )
        title = "Confusion by kind and signal to noise"
        found.append(Picture("breakdown", title, caption, lambda: scores.draw_breakdown(evaluation, looks)))
    return found


def _code_pictures(evaluation: Evaluation, looks: Mapping[str, Style]) -> list[Picture]:
    study = evaluation.study
    found = []
    views = [view for view in study.views if view.z_mean is not None and not view.name.startswith("raw")]
    # Models with a posterior first, the last of them last: it is what the others are compared with.
    chosen = [view for view in views if view.probabilistic][-(_MAPS - 1) :]
    chosen += [view for view in views if view not in chosen][: _MAPS - len(chosen)]
    if len(study.judged) >= latent.LEAST_MAPPED and chosen:
        shown = len(latent.mapped(study))
        caption = (
            f"Codes of {shown:,} judged stamps, as many of each class as there are up to that, laid in a plane by "
            "t-SNE (perplexity 30, started from principal components): near codes stay near, distances between "
            "groups mean nothing. One stamp is drawn in each cell of a grid, framed by class (gold: real, dark blue: "
            "bogus)."
        )
        found.append(Picture("latent_map", "Latent map", caption, lambda: latent.draw_map(study, chosen, looks)))
    drawn = [view for view in study.views if view.prior_stamps is not None]
    if drawn:
        caption = (
            "Means of stamps decoded from draws of each model's prior, without pixel noise, from -1 to 1. Where the "
            "code is collapsed they differ in one way or none. Where the KL weight is below 1 codes do not fill the "
            "prior, and its draws need not look like stamps."
        )
        found.append(Picture("prior_samples", "Draws of the prior", caption, lambda: latent.draw_prior(drawn, looks)))
    if any(view.squared_error is not None for view in study.views):
        caption = f"Summed squared error of the {len(study.judged):,} judged stamps, up to the 99% point."
        found.append(Picture("errors", "Reconstruction error", caption, lambda: latent.draw_errors(study, looks)))
    return found


def _details(
    evaluation: Evaluation, looks: Mapping[str, Style], headline: Mapping[str, Any], provenance: Mapping[str, str]
) -> list[str]:
    details = []
    if "latent" in headline:
        lines = {
            key: value for key, value in headline.items() if key in ("reconstruction", "latent", "score", "stamps")
        }
        table = number_table(lines, EXPLANATIONS, hidden=("latent.kl_per_unit",))
        details.append(f"<details><summary>This release on all stamps of the data</summary>{table}</details>")
    rows = "".join(_merit_rows(looks[item.view.name].short, item.merits) for item in evaluation.judgements)
    head = "<tr><th>model</th><th>measure</th><th>value (95% interval)</th></tr>"
    details.append(
        "<details><summary>All measures with one number; the rest is in metrics.json and metrics.csv</summary>"
        f'<div class="wide"><table class="numbers">{head}{rows}</table></div></details>'
    )
    lines_of = "".join(
        f"<tr><td>{html.escape(key)}</td><td>{html.escape(value)}</td></tr>" for key, value in provenance.items()
    )
    details.append(
        f'<h2 id="provenance">Provenance</h2><div class="wide"><table class="numbers">{lines_of}</table></div>'
    )
    unlabelled = int((evaluation.study.labels[evaluation.study.judged] == UNKNOWN).sum())
    if unlabelled:
        details.append(f"<p>{unlabelled:,} judged stamps have no label and count in no score.</p>")
    return details


def _merit_rows(name: str, found: Mapping[str, Any]) -> str:
    rows = []
    for section, content in found.items():
        if not isinstance(content, Mapping):
            continue
        for key, merit in content.items():
            if isinstance(merit, Mapping) and "value" in merit:
                shown = scores.show(merit, 4)
            elif isinstance(merit, int | float):
                shown = f"{merit:.4g}"
            else:
                continue
            cells = (name, f"{section}.{key}", shown)
            rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "".join(rows)
