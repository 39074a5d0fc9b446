"""A schema registry for tests: the documented HTTP interface on loopback, which can be told to fail."""

import base64
import json
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

from stream_vae.avro.registry import CONTENT_TYPE


class Registry(ThreadingHTTPServer):
    """Knows some schemas and takes more; ids are given from 1 on, one a text."""

    daemon_threads = True

    def __init__(self, schemas: Mapping[int, str] | None = None, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.schemas = dict(schemas or {})
        self.subjects: dict[str, set[int]] = {}
        self.asked: list[tuple] = []  # method, path, body, content type
        self.credentials: str | None = None  # user:password
        self.instead: tuple[int, object] | None = None  # status and body of every answer

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Registry

    def do_GET(self) -> None:
        self._serve(None)

    def do_POST(self) -> None:
        self._serve(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

    def _serve(self, body: dict | None) -> None:
        registry = self.server
        registry.asked.append((self.command, self.path, body, self.headers["Content-Type"]))
        wanted = registry.credentials
        given = self.headers.get("Authorization")
        if wanted and given != "Basic " + base64.b64encode(wanted.encode()).decode():
            self._answer(401, {"error_code": 40101, "message": "Unauthorized"})
        elif registry.instead:
            self._answer(*registry.instead)
        else:
            self._answer(*self._find([unquote(part) for part in self.path.strip("/").split("/")], body))

    def _find(self, parts: list[str], body: dict | None) -> tuple[int, object]:
        schemas = self.server.schemas
        if self.command == "POST" and parts[0] == "subjects" and parts[2] == "versions":
            free = max(schemas, default=0) + 1
            number = next((key for key, text in schemas.items() if text == body["schema"]), free)
            schemas[number] = body["schema"]
            self.server.subjects.setdefault(parts[1], set()).add(number)
            return 200, {"id": number}
        if parts[:2] == ["schemas", "ids"] and int(parts[2]) in schemas:
            return 200, {"schema": schemas[int(parts[2])]}
        return 404, {"error_code": 40403, "message": f"Schema {parts[-1]} not found"}

    def _answer(self, status: int, body: object) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", CONTENT_TYPE)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args: object) -> None:
        pass
