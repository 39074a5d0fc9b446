"""``stream-vae inject``: point sources into the user's own images, for positives of the user's own instrument."""

from pathlib import Path
from typing import Annotated

import typer

from stream_vae.cli import app, console
from stream_vae.cli.options import AsJson, answer
from stream_vae.errors import ConfigError

Files = list[Path] | None


def _images(help_text: str) -> typer.models.OptionInfo:
    option: typer.models.OptionInfo = typer.Option(metavar="FITS|DIR", help=help_text, show_default=False)
    return option


@app.command()
def inject(
    out: Annotated[Path, typer.Option("--out", metavar="FILE.npz", help="Stamps, as train --data takes them.")],
    difference: Annotated[Files, _images("Difference images; repeat, or name a folder.")] = None,
    science: Annotated[Files, _images("Science images, in the same order: profile and surroundings.")] = None,
    template: Annotated[Files, _images("Templates on the science images' grid: then the subtraction is ours.")] = None,
    noise: Annotated[Files, _images("Noise maps of the differences, in the same order.")] = None,
    per_image: Annotated[int, typer.Option(help="Sources in each image and round.")] = 100,
    rounds: Annotated[int, typer.Option(help="Times that each image is injected into anew.")] = 1,
    snr_min: Annotated[float, typer.Option(help="Faintest peak over the difference's noise.")] = 5.0,
    snr_max: Annotated[float, typer.Option(help="Brightest.")] = 100.0,
    fwhm: Annotated[float | None, typer.Option(help="Width of the profile in pixels; absent: measured.")] = None,
    beta: Annotated[float, typer.Option(help="Moffat's exponent, with --fwhm.")] = 3.0,
    gain: Annotated[float | None, typer.Option(help="Electrons per count; absent: no Poisson noise is added.")] = None,
    saturation: Annotated[float | None, typer.Option(help="Counts over the background; brighter are no stars.")] = None,
    near_sources: Annotated[float, typer.Option(help="Share placed as the image's own detections are.")] = 0.5,
    other_label: Annotated[int, typer.Option(help="Label of other detections: -1 unknown, 0 bogus.")] = -1,
    size: Annotated[int, typer.Option(help="Pixels on a side of a stamp.")] = 21,
    cutouts: Annotated[str, typer.Option(help="Channels, with commas: difference,science,template.")] = "difference",
    labels: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a label table too.")] = None,
    truth: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a table of all that was injected.")] = None,
    seed: Annotated[int, typer.Option(min=0, help="Fixes everything.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Inject point sources into your images, detect at 5 sigma, and cut labelled stamps.

    Examples:

        stream-vae inject --difference diff/ --science sci/ --gain 1.6 --out stamps.npz

        stream-vae inject --science new.fits --template ref.fits --rounds 5 --out stamps.npz --truth truth.csv
    """
    from stream_vae.learning.progress import reporter
    from stream_vae.sky.injection.files import inject_into_files
    from stream_vae.sky.injection.plan import Plan

    plan = Plan(
        per_image=per_image,
        rounds=rounds,
        snr=(snr_min, snr_max),
        size=size,
        near_sources=near_sources,
        gain_e_adu=gain,
        fwhm_px=fwhm,
        beta=beta,
        saturation=saturation,
        other_label=other_label,
    )
    fields = _fields({"difference": difference, "science": science, "template": template, "noise": noise})
    with reporter(show=not as_json) as report:
        made = inject_into_files(
            fields, plan, out, cutouts=cutouts.split(","), labels=labels, truth=truth, seed=seed, report=report
        )
    by_snr = made.recovered_by_snr()
    if as_json:
        counts = {
            name: getattr(made, name) for name in ("images", "stamps", "real", "injected", "recovered", "fwhm_px")
        }
        names = ("snr_from", "snr_to", "injected", "recovered")
        answer({**counts, "by_snr": [dict(zip(names, row, strict=True)) for row in by_snr], "out": str(out)})
        return
    for low, high, injected, found in by_snr:
        console.print(f"S/N {low:5.1f} to {high:5.1f}: {found:>7,} of {injected:>7,} found", highlight=False)
    console.print(
        f"Wrote {made.stamps:,} stamps of {made.images:,} images to {out}: {made.real:,} injected, "
        f"{made.stamps - made.real:,} other detections.",
        highlight=False,
        soft_wrap=True,
    )


def _fields(given: dict[str, Files]) -> list[dict[str, Path]]:
    """One dictionary a field, of lists in the same order."""
    listed = {name: _listed(name, files) for name, files in given.items() if files}
    counts = {name: len(files) for name, files in listed.items()}
    if len(set(counts.values())) > 1:
        told = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise ConfigError(f"The images do not go together: {told}.", remedy="Give as many of each, in the same order.")
    return [dict(zip(listed, files, strict=True)) for files in zip(*listed.values(), strict=True)]


def _listed(name: str, files: list[Path]) -> list[Path]:
    found: list[Path] = []
    for path in files:
        inside = [file for file in path.iterdir() if ".fit" in file.name] if path.is_dir() else [path]
        if not inside:
            raise ConfigError(
                f"--{name} {path}: there are no FITS files in it.", remedy="They end in .fits or .fits.gz."
            )
        found += sorted(inside)
    return found
