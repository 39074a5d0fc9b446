"""The settings of one deployment, and the only module that reads the environment.

Later wins: the TOML file, then secrets files, then ``STREAM_VAE_SECTION__FIELD`` variables, then what
the command line passes. Everything is frozen after that, unknown keys and unknown ``STREAM_VAE_``
variables are refused by name, and secrets never print.
"""

import json
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
    TomlConfigSettingsSource,
)

from stream_vae.avro.framing import Framing
from stream_vae.errors import ConfigError

ENV_PREFIX = "STREAM_VAE_"
SECRETS_DIR_VARIABLE = "STREAM_VAE_SECRETS_DIR"
"""A directory with one file per secret, named like the variables: ``kafka__sasl_password``."""

Option = str | int | float | bool
_SECRET_OPTION = re.compile(r"password|passphrase|secret|\.pem$|oauthbearer\.config$")
"""librdkafka's options that hold secrets, by their names."""
_URL_WITH_PASSWORD = re.compile(r"://[^/?#]*:[^/?#]*@")


def _comma_separated(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _hide_secrets(options: Mapping[str, Option | SecretStr]) -> dict[str, Option | SecretStr]:
    return {name: SecretStr(str(value)) if _is_secret(name, value) else value for name, value in options.items()}


def _is_secret(name: str, value: object) -> bool:
    if isinstance(value, SecretStr):
        return False  # it is hidden already
    return _SECRET_OPTION.search(name) is not None or _URL_WITH_PASSWORD.search(str(value)) is not None


Options = Annotated[dict[str, Option | SecretStr], AfterValidator(_hide_secrets)]
Topics = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_comma_separated)]


class Section(BaseModel):
    """A part of the settings; a stage gets its own and no other."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class KafkaSettings(Section):
    """Where alerts come from and go to."""

    bootstrap_servers: str = Field(description="host:port of one or more brokers, separated by commas")
    input_topics: Topics = Field(min_length=1, description="topics to consume; one starting with ^ is a pattern")
    output_topic: str | None = Field(default=None, description="enriched alerts: the original packet plus one field")
    lite_topic: str | None = Field(default=None, description="enrichments without the original packet")
    dead_letter_topic: str = Field(min_length=1, description="messages that cannot be decoded, bytes unchanged")
    group_id: str = Field(default="stream-vae", min_length=1, description="the consumer group")
    framing: Framing | None = Field(
        default=None, description="ocf, confluent or schemaless; absent: told from the bytes"
    )
    schema_file: Path | None = Field(default=None, description="the .avsc of schemaless messages")
    create_topics: bool = Field(default=False, description="create missing topics with the input's partitions")
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    options: Options = Field(default_factory=dict, description="raw librdkafka options for consumer and producer")
    consumer_options: Options = Field(default_factory=dict)
    producer_options: Options = Field(default_factory=dict)

    @model_validator(mode="after")
    def _has_somewhere_to_publish(self) -> "KafkaSettings":
        if not (self.output_topic or self.lite_topic):
            raise ValueError("set kafka.output_topic, kafka.lite_topic or both: there is nowhere to publish to")
        outputs = [topic for topic in (self.output_topic, self.lite_topic, self.dead_letter_topic) if topic]
        if len(set(outputs)) < len(outputs):
            raise ValueError("output_topic, lite_topic and dead_letter_topic must differ: their schemas do")
        if overlap := [topic for topic in outputs if any(_reads(given, topic) for given in self.input_topics)]:
            raise ValueError(
                f"{', '.join(sorted(overlap))} is both read and written: the alerts would go round for ever"
            )
        if self.framing is Framing.SCHEMALESS and self.schema_file is None:
            raise ValueError("kafka.framing = 'schemaless' needs kafka.schema_file, the writer's .avsc")
        return self


def _reads(given: str, topic: str) -> bool:
    """Tell whether an entry of ``input_topics`` takes in a topic."""
    try:
        return given == topic or (given.startswith("^") and re.search(given, topic) is not None)
    except re.error as error:
        raise ValueError(f"{given!r} is no pattern of topics: {error}") from None


class DeliverySettings(Section):
    """What is promised about each alert."""

    mode: Literal["at_least_once", "exactly_once"] = "at_least_once"
    transactional_id: str | None = Field(
        default=None, description="stable for this worker slot; absent: group id and worker number"
    )
    drain_timeout_s: float = Field(default=20.0, gt=0, description="longest wait for acknowledgements on a stop")


class BatchSettings(Section):
    """How alerts are grouped: whichever bound is reached first closes the batch."""

    # Small rounds keep packets in cache: see tests/bench/README.md.
    max_alerts: int = Field(default=128, ge=1, le=10_000)
    max_bytes: int = Field(default=16 * 2**20, ge=2**16)
    max_wait_s: float = Field(default=0.2, gt=0, le=60)
    max_in_flight: int = Field(default=2, ge=1, le=64, description="published batches that wait for acknowledgement")


class ReleaseSettings(Section):
    """Which model scores the alerts."""

    store: str = Field(description="folder or fsspec URL of the release store")
    id: str | None = Field(
        default=None, description="a release id, kept whatever the store calls current; absent: the current one"
    )
    poll_s: float = Field(default=10.0, gt=0, description="how often the store is asked for a new current release")
    shadow_share: float = Field(
        default=0.1, ge=0, le=1, description="the most of the alerts that a challenger in the shadow scores here"
    )
    probation_s: float = Field(
        default=3600.0, ge=0, description="so long a new current release may be rolled back without being asked"
    )

    @model_validator(mode="after")
    def _keeps_its_password_apart(self) -> "ReleaseSettings":
        if _URL_WITH_PASSWORD.search(self.store):
            raise ValueError(
                "take the password out of release.store, which is shown in messages: the store's own variables are for "
                "it (AWS_SECRET_ACCESS_KEY and the like), or FSSPEC_<SCHEME>_PASSWORD"
            )
        return self


class EncoderSettings(Section):
    """What runs the release's encoder, and where. On a CPU nothing is faster than the defaults."""

    backend: Literal["onnx", "tensorflow", "jax"] = Field(
        default="onnx", description="ONNX Runtime, or Keras compiled by XLA on TensorFlow or JAX"
    )
    device: Literal["cpu", "gpu"] = Field(default="cpu", description="gpu: an error where none is used")
    threads: int = Field(default=1, ge=1, description="ONNX Runtime threads of a process that encodes")
    max_stamps: int = Field(default=1024, ge=16, le=65_536, description="encoded at a time, on a GPU or by a pool")
    actors: int = Field(
        default=0, ge=0, le=256, description="Ray actors that encode for all workers; 0: each worker for itself"
    )
    cpus_per_actor: float = Field(default=1.0, ge=0, description="CPUs that Ray sets aside for an actor")
    gpus: float = Field(
        default=1.0, gt=0, description="GPUs, or a share of one, for each process that encodes, where device is gpu"
    )
    timeout_s: float = Field(default=10.0, gt=0, description="longest wait for an actor's answer; then the batch again")


class RegistrySettings(Section):
    """The schema registry of Confluent-framed topics."""

    url: str | None = Field(default=None, description="http(s) URL, mock://NAME, or a folder of <id>.avsc files")
    username: str | None = None
    password: SecretStr | None = None
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authority behind https; absent: the well-known ones"
    )

    @model_validator(mode="after")
    def _keeps_its_password_apart(self) -> "RegistrySettings":
        if any("@" in urlsplit(part).netloc for part in (self.url or "").split(",")):
            raise ValueError("take user and password out of registry.url: registry.username and registry.password")
        return self


class MetricsSettings(Section):
    """Prometheus metrics and health."""

    port: int | None = Field(default=None, ge=0, le=65_535, description="absent: not served; 0: any free port")
    host: str = "127.0.0.1"
    statistics_interval_s: float = Field(default=5.0, ge=0, description="librdkafka statistics; 0 switches them off")


class LimitSettings(Section):
    """Bounds on what one message may cost."""

    max_packet_bytes: int = Field(default=16 * 2**20, ge=1024)
    max_body_bytes: int = Field(default=32 * 2**20, ge=1024)
    max_cutout_bytes: int = Field(default=4 * 2**20, ge=2880, description="one cutout, decompressed")
    max_dead_letter_ratio: float = Field(
        default=0.5, gt=0, le=1, description="over this share in a minute the worker stops: the schema changed"
    )


class FleetSettings(Section):
    """Ray workers, for ``run --workers N``."""

    cpus_per_worker: float = Field(default=1.0, ge=0, description="CPUs that Ray sets aside for a worker")
    wait_for_cpus: bool = Field(
        default=False, description="the Ray cluster adds nodes on demand: do not refuse one that is too small now"
    )
    start_timeout_s: float = Field(
        default=180.0, gt=0, description="longest wait until a worker consumes: its place in the cluster, its release"
    )
    max_workers: int | None = Field(
        default=None, ge=1, description="with lag the fleet grows from --workers to so many; absent: its size is fixed"
    )
    lag_per_worker: int = Field(default=5_000, ge=1, description="waiting messages that ask for one worker each")
    scale_down_after_s: float = Field(
        default=300.0, ge=1, description="so long fewer workers must do before the fleet shrinks"
    )


class ReservoirSettings(Section):
    """The sample of stamps that retraining draws from; absent url: none is kept."""

    url: SecretStr | None = Field(
        default=None,
        description="redis://[user:password@]host:port/db, rediss:// for TLS, redis+cluster://, or unix:///path",
    )
    password: SecretStr | None = Field(
        default=None, description="of the user in the url, where it is kept apart: in a file of secrets"
    )
    ca_file: Path | None = Field(
        default=None, description="PEM file of the authority behind rediss; absent: the well-known ones"
    )
    capacity: int = Field(
        default=50_000, ge=1, le=10_000_000, description="stamps of all times to keep, about 1 kB each"
    )
    recent_capacity: int = Field(
        default=10_000, ge=0, le=10_000_000, description="besides, rather of late; 0 for none, as with the others"
    )
    recent_days: float = Field(
        default=7.0, gt=0, le=10_000, description="time in which an alert's chance among the recent ones falls to 1/e"
    )
    rare_capacity: int = Field(default=5_000, ge=0, le=10_000_000, description="besides, rather of high novelty")
    known_capacity: int = Field(
        default=10_000, ge=0, le=10_000_000, description="besides, of known asteroids and injected sources"
    )
    anchor_capacity: int = Field(
        default=10_000, ge=0, le=10_000_000, description="besides, labelled stamps; these stay for good"
    )


class DriftSettings(Section):
    """Is the stream still what the release was trained on? Limits are measured: training/LOG.md."""

    enabled: bool = True
    window_alerts: int = Field(default=5_000, ge=100, le=10_000_000, description="a window ends with so many alerts")
    window_s: float = Field(
        default=600.0, gt=0, description="or after so long, once it has least_alerts; then its figures are exported"
    )
    psi_limit: float = Field(
        default=0.4, gt=0, description="an alarm for a latent unit and for scores; for other figures a part of it"
    )
    least_alerts: int = Field(default=1_000, ge=100, description="in a window, or of a band in it, to say anything")
    post_interval_s: float = Field(
        default=10.0, gt=0, description="how often a worker reports to Redis, where reservoir.url is set"
    )


class RetrainSettings(Section):
    """When the model is trained anew from the reservoir, with what, and how a better one comes to be served."""

    every_h: float | None = Field(
        default=None, gt=0, description="so many hours after the last retraining comes the next; absent: no timer"
    )
    after_alerts: int | None = Field(
        default=None,
        ge=1,
        description="so many new alerts since the last retraining ask for the next; absent: no count",
    )
    on_drift: bool = Field(default=False, description="an alarm of drift asks for a retraining")
    least_interval_s: float = Field(
        default=3600.0, ge=0, description="no retraining sooner than this after the last one began, whatever asks"
    )
    promotion: Literal["direct", "canary", "shadow", "none"] = Field(
        default="direct",
        description="of a release that passed all gates: at once, after a trial on a share of the alerts or unseen, "
        "or by hand",
    )
    trial_share: float = Field(default=0.1, gt=0, le=1, description="share of the alerts of a trial")
    trial_alerts: int = Field(
        default=1_000, ge=100, description="a trial ends once workers report so many alerts at once that it scored"
    )
    trial_h: float = Field(default=24.0, gt=0, description="a trial that has not ended by then is withdrawn")
    work: Path | None = Field(
        default=None, description="folder of the retraining at hand, from which a killed one goes on; absent: none does"
    )
    cpus: float = Field(default=1.0, gt=0, description="CPUs that Ray sets aside for a retraining")
    gpus: float = Field(default=0.0, ge=0, description="GPUs, or a share of one, likewise")
    poll_s: float = Field(default=30.0, gt=0, description="how often it is looked whether to retrain")
    lock_s: float = Field(
        default=60.0, ge=1, description="a retraining that is dead or cut off holds its lock so long and no longer"
    )


class LabelSettings(Section):
    """Labels that people and programs give while alerts come; the trainer takes them into the reservoir."""

    topic: str | None = Field(
        default=None,
        min_length=1,
        description="labels as JSON, one a message, keyed by alert id; absent: none",
    )
    group_id: str | None = Field(
        default=None, min_length=1, description="the trainer's consumer group; absent: kafka.group_id and -labels"
    )


class FilterSettings(Section):
    """What is deliberately not published; counted, and never a default."""

    min_real_score: float | None = Field(
        default=None, ge=0, le=1, description="alerts scored below are filtered; unscored ones always pass"
    )


def _no_whitespace(value: str) -> str:
    if value != value.strip() or not value:
        raise ValueError("must not be empty or padded with spaces")
    return value


class Settings(BaseSettings):
    """Everything one deployment needs; see the classes of its sections."""

    model_config = SettingsConfigDict(env_prefix=ENV_PREFIX, env_nested_delimiter="__", frozen=True, extra="forbid")

    survey: Annotated[str, AfterValidator(_no_whitespace)] = Field(
        description="a profile's name, or the path of a profile in TOML"
    )
    survey_profile: dict[str, Any] | None = Field(
        default=None, description="a profile written here, for a survey that stream_vae has no file for"
    )
    kafka: KafkaSettings
    release: ReleaseSettings
    encoder: EncoderSettings = EncoderSettings()
    delivery: DeliverySettings = DeliverySettings()
    batch: BatchSettings = BatchSettings()
    registry: RegistrySettings = RegistrySettings()
    metrics: MetricsSettings = MetricsSettings()
    fleet: FleetSettings = FleetSettings()
    limits: LimitSettings = LimitSettings()
    filter: FilterSettings = FilterSettings()
    reservoir: ReservoirSettings = ReservoirSettings()
    drift: DriftSettings = DriftSettings()
    retrain: RetrainSettings = RetrainSettings()
    labels: LabelSettings = LabelSettings()

    @model_validator(mode="after")
    def _keeps_labels_apart(self) -> "Settings":
        topic, alerts = self.labels.topic, self.kafka
        if topic is None:
            return self
        if topic in {alerts.output_topic, alerts.lite_topic, alerts.dead_letter_topic}:
            raise ValueError(f"labels.topic = {topic} is written by workers: give labels a topic of their own")
        if any(_reads(given, topic) for given in alerts.input_topics):
            raise ValueError(
                f"labels.topic = {topic} is read by workers, for whom a label is no alert: see input_topics"
            )
        if self.labels_group_id == alerts.group_id:
            raise ValueError("labels.group_id is that of the workers, who would get some of the labels: give another")
        return self

    @property
    def labels_group_id(self) -> str:
        """The consumer group that labels are read with."""
        return self.labels.group_id or f"{self.kafka.group_id}-labels"

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Order the sources: flags, environment, secrets files, TOML."""
        del dotenv_settings  # a .env file in the working directory is a surprise, not a setting
        del file_secret_settings  # passes over files that it does not know
        secrets_dir = settings_cls.model_config.get("secrets_dir")
        secrets = _read_secrets(Path(str(secrets_dir))) if secrets_dir else {}
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, secrets),
            TomlConfigSettingsSource(settings_cls),
        )


def load(path: Path | None = None, **flags: Any) -> Settings:
    """Read the settings.

    Parameters
    ----------
    path : Path, optional
        The TOML file; without one everything comes from the environment.
    **flags : Any
        What the command line sets, by top-level name; wins over everything else.

    Returns
    -------
    Settings
        Validated and frozen.

    Raises
    ------
    ConfigError
        Naming each wrong key, what is wrong with it and where settings come from.
    """
    _check_file(path)
    _refuse_unknown_variables(os.environ)
    secrets_dir = os.environ.get(SECRETS_DIR_VARIABLE)
    if secrets_dir and not Path(secrets_dir).is_dir():
        raise ConfigError(f"{SECRETS_DIR_VARIABLE} is {secrets_dir!r}, which is no directory.")

    class Loaded(Settings):
        model_config = SettingsConfigDict(toml_file=path, secrets_dir=secrets_dir)

    try:
        return Loaded(**flags)
    except (ValidationError, SettingsError) as error:
        raise ConfigError(_explain(error, path)) from None


def to_plain(settings: Settings) -> dict[str, Any]:
    """Write settings for another process of ours.

    Parameters
    ----------
    settings : Settings
        Everything.

    Returns
    -------
    dict
        Numbers, strings, lists and dictionaries, with the **secrets in clear**: to be sent, never shown or kept.
    """
    document: dict[str, Any] = _plain(settings.model_dump())
    return document


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if isinstance(value, SecretStr):
        return value.get_secret_value()
    return str(value) if isinstance(value, Path | Framing) else value


class _Sent(Settings):
    """Settings that are complete: this process's environment and files have no say."""

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        del settings_cls, env_settings, dotenv_settings, file_secret_settings
        return (init_settings,)


def from_plain(document: Mapping[str, Any]) -> Settings:
    """Read what `to_plain` wrote.

    Parameters
    ----------
    document : Mapping
        Complete settings.

    Returns
    -------
    Settings
        The same as were written.

    Raises
    ------
    ConfigError
        If this process has another version of the settings than the one that wrote them.
    """
    try:
        return _Sent(**document)
    except ValidationError as error:
        raise ConfigError(_explain(error, None), remedy="Run the same stream_vae on every node.") from None


def _check_file(path: Path | None) -> None:
    if path is None:
        return
    try:
        tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(
            f"Cannot read the settings file {path}: {error.strerror}.",
            remedy="`stream-vae config init` writes one to start from.",
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}.") from error


def _names(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, bool]]:
    """Yield the name of every setting as variables have it without their prefix, and whether it is a table."""
    for name, field in model.model_fields.items():
        kinds = (field.annotation, *get_args(field.annotation))
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel):
            yield prefix + name.upper(), True
            yield from _names(field.annotation, f"{prefix}{name.upper()}__")
        else:
            yield prefix + name.upper(), any(get_origin(kind) is dict for kind in kinds)


def _refuse_unknown_variables(environment: Mapping[str, str]) -> None:
    known = dict(_names(Settings)) | {SECRETS_DIR_VARIABLE.removeprefix(ENV_PREFIX): False}
    for variable, value in environment.items():
        name = variable.upper().removeprefix(ENV_PREFIX)
        if name == variable.upper():
            continue
        if name not in known:
            near = get_close_matches(name, known, n=1)
            everything = ", ".join(sorted(known))
            hint = f"Did you mean {ENV_PREFIX}{near[0]}?" if near else f"After {ENV_PREFIX} may stand {everything}."
            raise ConfigError(f"The environment variable {variable} is not a setting.", remedy=hint)
        if known[name] and not _is_json_object(value):
            raise ConfigError(
                f"The environment variable {variable} is a table and not written as a JSON object.",
                remedy='Write it like {"key": "value"}.',
            )


def _is_json_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except ValueError:
        return False


def _read_secrets(folder: Path) -> dict[str, Any]:
    """Read the secrets files; files that begin with a dot are Kubernetes' own."""
    known = {name.lower() for name, is_table in _names(Settings) if not is_table}
    secrets: dict[str, Any] = {}
    for file in sorted(folder.iterdir()):
        if file.name.startswith("."):
            continue
        name = file.name.lower()
        if name not in known:
            near = get_close_matches(name, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else "Files are named like kafka__sasl_password."
            raise ConfigError(f"The secrets file {file} is not a setting.", remedy=hint)
        try:
            value = file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"The secrets file {file} cannot be read: {type(error).__name__}.") from error
        *sections, key = name.split("__")
        table = secrets
        for section in sections:
            table = table.setdefault(section, {})
        table[key] = value
    return secrets


def _explain(error: ValidationError | SettingsError, path: Path | None) -> str:
    where = f" of {path} and the environment" if path else " of the environment (no settings file was given)"
    if isinstance(error, SettingsError):
        return f"The settings{where} cannot be read: {error}."
    lines = [f"The settings{where} are wrong:"]
    for problem in error.errors(include_input=False, include_url=False):
        key = ".".join(str(part) for part in problem["loc"])
        lines.append(f"  {key or 'settings'}: {_message(problem['type'], problem['msg'], key)}")
    return "\n".join(lines)


def _message(kind: str, message: str, key: str) -> str:
    model = _model_at(key)
    if kind == "missing" and model is not None:
        required = [f"{key}.{name}" for name, field in model.model_fields.items() if field.is_required()]
        return f"is required: set at least {', '.join(required)}."
    if kind == "model_type":
        return f"must be a table: [{key}]."
    if kind == "missing":
        return f"is required; set it in the file or as {ENV_PREFIX}{key.upper().replace('.', '__')}."
    if kind == "extra_forbidden":
        section, _, name = key.rpartition(".")
        around = _model_at(section) if section else Settings
        known = list(around.model_fields) if around is not None else []
        near = get_close_matches(name, known, n=1)
        return f"is no setting; did you mean {near[0]}?" if near else f"is no setting; known here: {', '.join(known)}."
    return message.removeprefix("Value error, ")


def _model_at(key: str) -> type[BaseModel] | None:
    field = Settings.model_fields.get(key)
    kind = None if field is None else field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None
