"""A receiver of webhooks: a real HTTP server, which answers as it is told."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WAIT_SECONDS = 30.0  # until a test gives up


@dataclass(frozen=True, slots=True)
class Received:
    """A request."""

    path: str
    headers: dict[str, str]
    """names in small letters"""
    body: bytes

    @property
    def message(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    def signature(self, secret: bytes) -> str:
        """What the signature should be, reckoned from what came: as the README's receiver does."""
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        digest = hmac.digest(secret, signed + self.body, hashlib.sha256)
        return "v1," + base64.b64encode(digest).decode()


class Receiver:
    """Listens at `url` from the beginning to `close`.

    Attributes:
        answers: the status of each answer to come, and headers; afterwards 204.
        gate: an answer is given when it is set.
    """

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.gate = threading.Event()
        self.gate.set()
        self._changed = threading.Condition()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["content-length"])
                headers = {key.lower(): value for key, value in self.headers.items()}
                receiver._take(Received(self.path, headers, self.rfile.read(length)))
                receiver.gate.wait(WAIT_SECONDS)
                status, more = receiver.answers.pop(0) if receiver.answers else (204, {})
                self.send_response(status)
                for key, value in more.items():
                    self.send_header(key, value)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = False
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/done?token=1"

    def _take(self, request: Received) -> None:
        with self._changed:
            self.requests.append(request)
            self._changed.notify_all()

    def wait_for(self, n: int) -> list[Received]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.requests) >= n, WAIT_SECONDS), (
                self.requests
            )
        return self.requests

    def close(self) -> None:
        self.gate.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
