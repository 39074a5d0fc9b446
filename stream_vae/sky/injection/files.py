"""Inject into FITS files, one after another: stamps to an .npz that training takes, truth and labels to tables."""

import shutil
import tempfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from stream_vae.cutout import CutoutError, decompress, read_fits
from stream_vae.errors import ConfigError
from stream_vae.labels import Label, Provenance, write_labels
from stream_vae.labels.files import write_rows
from stream_vae.learning.progress import Reporter, silent
from stream_vae.sky.injection.inject import Injected, inject
from stream_vae.sky.injection.plan import Images, Plan
from stream_vae.sky.psf import Image
from stream_vae.surveys import CUTOUTS

_MAX_IMAGE_BYTES = 8 << 30
_TRUTH = ("image", "round", "x", "y", "flux", "snr", "found")


@dataclass
class Summary:
    """What came of it."""

    stamps: int = 0
    real: int = 0
    images: int = 0
    injected: int = 0
    recovered: int = 0
    fwhm_px: list[float] = field(default_factory=list)
    """Of each image."""
    truth: list[dict[str, Any]] = field(default_factory=list)
    """Of each injected source, by the columns of the truth table."""

    def recovered_by_snr(self) -> list[tuple[float, float, int, int]]:
        """Count what was found.

        Returns
        -------
        list of tuple
            Least and largest S/N, injected, found; empty bins are left out.
        """
        snr, found = np.array([row["snr"] for row in self.truth]), np.array([row["found"] for row in self.truth], bool)
        edges = [0.0, 5.0, 6.0, 7.0, 8.0, 10.0, 15.0, 30.0, np.inf]
        rows = []
        for low, high in pairwise(edges):
            inside = (snr >= low) & (snr < high)
            if inside.any():
                rows.append((low, high, int(inside.sum()), int(found[inside].sum())))
        return rows


def inject_into_files(
    fields: Sequence[dict[str, Path]],
    plan: Plan,
    out: Path,
    *,
    cutouts: Sequence[str] = ("difference",),
    labels: Path | None = None,
    truth: Path | None = None,
    seed: int = 0,
    report: Reporter = silent,
) -> Summary:
    """Inject into fields one by one and write stamps of what is detected.

    Parameters
    ----------
    fields : sequence of dict
        Of each field the FITS files by `difference`, `science`, `template` and `noise`.
    plan : Plan
        How to inject.
    out : Path
        The .npz: `stamps`, `noise` (if the difference is among the cutouts), `labels`, `groups` (the field's number),
        `snr`, `kinds` ("injected" or "detection"), `x`, `y` and `alert_ids`.
    cutouts : sequence of str
        The stamps' channels, of difference, science and template.
    labels, truth : Path, optional
        Tables of the stamps' labels, and of all that was injected.
    seed : int
        Fixes everything; every field has its own random numbers.
    report : Reporter
        Told how far it is.

    Returns
    -------
    Summary
        Counts, and the truth. In memory there is one field and what the tables hold; stamps grow on disk.

    Raises
    ------
    ConfigError
        If a file cannot be read or used, nothing was detected, or the output cannot be written.
    """
    channels = _channels(cutouts, fields)
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}.", remedy="Make it first.")
    summary, made = Summary(), []
    with tempfile.TemporaryDirectory(prefix=".stream-vae-", dir=out.parent) as scratch:
        columns = _Columns(Path(scratch))
        for number, files in enumerate(fields):
            images = _read(files)
            for at, found in enumerate(inject(images, plan, np.random.default_rng((seed, number)))):
                ids = [f"{images.name}_{number}_{at}_{x}_{y}" for x, y in zip(found.x, found.y, strict=True)]
                columns.add(_arrays(found, channels, number, ids))
                _count(summary, found, images.name, at)
                made += [_label(alert_id, found, i) for i, alert_id in enumerate(ids)]
            summary.images += 1
            report("inject", summary.images, len(fields), f"{summary.real} real of {summary.stamps}")
        if not summary.stamps:
            raise ConfigError("Nothing was detected.", remedy="Inject more or brighter sources; check the images.")
        columns.write(out)
    if labels is not None:
        write_labels(labels, made)
    if truth is not None:
        write_rows(truth, _TRUTH, summary.truth)
    return summary


def _channels(cutouts: Sequence[str], fields: Sequence[dict[str, Path]]) -> list[int]:
    if not fields:
        raise ConfigError("There are no images.", remedy="Give --difference, or --science and --template.")
    for name in cutouts:
        if name not in CUTOUTS:
            raise ConfigError(f"There is no cutout {name}.", remedy=f"Use {', '.join(CUTOUTS)}.")
        if name != "difference" and any(name not in files for files in fields):
            raise ConfigError(f"Stamps of {name} are wanted, but not all fields have one.", remedy=f"Give --{name}.")
    return [CUTOUTS.index(name) for name in cutouts]


def _read(files: dict[str, Path]) -> Images:
    main = files.get("difference", files.get("science"))
    name = main.name.partition(".")[0] if main is not None else "field"
    return Images(name, **{kind: read_image(path) for kind, path in files.items()})


def read_image(path: Path) -> Image:
    """Read the first two-dimensional image of a FITS file.

    Parameters
    ----------
    path : Path
        FITS, gzip'd or not; integers and scaled values too.

    Returns
    -------
    ndarray of float32, (height, width)
        In this machine's byte order; NaN where blank or infinite.

    Raises
    ------
    ConfigError
        If there is no such file or no image in it.
    """
    try:
        pixels = read_fits(decompress(path.read_bytes(), _MAX_IMAGE_BYTES))
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}.", remedy="Name FITS files that exist.") from error
    except CutoutError as error:
        raise ConfigError(
            f"{path}: {error}.", remedy="Give plain or gzip'd FITS with a two-dimensional image; unpack .fz first."
        ) from error
    with np.errstate(over="ignore", invalid="ignore"):
        image = pixels.astype(np.float32)
    image[~np.isfinite(image)] = np.nan
    return image


def _arrays(found: Injected, channels: list[int], number: int, ids: list[str]) -> dict[str, npt.NDArray[Any]]:
    stamps = found.stamps[..., channels]
    n = len(found.labels)
    arrays: dict[str, npt.NDArray[Any]] = {
        "stamps": stamps[..., 0] if len(channels) == 1 else stamps,
        "labels": found.labels,
        "groups": np.full(n, number, np.int32),
        "snr": found.snr,
        "kinds": np.where(found.labels == 1, "injected", "detection"),
        "x": found.x.astype(np.int32),
        "y": found.y.astype(np.int32),
        "alert_ids": np.array(ids, dtype=np.str_),
    }
    if channels == [0]:  # a noise map goes with every channel or with none
        arrays["noise"] = found.noise
    return arrays


def _count(summary: Summary, found: Injected, name: str, at: int) -> None:
    summary.stamps += len(found.labels)
    summary.real += int((found.labels == 1).sum())
    summary.injected += len(found.found)
    summary.recovered += int(found.found.sum())
    summary.fwhm_px.append(found.psf.fwhm_px)
    values = (found.true_x, found.true_y, found.true_flux, found.true_snr, found.found)
    for x, y, flux, snr, seen in zip(*(value.tolist() for value in values), strict=True):
        summary.truth.append(dict(zip(_TRUTH, (name, at, x, y, flux, snr, int(seen)), strict=True)))


def _label(alert_id: str, found: Injected, i: int) -> Label:
    """A 0 is only the lack of a match with what was injected, and trusted as little."""
    now, label = datetime.now(UTC).replace(microsecond=0), int(found.labels[i])
    provenance = Provenance.CROSSMATCH if label == 0 else Provenance.INJECTION
    return Label(alert_id, label, provenance, None, now, f"S/N {float(found.snr[i]):.1f}")


class _Columns:
    """Arrays of the same length that grow on disk; text and labels are small enough for memory."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files: dict[str, IO[bytes]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._small: dict[str, list[npt.NDArray[Any]]] = {}
        self._count = 0

    def add(self, arrays: dict[str, npt.NDArray[Any]]) -> None:
        for name, array in arrays.items():
            if name not in {"stamps", "noise"}:
                self._small.setdefault(name, []).append(array)
                continue
            if name not in self._files:
                self._files[name] = (self._folder / name).open("wb")
                self._shapes[name] = array.shape[1:]
            self._files[name].write(np.ascontiguousarray(array, np.float32).tobytes())
        self._count += len(arrays["stamps"])

    def write(self, out: Path) -> None:
        done = self._folder / "out.npz"
        with zipfile.ZipFile(done, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
            for name, file in self._files.items():
                file.close()
                head = {"descr": "<f4", "fortran_order": False, "shape": (self._count, *self._shapes[name])}
                with (
                    archive.open(f"{name}.npy", "w", force_zip64=True) as member,
                    (self._folder / name).open("rb") as raw,
                ):
                    np.lib.format.write_array_header_2_0(member, head)
                    shutil.copyfileobj(raw, member)
            for name, parts in self._small.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    np.lib.format.write_array(member, np.concatenate(parts), allow_pickle=False)
        try:
            done.replace(out)
        except OSError as error:
            raise ConfigError(f"{out} cannot be written: {error.strerror}.", remedy="Name another file.") from error
