"""From settings to parts: the one place where stages are put together."""

import json
from collections.abc import Mapping
from typing import Any

from stream_vae import surveys
from stream_vae.avro.framing import FrameReader, Framing
from stream_vae.avro.limits import Limits
from stream_vae.avro.registry import SchemaSource, open_registry
from stream_vae.backends import OpenNetwork, network_of
from stream_vae.errors import ConfigError, RejectedAlertError
from stream_vae.metrics import Metrics
from stream_vae.model.release import Release
from stream_vae.model.store import ReleaseStore
from stream_vae.pipeline import Stages
from stream_vae.reservoir import Reservoir, address, connect
from stream_vae.runtime.monitor import Monitor
from stream_vae.runtime.offering import TIMEOUT_S, Offering
from stream_vae.runtime.vitals import Poster
from stream_vae.sampling import CAPACITY_SETTINGS, Capacities
from stream_vae.settings import KafkaSettings, RegistrySettings, Settings
from stream_vae.stages.decode import Decoder
from stream_vae.stages.encode import Encoder
from stream_vae.stages.enrich import Enricher, OutputSchemas, Topics
from stream_vae.stages.score import Scorer
from stream_vae.stages.stamp import Stamper
from stream_vae.surveys import Profile


def profile_of(settings: Settings) -> Profile:
    """Find the survey's profile.

    Parameters
    ----------
    settings : Settings
        ``survey`` and ``survey_profile``.

    Returns
    -------
    Profile
        Validated.

    Raises
    ------
    ConfigError
        If there is no such profile.
    """
    return surveys.load(settings.survey, settings.survey_profile)


def limits_of(settings: Settings) -> Limits:
    """Return the bounds on one message.

    Parameters
    ----------
    settings : Settings
        ``[limits]``.

    Returns
    -------
    Limits
        For the Avro readers.
    """
    return Limits(max_packet_bytes=settings.limits.max_packet_bytes, max_body_bytes=settings.limits.max_body_bytes)


def registry_of(settings: RegistrySettings) -> SchemaSource | None:
    """Open the schema registry.

    Parameters
    ----------
    settings : RegistrySettings
        ``[registry]``.

    Returns
    -------
    SchemaSource or None
        None if there is none.

    Raises
    ------
    ConfigError
        If its URL is wrong.
    """
    if settings.url is None:
        return None
    authority = None if settings.ca_file is None else str(settings.ca_file)
    if settings.username is None:
        return open_registry(settings.url, ca_file=authority)
    password = settings.password.get_secret_value() if settings.password else ""
    return open_registry(settings.url, (settings.username, password), ca_file=authority)


def _schemaless(settings: KafkaSettings) -> Mapping[str, Any] | None:
    if settings.schema_file is None:
        return None
    try:
        schema: dict[str, Any] = json.loads(settings.schema_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"kafka.schema_file = {settings.schema_file} cannot be read: {error}.") from error
    return schema


def decoder_of(settings: Settings, registry: SchemaSource | None) -> Decoder:
    """Make the decoder.

    Parameters
    ----------
    settings : Settings
        Survey, framing, limits.
    registry : SchemaSource or None
        Where schemas behind ids are.

    Returns
    -------
    Decoder
        For the settings' survey.

    Raises
    ------
    ConfigError
        If the framing needs what the settings do not give.
    """
    limits = limits_of(settings)
    framing: Framing | None = settings.kafka.framing
    schema = _schemaless(settings.kafka)
    try:
        frames = FrameReader(framing=framing, schemas=registry, schema=schema, limits=limits)
    except RejectedAlertError as error:
        raise ConfigError(f"kafka.schema_file = {settings.kafka.schema_file} is no record schema: {error}.") from error
    section = settings.reservoir
    return Decoder(
        frames, profile_of(settings), limits, solar_system=section.url is not None and section.known_capacity > 0
    )


def stages_of(
    settings: Settings,
    release: Release,
    registry: SchemaSource | None,
    *,
    before: Stages | None = None,
    open_network: OpenNetwork | None = None,
) -> Stages:
    """Put the stages of one release together.

    Parameters
    ----------
    settings : Settings
        Everything.
    release : Release
        Verified.
    registry : SchemaSource or None
        From `registry_of`.
    before : Stages, optional
        Of the release that scored until now: what does not depend on the release is shared, caches and all.
    open_network : callable, optional
        Makes the encoder's network; absent: in this process, as ``[encoder]`` says.

    Returns
    -------
    Stages
        Warmed up: compiled, and run once.

    Raises
    ------
    ConfigError
        If the release does not fit the survey, or a part of it does not work.
    RetriableError
        If what encodes cannot be reached now.
    """
    profile = profile_of(settings)
    wanted = release.card.preprocessing
    if lacking := [name for name in wanted.cutouts if not profile.cutouts.paths(name)]:
        raise ConfigError(
            f"Release {release.id} needs the cutouts {', '.join(wanted.cutouts)}; survey {profile.name} has no "
            f"{', '.join(lacking)}.",
            remedy="Train a release on the cutouts that the survey has, or add their paths to its profile.",
        )
    topics = Topics(settings.kafka.output_topic, settings.kafka.lite_topic, settings.kafka.dead_letter_topic)
    network = open_network(release) if open_network else network_of(settings.encoder, release)
    encoder = Encoder(release, network)
    outputs = before.enricher.outputs if before else OutputSchemas(registry)
    return Stages(
        decoder=before.decoder if before else decoder_of(settings, registry),
        stamper=Stamper(wanted, profile.cutouts, settings.limits.max_cutout_bytes),
        encoder=encoder,
        scorer=Scorer(release),
        enricher=Enricher(release.card, profile, topics, outputs, settings.filter.min_real_score),
        dead_letter_topic=settings.kafka.dead_letter_topic,
    )


def reservoir_of(settings: Settings, *, timeout_s: float = 10.0) -> Reservoir:
    """Open the survey's reservoir; nothing is sent yet.

    Parameters
    ----------
    settings : Settings
        ``survey`` and ``[reservoir]``.
    timeout_s : float
        Longest wait for an answer.

    Returns
    -------
    Reservoir
        To be closed.

    Raises
    ------
    ConfigError
        If none is configured, or its URL is wrong.
    """
    if settings.reservoir.url is None:
        raise ConfigError(
            "No reservoir is configured: reservoir.url is not set.",
            remedy='Add `url = "redis://HOST:6379/0"` under [reservoir] for the workers too: they fill it.',
        )
    url = settings.reservoir.url.get_secret_value()
    client = connect(url, timeout_s=timeout_s, ca_file=settings.reservoir.ca_file, password=settings.reservoir.password)
    capacity = settings.reservoir.anchor_capacity
    return Reservoir(client, profile_of(settings).name, where=address(url), anchor_capacity=capacity)


def capacities_of(settings: Settings) -> Capacities:
    """Return how many stamps the reservoir may keep.

    Parameters
    ----------
    settings : Settings
        ``[reservoir]``.

    Returns
    -------
    Capacities
        By stratum.
    """
    return Capacities._make(getattr(settings.reservoir, name) for name in CAPACITY_SETTINGS)


def offering_of(settings: Settings, release: Release, metrics: Metrics) -> Offering | None:
    """Start to offer a worker's stamps to the reservoir.

    Parameters
    ----------
    settings : Settings
        ``survey`` and ``[reservoir]``.
    release : Release
        That prepares the stamps.
    metrics : Metrics
        Where to count.

    Returns
    -------
    Offering or None
        None if no reservoir is configured. To be closed; a Redis that does not answer is no error here.

    Raises
    ------
    ConfigError
        If the URL is wrong.
    """
    if settings.reservoir.url is None:
        return None
    reservoir = reservoir_of(settings, timeout_s=TIMEOUT_S)
    return Offering(
        reservoir,
        release.card.preprocessing,
        capacities_of(settings),
        metrics,
        profile=profile_of(settings),
        recent_days=settings.reservoir.recent_days,
    )


def monitor_of(settings: Settings, metrics: Metrics, *, slot: int = 0) -> Monitor | None:
    """Start to watch over a worker's releases.

    Parameters
    ----------
    settings : Settings
        ``survey``, ``[drift]`` and ``[reservoir]``, whose Redis is reported to.
    metrics : Metrics
        Where figures go.
    slot : int
        The worker's number.

    Returns
    -------
    Monitor or None
        None if drift is not enabled. To be closed; a Redis that does not answer is no error here.

    Raises
    ------
    ConfigError
        If the URL is wrong.
    """
    if not settings.drift.enabled:
        return None
    profile, poster = profile_of(settings), None
    if settings.reservoir.url is not None:
        url = settings.reservoir.url.get_secret_value()
        client = connect(
            url, timeout_s=TIMEOUT_S, ca_file=settings.reservoir.ca_file, password=settings.reservoir.password
        )
        interval_s = settings.drift.post_interval_s
        poster = Poster(client, profile.name, slot, metrics, interval_s=interval_s)
    return Monitor(settings.drift, profile, metrics, poster)


def release_of(settings: Settings) -> Release:
    """Load and verify the release that the settings name.

    Parameters
    ----------
    settings : Settings
        ``[release]``.

    Returns
    -------
    Release
        Verified; its files last as long as the process.

    Raises
    ------
    ConfigError
        If it is not there or damaged.
    """
    store = ReleaseStore(settings.release.store)
    _OPEN_STORES.append(store)
    try:
        return store.load(settings.release.id)
    except ConfigError as error:
        raise ConfigError(f"release.store: {error.args[0]}", remedy=error.remedy) from error


_OPEN_STORES: list[ReleaseStore] = []
"""Local copies of remote releases last as long as their store object."""
