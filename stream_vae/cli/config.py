"""``stream-vae config``: see, check and begin a settings file."""

from pathlib import Path
from typing import Annotated

import typer

from stream_vae import surveys
from stream_vae.cli import app, console
from stream_vae.cli.options import AsJson, SettingsFile, answer, load
from stream_vae.errors import ConfigError

group = typer.Typer(no_args_is_help=True, help="Show, check or begin a settings file.")
app.add_typer(group, name="config")

_TEMPLATE = """\
survey = "{survey}"                     # {names}; or the path of a profile

[kafka]
bootstrap_servers = "localhost:9092"
input_topics = ["{survey}-alerts"]
output_topic = "{survey}-enriched"      # the original packet plus one field
# lite_topic = "{survey}-lite"          # the enrichment alone
dead_letter_topic = "{survey}-dead-letters"
group_id = "stream-vae"
# create_topics = true                  # make missing topics: for a first try
# options = {{ "security.protocol" = "SASL_SSL" }}   # anything librdkafka knows

[release]
store = "releases"                      # a folder, s3://..., gs://...

[delivery]
mode = "at_least_once"                  # or "exactly_once"

[metrics]
port = 9464

# [reservoir]                           # a sample of stamps, for `stream-vae retrain`
# url = "redis://localhost:6379/0"

# [drift]                               # is the stream what the release was trained on? on by default
# psi_limit = 0.4                       # an alarm above; deploy/README.md has what it means

# [retrain]                             # for a running `stream-vae retrain`; deploy/README.md, "Keep the model current"
# every_h = 24
# on_drift = true
# promotion = "shadow"                  # a trial first; "direct": at once, "none": by hand
# work = "/var/lib/stream-vae/retrain"  # a killed retraining goes on from here

# [labels]                              # labels that come by Kafka; the running `stream-vae retrain` takes them in
# topic = "{survey}-labels"

# [registry]                            # for Confluent-framed topics such as LSST's
# url = "http://localhost:8081"         # or a folder of <id>.avsc files
"""


@group.command()
def show(settings: SettingsFile = None, as_json: AsJson = False) -> None:
    """Show what is in force after file, secrets and environment; secrets stay hidden.

    Examples:

        stream-vae config show --settings ztf.toml
    """
    document = load(settings).model_dump(mode="json", exclude_none=not as_json)
    if as_json:
        answer(document)
    else:
        console.print_json(data=document)


@group.command()
def check(settings: SettingsFile = None) -> None:
    """Check the settings and the survey's profile, without touching Kafka (`doctor` does that).

    Examples:

        stream-vae config check --settings ztf.toml
    """
    loaded = load(settings)
    profile = surveys.load(loaded.survey, loaded.survey_profile)
    topics = ", ".join(loaded.kafka.input_topics)
    console.print(f"[green]Good.[/green] Survey {profile.name}: {topics} to ", end="")
    outputs = [topic for topic in (loaded.kafka.output_topic, loaded.kafka.lite_topic) if topic]
    console.print(f"{' and '.join(outputs)}, {loaded.delivery.mode.replace('_', ' ')}.")


@group.command()
def init(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Where to write it.")],
    survey: Annotated[str, typer.Option(help="Profile of the survey.")] = "ztf",
) -> None:
    """Write a settings file to start from.

    Examples:

        stream-vae config init ztf.toml --survey ztf
    """
    surveys.load(survey)
    if file.exists():
        raise ConfigError(f"{file} exists.", remedy="Choose another name; nothing was written.")
    file.write_text(_TEMPLATE.format(survey=survey, names=", ".join(surveys.names())), encoding="utf-8")
    console.print(f"Wrote {file}. Next: edit it, then [bold]stream-vae doctor --settings {file}[/bold].")
