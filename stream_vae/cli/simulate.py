"""``stream-vae simulate``: labelled stamps, or alerts with their labels, from the simulator."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import typer

from stream_vae.cli import app, console
from stream_vae.cli.options import AsJson, answer
from stream_vae.errors import ConfigError

if TYPE_CHECKING:
    from stream_vae.learning.progress import Reporter
    from stream_vae.sky import Likeness

_KEPT = ("labels", "groups", "kinds", "snr", "positive")


@app.command()
def simulate(
    out: Annotated[Path | None, typer.Option("--out", metavar="FILE.npz", help="Stamps with all about them.")] = None,
    alerts: Annotated[
        Path | None, typer.Option("--alerts", metavar="DIR", help="Instead: alert packets, and labels.csv.")
    ] = None,
    images: Annotated[
        Path | None,
        typer.Option("--images", metavar="DIR", help="Instead: images, differences and noise as FITS; catalogues."),
    ] = None,
    count: Annotated[
        int | None,
        typer.Option("--count", "-n", min=1, help="How many stamps, alerts (10,000) or image pairs (10)."),
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same, with any number of workers.")] = 0,
    workers: Annotated[int, typer.Option(min=1, help="Processes.")] = 1,
    size: Annotated[int, typer.Option(min=5, help="Pixels along each side of a stamp, odd.")] = 21,
    all_cutouts: Annotated[
        bool, typer.Option("--all-cutouts", help="Difference, science and template; absent: difference only.")
    ] = False,
    real_fraction: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of real ones; absent: 30 to 40%, as detected.")
    ] = None,
    fading: Annotated[
        float | None,
        typer.Option(min=0, max=0.9, help="Share of sources fainter than in the template; absent: a third. 0: none."),
    ] = None,
    like: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Make them look like these stamps (.npy or .npz); labels are not used."),
    ] = None,
    form: Annotated[Literal["candidate", "ztf"], typer.Option("--format", help="Schema of the alerts.")] = "candidate",
    as_json: AsJson = False,
) -> None:
    """Simulate image pairs, subtract and search them, and write what was found with its labels.

    Stamps are in counts, not scaled, NaN where masked; the file has noise maps, labels, groups (image pairs), kinds,
    S/N and whether the peak is positive, and `train --data` and `evaluate --data` take it.

    Examples:

        stream-vae simulate --out stamps.npz -n 100000 --workers 2

        stream-vae simulate --out like-mine.npz --like my-stamps.npz --seed 1

        stream-vae simulate --alerts night/ --format ztf -n 500

        stream-vae simulate --images fields/ -n 5
    """
    from stream_vae.learning.progress import reporter

    if sum(target is not None for target in (out, alerts, images)) != 1:
        raise ConfigError(
            "One of --out, --alerts and --images is needed.",
            remedy="Give --out FILE.npz, --alerts DIR or --images DIR.",
        )
    if size % 2 == 0:
        raise ConfigError(f"--size {size}: stamps have a central pixel.", remedy="Give an odd number.")
    if fading is not None and like is not None:
        raise ConfigError("--fading does not go with --like.", remedy="Leave it out: the stamps given tell.")
    if images is not None:
        _write_images(images, count or 10, seed, fading, as_json=as_json)
        return
    count = count or 10_000
    with reporter(show=not as_json) as report:
        if out is not None:
            real = _write_stamps(
                out, count, seed, workers, size, real_fraction, fading, like, all_cutouts=all_cutouts, report=report
            )
        else:
            assert alerts is not None, "one of the two was given"
            if like is not None:
                raise ConfigError("--like is for stamps, not for alerts.", remedy="Leave it out, or use --out.")
            real = _write_alerts(alerts, form, count, seed, real_fraction, fading, report)
    what, target = ("stamps", out) if out is not None else ("alerts", alerts)
    if as_json:
        answer({what: count, "real": real, "out": str(target)})
    else:
        console.print(f"Wrote {count:,} {what} to {target}, {real:,} of them real.", highlight=False, soft_wrap=True)


def _write_images(folder: Path, count: int, seed: int, fading: float | None, *, as_json: bool) -> None:
    from stream_vae.learning.progress import reporter
    from stream_vae.sky.conditions import FADING
    from stream_vae.sky.field_files import write_field
    from stream_vae.sky.simulate import simulate_field

    folder.mkdir(parents=True, exist_ok=True)
    found = real = 0
    with reporter(show=not as_json) as report:
        for number in range(count):
            field = simulate_field(seed, number, fading=FADING if fading is None else fading)
            write_field(folder, number, field)
            found, real = found + len(field.candidates.row), real + int(field.candidates.real.sum())
            report("simulate", number + 1, count)
    if as_json:
        answer({"images": count, "detected": found, "real": real, "out": str(folder)})
    else:
        text = f"Wrote {count:,} image pairs to {folder}: {found:,} detections, {real:,} of them real."
        console.print(text, highlight=False, soft_wrap=True)


def _write_stamps(
    out: Path,
    count: int,
    seed: int,
    workers: int,
    size: int,
    real_fraction: float | None,
    fading: float | None,
    like: Path | None,
    *,
    all_cutouts: bool,
    report: "Reporter",
) -> int:
    from stream_vae.sky import simulate_stamps

    if out.suffix != ".npz":
        raise ConfigError(f"--out {out}: it is written as .npz.", remedy="Give the file that suffix.")
    result = simulate_stamps(
        count,
        size=size,
        seed=seed,
        real_fraction=real_fraction,
        fading=fading,
        like=None if like is None else _matched(like, size, workers),
        workers=workers,
        progress=lambda done, total: report("simulate", done, total),
    )
    channels = slice(None) if all_cutouts else 0
    arrays = {name: getattr(result, name) for name in _KEPT}
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez(out, stamps=result.stamps[..., channels], noise=result.noise[..., channels], **arrays)
    return int(result.labels.sum())


def _matched(file: Path, size: int, workers: int) -> "Likeness":
    from stream_vae.learning.data.stampfile import check_stamps
    from stream_vae.sky import match

    if not file.is_file():
        raise ConfigError(f"--like {file}: there is no such file.", remedy="Name a .npy or .npz file of stamps.")
    try:
        shape = check_stamps(file).shape
        if shape[1:2] != (size,):
            raise ConfigError(f"--like {file}: stamps of shape {shape}.", remedy="Give --size their side.")
        loaded = np.load(file, allow_pickle=False)
        return match(loaded["stamps"] if file.suffix == ".npz" else loaded, workers=workers)
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--like {file}: {error}.", remedy="Give .npy, or .npz with `stamps`: (n, size, size), at least 50."
        ) from error


def _write_alerts(
    folder: Path,
    form: Literal["candidate", "ztf"],
    count: int,
    seed: int,
    real_fraction: float | None,
    fading: float | None,
    report: "Reporter",
) -> int:
    from stream_vae.labels import Label, Provenance, write_labels
    from stream_vae.sky.packets import simulate_packets

    folder.mkdir(parents=True, exist_ok=True)
    labels = []
    for packet in simulate_packets(count, shape=form, seed=seed, real_fraction=real_fraction, fading=fading):
        (folder / f"{packet.candid}.avro").write_bytes(packet.packet)
        labels.append(Label(str(packet.candid), packet.label, Provenance.SIMULATION, comment=packet.kind))
        report("simulate", len(labels), count)
    write_labels(folder / "labels.csv", labels)
    return sum(label.label for label in labels)
