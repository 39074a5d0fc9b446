"""What Kafka refuses, in words that name the setting or the right that is missing.

librdkafka says what it saw on the wire; an operator wants to know what to change.
"""

import re
import socket
import ssl

from confluent_kafka import KafkaError

from stream_vae.errors import ConfigError, FatalError, RetriableError, StreamVaeError

_HOPELESS = frozenset((KafkaError._AUTHENTICATION, KafkaError._SSL))  # noqa: SLF001 - librdkafka's local errors
_TLS_ALERT = re.compile(r"tls alert ([a-z ]+)")
"""What brokers answer to a certificate that they do not like, or miss."""
_FRAMING = re.compile(r"^\S+: (\S+:\d+/\w+: )?| \(after \d+ms in state .*$")
"""What librdkafka puts around its reasons: the broker's address before, how long it took behind."""
_TLS_PROBE_S = 3.0


def is_hopeless(error: KafkaError) -> bool:
    """Tell whether other credentials or certificates are needed, so that no waiting helps.

    Parameters
    ----------
    error : KafkaError
        What a client complained of.

    Returns
    -------
    bool
        True for what is wrong with either.
    """
    return error.code() in _HOPELESS or _TLS_ALERT.search(error.str()) is not None


def refusal(error: KafkaError, servers: str, authority: str | None, what: str, last_line: str = "") -> ConfigError:
    """Say what keeps a client from its brokers, and which setting is for it.

    Parameters
    ----------
    error : KafkaError
        What librdkafka complained of.
    servers : str
        ``kafka.bootstrap_servers``.
    authority : str or None
        The file of the authority that we trust, as ``ssl.ca.location`` has it.
    what : str
        What the brokers do, where the fault is neither credentials nor certificates.
    last_line : str
        Of librdkafka's log, where its error says little: brokers that hang up are told of there alone.

    Returns
    -------
    ConfigError
        With the remedy.
    """
    says = _FRAMING.sub("", last_line or error.str()).strip().rstrip(".")
    where = f"Kafka at kafka.bootstrap_servers = {servers!r}"
    if error.code() == KafkaError._AUTHENTICATION:  # noqa: SLF001
        return ConfigError(
            f"{where} does not accept our credentials: {says}.",
            remedy="Check kafka.sasl_username, kafka.sasl_password, and sasl.mechanism in kafka.options.",
        )
    if (alert := _TLS_ALERT.search(says)) is not None:
        return ConfigError(
            f"{where} does not accept our certificate: {alert.group(1).strip()}.",
            remedy="Set ssl.certificate.location and ssl.key.location in kafka.options to a certificate whose "
            "authority the brokers trust, and its key.",
        )
    if "certificate verify failed" in says:
        return _not_verified(servers, authority, where)
    if error.code() == KafkaError._SSL:  # noqa: SLF001
        return ConfigError(
            f"{where} does not speak TLS with us: {says}.",
            remedy="Check security.protocol and the port: is it the brokers' TLS listener?",
        )
    if "Disconnected" in says:
        return ConfigError(
            f"{where} hangs up: {says}.",
            remedy="Set security.protocol in kafka.options to that of the listener at this port: PLAINTEXT, SSL, "
            "SASL_SSL or SASL_PLAINTEXT.",
        )
    return ConfigError(
        f"{where} {what}: {says}.",
        remedy="Check the address, the network and security.protocol in kafka.options; `stream-vae doctor` helps.",
    )


def _not_verified(servers: str, authority: str | None, where: str) -> ConfigError:
    """Find out what librdkafka does not tell: is it the authority, or the name?"""
    reason = "it cannot be verified"
    for server in servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            context = ssl.create_default_context(cafile=authority)
            with socket.create_connection((host.strip("[]"), int(port)), timeout=_TLS_PROBE_S) as plain:
                context.wrap_socket(plain, server_hostname=host.strip("[]")).close()
        except ssl.SSLCertVerificationError as error:
            reason = error.verify_message.rstrip(".")
            if error.verify_code in _OTHER_NAME:
                return ConfigError(
                    f"{where}: the certificate of {server.strip()} is for another name: {reason}.",
                    remedy="Name brokers in kafka.bootstrap_servers, and in their advertised.listeners, as their "
                    "certificates do.",
                )
        except (OSError, ValueError):
            continue
    return ConfigError(
        f"{where}: its certificate is not trusted: {reason}.",
        remedy="Set ssl.ca.location in kafka.options to the PEM file of the authority that signed it.",
    )


_OTHER_NAME = frozenset((62, 64))
"""X509_V_ERR_HOSTNAME_MISMATCH and X509_V_ERR_IP_ADDRESS_MISMATCH of OpenSSL's x509_vfy.h."""


_RIGHTS = {
    KafkaError.TOPIC_AUTHORIZATION_FAILED: "READ on the input topics and WRITE on the others (--topic)",
    KafkaError.GROUP_AUTHORIZATION_FAILED: "READ on kafka.group_id (--group)",
    KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED: "WRITE on ids that begin with kafka.group_id, or "
    "delivery.transactional_id if that is set (--transactional-id, --resource-pattern-type prefixed)",
    KafkaError.CLUSTER_AUTHORIZATION_FAILED: "what it names (--cluster)",
}


def as_error(error: KafkaError, doing: str) -> StreamVaeError:
    """Turn librdkafka's error into ours.

    Parameters
    ----------
    error : KafkaError
        What a client reported.
    doing : str
        What was being done, for the message.

    Returns
    -------
    ConfigError, FatalError or RetriableError
        By what helps: other rights or settings, a new process, or waiting.
    """
    message = f"Kafka, {doing}: {error.str()} ({error.name()})."
    if (right := _RIGHTS.get(error.code())) is not None:
        return ConfigError(message, remedy=f"Grant our user {right}: kafka-acls.sh --add; `stream-vae doctor` tells.")
    if error.code() == KafkaError.INVALID_TRANSACTION_TIMEOUT:
        return ConfigError(
            message,
            remedy="Lower transaction.timeout.ms in kafka.producer_options, and message.timeout.ms below it, or raise "
            "transaction.max.timeout.ms of the brokers.",
        )
    if error.code() in _HOPELESS:
        return ConfigError(
            message, remedy="Credentials or certificates changed: see kafka.sasl_* and ssl.* in kafka.options."
        )
    if error.retriable() and not error.fatal():
        return RetriableError(message)
    return FatalError(message)
