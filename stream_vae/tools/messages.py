"""Any message of a deployment's topics, read for a person: an alert, an enriched one, or an enrichment alone.

The pipeline never decodes what it publishes; consumers do, and so do `inspect` and `tail`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from stream_vae import assembly, surveys
from stream_vae.alert import Alert, Packet
from stream_vae.avro.framing import Frame, FrameReader, Framing
from stream_vae.avro.limits import DEFAULT_LIMITS, Limits
from stream_vae.avro.registry import FolderRegistry
from stream_vae.avro.schema import LruCache, WriterSchema
from stream_vae.avro.walker import FieldPlan
from stream_vae.errors import ConfigError, Reason, RejectedAlertError
from stream_vae.quality import describe
from stream_vae.settings import Settings
from stream_vae.stages.decode import Decoder
from stream_vae.stages.enrich import FIELD, OutputSchemas
from stream_vae.surveys import Profile

_LITE = "StreamVaeLite"
_LITE_PROFILE: Mapping[str, Any] = {
    "name": "lite",
    "fields": {
        "alert_id": "alert_id",
        "object_id": "object_id",
        "ra_deg": "ra_deg",
        "dec_deg": "dec_deg",
        "time": "midpoint_mjd",
        "band": "band",
    },
    "cutouts": {"difference": "none"},  # a profile must name one; the lite schema has no such field
}
_MJD_ZERO = datetime(1858, 11, 17, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Enrichment:
    """What stream_vae found, as a message carries it; see ``schemas/enrichment``."""

    release: str
    latent_space: str
    latent_mean: npt.NDArray[np.float32] | None
    """(latent size,); None if the alert is unscoreable."""
    latent_log_var: npt.NDArray[np.float32] | None
    real_score: float | None
    real_score_std: float | None
    reference_distance: float | None
    novelty: float | None
    quality: int
    scored_at: datetime

    @property
    def quality_names(self) -> tuple[str, ...]:
        """Names of the quality bits that are set."""
        return describe(self.quality)

    def document(self) -> dict[str, Any]:
        """Give plain values for JSON.

        Returns
        -------
        dict
            By the schema's field names, and ``quality_names``.
        """
        values = {name: getattr(self, name) for name in ENRICHMENT_FIELDS}
        for name in ("latent_mean", "latent_log_var"):
            values[name] = None if values[name] is None else [float(f"{value:.7g}") for value in values[name]]
        return values | {"quality_names": list(self.quality_names), "scored_at": self.scored_at.isoformat()}


ENRICHMENT_FIELDS = tuple(Enrichment.__dataclass_fields__)
_REQUIRED = frozenset(f"{FIELD}.{name}" for name in ("release", "latent_space", "quality", "scored_at"))


def read_enrichment(plan: FieldPlan, frame: Frame) -> Enrichment | None:
    """Read the appended field of a record.

    Parameters
    ----------
    plan : FieldPlan
        Of `enrichment_plan`.
    frame : Frame
        An opened message with the schema of the plan.

    Returns
    -------
    Enrichment or None
        None where the schema has no such field or the record has null there.

    Raises
    ------
    RejectedAlertError
        If the record is damaged.
    """
    if not _REQUIRED.isdisjoint(plan.missing):
        return None
    spans = plan.walk(frame.body)
    values: dict[str, Any] = {name: plan.value(frame.body, spans, at) for at, name in enumerate(ENRICHMENT_FIELDS)}
    if values["release"] is None:
        return None
    values["scored_at"] = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=values["scored_at"])
    return Enrichment(**values)


def enrichment_plan(writer: WriterSchema, limits: Limits = DEFAULT_LIMITS) -> FieldPlan:
    """Plan the way to the appended field's values.

    Parameters
    ----------
    writer : WriterSchema
        The messages' schema.
    limits : Limits
        Bounds on one record.

    Returns
    -------
    FieldPlan
        Its paths are those of `ENRICHMENT_FIELDS`.
    """
    return FieldPlan(writer.parsed, [f"{FIELD}.{name}" for name in ENRICHMENT_FIELDS], limits)


@dataclass(frozen=True, slots=True)
class Reading:
    """One message, understood."""

    alert: Alert
    profile: Profile
    """What its fields were read with; for a lite message that of the lite schema."""
    enrichment: Enrichment | None
    lite: bool

    def fields(self) -> dict[str, Any]:
        """Collect what identifies the alert.

        Returns
        -------
        dict
            ``alert_id``, ``object_id``, ``ra_deg``, ``dec_deg``, ``midpoint_mjd``, ``date``, ``time_scale`` and
            ``band``; None where the alert does not say.
        """
        field, profile = self.alert.field, self.profile
        mjd, object_id = profile.midpoint_mjd(field("time")), field("object_id")
        return {
            "alert_id": self.alert.alert_id,
            "object_id": None if object_id is None else str(object_id),
            "ra_deg": field("ra_deg"),
            "dec_deg": field("dec_deg"),
            "midpoint_mjd": mjd,
            "date": None if mjd is None else _calendar_date(mjd),
            "time_scale": self._time_scale(),
            "band": profile.band(field("band")),
        }

    def _time_scale(self) -> str:
        if not self.lite:
            return self.profile.time_scale
        frame = self.alert.frame
        plan = FieldPlan(frame.writer.parsed, ["time_scale"])
        return str(plan.value(frame.body, plan.walk(frame.body), 0))


def _calendar_date(mjd: float) -> str | None:
    try:
        return (_MJD_ZERO + timedelta(days=mjd)).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError):  # NaN and nonsense
        return None


class Reader:
    """Reads the messages of one topic, or files of one survey.

    Parameters
    ----------
    profile : Profile
        The survey.
    frames : FrameReader
        Knows framing and schemas.
    limits : Limits
        Bounds on one message.
    """

    def __init__(self, profile: Profile, frames: FrameReader | None = None, limits: Limits = DEFAULT_LIMITS) -> None:
        self.profile = profile
        self._frames = frames or FrameReader(limits=limits)
        self._lite = surveys.parse(_LITE_PROFILE, where="of lite messages")
        self._decoders = {
            False: Decoder(self._frames, profile, limits),
            True: Decoder(self._frames, self._lite, limits),
        }
        self._plans: LruCache[str, FieldPlan] = LruCache(limits.schema_cache_entries)

    def read(self, packet: Packet) -> Reading:
        """Understand one message.

        Parameters
        ----------
        packet : Packet
            As consumed, or a file's content.

        Returns
        -------
        Reading
            With the enrichment if it has one.

        Raises
        ------
        RejectedAlertError
            If it is no alert: what a worker would dead-letter it for.
        RetriableError
            If the schema registry cannot be reached.
        """
        writer = self._frames.open(packet.value).writer
        lite = str(writer.parsed.get("name", "")).rpartition(".")[2] == _LITE
        decoded = self._decoders[lite].decode([packet])
        if decoded.rejected:
            rejected = decoded.rejected[0]
            raise RejectedAlertError(rejected.error, reason=rejected.reason)
        (alert,) = decoded.alerts
        plan = self._plans.get(writer.digest) or self._plans.put(writer.digest, enrichment_plan(writer))
        return Reading(alert, self._lite if lite else self.profile, read_enrichment(plan, alert.frame), lite)


def reader_of(settings: Settings, topic: str | None = None, profile: Profile | None = None) -> Reader:
    """Make the reader for a topic of the settings.

    Parameters
    ----------
    settings : Settings
        Framing, registry, survey.
    topic : str, optional
        Schemaless messages of the output topics have another schema than those of the input topics.
    profile : Profile, optional
        Another survey's than the settings'.

    Returns
    -------
    Reader
        For input, output, lite and dead-letter topics.

    Raises
    ------
    ConfigError
        If the settings are not enough to read it.
    """
    section, limits = settings.kafka, assembly.limits_of(settings)
    registry = assembly.registry_of(settings.registry)
    if isinstance(registry, FolderRegistry):
        _register_outputs(registry, settings, limits)
    schema = None
    if section.framing is Framing.SCHEMALESS:
        schema = _schemaless(settings, topic)
    frames = FrameReader(framing=section.framing, schemas=registry, schema=schema, limits=limits)
    return Reader(profile or assembly.profile_of(settings), frames, limits)


def _schemaless(settings: Settings, topic: str | None) -> Mapping[str, Any]:
    section = settings.kafka
    path = section.schema_file
    assert path is not None  # the settings see to it
    try:
        writer = WriterSchema.parse(path.read_bytes())
    except (OSError, RejectedAlertError) as error:
        raise ConfigError(f"kafka.schema_file = {path} cannot be used: {error}.") from error
    frame, outputs = Frame(writer, b"", Framing.SCHEMALESS), OutputSchemas(None)
    if topic is not None and topic == section.output_topic:
        return outputs.full(frame, topic).schema
    if topic is not None and topic == section.lite_topic:
        return outputs.lite(frame, topic).schema
    return writer.parsed


def _register_outputs(registry: FolderRegistry, settings: Settings, limits: Limits) -> None:
    """Tell a folder of schemas the ids that a worker gave to what it published.

    A folder keeps nothing of them; but an id follows from the schema's text, so making the schemas again
    gives them again.
    """
    outputs, section = OutputSchemas(registry), settings.kafka
    for file in sorted(Path(settings.registry.url or "").glob("*.avsc")):
        try:
            writer = WriterSchema.parse(file.read_bytes(), limits)
            frame = Frame(writer, b"", Framing.CONFLUENT)
            if section.output_topic:
                outputs.full(frame, section.output_topic)
            if section.lite_topic:
                outputs.lite(frame, section.lite_topic)
        except (OSError, RejectedAlertError):
            continue  # not a writer schema, or one that no alert can be enriched with


def guess_profile(packet: Packet) -> Profile:
    """Find the shipped profile that fits a message best.

    Parameters
    ----------
    packet : Packet
        A message that says its schema itself.

    Returns
    -------
    Profile
        The one that finds most cutouts and fields; among equals the one that the schema's name speaks of.

    Raises
    ------
    ConfigError
        If none can read it.
    RejectedAlertError
        If it is no Avro file.
    """
    if FrameReader().open(packet.value).framing is not Framing.OCF:
        raise ConfigError("Only an Avro file says its own schema.", remedy="Give --settings or --survey.")
    profiles = [surveys.load(name) for name in surveys.names()]
    best = max(profiles, key=lambda profile: _fit(profile, packet))
    if _fit(best, packet) == _NO_FIT:
        raise ConfigError(
            f"None of the shipped profiles ({', '.join(surveys.names())}) finds an id and a cutout in this alert.",
            remedy="Name a profile of yours: --survey PATH.toml, or --settings with a [survey_profile].",
        )
    return best


_NO_FIT = (0, 0, False)


def _fit(profile: Profile, packet: Packet) -> tuple[int, int, bool]:
    try:
        reading = Reader(profile).read(packet)
        alert = reading.alert
        cutouts = sum(alert.cutout(name) is not None for name in surveys.CUTOUTS)
        found = sum(alert.field(name) is not None for name in surveys.Fields.model_fields)
    except RejectedAlertError as error:
        if error.reason in {Reason.SCHEMA, Reason.MISSING_ID}:  # another survey's names mean something else here
            return _NO_FIT
        raise
    schema = alert.frame.writer.parsed
    named = profile.name in f"{schema.get('namespace', '')}.{schema['name']}".lower()
    return (cutouts, found, named) if cutouts or reading.lite else _NO_FIT
