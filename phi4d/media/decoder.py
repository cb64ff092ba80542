"""The decode process: files in, pieces out, one file at a time, until nobody asks any more.

Started by `phi4d.media.process` as ``python -m phi4d.media.decoder FD MEMORY_BYTES CPU_SECONDS``;
standard input is the pool's lifeline and carries no data. It runs codecs on strangers' files, so it
gives up rights before the first one, has limits, and holds nothing that would be missed: the pool
kills it whenever that is simplest. Whatever a codec raises is the file's fault; only opening and
reading the file can be somebody else's.
"""

from __future__ import annotations

import ctypes
import fcntl
import hashlib
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING, BinaryIO

from phi4d.errors import Phi4dError
from phi4d.job import Fingerprint, Kind, Piece
from phi4d.media.files import opened, read_fault
from phi4d.media.wire import Channel, Header

if TYPE_CHECKING:
    from phi4d.media.readers import Samples

PROGRESS_S = 1.0
"""how often a process that has no piece to send yet says that it is alive, in seconds"""
_HASH_BYTES = 1 << 20  # read at once; the page cache gives no more for larger ones
_NICENESS = 5  # decoding is ahead of the model; the threads that feed it go first
_OOM_SCORE = 500  # of 1000, see proc(5): any user may raise it
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Serve one pool until it is gone.

    ``argv``: the socket's descriptor, the limit on memory in bytes, that on CPU time in seconds.
    """
    harden(int(argv[1]))
    channel = Channel(socket.socket(fileno=int(argv[0])))
    cpu_s = float(argv[2])
    serve = _server(channel, lambda: allow_cpu(cpu_s))
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
    _die_first()
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


def _die_first() -> None:
    """Where memory is short, the kernel kills this process rather than the one with the model."""
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(str(_OOM_SCORE))


def _silence(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def allow_cpu(seconds: float) -> None:
    """From now on this process may compute for so long, and a second or two; then it is killed.

    The wall-clock limit is the pool's, and counts only while somebody waits. This one also ends a
    file that was begun ahead and that nobody waits for yet.
    """
    spent = time.process_time()
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    soft = math.ceil(spent + seconds) + 1
    if hard != resource.RLIM_INFINITY:
        soft = min(soft, hard)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, hard))


def _server(channel: Channel, sign_of_life: Callable[[], None]) -> Callable[[Header], None]:
    """What answers one request. Imports and loads everything that decoding needs, once.

    ``sign_of_life`` is called when a file is begun and whenever something was said about it.
    """
    from phi4d.media import audio, images, speech

    model = speech.SpeechModel()

    def say(header: Header, piece: Piece | None = None) -> None:
        try:
            channel.send(header) if piece is None else channel.send_piece(piece, header)
        except OSError:
            os._exit(0)  # nobody listens any more
        sign_of_life()

    def progress() -> Callable[[], None]:
        """To be called again and again: says now and then that this process is alive."""
        said = time.monotonic()

        def call() -> None:
            nonlocal said
            if time.monotonic() - said > PROGRESS_S:
                say({"is": "progress"})
                said = time.monotonic()

        return call

    def alive(blocks: Iterator[Samples]) -> Iterator[Samples]:
        tick = progress()
        for block in blocks:
            tick()
            yield block

    def is_known(file: BinaryIO, known: list[str]) -> bool:
        found = digest(file, progress())
        say({"is": "digest", "digest": found, "known": found in known})
        return found in known

    def pieces(file: BinaryIO, request: Header, facts: dict[str, float]) -> Iterator[Piece]:
        if request["known"] is not None and is_known(file, request["known"]):
            return
        if request["kind"] == Kind.IMAGE:
            samples, size = images.decode(
                file, max_pixels=request["max_pixels"], max_frames=request["max_frames"]
            )
            facts.update(size)
            yield Piece(samples)
            return
        recording = audio.Recording(file, max_duration_s=request["max_duration_s"])
        facts.update(recording.facts)
        yield from speech.pieces(alive(recording.blocks()), model.judge())
        facts.update(recording.facts)

    def serve(request: Header) -> None:
        sign_of_life()
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


def digest(file: BinaryIO, tick: Callable[[], None]) -> str:
    """SHA-256 of a whole file, in hexadecimal; the file is at its beginning before and after.

    Args:
        file: open for reading and seekable.
        tick: called for every megabyte.

    Raises:
        SourceFault: it cannot be read.
    """
    found = hashlib.sha256()
    block = memoryview(bytearray(_HASH_BYTES))
    try:
        while count := file.readinto(block):  # type: ignore[attr-defined]  # a real file has it
            found.update(block[:count])
            tick()
        file.seek(0)
    except OSError as error:
        raise read_fault(error) from error
    return found.hexdigest()


if __name__ == "__main__":
    main(sys.argv[1:])
