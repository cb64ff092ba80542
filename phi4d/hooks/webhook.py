"""A hook that is a webhook: JSON about the end of a job is posted to a URL, signed if a secret is set.

One request, no redirects, no proxies, the system's certificates. Which answers are worth another
try is decided here; when that is, by the runner.
"""

from __future__ import annotations

import hashlib
import hmac
import http.client
import json
import os
import socket
import ssl
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import SplitResult, urlsplit

import phi4d
from phi4d.errors import HookFailed, Stopped
from phi4d.hooks.ending import Ending
from phi4d.job import State, printable
from phi4d.outputs.record import iso

CONNECT_SECONDS = 10.0  # to a host that does not answer; nothing can hurry that
AGAIN = {408, 429}
"""answers below 500 that ask for another try: Request Timeout and Too Many Requests (RFC 9110,
RFC 6585)"""
MOST_SECRET_BYTES = 65_536


class Line:
    """The way to abort a request that another thread is waiting in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self.is_cut = False

    def hold(self, found: socket.socket | None) -> None:
        """This is what is waited on; at once shut if it is too late."""
        with self._lock:
            self._socket = found
            if self.is_cut:
                self._shut()

    def cut(self) -> None:
        """End the request. Idempotent."""
        with self._lock:
            self.is_cut = True
            self._shut()

    def _shut(self) -> None:
        if self._socket is not None:
            with suppress(OSError):
                # of the plain socket: TLS's own would want an answer
                socket.socket.shutdown(self._socket, socket.SHUT_RDWR)


def body(ending: Ending, now: float, *, with_text: bool) -> bytes:
    """What a webhook is told: JSON as UTF-8.

    Args:
        ending: how the job ended.
        now: seconds since the epoch.
        with_text: whether the description or transcript is part of it.
    """
    told: dict[str, Any] = {
        "event": ending.state.value,
        "delivery": ending.id,
        "sent": int(now),
        "inbox": ending.inbox,
        "name": ending.name,
        "path": printable(ending.path),
        "kind": ending.kind.value,
        "state": ending.state.value,
        "sidecars": [printable(path) for path in ending.sidecars],
        "job": ending.job,
        "device": ending.device,
        "finished": iso(ending.finished),
        "seconds": round(ending.seconds, 3),
    }
    if ending.state is State.DONE:
        told |= {"model": ending.model, "tokens": ending.tokens}
        told |= {"text": ending.text} if with_text else {}
    else:
        told |= {"fault": ending.fault, "reason": ending.reason}
    return json.dumps(told, ensure_ascii=False).encode("utf-8", "replace")


def headers(ending: Ending, data: bytes, now: float, secret: bytes) -> dict[str, str]:
    """The request's headers; with a secret, the body's HMAC-SHA256 is one of them (RFC 2104)."""
    told = {
        "Content-Type": "application/json",
        "User-Agent": f"phi4d/{phi4d.__version__}",
        "X-Phi4d-Event": ending.state.value,
        "X-Phi4d-Delivery": ending.id,
        "X-Phi4d-Timestamp": str(int(now)),
    }
    if secret:
        signature = hmac.new(secret, data, hashlib.sha256).hexdigest()
        told["X-Phi4d-Signature-256"] = f"sha256={signature}"
    return told


def secret(path: Path | None) -> bytes:
    """The secret that a file holds, without the newline at its end; nothing: requests are unsigned.

    Raises:
        HookFailed: it cannot be read, or is empty: nothing is sent unsigned then.
    """
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            found = file.read(MOST_SECRET_BYTES).strip()
    except OSError as error:
        raise HookFailed(
            f"webhook_secret_file: {path} cannot be read: {error.strerror}", again=True
        ) from error
    if not found:
        raise HookFailed(f"webhook_secret_file: {path} is empty", again=True)
    return found


def post(url: str, data: bytes, told: dict[str, str], *, seconds: float, line: Line) -> None:
    """Post JSON to a URL, which has taken it when this returns.

    Args:
        url: ``http://`` or ``https://``.
        data: the body.
        told: the headers.
        seconds: how long the receiver may be silent.
        line: ends it when it is cut.

    Raises:
        HookFailed: it was not taken; whether another try may help is part of it.
        Stopped: `line` was cut.
    """
    place = urlsplit(url)
    target = (place.path or "/") + (f"?{place.query}" if place.query else "")
    connection = _connection(place, min(seconds, CONNECT_SECONDS))
    try:
        connection.connect()
        if connection.sock is not None:
            connection.sock.settimeout(seconds)
        line.hold(connection.sock)
        connection.request("POST", target, data, told)
        answer = connection.getresponse()
        status, reason = answer.status, answer.reason
    except (OSError, http.client.HTTPException, ValueError) as error:
        if line.is_cut:
            raise Stopped("the daemon is stopping") from error
        again = not isinstance(error, ValueError) or isinstance(error, OSError)
        raise HookFailed(f"{shown(url)}: {_words(error, seconds)}", again=again) from error
    finally:
        line.hold(None)
        connection.close()
    if not 200 <= status < 300:
        raise HookFailed(
            f"{shown(url)}: answered {status} {printable(reason)[:80]}".rstrip()
            + ("; redirects are not followed" if 300 <= status < 400 else ""),
            again=status >= 500 or status in AGAIN,
        )


def shown(url: str) -> str:
    """A URL without what may be secret in it: the user, and what follows the host."""
    place = urlsplit(url)
    return f"{place.scheme}://{place.netloc.rpartition('@')[2]}"


def _connection(place: SplitResult, seconds: float) -> http.client.HTTPConnection:
    host = place.hostname or ""
    if place.scheme == "https":
        context = ssl.create_default_context()
        return http.client.HTTPSConnection(host, place.port, timeout=seconds, context=context)
    return http.client.HTTPConnection(host, place.port, timeout=seconds)


def _words(error: Exception, seconds: float) -> str:
    if isinstance(error, TimeoutError):
        return f"no answer within {seconds:g} s (hook_seconds)"
    if isinstance(error, ssl.SSLError):
        return f"TLS failed: {error.reason or error}"
    if isinstance(error, http.client.HTTPException):
        return f"answered what is not HTTP ({type(error).__name__})"
    if (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, socket.gaierror)
    ):
        return f"cannot be reached: {os.strerror(error.errno)}"
    return f"cannot be reached: {error}"
