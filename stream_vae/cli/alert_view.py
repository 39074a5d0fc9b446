"""An inspected alert in the terminal: tables, and the picture below them."""

import numpy as np
from rich.markup import escape
from rich.table import Table

from stream_vae.cli import console
from stream_vae.tools.inspection import Inspection, headers_of
from stream_vae.tools.messages import Enrichment
from stream_vae.tools.pictures import terminal_picture

DASH = "-"
"""Stands for what is not there."""


def title_of(found: Inspection) -> str:
    """Name an alert for the top of its picture.

    Parameters
    ----------
    found : Inspection
        Of `stream_vae.tools.inspection`.

    Returns
    -------
    str
        Survey, id and score.
    """
    fields = found.reading.fields()
    verdict = found.verdict.enrichment if found.verdict else found.reading.enrichment
    score = f", real_score {number(verdict.real_score)}" if verdict and verdict.real_score is not None else ""
    return f"{found.survey} {fields['alert_id']}{score}"


def show(found: Inspection) -> None:
    """Print everything about one message.

    Parameters
    ----------
    found : Inspection
        Of `stream_vae.tools.inspection`.
    """
    packet, frame = found.packet, found.reading.alert.frame
    document = found.document()
    schema = document["schema"]
    console.print(f"[bold]{escape(found.at)}[/bold]  {len(packet.value):,} bytes", highlight=False)
    wrapped = {"ocf": f"Avro file, codec {frame.codec.value}", "confluent": f"Confluent, schema id {frame.schema_id}"}
    console.print(
        f"{wrapped.get(frame.framing.value, 'bare record')}; schema {schema['name']} of {schema['fields']} fields, "
        f"sha256 {schema['sha256'][:12]}",
        highlight=False,
        markup=False,
    )
    for name, value in headers_of(packet):
        console.print(f"  {name}: {value}", highlight=False, markup=False)
    console.print(_fields_table(found))
    if found.cutouts:
        console.print(_cutouts_table(found))
    columns = {
        title: enrichment
        for title, enrichment in (
            ("in the message", found.reading.enrichment),
            ("this release", found.verdict.enrichment if found.verdict else None),
        )
        if enrichment is not None
    }
    if columns:
        console.print(_scores_table(columns, found.reconstruction_error()))
        console.print(_latent_table(list(columns.values())[-1]))
    if found.panels:
        colours = console.color_system is not None and console.encoding.lower().startswith("utf")
        console.print(terminal_picture(found.panels, width=console.width, colours=colours))
    for note in found.notes:
        console.print(note, style="yellow", markup=False, highlight=False)


def _fields_table(found: Inspection) -> Table:
    fields = found.reading.fields()
    table = Table(title=f"{found.survey} alert", title_justify="left", show_header=False)
    for name in ("alert_id", "object_id", "ra_deg", "dec_deg"):
        table.add_row(name, DASH if fields[name] is None else str(fields[name]))
    when = DASH
    if fields["midpoint_mjd"] is not None:
        scale = str(fields["time_scale"]).upper()
        when = f"{fields['midpoint_mjd']:.5f} ({fields['date'] or 'no date'} {scale})"
    table.add_row("midpoint_mjd", when)
    table.add_row("band", fields["band"] or DASH)
    return table


def _cutouts_table(found: Inspection) -> Table:
    table = Table("cutout", "bytes", "shape", "type", "masked", "min", "median", "max", "quality")
    for cutout in found.cutouts:
        about = cutout.document()
        quality = ", ".join(cutout.quality) or "good"
        if about["shape"] is None:
            table.add_row(cutout.name, f"{cutout.size_bytes:,}", *[DASH] * 6, quality)
            continue
        numbers = [number(about[name]) for name in ("min", "median", "max")]
        shape = "x".join(str(side) for side in about["shape"])
        row = [shape, about["dtype"], str(about["masked_pixels"]), *numbers]
        table.add_row(cutout.name, f"{cutout.size_bytes:,}", *row, quality)
    return table


def _scores_table(columns: dict[str, Enrichment], error: float | None) -> Table:
    table = Table("", *columns)
    for name in ("real_score", "real_score_std", "reference_distance", "novelty"):
        table.add_row(name, *(number(getattr(each, name)) for each in columns.values()))
    table.add_row("quality", *(", ".join(each.quality_names) or "good" for each in columns.values()))
    table.add_row("release", *(each.release for each in columns.values()))
    table.add_row("latent_space", *(each.latent_space for each in columns.values()))
    if error is not None:
        table.add_row("squared error of the reconstruction", *[""] * (len(columns) - 1), number(error))
    return table


def _latent_table(enrichment: Enrichment, wide: int = 7) -> Table | str:
    if enrichment.latent_mean is None or enrichment.latent_log_var is None:
        return "No latent code: the alert is unscoreable."
    table = Table(*[""] * wide, title="latent mean ± standard deviation", title_justify="left", show_header=False)
    spread = np.exp(enrichment.latent_log_var / 2)
    cells = [f"{m:+.2f}±{s:.2f}" for m, s in zip(enrichment.latent_mean, spread, strict=True)]
    for start in range(0, len(cells), wide):
        table.add_row(*cells[start : start + wide])
    return table


def number(value: float | None) -> str:
    """Write a score.

    Parameters
    ----------
    value : float or None
        None where there is none.

    Returns
    -------
    str
        Four digits, or a dash.
    """
    return DASH if value is None else f"{value:.4g}"
