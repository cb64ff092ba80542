"""Serves the metrics over HTTP, at an address or a socket in the file system."""

from __future__ import annotations

import contextlib
import errno
import io
import logging
import os
import socket
import socketserver
import stat
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry, make_wsgi_app

from phi4d import __version__
from phi4d.config import Listen
from phi4d.errors import refusal

log = logging.getLogger(__name__)

CLIENT_SECONDS = 10.0  # a client that has not asked, or not taken its answer, by then is left
CLIENTS = 16  # at a time; the one that has been here longest makes room for the next
LOOK_SECONDS = 0.5  # how often is looked for clients to leave, and for the stop
ACCEPT_SECONDS = 1.0  # until the next try, when the process has no descriptor left
_INTERFACES = Path("/proc/self/net/dev")
_WELCOME = f"phi4d {__version__}: the metrics are at /metrics\n".encode()


class Server:
    """Listens as soon as it is made; `start` must follow.

    What a killed daemon left in a socket's place goes; a socket that somebody listens at does not.

    Args:
        place: where.
        registry: what.

    Raises:
        ConfigError: it is taken, or cannot be used.
        EnvironmentFault: the system has no room for it.
    """

    def __init__(self, place: Listen, registry: CollectorRegistry) -> None:
        self._place = place
        try:
            self._server = _Listener(place, make_wsgi_app(registry))
        except OSError as error:
            raise refusal(error, f"metrics_listen: {place} {_why(place, error)}") from error
        self._thread = threading.Thread(target=self._run, name="metrics")
        if not place.is_local:
            log.warning(
                "metrics_listen: whoever reaches %s can read the metrics, with the names of the "
                "inboxes",
                place,
            )

    @property
    def port(self) -> int:
        """The port, which the system chose if it was 0."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to serve."""
        self._thread.start()
        log.info("metrics: served at %s", self._place)
        if self._place.path is None and "INVOCATION_ID" in os.environ and _is_alone():
            log.warning(
                "metrics_listen: this process sees no network but its own loopback, as the service "
                'does by default: nobody can reach %s; name "unix:/run/phi4d/metrics.sock", or '
                'allow the network as the README\'s "Metrics" tells',
                self._place,
            )

    def stop(self) -> None:
        """Serve no more, and wait for the end of all threads. Idempotent."""
        if self._thread.is_alive():
            self._server.stopping.set()
            self._server.shutdown()
            self._thread.join()
        self._server.leave_all()
        self._server.server_close()
        if self._place.path is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._place.path)

    def _run(self) -> None:
        try:
            self._server.serve_forever(LOOK_SECONDS)
        except Exception:
            log.exception("metrics: served no more")


class _Listener(socketserver.ThreadingMixIn, socketserver.TCPServer):
    """A thread for each client, few at a time, none for long."""

    allow_reuse_address = True  # of connections that have ended; a port in use stays taken
    request_queue_size = CLIENTS
    daemon_threads = False
    block_on_close = True

    def __init__(self, place: Listen, app: Callable[..., list[bytes]]) -> None:
        self.app = app
        self.stopping = threading.Event()
        self._clients: dict[socket.socket, float] = {}
        """with the time until which they may take"""
        self._lock = threading.Lock()
        if place.path is not None:
            self.address_family = socket.AF_UNIX
            _make_room(place.path)
            address: Any = str(place.path)
        else:
            self.address_family = socket.AF_INET6 if ":" in place.address else socket.AF_INET
            address = (place.address, place.port)
        super().__init__(address, _Client)

    def server_bind(self) -> None:
        super().server_bind()
        if self.address_family == socket.AF_UNIX:
            os.chmod(str(self.server_address), 0o660)  # before anybody can connect

    def get_request(self) -> tuple[Any, Any]:
        try:
            return super().get_request()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOMEM):
                self.stopping.wait(ACCEPT_SECONDS)  # else it would be tried again at once
            raise

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            if len(self._clients) >= CLIENTS:
                _cut(next(iter(self._clients)))
            self._clients[request] = time.monotonic() + CLIENT_SECONDS
        super().process_request(request, client_address)

    def service_actions(self) -> None:
        """Between two clients: leave those that take too long."""
        super().service_actions()
        now = time.monotonic()
        with self._lock:
            for client, deadline in self._clients.items():
                if now >= deadline:
                    _cut(client)

    def close_request(self, request: Any) -> None:
        with self._lock:
            self._clients.pop(request, None)
        super().close_request(request)

    def leave_all(self) -> None:
        """End all that is under way; their threads then end soon."""
        with self._lock:
            for client in self._clients:
                _cut(client)

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 -- as there
        error = sys.exception()
        if isinstance(error, OSError):  # it went away, or was too slow
            log.debug("metrics: a client was left: %s", error.strerror or error)
        else:
            log.exception("metrics: a client got no answer")


class _Client(BaseHTTPRequestHandler):
    """One request."""

    server: _Listener
    server_version = f"phi4d/{__version__}"
    sys_version = ""
    timeout = CLIENT_SECONDS
    wbufsize = -1  # header and body in one piece: in two, the second waits 40 ms for the first

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if path == "/metrics":
            self._metrics(query)
        elif path == "/":
            self._answer("200 OK", [("Content-Type", "text/plain; charset=utf-8")], _WELCOME)
        else:
            words = b"not here; the metrics are at /metrics\n"
            self._answer("404 Not Found", [("Content-Type", "text/plain; charset=utf-8")], words)

    def _metrics(self, query: str) -> None:
        told: list[Any] = []
        environ = {
            "REQUEST_METHOD": "GET",
            "PATH_INFO": "/metrics",
            "QUERY_STRING": query,
            "HTTP_ACCEPT": self.headers.get("Accept", ""),
            "HTTP_ACCEPT_ENCODING": self.headers.get("Accept-Encoding", ""),
            "wsgi.input": io.BytesIO(),
        }
        try:
            body = b"".join(self.server.app(environ, lambda *words: told.extend(words)))
        except Exception:
            log.exception("metrics: a scrape failed")
            self._answer("500 Internal Server Error", [], b"failed; the daemon's log says how\n")
        else:
            self._answer(told[0], told[1], body)

    def _answer(self, status: str, headers: list[tuple[str, str]], body: bytes) -> None:
        code, _, words = status.partition(" ")
        self.send_response(int(code), words)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- its name there
        log.debug("metrics: " + format, *args)


def _is_alone() -> bool:
    """Whether there is no network interface but loopback, as with systemd's PrivateNetwork."""
    try:
        lines = _INTERFACES.read_text().splitlines()[2:]
    except OSError:
        return False
    return [line.partition(":")[0].strip() for line in lines] == ["lo"]


def _cut(client: socket.socket) -> None:
    """End a connection that another thread reads from or writes to."""
    with contextlib.suppress(OSError):
        client.shutdown(socket.SHUT_RDWR)


def _make_room(path: Path) -> None:
    """Remove a socket that nobody listens at.

    Raises:
        OSError: somebody does; or it is none.
    """
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "no socket")
    except FileNotFoundError:
        return
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(1.0)
        try:
            sock.connect(str(path))
        except ConnectionRefusedError:
            os.unlink(path)
        except TimeoutError:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE)) from None
        else:
            raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _why(place: Listen, error: OSError) -> str:
    """Why a place cannot be listened at, and what to do."""
    if place.path is not None:
        folder = place.path.parent
        words = {
            errno.EADDRINUSE: "is taken: another program listens there; end it, or name another",
            errno.EEXIST: "is there and no socket: move it away, or name another path",
            errno.ENOENT: f"cannot be made: the folder {folder} is not there; make it, or name "
            "another path",
            errno.EACCES: f"cannot be made: {folder} may not be written; give the daemon's user "
            "access, or name another path",
        }
        otherwise = f"cannot be made: {error.strerror}; name a path in a folder on a local disk"
        return words.get(error.errno or 0, otherwise)
    words = {
        errno.EADDRINUSE: "is taken: another program listens there; name another port, or end it",
        errno.EADDRNOTAVAIL: "cannot be used: this machine has no such address; expected one that "
        "`ip address` shows",
        errno.EACCES: "may not be used: ports below 1024 are the system's; name a higher one",
        errno.EAFNOSUPPORT: "cannot be used: this process may use no network, as the service does "
        'by default; name "unix:/run/phi4d/metrics.sock", or open it with phi4d unit --write',
    }
    otherwise = f"cannot be used: {error.strerror}; expected an address of this machine"
    return words.get(error.errno or 0, otherwise)
