"""Checks of what scores alerts and of this machine: release, registry, port, a real alert, the clock."""

import socket
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter, time

import httpx
import numpy as np
import onnxruntime

from stream_vae import assembly, kafka
from stream_vae.alert import Packet
from stream_vae.avro.framing import Framing
from stream_vae.avro.registry import FolderRegistry
from stream_vae.avro.schema import WriterSchema
from stream_vae.backends import network_of
from stream_vae.errors import ConfigError, RejectedAlertError
from stream_vae.model.release import SCORER, Release
from stream_vae.model.store import ReleaseStore
from stream_vae.settings import Settings
from stream_vae.stages.encode import Encoder
from stream_vae.surveys import Profile
from stream_vae.tools import topics
from stream_vae.tools.checkup import Check, Finding, State
from stream_vae.tools.inspection import inspect
from stream_vae.tools.messages import reader_of

_SAMPLE = 5
"""Alerts that are tried: one may be damaged, five are a wrong setting."""
_BATCH = 128
_AHEAD_S = 5.0
"""Kafka's timestamps may be this far in the future before a clock is called wrong."""


@dataclass(slots=True)
class ModelChecks:
    """The questions that need no admin rights; what one finds, the next may use."""

    settings: Settings
    profile: Profile | None = None
    store: ReleaseStore | None = None
    release: Release | None = None
    sample: list[Packet] = field(default_factory=list)

    def first(self) -> list[Check]:
        """List the checks that need no Kafka.

        Returns
        -------
        list of Check
            In their order.
        """
        return [
            Check("survey", self.check_survey),
            Check("release", self.check_release, 120),  # a remote store sends megabytes
            Check("encoder", self.check_encoder, 60, needs=("release",)),
            Check("gpu", self.check_gpu),
            Check("cutouts", self.check_cutouts, needs=("release", "survey")),
            Check("registry", self.check_registry, 30),
            Check("metrics port", self.check_port),
        ]

    def last(self) -> list[Check]:
        """List the checks that read the input topics.

        Returns
        -------
        list of Check
            In their order.
        """
        return [
            Check("clock", self.check_clock, 60, needs=("brokers", "topics")),
            # The first walk of a fresh installation compiles for half a minute.
            Check("a real alert", self.check_alert, 180, needs=("encoder", "cutouts", "registry", "clock")),
        ]

    def check_survey(self) -> list[Finding]:
        """Ask whether there is a profile.

        Returns
        -------
        list of Finding
            One.

        Raises
        ------
        ConfigError
            If there is none.
        """
        self.profile = assembly.profile_of(self.settings)
        return [Finding("survey", State.GOOD, f"{self.profile.name}: {self.profile.description or 'your own'}")]

    def check_release(self) -> list[Finding]:
        """Ask whether the release is there and is what was released.

        Returns
        -------
        list of Finding
            One.

        Raises
        ------
        ConfigError
            If it is not.
        RetriableError
            If the store cannot be reached.
        """
        self.store = ReleaseStore(self.settings.release.store)
        release = self.store.load(self.settings.release.id)
        self.release = release
        says = f"{release.id}: {len(release.card.files)} files, every digest right"
        if release.path(SCORER) is None:
            remedy = "Alerts get codes and no real_score; train with labels to have one."
            return [Finding("release", State.WARNING, f"{says}; it has no scorer", remedy)]
        return [Finding("release", State.GOOD, says)]

    def check_encoder(self) -> list[Finding]:
        """Encode a batch of noise.

        Returns
        -------
        list of Finding
            One, with the time it took.

        Raises
        ------
        ConfigError
            If the encoder does not run.
        """
        assert self.release is not None
        wanted = self.release.card.preprocessing
        section = self.settings.encoder
        if section.actors:  # they may run on other machines, and are asked when the fleet starts
            section = section.model_copy(update={"device": "cpu"})
        encoder = Encoder(self.release, network_of(section, self.release))
        shape = (_BATCH, wanted.stamp_size, wanted.stamp_size, len(wanted.cutouts))
        stamps = np.random.default_rng(0).uniform(-1, 1, shape).astype(np.float32)
        encoder.run(stamps)
        started = perf_counter()
        codes = encoder.run(stamps)
        each_us = (perf_counter() - started) / _BATCH * 1e6
        if not (np.isfinite(codes.z_mean).all() and np.isfinite(codes.z_log_var).all()):
            raise ConfigError("The encoder gives NaN or infinity for noise.", remedy="Train the release again.")
        says = f"{each_us:.0f} us a stamp, {encoder.network.name}"
        return [Finding("encoder", State.GOOD, says)]

    def check_gpu(self) -> list[Finding]:
        """Ask whether there is a GPU that is not used; one that is used is the encoder's check.

        Returns
        -------
        list of Finding
            One; never bad.
        """
        section = self.settings.encoder
        if section.device == "gpu":
            where = f"{section.actors} actors" if section.actors else "every worker"
            return [Finding("gpu", State.GOOD, f"{section.gpus:g} for {where}: a fleet does not start without")]
        if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
            return [Finding("gpu", State.GOOD, "ONNX Runtime has its CUDA provider; encoder.device is cpu")]
        return [Finding("gpu", State.SKIPPED, "the encoder runs on the CPU, as encoder.device says")]

    def check_cutouts(self) -> list[Finding]:
        """Ask whether the survey has what the release needs.

        Returns
        -------
        list of Finding
            One.
        """
        assert self.release is not None
        assert self.profile is not None
        wanted = self.release.card.preprocessing.cutouts
        lacking = [name for name in wanted if not self.profile.cutouts.paths(name)]
        if lacking:
            says = f"the release needs {', '.join(lacking)}, for which {self.profile.name} names no field"
            remedy = "Train on the cutouts that the survey has, or add their paths to its profile."
            return [Finding("cutouts", State.BAD, says, remedy)]
        return [Finding("cutouts", State.GOOD, ", ".join(wanted))]

    def check_registry(self) -> list[Finding]:
        """Ask the schema registry for a schema.

        Returns
        -------
        list of Finding
            One.

        Raises
        ------
        ConfigError
            If it wants other credentials, or a folder has no schemas.
        RetriableError
            If it does not answer.
        """
        section = self.settings.registry
        if section.url is None:
            if self.settings.kafka.framing is Framing.CONFLUENT:
                remedy = "Set [registry] url: a registry's URL, or a folder of <id>.avsc files."
                return [Finding("registry", State.BAD, "none is set, and kafka.framing is confluent", remedy)]
            return [Finding("registry", State.SKIPPED, "none is set; only Confluent-framed topics need one")]
        registry = assembly.registry_of(section)
        assert registry is not None
        if isinstance(registry, FolderRegistry):
            return [_folder(Path(section.url))]
        with suppress(RejectedAlertError):  # if it says that there is no such schema, it answers
            registry.get(1)
        host = section.url.rpartition("@")[2]  # never a password
        return [Finding("registry", State.GOOD, f"answers at {host}")]

    def check_port(self) -> list[Finding]:
        """Ask whether metrics can be served.

        Returns
        -------
        list of Finding
            One.
        """
        section = self.settings.metrics
        if section.port is None:
            says = "none is set: no metrics, no health"
            return [
                Finding("metrics port", State.WARNING, says, "Set metrics.port = 9464, or whatever Prometheus asks.")
            ]
        where = f"{section.host}:{section.port}"
        try:
            with socket.socket() as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind((section.host, section.port))
        except OSError as error:
            if _serves_our_metrics(section.host, section.port):
                return [Finding("metrics port", State.GOOD, f"a worker serves {where} now")]
            remedy = "End what listens there, or set metrics.port to another."
            return [Finding("metrics port", State.BAD, f"{where}: {error.strerror}", remedy)]
        return [Finding("metrics port", State.GOOD, f"{where} is free" if section.port else "any that is free")]

    def check_clock(self) -> list[Finding]:
        """Compare this machine's clock with the newest alerts.

        Returns
        -------
        list of Finding
            One.

        Raises
        ------
        RetriableError
            If the input topics cannot be read.
        """
        section = self.settings.kafka
        for topic in kafka.partitions(section, section.input_topics):
            self.sample += topics.latest(section, topic, _SAMPLE)
        stamps = [packet.timestamp_ms for packet in self.sample if packet.timestamp_ms]
        here = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC here"
        if not stamps:
            return [Finding("clock", State.GOOD, f"{here}; no messages to compare with")]
        age_s = time() - max(stamps) / 1000
        if age_s < -_AHEAD_S:
            remedy = "Set the clocks by NTP: latencies and scored_at mean nothing otherwise."
            return [Finding("clock", State.WARNING, f"{here}; the newest alert is {-age_s:.0f} s ahead", remedy)]
        return [Finding("clock", State.GOOD, f"{here}; the newest alert is {max(age_s, 0):,.0f} s old")]

    def check_alert(self) -> list[Finding]:
        """Take the newest alerts all the way, and publish nothing.

        Returns
        -------
        list of Finding
            One.

        Raises
        ------
        RetriableError
            If the schema registry cannot be reached.
        """
        name = "a real alert"
        if not self.sample:
            return [Finding(name, State.SKIPPED, "the input topics are empty")]
        reader = reader_of(self.settings, self.sample[0].topic)
        says, problems = "", []
        for packet in self.sample:
            try:
                verdict = inspect(packet, reader, self.release).verdict
            except RejectedAlertError as error:
                problems.append(f"{packet.origin} cannot be decoded: {error.reason}: {error}")
                continue
            assert verdict is not None
            found = verdict.enrichment
            if found.latent_mean is None:
                problems.append(f"{packet.origin} cannot be scored: {', '.join(found.quality_names)}")
                continue
            score = "no score" if found.real_score is None else f"real_score {found.real_score:.3f}"
            says = f"{packet.origin}: {score}"
        if problems:
            state = State.WARNING if says else State.BAD
            remedy = "Check survey, kafka.framing and [registry]; `stream-vae inspect` shows the message."
            return [Finding(name, state, f"{len(problems)} of the newest {len(self.sample)}: {problems[-1]}", remedy)]
        return [Finding(name, State.GOOD, says)]


def _folder(path: Path) -> Finding:
    files = sorted(path.glob("*.avsc"))
    if not files:
        raise ConfigError(f"{path} holds no schemas.", remedy="Put <id>.avsc files there, one a schema id.")
    for file in files:
        try:
            WriterSchema.parse(file.read_bytes())
        except (OSError, RejectedAlertError) as error:
            raise ConfigError(f"{file} is no writer schema: {error}.", remedy="Replace or remove it.") from error
    return Finding("registry", State.GOOD, f"{path}: {len(files)} schemas")


def _serves_our_metrics(host: str, port: int) -> bool:
    try:
        reply = httpx.get(f"http://{host}:{port}/metrics", timeout=2, trust_env=False)
    except httpx.HTTPError:
        return False
    return "stream_vae_" in reply.text
