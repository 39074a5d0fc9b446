"""Where the schemas behind Confluent ids are: a schema registry, or a folder of .avsc files.

A registry is asked over its documented HTTP interface: GET /schemas/ids/{id} and
POST /subjects/{subject}/versions. An answer about an id never changes, so each is asked for
once; that an id is unknown may change, so it is believed for some seconds only.
"""

import hashlib
import json
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol, Self
from urllib.parse import quote, unquote, urlsplit

import httpx

from stream_vae.avro.limits import DEFAULT_LIMITS, MIB, Limits
from stream_vae.avro.schema import LruCache
from stream_vae.errors import ConfigError, Reason, RejectedAlertError, RetriableError

CONTENT_TYPE = "application/vnd.schemaregistry.v1+json"
_MAX_ID = (1 << 31) - 1  # the registry's ids are Java ints
_MAX_REPLY_BYTES = 4 * MIB  # a schema as a JSON string can be twice as long as itself
_UNKNOWN_ID_FOR_S = 10.0  # a producer may register an id just after its first message came here
_INVALID_SCHEMA = 422
_SCHEMA_NOT_FOUND = 40403


class SchemaSource(Protocol):
    """Gives schemas by id and takes new ones."""

    def get(self, schema_id: int, /) -> str:
        """Give the schema behind an id.

        Parameters
        ----------
        schema_id : int
            From a Confluent packet.

        Returns
        -------
        str
            JSON.

        Raises
        ------
        RejectedAlertError
            With reason SCHEMA if there is none.
        RetriableError
            If the source cannot be reached.
        """
        ...

    def register(self, subject: str, schema: str, /) -> int:
        """Take a schema.

        Parameters
        ----------
        subject : str
            The name under which its versions are kept.
        schema : str
            JSON.

        Returns
        -------
        int
            Its id; the same for the same schema.

        Raises
        ------
        ConfigError
            If the source refuses it.
        RetriableError
            If the source cannot be reached.
        """
        ...

    def close(self) -> None:
        """Give up connections; may be called again."""


def open_registry(url: str, auth: tuple[str, str] | None = None, *, ca_file: str | None = None) -> SchemaSource:
    """Make the source of schemas that a setting names.

    Parameters
    ----------
    url : str
        `http://` or `https://` (several, with commas between, are tried in turn), `mock://name`
        for an empty one in memory, or a folder (a path, or `file://`).
    auth : tuple of (str, str) or None
        User and password for HTTP basic authentication.
    ca_file : str or None
        PEM file of the authority that signed the registry's certificate.

    Returns
    -------
    SchemaSource
        An `HttpRegistry` or a `FolderRegistry`.

    Raises
    ------
    ConfigError
        If it is none of these.
    """
    scheme = url.partition("://")[0] if "://" in url else ""
    if scheme in {"http", "https", "mock"}:
        return HttpRegistry(url, auth, ca_file=ca_file)
    if scheme in {"", "file"}:
        return FolderRegistry(url.removeprefix("file://"))
    raise ConfigError(
        f"a schema registry at {scheme}:// is not known.", remedy="[registry] url is http(s)://, mock:// or a folder."
    )


class HttpRegistry:
    """A schema registry that speaks Confluent's HTTP interface (Confluent's, Karapace, Redpanda, Apicurio).

    Parameters
    ----------
    url : str
        One or several, with commas between; the next is tried when one fails. `mock://name` is an
        empty registry in memory, of this object alone.
    auth : tuple of (str, str) or None
        User and password. They may be in the URL instead.
    timeout_s : float
        For each step of a request.
    ca_file : str or None
        PEM file of the authority that signed the certificate; None for the well-known ones.
    limits : Limits
        How many schemas are kept.
    clock : callable
        Seconds that only grow.

    Raises
    ------
    ConfigError
        If the URL is not one.
    """

    def __init__(
        self,
        url: str,
        auth: tuple[str, str] | None = None,
        *,
        timeout_s: float = 5.0,
        ca_file: str | None = None,
        limits: Limits = DEFAULT_LIMITS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clients = [_client(part.strip(), auth, timeout_s, ca_file) for part in url.split(",")]
        self._texts: LruCache[int, str] = LruCache(limits.schema_cache_entries)
        self._ids: LruCache[tuple[str, str], int] = LruCache(limits.schema_cache_entries)
        self._unknown: LruCache[int, float] = LruCache(limits.schema_cache_entries)
        self._clock = clock

    def get(self, schema_id: int, /) -> str:
        """Give the schema behind an id; see `SchemaSource`.

        Parameters
        ----------
        schema_id : int
            From a Confluent packet.

        Returns
        -------
        str
            JSON.

        Raises
        ------
        RejectedAlertError
            With reason SCHEMA if the registry does not have it, or it is no plain Avro schema.
        RetriableError
            If no registry answers.
        ConfigError
            If the registry wants other credentials.
        """
        known = self._texts.get(schema_id)
        if known is not None:
            return known
        believed_until = self._unknown.get(schema_id)
        if believed_until is not None and self._clock() < believed_until:
            raise _unknown_id(schema_id)
        status, answer = self._ask("GET", f"/schemas/ids/{schema_id}")
        if answer.get("error_code") == _SCHEMA_NOT_FOUND:  # a bare 404 is a wrong URL, and no fault of the alert's
            self._unknown.put(schema_id, self._clock() + _UNKNOWN_ID_FOR_S)
            raise _unknown_id(schema_id)
        text = answer.get("schema")
        if status != httpx.codes.OK or not isinstance(text, str):
            raise _bad_answer(status, answer)
        if answer.get("schemaType", "AVRO") != "AVRO" or answer.get("references"):
            raise RejectedAlertError(
                f"schema {schema_id} is not Avro, or refers to other subjects", reason=Reason.SCHEMA
            )
        return self._texts.put(schema_id, text)

    def register(self, subject: str, schema: str, /) -> int:
        """Register a schema; see `SchemaSource`.

        Parameters
        ----------
        subject : str
            The name under which its versions are kept.
        schema : str
            JSON.

        Returns
        -------
        int
            Its id.

        Raises
        ------
        ConfigError
            If it is incompatible with the subject's versions, or the credentials do not suffice.
        RejectedAlertError
            With reason SCHEMA if the registry finds it invalid.
        RetriableError
            If no registry answers.
        """
        known = self._ids.get((subject, schema))
        if known is not None:
            return known
        status, answer = self._ask("POST", f"/subjects/{quote(subject, safe='')}/versions", {"schema": schema})
        if status == httpx.codes.CONFLICT:
            raise ConfigError(
                f"the registry finds the output schema incompatible with subject {subject!r}: {_message(answer)}.",
                remedy="Set the subject's compatibility to NONE, or choose another output topic.",
            )
        if status == _INVALID_SCHEMA:
            raise RejectedAlertError(
                f"the registry finds the output schema invalid: {_message(answer)}", reason=Reason.SCHEMA
            )
        schema_id = answer.get("id")
        if status != httpx.codes.OK or not isinstance(schema_id, int) or not 0 <= schema_id <= _MAX_ID:
            raise _bad_answer(status, answer)
        return self._ids.put((subject, schema), schema_id)

    def _ask(self, method: str, path: str, body: dict[str, str] | None = None) -> tuple[int, dict[str, Any]]:
        """Ask one registry after the other until one answers for itself."""
        fault = "no registry"
        for client in self._clients:
            try:
                status, content = _exchange(client, method, path, body)
                if status < httpx.codes.INTERNAL_SERVER_ERROR and status != httpx.codes.TOO_MANY_REQUESTS:
                    return status, _decoded(status, content)
                fault = f"it answers {status}"
            except (httpx.HTTPError, ValueError) as error:
                fault = str(error) or type(error).__name__
        stranger = "CERTIFICATE_VERIFY_FAILED" in fault
        raise RetriableError(
            f"the schema registry does not serve {method} {path}: {fault}.",
            remedy="Name the authority behind its certificate in registry.ca_file."
            if stranger
            else "Check that it runs and [registry].",
        )

    def close(self) -> None:
        """Close the connections; may be called again."""
        for client in self._clients:
            client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


class FolderRegistry:
    """A folder of writer schemas, `<id>.avsc` each, for those who have no registry.

    New schemas get an id from their content, the same in every process; nothing is written.

    Parameters
    ----------
    path : str or Path
        The folder.
    limits : Limits
        Bounds on a file's length.

    Raises
    ------
    ConfigError
        If there is no such folder.
    """

    def __init__(self, path: str | Path, *, limits: Limits = DEFAULT_LIMITS) -> None:
        self._path = Path(path)
        self._max_bytes = limits.max_header_bytes
        self._registered: dict[int, str] = {}
        if not self._path.is_dir():
            raise ConfigError(f"no folder of schemas at {self._path}.", remedy="Set [registry] url to one.")

    def get(self, schema_id: int, /) -> str:
        """Read the schema of an id; see `SchemaSource`.

        Parameters
        ----------
        schema_id : int
            From a Confluent packet.

        Returns
        -------
        str
            JSON.

        Raises
        ------
        RejectedAlertError
            With reason SCHEMA if the folder has no file of that name.
        RetriableError
            If the file cannot be read.
        """
        if schema_id in self._registered:
            return self._registered[schema_id]
        file = self._path / f"{schema_id}.avsc"
        try:
            if file.stat().st_size > self._max_bytes:
                raise RejectedAlertError(f"{file.name} is longer than a schema", reason=Reason.TOO_LARGE)
            return file.read_text(encoding="utf-8")
        except FileNotFoundError:
            raise _unknown_id(schema_id) from None
        except UnicodeDecodeError as error:
            raise RejectedAlertError(f"{file.name} is not UTF-8", reason=Reason.SCHEMA) from error
        except OSError as error:
            raise RetriableError(f"{file} cannot be read: {error}") from error

    def register(self, subject: str, schema: str, /) -> int:  # noqa: ARG002 - a folder has no subjects
        """Give a schema an id; see `SchemaSource`.

        Parameters
        ----------
        subject : str
            Not used: a folder has no subjects.
        schema : str
            JSON.

        Returns
        -------
        int
            The first 31 bits of the text's SHA-256; the next free number if another schema has that.
        """
        for schema_id in _ids_from(schema):
            taken = self._registered.get(schema_id)
            if taken == schema or (taken is None and not (self._path / f"{schema_id}.avsc").exists()):
                self._registered[schema_id] = schema
                return schema_id
        raise AssertionError("2**31 schemas")

    def close(self) -> None:
        """Do nothing: a folder keeps nothing open."""


class _MemoryTransport(httpx.BaseTransport):
    """Stands for a registry: answers the two requests from memory. Checks no compatibility."""

    def __init__(self) -> None:
        self._texts: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        parts = [unquote(part) for part in request.url.raw_path.decode().strip("/").split("/")]
        if request.method == "POST" and parts[0] == "subjects" and parts[-1] == "versions":
            return self._add(json.loads(request.read())["schema"])
        if request.method == "GET" and parts[:2] == ["schemas", "ids"] and 0 < int(parts[-1]) <= len(self._texts):
            return httpx.Response(200, json={"schema": self._texts[int(parts[-1]) - 1]})
        return httpx.Response(404, json={"error_code": _SCHEMA_NOT_FOUND, "message": "Schema not found"})

    def _add(self, text: str) -> httpx.Response:
        if text not in self._texts:
            self._texts.append(text)
        return httpx.Response(200, json={"id": self._texts.index(text) + 1})


def _client(url: str, auth: tuple[str, str] | None, timeout_s: float, ca_file: str | None) -> httpx.Client:
    try:
        parts = urlsplit(url)
        host = parts.hostname
    except ValueError:
        host = None
    if not host or parts.scheme not in {"http", "https", "mock"}:
        # The URL is not quoted: it may hold a password.
        raise ConfigError("the schema registry's URL is not one.", remedy="[registry] url is like http://host:8081.")
    mock = parts.scheme == "mock"
    try:
        verify = ssl.create_default_context(cafile=ca_file) if parts.scheme == "https" else True
        return httpx.Client(
            base_url=f"http{url.removeprefix('mock')}" if mock else url,
            auth=auth,
            timeout=timeout_s,
            headers={"Accept": f"{CONTENT_TYPE}, application/json", "Content-Type": CONTENT_TYPE},
            verify=verify,
            transport=_MemoryTransport() if mock else None,
            trust_env=False,  # the environment is read in settings alone
        )
    except (OSError, httpx.InvalidURL) as error:
        raise ConfigError(f"the registry's URL or ca_file is bad: {error}.", remedy="Check [registry].") from error


def _exchange(client: httpx.Client, method: str, path: str, body: dict[str, str] | None) -> tuple[int, bytes]:
    content = None if body is None else json.dumps(body).encode()
    with client.stream(method, path, content=content) as reply:
        received = bytearray()
        for chunk in reply.iter_bytes():
            received += chunk
            if len(received) > _MAX_REPLY_BYTES:
                raise ValueError(f"an answer of more than {_MAX_REPLY_BYTES} bytes")
        return reply.status_code, bytes(received)


def _decoded(status: int, content: bytes) -> dict[str, Any]:
    """Read an answer; a registry's errors are JSON too, but a proxy's before it may not be."""
    try:
        answer = json.loads(content)
    except ValueError:
        if status == httpx.codes.OK:
            raise
        return {}
    if isinstance(answer, dict):
        return answer
    raise ValueError("an answer that is no JSON object")


def _bad_answer(status: int, answer: dict[str, Any]) -> ConfigError | RetriableError:
    if status in {httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN}:
        return ConfigError(
            f"the schema registry answers {status}: {_message(answer)}.",
            remedy="Check registry.username and registry.password.",
        )
    return RetriableError(f"the schema registry answers {status}: {_message(answer)}.")


def _message(answer: dict[str, Any]) -> str:
    return str(answer.get("message", "no reason given"))[:300]


def _unknown_id(schema_id: int) -> RejectedAlertError:
    return RejectedAlertError(f"no schema has id {schema_id}", reason=Reason.SCHEMA)


def _ids_from(schema: str) -> Iterator[int]:
    first = int.from_bytes(hashlib.sha256(schema.encode()).digest()[:4], "big") & _MAX_ID
    return ((first + step) & _MAX_ID for step in range(_MAX_ID + 1))
