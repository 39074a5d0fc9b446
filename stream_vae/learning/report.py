"""Write a study down: `metrics.json` for machines, one self-contained `report.html` for people."""

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stream_vae.learning import figures
from stream_vae.learning.study import Study

_STYLE = """body{font:16px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#222}
table{border-collapse:collapse}td{border-bottom:1px solid #ddd;padding:.2rem 1.2rem .2rem 0}
td+td{font-variant-numeric:tabular-nums;max-width:22em;overflow-wrap:anywhere}td+td+td{color:#555}
img{max-width:100%}figure{margin:1.5rem 0}figcaption{color:#555}"""

_EXPLANATIONS = {
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
    "score.labels_from": "`simulation`: the scorer has seen no label of the data themselves",
    "score.held_out": "false: the same stamps served for stopping and calibration, so the figures flatter",
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
        What to draw.
    metrics : mapping
        What to tabulate; plain numbers.
    title : str
        The page's heading.
    history : mapping of sequences, optional
        What Keras logged, to draw it.

    Raises
    ------
    ConfigError
        If matplotlib is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(metrics, indent=2, allow_nan=False) + "\n", "utf-8")
    pictures = {
        "Stamps, their reconstructions and what is left, all on the same scale.": figures.draw_reconstructions(study),
        "Reconstruction error of the stamps.": figures.draw_errors(study),
        "What each latent unit costs; a collapsed unit costs nothing and says nothing.": figures.draw_units(study),
        "Latent map.": figures.draw_latent_map(study),
    }
    if metrics.get("score") is not None:
        pictures["Scores: histogram; with labels, ROC and calibration too."] = figures.draw_scores(study)
    if history is not None:
        pictures["Training."] = figures.draw_history(history)
    body = [f"<h1>{html.escape(title)}</h1>", _table(metrics)]
    body += [_picture(figure, caption) for caption, figure in pictures.items()]
    head = f'<meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
    (folder / "report.html").write_text(f'<!doctype html><html lang="en">{head}' + "\n".join(body) + "\n", "utf-8")


def _table(metrics: Mapping[str, Any]) -> str:
    rows = []
    for section, content in metrics.items():
        items = content.items() if isinstance(content, Mapping) else [("", content)]
        for name, value in items:
            key = f"{section}.{name}".rstrip(".")
            if key != "latent.kl_per_unit":  # drawn
                cells = (key, _show(value), _EXPLANATIONS.get(key, ""))
                rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return "<table>" + "".join(rows) + "</table>"


def _show(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, float | list | None):
        return str(value)
    if value is None:
        return "none: no labels of both classes"
    return ", ".join(_show(item) for item in value) if isinstance(value, list) else f"{value:.4g}"


def _picture(figure: Any, caption: str) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = html.escape(caption)
    image = f'<img alt="{caption}" src="data:image/png;base64,{content}">'
    return f"<figure>{image}<figcaption>{caption}</figcaption></figure>"
