"""Errors, sorted by what the caller can do next.

==================== =============================================================
`ConfigError`        exit at start; the message names the key and the remedy
`RejectedAlertError` this alert only: dead-letter it, with a reason from `Reason`
`RetriableError`     the batch: back off, leave the offsets where they are
`FatalError`         stop; whoever supervises the process starts it again
==================== =============================================================

All of them survive pickling (a Ray worker's errors cross processes) because every
argument after the message is a keyword with a default.
"""

from enum import StrEnum


class Reason(StrEnum):
    """Why one message went to the dead-letter topic: the closed list that metrics and headers use."""

    EMPTY = "empty"
    FRAMING = "framing"
    """Not the framing that was configured, or its header is damaged."""
    CODEC = "codec"
    """An Avro block codec that is not supported, or a block that does not decompress."""
    SCHEMA = "schema"
    """A writer schema that does not parse, is unknown to the registry, or lacks a required field."""
    TRUNCATED = "truncated"
    """The bytes end before the record does."""
    TRAILING_BYTES = "trailing_bytes"
    """The record ends before the bytes do: the wrong schema, or junk behind it."""
    MALFORMED = "malformed"
    """A length, count, union branch or varint that no encoder writes."""
    TOO_LARGE = "too_large"
    """Over a configured bound: message, block, array count or nesting depth."""
    MULTIPLE_RECORDS = "multiple_records"
    """An Avro file with other than exactly one record."""
    MISSING_ID = "missing_id"
    """The field that identifies the alert is null or absent."""
    POISON = "poison"
    """The encoder fails on this alert alone."""
    TOO_LARGE_TO_PUBLISH = "too_large_to_publish"
    """The output topic refuses a message of this size."""
    NO_LABEL = "no_label"
    """A message of the labels topic that is no label: no JSON object, or one of its values is wrong."""
    NO_ROOM = "no_room"
    """A label for which the reservoir has no room."""


class StreamVaeError(Exception):
    """Base of every error that stream_vae raises on purpose.

    Parameters
    ----------
    message : str
        What happened.
    remedy : str
        What the reader can do about it; shown after the message.
    """

    exit_code = 1

    def __init__(self, message: str = "", *, remedy: str = "") -> None:
        super().__init__(message)
        self.remedy = remedy

    def __str__(self) -> str:
        message = super().__str__()
        return f"{message} {self.remedy}" if self.remedy else message


class ConfigError(StreamVaeError):
    """Settings, a release or the surroundings are wrong: nothing was started."""

    exit_code = 2


class RejectedAlertError(StreamVaeError):
    """One message cannot be processed: dead-letter it and go on.

    Parameters
    ----------
    message : str
        What is wrong with the message, for a person.
    reason : Reason
        The same from a closed list, for metrics and headers.
    remedy : str
        What the reader can do about it.
    """

    def __init__(self, message: str = "", *, reason: Reason = Reason.MALFORMED, remedy: str = "") -> None:
        super().__init__(message, remedy=remedy)
        self.reason = reason


class RetriableError(StreamVaeError):
    """A passing fault of something outside: back off and try the batch again."""

    exit_code = 3


class FatalError(StreamVaeError):
    """The process cannot go on; offsets are untouched, so a new one continues where it stood."""

    exit_code = 4
