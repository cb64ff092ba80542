"""A hook that is a webhook: JSON about the end of a job is posted to a URL, signed with a secret.

Headers and signature are those of Standard Webhooks (https://www.standardwebhooks.com), which
libraries of many languages verify. One request, no redirect is followed. Whether another try may
help is decided here; when that is, by the runner.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import phi4d
from phi4d.errors import HookFailed, Stopped
from phi4d.hooks.ending import FACTS, Ending
from phi4d.job import printable
from phi4d.outputs.record import iso

if TYPE_CHECKING:
    import httpx

REFUSED = {400, 410, 413, 422}
"""answers that another try would not change: Bad Request, Gone, Content Too Large, Unprocessable
Content (RFC 9110)"""
SECRET_BYTES = 65_536  # at most
PREFIX = b"whsec_"
"""what a secret in base64 begins with, as Standard Webhooks has it"""


class Line:
    """The way to cut requests off that other threads wait in."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._waiting: dict[asyncio.Task[Any], asyncio.AbstractEventLoop] = {}
        self.is_cut = False

    @contextmanager
    def held(self) -> Iterator[None]:
        """The running task is cancelled if the line is cut meanwhile, or was before.

        Raises:
            Stopped: it was cut before.
        """
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 -- a coroutine runs in one
        with self._lock:
            if self.is_cut:
                raise Stopped("the daemon is stopping")
            self._waiting[task] = asyncio.get_running_loop()
        try:
            yield
        finally:
            with self._lock:
                del self._waiting[task]

    def cut(self) -> None:
        """End all requests, and those to come. Idempotent."""
        with self._lock:
            self.is_cut = True
            for task, loop in self._waiting.items():
                loop.call_soon_threadsafe(task.cancel)


def body(ending: Ending, text: str | None = None) -> bytes:
    """What a webhook is told: JSON as UTF-8.

    Args:
        ending: how the job ended.
        text: the description or transcript, if it is to be told.
    """
    due = ending.due
    told: dict[str, Any] = {
        "inbox": due.inbox,
        "name": ending.name,
        "path": printable(ending.path),
        "sidecars": [printable(path) for path in ending.sidecars],
        "kind": due.kind.value,
        "state": due.state.value,
        **{key: due.facts[key] for key in FACTS if key in due.facts},
    }
    if text is not None:
        told["text"] = text
    message = {
        "id": due.event,
        "type": f"file.{due.state.value}",
        "timestamp": iso(due.finished),
        "data": told,
    }
    return json.dumps(message, ensure_ascii=False).encode("utf-8", "replace")


def headers(event: str, data: bytes, now: float, secret: bytes) -> dict[str, str]:
    """The request's headers; with a secret, one is the signature of id, time and body.

    Args:
        event: names the message: the same at each try.
        data: the body.
        now: seconds since the epoch.
        secret: empty: the request is not signed.
    """
    stamp = str(int(now))
    told = {
        "content-type": "application/json",
        "user-agent": f"phi4d/{phi4d.__version__}",
        "webhook-id": event,
        "webhook-timestamp": stamp,
    }
    if secret:
        signed = b".".join([event.encode(), stamp.encode(), data])
        digest = hmac.new(secret, signed, hashlib.sha256).digest()
        told["webhook-signature"] = f"v1,{base64.b64encode(digest).decode()}"
    return told


def secret(path: bytes | None) -> bytes:
    """The secret that a file holds, without white space around it; none without a file.

    One that begins with ``whsec_`` is base64, any other is taken as it is.

    Raises:
        HookFailed: it cannot be read, is empty or no base64: nothing is sent unsigned then.
    """
    if path is None:
        return b""
    what = f"webhook_secret_file {printable(path)}"
    try:
        with open(path, "rb") as file:
            found = file.read(SECRET_BYTES).strip()
        if found.startswith(PREFIX):
            found = base64.b64decode(found.removeprefix(PREFIX), validate=True)
    except OSError as error:
        raise HookFailed(
            f"{what} cannot be read: {error.strerror}; expected a file with the secret, readable "
            "for the daemon's user",
            again=True,
        ) from error
    except binascii.Error as error:
        raise HookFailed(f"{what}: expected base64 after whsec_", again=True) from error
    if not found:
        raise HookFailed(f"{what} is empty; expected the secret in it", again=True)
    return found


def post(url: str, data: bytes, told: dict[str, str], *, seconds: float, line: Line) -> None:
    """Post a body to a URL, which has taken it when this returns.

    Args:
        url: ``http://`` or ``https://``.
        data: the body.
        told: the headers.
        seconds: how long all of it may take.
        line: ends it when it is cut.

    Raises:
        HookFailed: it was not taken; whether another try may help is part of it.
        Stopped: `line` was cut.
    """
    import httpx  # late: most configurations have no webhook

    try:
        answer = asyncio.run(_post(url, data, told, seconds, line))
    except asyncio.CancelledError:
        raise Stopped("the daemon is stopping") from None
    except TimeoutError:
        raise HookFailed(
            f"{shown(url)}: no answer within {seconds:g} s (hook_seconds)", again=True
        ) from None
    except (httpx.HTTPError, httpx.InvalidURL, ssl.SSLError, OSError) as error:
        raise HookFailed(f"{shown(url)}: {_cause(error)}", again=True) from error
    if not answer.is_success:
        status = f"answered {answer.status_code} {answer.reason_phrase}".strip()
        also = "; redirects are not followed" if answer.is_redirect else ""
        raise HookFailed(f"{shown(url)}: {status}{also}", again=answer.status_code not in REFUSED)


async def _post(
    url: str, data: bytes, told: dict[str, str], seconds: float, line: Line
) -> httpx.Response:
    import httpx

    # the certificates that the system trusts
    context = ssl.create_default_context()
    with line.held():
        async with (
            asyncio.timeout(seconds),
            httpx.AsyncClient(
                follow_redirects=False,
                timeout=None,  # noqa: S113 -- all of it has one
                verify=context,
            ) as client,
            client.stream("POST", url, content=data, headers=told) as answer,
        ):
            return answer  # its body is of no interest


def shown(url: str) -> str:
    """A URL without what may be secret in it: what follows the host."""
    place = urlsplit(url)
    return f"{place.scheme}://{place.netloc.rpartition('@')[2]}"


def _cause(error: BaseException) -> str:
    """Why a request failed, in the words of the system where it has some."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, BaseExceptionGroup):
            found = found.exceptions[0]
        if isinstance(found, ssl.SSLCertVerificationError):
            return f"its certificate is not trusted: {found.verify_message}"
        if isinstance(found, ssl.SSLError):
            return f"TLS failed: {found.reason or found}"
        if isinstance(found, OSError) and found.strerror:
            known = found.errno is not None and found.errno > 0
            words = os.strerror(found.errno) if known and found.errno else found.strerror
            return f"cannot be reached: {words}"
        found = found.__cause__ or found.__context__
    return f"failed: {error or type(error).__name__}"
