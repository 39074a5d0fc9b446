"""Put a report together: one HTML page that needs nothing else, and the same figures as files."""

import base64
import html
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_STYLE = """:root{color-scheme:light dark;--ink:#222;--soft:#555;--line:#ddd;--page:#fff}
@media(prefers-color-scheme:dark){:root{--ink:#ddd;--soft:#aaa;--line:#444;--page:#181818}}
body{font:16px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:var(--ink);
background:var(--page)}h1{font-size:1.7rem;margin-bottom:.2rem;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin-top:2.2rem}table{border-collapse:collapse}
td,th{border-bottom:1px solid var(--line);padding:.25rem 1rem .25rem 0;text-align:left;vertical-align:top}
td{font-variant-numeric:tabular-nums}.numbers td{max-width:24em;overflow-wrap:anywhere}
.numbers td+td+td,small,figcaption,.lead{color:var(--soft)}.wide{overflow-x:auto}
table.summary{font-size:.82rem;width:100%}table.summary th{vertical-align:bottom}table.summary td{white-space:nowrap}
table.summary td,table.summary th{padding-right:.6rem}.tied{text-decoration:underline dotted var(--soft)}
.swatch{display:inline-block;width:.8em;height:.8em;margin-right:.4em}
img{max-width:100%;background:#fff}figure{margin:1rem 0}figcaption{max-width:60rem}
@media(max-width:50rem){body{margin-top:1rem}figure img{max-width:none;width:52rem}}
details{margin:1rem 0}summary{cursor:pointer}li{margin:.15rem 0}"""
"""On a phone, wide tables and figures are pushed sideways rather than shrunk until nothing can be read."""


@dataclass(frozen=True)
class Picture:
    """A figure of a report.

    Parameters
    ----------
    name : str
        Of its files.
    title : str
        Its heading.
    caption : str
        What is shown, on which stamps, and what its uncertainty is.
    draw : callable
        Makes the matplotlib figure.
    """

    name: str
    title: str
    caption: str
    draw: Callable[[], Any]


def render(
    title: str,
    *,
    lead: Sequence[str],
    pictures: Sequence[Picture],
    tables: Sequence[str] = (),
    details: Sequence[str] = (),
    folder: Path | None = None,
    dpi: int = 130,
) -> str:
    """Make the page, and perhaps the figures as files.

    Parameters
    ----------
    title : str
        The page's heading.
    lead : sequence of str
        HTML before the figures.
    pictures : sequence of Picture
        Drawn one after the other, so that one is in memory at a time.
    tables : sequence of str
        HTML after the lead.
    details : sequence of str
        HTML after the figures.
    folder : Path, optional
        Gets a .png and a .svg of each figure; absent: none are written.
    dpi : int
        Of the images in the page.

    Returns
    -------
    str
        HTML without a reference to anything outside of it.
    """
    body = [f"<h1>{html.escape(title)}</h1>", *lead, *tables]
    body += [*(_section(picture, folder, dpi) for picture in pictures), *details]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">'
    head += f"<title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>' + "\n".join(body) + "\n</body></html>\n"


def _section(picture: Picture, folder: Path | None, dpi: int) -> str:
    figure = picture.draw()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi)
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{picture.name}.png").write_bytes(buffer.getvalue())
        figure.set_layout_engine("none")  # it is laid out already, which takes as long as drawing it
        # No date in the file: the same figure is the same file.
        figure.savefig(folder / f"{picture.name}.svg", metadata={"Date": None})
    content = base64.b64encode(buffer.getvalue()).decode("ascii")
    caption = text(picture.caption)
    image = f'<img alt="{html.escape(picture.title)}" src="data:image/png;base64,{content}">'
    heading = f'<h2 id="{picture.name}">{html.escape(picture.title)}</h2>'
    return f'{heading}<figure><div class="wide">{image}</div><figcaption>{caption}</figcaption></figure>'


def text(sentences: str) -> str:
    """Turn sentences into HTML.

    Parameters
    ----------
    sentences : str
        Plain text; what stands between backticks is code.

    Returns
    -------
    str
        Escaped.
    """
    return re.sub("`([^`]+)`", r"<code>\1</code>", html.escape(sentences))


def number_table(metrics: Mapping[str, Any], explanations: Mapping[str, str], hidden: Sequence[str] = ()) -> str:
    """Tabulate metrics with what they mean.

    Parameters
    ----------
    metrics : mapping
        Sections of plain numbers.
    explanations : mapping of str
        By ``section.name``.
    hidden : sequence of str
        Names that are drawn and not tabulated.

    Returns
    -------
    str
        HTML.
    """
    rows = []
    for section, content in metrics.items():
        items = content.items() if isinstance(content, Mapping) else [("", content)]
        for name, value in items:
            key = f"{section}.{name}".rstrip(".")
            if key not in hidden:
                cells = (key, _show(value), explanations.get(key, ""))
                rows.append("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>")
    return '<div class="wide"><table class="numbers">' + "".join(rows) + "</table></div>"


def _show(value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, float | list | None):
        return str(value)
    if value is None:
        return "none: no labels of both classes"
    return ", ".join(_show(item) for item in value) if isinstance(value, list) else f"{value:.4g}"
