"""The control socket: what people ask of a running daemon. One JSON object a line, each way.

Pure transport: what an order means is for its handler to know. Who may write to the socket, which
are the daemon's user and group, may give every order. Nothing that a client does or leaves undone
holds up another one, or the daemon.
"""

from __future__ import annotations

import contextlib
import json
import logging
import math
import os
import selectors
import socket
import stat
import struct
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi4d.errors import EnvironmentFault, Phi4dError

log = logging.getLogger(__name__)

LINE_BYTES = 1 << 20
"""the longest order"""
CLIENT_SECONDS = 5.0  # a client that has not asked, or not taken its answer, by then is left
CLIENTS = 32  # at a time; the one that has been here longest makes room for the next
LONG_ORDERS = 4  # carried out side by side: one about a file does not wait for one about a million
ACCEPT_SECONDS = 1.0  # until the next try, when the process has no descriptor left
_CHUNK_BYTES = 1 << 16
_SUN_PATH_BYTES = 108  # of a socket's address, its last zero included; see unix(7)

UID = "uid"
"""the field of every order that tells the user who gives it, as the kernel has it"""
Long = Callable[[], dict[str, Any]]
"""What is left to do of an order that takes long; see `Handler`."""
Handler = Callable[[Mapping[str, Any]], dict[str, Any] | Long]
"""Carries an order out: its fields to its answer's, both fit for JSON.

It must be quick, for nobody else is answered meanwhile. Of an order that may take long it returns a
function, which another thread calls for the answer; a few such orders are carried out side by side,
and others are answered beside them.

Raises:
    Phi4dError: it cannot be done; the client is told the text.
    ValueError: its fields are none of this order's.
"""


def ask(
    path: Path, order: str, fields: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0
) -> dict[str, Any] | None:
    """Give a daemon an order.

    Args:
        path: its socket.
        order: the order's name.
        fields: what the order wants to know. Paths as `os.fsdecode` gives them survive.
        timeout_s: for the answer.

    Returns:
        The answer; None: no daemon listens there.

    Raises:
        EnvironmentFault: this user may not ask, there was no answer in time, or the daemon could
            not do it, for a reason that it tells.
    """
    line = json.dumps({**(fields or {}), "order": order}).encode() + b"\n"
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
            sock.settimeout(timeout_s)
            with _address(path) as address:
                sock.connect(address)
            sock.sendall(line)
            answer = _read_line(sock, deadline)
    except (FileNotFoundError, NotADirectoryError, ConnectionRefusedError):
        return None
    except (TimeoutError, BlockingIOError):
        raise EnvironmentFault(
            f"{path}: the daemon did not answer within {timeout_s:.0f} s; try again, or look at "
            "its log"
        ) from None
    except PermissionError:
        raise EnvironmentFault(
            f"{path}: this user may not ask the daemon; be its user, or in its group"
        ) from None
    except OSError as error:
        raise EnvironmentFault(
            f"{path}: the daemon cannot be asked: {error.strerror}; try again"
        ) from error
    try:
        found = json.loads(answer)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise EnvironmentFault(
            f"{path}: the daemon broke off; it may be stopping: try again, or look at its log"
        )
    if "error" in found:
        raise EnvironmentFault(f"the daemon says: {found['error']}")
    return found


class Server(threading.Thread):
    """Takes orders, in a thread of its own; those that take long are carried out in others.

    The socket is there as soon as this is made; `start` must follow. What a killed daemon left in
    its place goes: that there is only one daemon is the lock's to see to. Its folder is made.

    Args:
        path: of the socket; of any length.
        handlers: what carries each order out, by its name.

    Raises:
        EnvironmentFault: the socket cannot be made.
    """

    def __init__(self, path: Path, handlers: Mapping[str, Handler]) -> None:
        super().__init__(name="control")
        self._path = path
        self._handlers = handlers
        self._listener = _listen(path)
        self._stopping = threading.Event()
        self._heard = True
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._clients: dict[int, _Client] = {}
        # its threads begin when they are needed
        self._long = ThreadPoolExecutor(LONG_ORDERS, "control long")
        self._carried_out: deque[tuple[_Client, bytes]] = deque()

    def stop(self) -> None:
        """Take no more orders; `join` waits for the end of one that is carried out."""
        self._stopping.set()
        with contextlib.suppress(OSError):  # it has ended already
            self._wake.send(b"!")

    def run(self) -> None:
        """Take orders until told to stop."""
        try:
            self._serve()
        except Exception:
            log.exception("%s: takes no more orders", self._path)
        finally:
            with contextlib.suppress(OSError):
                os.unlink(self._path)
            self._long.shutdown(cancel_futures=True)
            for client, answer in self._carried_out:  # the last one may still be waited for
                with contextlib.suppress(OSError):
                    client.sock.send(answer)
            for client in list(self._clients.values()):
                self._leave(client)
            for each in (self._listener, self._wake, self._woken, self._selector):
                each.close()

    def _serve(self) -> None:
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        while not self._stopping.is_set():
            for key, _ in self._selector.select(CLIENT_SECONDS if self._clients else None):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    self._woken.recv(_CHUNK_BYTES)
                elif key.fd in self._clients:
                    self._attend(self._clients[key.fd])
            while self._carried_out:
                client, answer = self._carried_out.popleft()
                if self._clients.get(client.sock.fileno()) is client:
                    self._reply(client, answer)
            for client in list(self._clients.values()):
                if time.monotonic() >= client.deadline:
                    self._leave(client)

    def _accept(self) -> None:
        try:
            sock, _ = self._listener.accept()
        except BlockingIOError:  # it went away again
            return
        except OSError as error:
            if self._heard:
                log.warning("%s: clients cannot be heard: %s", self._path, error.strerror)
            self._heard = False
            self._stopping.wait(ACCEPT_SECONDS)
            return
        self._heard = True
        sock.setblocking(False)
        if len(self._clients) >= CLIENTS:
            idle = (client for client in self._clients.values() if not client.waits)
            self._leave(next(idle, next(iter(self._clients.values()))))
        self._clients[sock.fileno()] = _Client(sock, time.monotonic() + CLIENT_SECONDS)
        self._selector.register(sock, selectors.EVENT_READ)

    def _attend(self, client: _Client) -> None:
        """Go on with a client: read on, or carry its order out, or write on."""
        try:
            if client.answer is None:
                data = client.sock.recv(_CHUNK_BYTES)
                client.asked += data
                if b"\n" in data:
                    line = bytes(client.asked).partition(b"\n")[0]
                    answer = self._carry_out(line, _uid(client.sock))
                    if isinstance(answer, bytes):
                        self._reply(client, answer)
                    else:
                        self._begin(client, answer)
                elif len(client.asked) > LINE_BYTES:
                    self._reply(client, _told(f"an order has at most {LINE_BYTES} bytes"))
                elif not data:
                    self._leave(client)
                return
            client.answer = client.answer[client.sock.send(client.answer) :]
        except BlockingIOError:
            return
        except OSError:
            client.answer = b""
        if not client.answer:
            self._leave(client)

    def _reply(self, client: _Client, answer: bytes) -> None:
        client.answer = answer
        client.deadline = time.monotonic() + CLIENT_SECONDS
        if client.waits:
            client.waits = False
            self._selector.register(client.sock, selectors.EVENT_WRITE)
        else:
            self._selector.modify(client.sock, selectors.EVENT_WRITE)
        self._attend(client)

    def _begin(self, client: _Client, rest: Callable[[], bytes]) -> None:
        """Have the rest of an order that takes long carried out; its client is let alone."""
        client.waits = True
        client.deadline = math.inf
        self._selector.unregister(client.sock)

        def ended(future: Future[bytes]) -> None:
            if not future.cancelled():
                self._carried_out.append((client, future.result()))
                with contextlib.suppress(OSError):
                    self._wake.send(b"!")

        self._long.submit(rest).add_done_callback(ended)

    def _leave(self, client: _Client) -> None:
        del self._clients[client.sock.fileno()]
        if not client.waits:
            self._selector.unregister(client.sock)
        client.sock.close()

    def _carry_out(self, line: bytes, uid: int) -> bytes | Callable[[], bytes]:
        """Carry an order out; whatever it is, there is an answer, or what will make one."""
        try:
            order = json.loads(line)
        except (ValueError, RecursionError):
            order = None
        if not isinstance(order, dict):
            return _told("expected an order as one line of JSON, an object")
        name = order.pop("order", None)
        handler = self._handlers.get(name) if isinstance(name, str) else None
        if handler is None:
            known = ", ".join(sorted(self._handlers))
            return _told(
                f"unknown order {name!r:.80}; this phi4d knows {known}. Is the command of the same "
                "version as the daemon?"
            )
        log.debug("order: %s", name)
        order[UID] = uid
        return self._guarded(name, lambda: handler(order))

    def _guarded(
        self, name: str, do: Callable[[], dict[str, Any] | Long]
    ) -> bytes | Callable[[], bytes]:
        """The line that tells what it returns, or what went wrong; or what will make one."""
        try:
            found = do()
            if callable(found):
                rest = found
                return lambda: self._told(name, rest)
            return _line(found)
        except Phi4dError as error:
            return _told(str(error))
        except ValueError as error:
            return _told(f"{name}: {error}")
        except Exception:
            log.exception("order %s: unexpected error", name)
            return _told(f"{name}: failed unexpectedly; the daemon's log says how")

    def _told(self, name: str, rest: Long) -> bytes:
        line = self._guarded(name, rest)
        return line if isinstance(line, bytes) else line()


@dataclass(slots=True)
class _Client:
    sock: socket.socket
    deadline: float
    asked: bytearray = field(default_factory=bytearray)
    answer: bytes | None = None
    """what of it is still to be sent; None: the order has not come yet"""
    waits: bool = False
    """its order is being carried out by another thread"""


def _uid(sock: socket.socket) -> int:
    """The user at the other end, as the kernel has it; see unix(7)."""
    _, uid, _ = struct.unpack("3i", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def _line(answer: Mapping[str, Any]) -> bytes:
    return json.dumps(answer).encode() + b"\n"


def _told(error: str) -> bytes:
    return _line({"error": error})


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(
        socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
    )
    try:
        _make_folder(path.parent)
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISSOCK(os.lstat(path).st_mode):
                raise EnvironmentFault(
                    f"{path}: is no socket, so the daemon cannot be asked: move it away"
                )
            os.unlink(path)
        with _address(path) as address:
            listener.bind(address)
        # before anybody can connect
        os.chmod(path, 0o660)
        listener.listen(CLIENTS)
    except BaseException as error:
        listener.close()
        if isinstance(error, OSError):
            raise EnvironmentFault(
                f"{path}: the control socket cannot be made: {error.strerror or error}; its folder "
                "must be on a local disk and writable for the daemon's user"
            ) from error
        raise
    return listener


def _make_folder(folder: Path) -> None:
    """Make the socket's folder if it is missing: for the daemon's user and group alone."""
    if not folder.is_dir():
        folder.mkdir(parents=True)
        folder.chmod(0o750)  # whatever the process keeps from new files


@contextlib.contextmanager
def _address(path: Path) -> Iterator[bytes]:
    """The address of a socket; of one whose path is too long, by its folder's descriptor."""
    name = os.fsencode(path)
    if len(name) < _SUN_PATH_BYTES:
        yield name
        return
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield os.path.join(b"/proc/self/fd/%d" % folder, os.fsencode(path.name))
    finally:
        os.close(folder)


def _read_line(sock: socket.socket, deadline: float) -> bytes:
    """Up to the first newline, or to the end.

    Raises:
        TimeoutError: neither came in time.
    """
    data = bytearray()
    while not data.endswith(b"\n"):
        sock.settimeout(max(deadline - time.monotonic(), 0.001))
        chunk = sock.recv(_CHUNK_BYTES)
        if not chunk:
            break
        data += chunk
    return bytes(data)
