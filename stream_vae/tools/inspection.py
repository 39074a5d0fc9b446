"""One alert, looked at from all sides: its framing, fields and cutouts, and what a release says about it."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_vae.alert import Alert, Codes, FloatArray, Packet, Scores
from stream_vae.cutout import CutoutError, centre_of, crop_into, decompress, read_fits, read_float32
from stream_vae.errors import ConfigError
from stream_vae.model.reconstruct import Reconstructor
from stream_vae.model.release import Preprocessing, Release
from stream_vae.quality import describe
from stream_vae.settings import LimitSettings
from stream_vae.stages.encode import Encoder
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import Stamper
from stream_vae.surveys import CUTOUTS, Profile
from stream_vae.tools.messages import Enrichment, Reader, Reading
from stream_vae.tools.pictures import Panel, limits_of

_MAX_CUTOUT_BYTES = LimitSettings().max_cutout_bytes


@dataclass(frozen=True, slots=True)
class CutoutView:
    """One cutout of an alert."""

    name: str
    size_bytes: int
    """As the alert carries it; 0 if it has none."""
    image: npt.NDArray[np.generic] | None
    """(height, width) in the survey's units; None if it cannot be read."""
    quality: tuple[str, ...]
    """What would be flagged if a release asked for this cutout alone."""

    def document(self) -> dict[str, Any]:
        """Give plain values for JSON.

        Returns
        -------
        dict
            Shape, type, masked pixels, least, median and largest value.
        """
        summary: dict[str, Any] = {"bytes": self.size_bytes, "quality": list(self.quality)}
        if self.image is None:
            return summary | {"shape": None}
        known = self.image[np.isfinite(self.image)].astype(np.float64)
        summary |= {"shape": list(self.image.shape), "dtype": self.image.dtype.name}
        summary["masked_pixels"] = int(self.image.size - known.size)
        for key, function in (("min", np.min), ("median", np.median), ("max", np.max)):
            summary[key] = float(function(known)) if known.size else None
        return summary


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a release says about an alert now."""

    enrichment: Enrichment
    stamp: FloatArray
    """(size, size, channels), scaled as the encoder saw it."""
    channels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Inspection:
    """Everything that can be said about one message."""

    at: str
    """A file's path or ``topic/partition/offset``."""
    packet: Packet
    reading: Reading
    survey: str
    cutouts: tuple[CutoutView, ...]
    verdict: Verdict | None
    reconstruction: FloatArray | None
    """(size, size, channels) in the units of the scaled stamp."""
    panels: tuple[Panel, ...]
    notes: tuple[str, ...]
    """What is missing and why."""

    def document(self) -> dict[str, Any]:
        """Give plain values for JSON.

        Returns
        -------
        dict
            All but the pixels.
        """
        frame, carried = self.reading.alert.frame, self.reading.enrichment
        return {
            "at": self.at,
            "bytes": len(self.packet.value),
            "key": text_of(self.packet.key),
            "timestamp_ms": self.packet.timestamp_ms,
            "headers": headers_of(self.packet),
            "framing": frame.framing.value,
            "codec": frame.codec.value,
            "schema": schema_of(frame.writer.parsed) | {"id": frame.schema_id, "sha256": frame.writer.digest},
            "survey": self.survey,
            "lite": self.reading.lite,
            "fields": self.reading.fields(),
            "cutouts": {cutout.name: cutout.document() for cutout in self.cutouts},
            "enrichment": carried.document() if carried else None,
            "verdict": self.verdict.enrichment.document() if self.verdict else None,
            "reconstruction_error": self.reconstruction_error(),
            "notes": list(self.notes),
        }

    def with_note(self, note: str) -> "Inspection":
        """Add a note.

        Parameters
        ----------
        note : str
            One sentence.

        Returns
        -------
        Inspection
            A copy.
        """
        return replace(self, notes=(*self.notes, note))

    def reconstruction_error(self) -> float | None:
        """Compare stamp and reconstruction.

        Returns
        -------
        float or None
            Summed squared error of the scaled stamp, as in the training loss; None without a reconstruction.
        """
        if self.verdict is None or self.reconstruction is None:
            return None
        return float(np.sum((self.verdict.stamp - self.reconstruction) ** 2))


def text_of(value: bytes | None) -> str | None:
    """Show bytes that are usually text.

    Parameters
    ----------
    value : bytes or None
        A key or a header.

    Returns
    -------
    str or None
        What is not UTF-8 is shown as escapes.
    """
    return None if value is None else value.decode("utf-8", "backslashreplace")


def headers_of(packet: Packet) -> list[list[str | None]]:
    """Show a message's headers.

    Parameters
    ----------
    packet : Packet
        Any message.

    Returns
    -------
    list of [name, value]
        In order; a name may come twice.
    """
    return [[name, text_of(value)] for name, value in packet.headers]


def schema_of(parsed: Mapping[str, Any]) -> dict[str, Any]:
    """Summarise a writer schema.

    Parameters
    ----------
    parsed : Mapping
        A record's schema.

    Returns
    -------
    dict
        Its full name and number of fields.
    """
    name = str(parsed.get("name", ""))
    namespace = parsed.get("namespace")
    return {"name": f"{namespace}.{name}" if namespace and "." not in name else name, "fields": len(parsed["fields"])}


def inspect(
    packet: Packet,
    reader: Reader,
    release: Release | None = None,
    *,
    at: str | None = None,
    whole: bool = False,
    max_cutout_bytes: int = _MAX_CUTOUT_BYTES,
) -> Inspection:
    """Look at one message.

    Parameters
    ----------
    packet : Packet
        As consumed, or a file's content.
    reader : Reader
        For its survey.
    release : Release, optional
        Which scores and reconstructs it.
    at : str, optional
        What to call its place; absent: ``topic/partition/offset``.
    whole : bool
        Pictures of whole cutouts and not of their centres.
    max_cutout_bytes : int
        Largest decompressed cutout.

    Returns
    -------
    Inspection
        What there is; what cannot be had is named in its notes.

    Raises
    ------
    RejectedAlertError
        If the message is no alert.
    RetriableError
        If the schema registry cannot be reached.
    """
    reading = reader.read(packet)
    profile, alert = reading.profile, reading.alert
    wanted = release.card.preprocessing if release else Preprocessing()
    names = () if reading.lite else tuple(name for name in CUTOUTS if profile.cutouts.paths(name))
    views = tuple(_view(alert, profile, name, wanted, max_cutout_bytes) for name in names)
    notes: list[str] = []
    verdict = reconstruction = None
    if release:
        if reading.lite:
            notes.append("A lite message has no cutouts: nothing to score.")
        elif lacking := [name for name in wanted.cutouts if name not in names]:
            notes.append(f"Release {release.id} needs the cutouts {', '.join(lacking)}, which {profile.name} has not.")
        else:
            verdict = _score(alert, profile, release, max_cutout_bytes)
        reconstruction = _reconstruct(release, verdict.enrichment if verdict else reading.enrichment, notes)
    else:
        notes.append("No scores and no reconstruction: give --store or --settings.")
    panels = _panels(alert, profile, views, verdict, reconstruction, wanted, whole=whole)
    return Inspection(
        at=at or packet.origin,
        packet=packet,
        reading=reading,
        survey=reader.profile.name,
        cutouts=views,
        verdict=verdict,
        reconstruction=reconstruction,
        panels=tuple(panels),
        notes=tuple(notes),
    )


def _image(alert: Alert, profile: Profile, name: str, max_bytes: int) -> npt.NDArray[np.generic] | None:
    cutout = alert.cutout(name)
    if not cutout:
        return None
    try:
        if profile.cutouts.encoding == "float32":
            return read_float32(cutout, alert.field("height"), alert.field("width"))
        return read_fits(decompress(cutout, max_bytes))
    except CutoutError:
        return None


def _view(alert: Alert, profile: Profile, name: str, preprocessing: Preprocessing, max_bytes: int) -> CutoutView:
    alone = preprocessing.model_copy(update={"cutouts": (name,)})
    quality = Stamper(alone, profile.cutouts, max_bytes).cut([alert]).quality[0]
    return CutoutView(
        name, len(alert.cutout(name) or b""), _image(alert, profile, name, max_bytes), describe(int(quality))
    )


def _score(alert: Alert, profile: Profile, release: Release, max_bytes: int) -> Verdict:
    """Take the alert through the stages that a worker takes it through."""
    wanted = release.card.preprocessing
    stamps = Stamper(wanted, profile.cutouts, max_bytes).cut([alert])
    codes, stamps, _ = Encoder(release).encode(stamps)
    scores = Scorer(release).score(codes)
    quality = int(stamps.quality[0])
    return Verdict(_enrichment(release, codes, scores, quality), stamps.stamps[0], wanted.cutouts)


def _enrichment(release: Release, codes: Codes, scores: Scores, quality: int) -> Enrichment:
    known = bool(np.isfinite(codes.z_mean[0]).all())
    numbers = {name: float(row[0]) if np.isfinite(row[0]) else None for name, row in scores._asdict().items()}
    return Enrichment(
        release=release.id,
        latent_space=release.card.latent_space,
        latent_mean=codes.z_mean[0] if known else None,
        latent_log_var=codes.z_log_var[0] if known else None,
        quality=quality,
        scored_at=datetime.now(UTC),
        **numbers,
    )


def _reconstruct(release: Release, enrichment: Enrichment | None, notes: list[str]) -> FloatArray | None:
    if enrichment is None:
        return None
    if enrichment.latent_mean is None:
        notes.append(f"No reconstruction: the alert is unscoreable ({', '.join(enrichment.quality_names)}).")
        return None
    if enrichment.latent_space != release.card.latent_space:
        notes.append(f"No reconstruction: the code is of {enrichment.latent_space}, not {release.card.latent_space}.")
        return None
    try:
        decoder = Reconstructor(release)
    except ConfigError as error:
        notes.append(f"No reconstruction: {error}")
        return None
    reconstruction: FloatArray = decoder.reconstruct(enrichment.latent_mean[np.newaxis])[0]
    return reconstruction


def _panels(
    alert: Alert,
    profile: Profile,
    views: tuple[CutoutView, ...],
    verdict: Verdict | None,
    reconstruction: FloatArray | None,
    preprocessing: Preprocessing,
    *,
    whole: bool,
) -> list[Panel]:
    panels = []
    size = preprocessing.stamp_size
    for view in views:
        if view.image is None:
            continue
        # Beyond float32's range is infinite, and then drawn as masked.
        with np.errstate(over="ignore", invalid="ignore"):
            pixels = view.image.astype(np.float32) if whole else _centre(view.image, alert, profile, size)
        panels.append(Panel(f"{view.name} {pixels.shape[1]}x{pixels.shape[0]}", pixels, limits_of(pixels)))
    if reconstruction is None:
        return panels
    channels = preprocessing.cutouts
    for channel, name in enumerate(channels):
        suffix = f" of {name}" if len(channels) > 1 else ""
        drawn = reconstruction[:, :, channel]
        if verdict is None:
            panels.append(Panel(f"reconstruction{suffix}", drawn, limits_of(drawn)))
            continue
        # One grey scale for the three, so that they can be compared by eye; the residual's black is no signal's.
        stamp = verdict.stamp[:, :, channel]
        low, high = limits_of(stamp)
        panels.append(Panel(f"as encoded{suffix}", stamp, (low, high)))
        panels.append(Panel(f"reconstruction{suffix}", drawn, (low, high)))
        half = (high - low) / 2
        panels.append(Panel(f"residual{suffix}", stamp - drawn, (-half, half)))
    return panels


def _centre(image: npt.NDArray[np.generic], alert: Alert, profile: Profile, size: int) -> FloatArray:
    """The candidate's surroundings, as the stamper crops them, in the survey's units."""
    nominal = profile.cutouts.nominal_size
    stamp = np.empty((size, size), np.float32)
    row = centre_of(image.shape[0], nominal, alert.field("y_pixel"))
    crop_into(stamp, image, row, centre_of(image.shape[1], nominal, alert.field("x_pixel")))
    return stamp
