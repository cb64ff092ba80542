"""The decode process: files in, pieces out, one file at a time, until nobody asks any more.

Started by `phi4d.media.pool` as ``python -m phi4d.media.decoder FD MEMORY_BYTES``; standard input
is the pool's lifeline and carries no data. It runs codecs on strangers' files, so it gives up
rights before the first one, has limits, and holds nothing that would be missed: the pool kills
it whenever that is simplest. Whatever a codec raises is the file's fault; only opening and reading
the file can be somebody else's.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import resource
import select
import signal
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

from phi4d.errors import EnvironmentFault, FileChanged, FileError, Phi4dError
from phi4d.job import Fingerprint, Kind, Piece
from phi4d.media.probe import cause
from phi4d.media.wire import Channel, Header

if TYPE_CHECKING:
    from phi4d.media.readers import Samples

PROGRESS_S = 1.0
"""how often a process that has no piece to send yet says that it is alive, in seconds"""
_NICENESS = 5  # decoding is ahead of the model; the threads that feed it go first
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Serve one pool until it is gone. ``argv``: the socket's descriptor, the memory limit."""
    harden(int(argv[1]))
    channel = Channel(socket.socket(fileno=int(argv[0])))
    serve = _server(channel)
    _silence(2)  # from here on only codecs would write there
    channel.send({"is": "ready"})
    while True:
        try:
            request, _ = channel.receive()
        except EOFError:
            return
        serve(request)


def harden(memory_bytes: int) -> None:
    """Give up what decoding does not need, and arrange to die with the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C, and systemd's stop of the whole group,
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # are the daemon's to answer in order
    _die_with_parent(0)
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    os.nice(_NICENESS)
    _silence(1)


def _die_with_parent(lifeline: int) -> None:
    """Be killed by the kernel as soon as the pool's end of the pipe ``lifeline`` is closed.

    Not PR_SET_PDEATHSIG: that fires when the *thread* that started this process ends, and a
    worker thread that replaced a process may end while another uses it.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    flags = fcntl.fcntl(lifeline, fcntl.F_GETFL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, flags | os.O_ASYNC)
    poll = select.poll()
    poll.register(lifeline, 0)
    if poll.poll(0):  # it was closed before we listened
        os._exit(0)


def _silence(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def _server(channel: Channel) -> Callable[[Header], None]:
    """What answers one request. Imports and loads everything that decoding needs, once."""
    from phi4d.media import audio, images, speech

    model = speech.SpeechModel()

    def say(header: Header, piece: Piece | None = None) -> None:
        try:
            channel.send(header) if piece is None else channel.send_piece(piece, header)
        except OSError:
            os._exit(0)  # nobody listens any more

    def alive(blocks: Iterator[Samples]) -> Iterator[Samples]:
        said = time.monotonic()
        for block in blocks:
            if time.monotonic() - said > PROGRESS_S:
                say({"is": "progress"})
                said = time.monotonic()
            yield block

    def pieces(file: BinaryIO, request: Header, facts: dict[str, float]) -> Iterator[Piece]:
        if request["kind"] == Kind.IMAGE:
            samples, size = images.decode(file, max_pixels=request["max_pixels"])
            facts.update(size)
            yield Piece(samples)
            return
        recording = audio.Recording(file, max_duration_s=request["max_duration_s"])
        facts.update(recording.facts)
        yield from speech.pieces(alive(recording.blocks()), model.judge())
        facts.update(recording.facts)

    def serve(request: Header) -> None:
        facts: dict[str, float] = {}
        path = os.fsencode(request["path"])
        expected = Fingerprint(*request["fingerprint"]) if request["fingerprint"] else None
        try:
            with opened(path, expected, request["max_file_bytes"]) as file:
                for piece in pieces(file, request, facts):
                    say(facts, piece)
        except MemoryError:
            # What it holds, and how scattered, is anyone's guess: a new process is cheap.
            say({"is": "error", "class": "MemoryError", "text": ""})
            os._exit(1)
        except Phi4dError as error:
            say({"is": "error", "class": type(error).__name__, "text": str(error)})
        else:
            say({"is": "end", "facts": facts})

    return serve


@contextmanager
def opened(path: bytes, expected: Fingerprint | None, max_file_bytes: int) -> Iterator[BinaryIO]:
    """A regular file, open for reading, that is checked to be one and the same version throughout.

    Raises:
        FileError: it cannot be read, is empty, too large, or not a regular file; or, from the
            body, whatever was raised there (a codec's exception is the file's fault).
        FileChanged: it is not the version expected, or changed while it was read.
        EnvironmentFault: the disk or mount failed.
    """
    try:
        file = open(path, "rb", opener=_opener)  # noqa: SIM115 - closed below, where errors differ
    except OSError as error:
        raise open_fault(error) from error
    with file:
        before = _checked(_stat(file), max_file_bytes)
        if expected is not None and before != expected:
            raise FileChanged("changed after it was queued")
        try:
            yield file
        except (MemoryError, GeneratorExit):
            raise
        except Exception as error:
            _check_unchanged(file, before)
            _check_readable(file)
            if isinstance(error, Phi4dError):
                raise
            raise FileError(
                f"could not be decoded ({type(error).__name__}: {cause(error)}): "
                "copy it again from its source"
            ) from error
        _check_unchanged(file, before)


def _opener(path: str, flags: int) -> int:
    # O_NONBLOCK: a FIFO put in the file's place must not hang us.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def open_fault(error: OSError) -> Phi4dError:
    """Whose fault it is that a file cannot be opened."""
    text = os.strerror(error.errno) if error.errno else str(error)
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return FileChanged("is gone")
        case errno.ELOOP:
            return FileChanged("was replaced by a symbolic link, which is not followed")
        case errno.EACCES | errno.EPERM:
            # Not the environment's: one unreadable file must not pause a whole inbox.
            return FileError(
                f"cannot be read ({text.lower()}): "
                "give the daemon's user read access, then touch the file"
            )
        case errno.EISDIR | errno.ENXIO | errno.ENODEV | errno.ENAMETOOLONG:
            return FileError(f"cannot be opened as a file ({text.lower()}): remove it")
    return EnvironmentFault(f"cannot be opened: {text}")


def _stat(file: BinaryIO) -> os.stat_result:
    try:
        return os.fstat(file.fileno())
    except OSError as error:
        raise open_fault(error) from error


def _checked(found: os.stat_result, max_file_bytes: int) -> Fingerprint:
    if not stat.S_ISREG(found.st_mode):
        raise FileError("is not a regular file: remove it")
    if not found.st_size:
        raise FileError("is empty (0 bytes): copy it again from its source, or remove it")
    if found.st_size > max_file_bytes:
        raise FileError(
            f"has {found.st_size / 1e6:,.0f} MB; at most {max_file_bytes / 1e6:,.0f} MB are read: "
            "cut it into parts, or raise the limit on file size"
        )
    return Fingerprint.of(found)


def _check_unchanged(file: BinaryIO, before: Fingerprint) -> None:
    if Fingerprint.of(_stat(file)) != before:
        raise FileChanged("changed while it was read")


def _check_readable(file: BinaryIO) -> None:
    """Codecs take a failing disk for the end of the file, so look whether it can be read at all.

    The first gigabyte will do: a damaged film on a slow disk is not worth a timeout.

    Raises:
        EnvironmentFault: it cannot.
    """
    offset = 0
    try:
        while offset < 1 << 30 and (data := os.pread(file.fileno(), 1 << 22, offset)):
            offset += len(data)
    except OSError as error:
        text = os.strerror(error.errno or errno.EIO)
        raise EnvironmentFault(f"cannot be read: {text}") from error


if __name__ == "__main__":
    main(sys.argv[1:])
