"""What ``run`` asks of its surroundings before anything is consumed: the doctor's questions whose answer can be no.

`stream_vae.runtime.worker` checks what it cannot do without, in every process of a fleet; this is asked once, where a
person waits for the answer. What brokers do not tell is no fault.
"""

import logging

from stream_vae.errors import ConfigError, RetriableError
from stream_vae.runtime.worker import check_topics
from stream_vae.settings import Settings
from stream_vae.tools.checks_kafka import KafkaChecks
from stream_vae.tools.checks_model import ModelChecks
from stream_vae.tools.checkup import Finding, State, examine

log = logging.getLogger(__name__)


def check_surroundings(settings: Settings) -> None:
    """Check topics, rights, message sizes and the registry's credentials.

    Parameters
    ----------
    settings : Settings
        Everything.

    Raises
    ------
    ConfigError
        Naming all that is wrong, each with its remedy.
    """
    check_topics(settings)
    bad = [*_findings(settings), *_registry(settings)]
    if bad:
        says = "; ".join(f"{finding.name}: {finding.says}" for finding in bad)
        raise ConfigError(f"{says}.", remedy="\n".join(["", *dict.fromkeys(finding.remedy for finding in bad)]))


def _findings(settings: Settings) -> list[Finding]:
    return [found for found in examine(KafkaChecks(settings).at_start()) if found.state is State.BAD]


def _registry(settings: Settings) -> list[Finding]:
    """Ask a registry whether it knows us; one that does not answer is asked again for every batch that needs it."""
    try:
        return [found for found in ModelChecks(settings).check_registry() if found.state is State.BAD]
    except RetriableError as error:
        log.warning("%s Workers start, and try again when a message needs it.", error)
    except ConfigError as error:
        return [Finding("registry", State.BAD, str(error.args[0]).rstrip("."), error.remedy)]
    return []
