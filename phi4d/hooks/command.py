"""A hook that is a command: a program and its arguments, no shell between, ended as a whole.

It gets no standard input, and nobody reads its standard output; of what it writes to standard
error, the last line is told when it fails. It is started in a session of its own with no signal
blocked; when it has ended, or has had its time, what is left of its process group is killed.
"""

from __future__ import annotations

import logging
import os
import re
import select
import shutil
import signal
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Literal

from phi4d.errors import HookFailed, Stopped
from phi4d.job import printable

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # how often a stop and the time are looked at
KEPT_BYTES = 4_000  # of what it wrote last, for the log
LINE_CHARACTERS = 200
_READ_BYTES = 65_536
_WORD = re.compile(rb"\{\{(\w+)\}\}|\{(\w+)\}")
_OURS = ("PHI4_", "PHI4D_", "WATCHDOG_", "LISTEN_", "MEMORY_PRESSURE_")
_OURS_ALONE = {"NOTIFY_SOCKET", "JOURNAL_STREAM", "CREDENTIALS_DIRECTORY", "MAINPID", "HF_TOKEN"}


def run(
    command: Sequence[str],
    words: Mapping[str, bytes],
    sidecars: Sequence[bytes] = (),
    *,
    seconds: float,
    aborting: threading.Event,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Run a command to its end.

    Args:
        command: the program, by its path or its name in PATH, and its arguments.
        words: what it is told, in its arguments and its environment.
        sidecars: what the argument {sidecars} becomes.
        seconds: how long it may take.
        aborting: ends it when set.
        clock: monotonic seconds.

    Raises:
        HookFailed: it could not be started, took too long, or ended with another code than 0.
        Stopped: `aborting` was set.
    """
    environ = environment(words)
    program = shutil.which(command[0], path=os.fsdecode(environ.get(b"PATH", os.defpath.encode())))
    if program is None:
        raise HookFailed(
            f"{command[0]} is not found, or may not be run; expected a program's name in PATH or "
            "its absolute path, executable for the daemon's user"
        )
    arguments = [os.fsencode(command[0]), *filled(command[1:], words, sidecars)]
    until = clock() + seconds
    reading, writing = os.pipe()
    try:
        pid = _spawn(program, arguments, environ, writing)
    except OSError as error:
        os.close(reading)
        raise HookFailed(f"{command[0]} cannot be started: {error.strerror}") from error
    finally:
        os.close(writing)
    try:
        written, why = _attend(pid, reading, lambda: clock() >= until, aborting)
    finally:
        # it is not reaped yet, so the number is still its own
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(reading)
    if written:
        log.debug("%s wrote: %s", command[0], printable(written))
    if why == "stop":
        raise Stopped("the daemon is stopping")
    if words_of_end := _end(status, seconds, is_late=why == "time"):
        raise HookFailed(f"{command[0]} {words_of_end}{_last_line(written)}")


def _spawn(program: str, arguments: list[bytes], environ: dict[bytes, bytes], errors: int) -> int:
    return os.posix_spawn(
        program,
        arguments,
        environ,
        file_actions=[
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
            (os.POSIX_SPAWN_DUP2, errors, 2),
        ],
        setsid=True,
        # phi4d blocks the signals that stop it, and Python ignores these two
        setsigmask=[],
        setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
    )


def filled(
    arguments: Sequence[str], words: Mapping[str, bytes], sidecars: Sequence[bytes] = ()
) -> list[bytes]:
    """Arguments with what stands in braces replaced; {sidecars} alone becomes one for each.

    What is no such word stays as it is; {{path}} becomes {path}.
    """

    def put(match: re.Match[bytes]) -> bytes:
        escaped, word = match.groups()
        if escaped is not None:
            return b"{" + escaped + b"}"
        return words.get(word.decode("ascii", "replace"), match[0])

    found: list[bytes] = []
    for argument in arguments:
        if argument == "{sidecars}":
            found += sidecars
        else:
            found.append(_WORD.sub(put, os.fsencode(argument)))
    return found


def environment(words: Mapping[str, bytes]) -> dict[bytes, bytes]:
    """Ours without what is meant for us alone, and what a command is told: PHI4D_PATH and so on."""
    kept = {
        key: value
        for key, value in os.environb.items()
        if not os.fsdecode(key).startswith(_OURS) and os.fsdecode(key) not in _OURS_ALONE
    }
    told = {b"PHI4D_" + key.upper().encode(): value for key, value in words.items()}
    return kept | told


def _attend(
    pid: int, reading: int, is_late: Callable[[], bool], aborting: threading.Event
) -> tuple[bytes, Literal["end", "stop", "time"]]:
    """Read what a process writes until it ends, is out of time, or we stop.

    Returns:
        The last of what it wrote, and why nobody reads on.
    """
    os.set_blocking(reading, False)
    written = b""
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(reading, select.POLLIN)
        while True:
            ready = dict(poll.poll(LOOK_SECONDS * 1000))
            some = _read(reading)
            written = (written + some)[-KEPT_BYTES:]
            if ended in ready:
                return written, "end"
            if not some and reading in ready:
                poll.unregister(reading)  # it closed its output, and works on
            if aborting.is_set():
                return written, "stop"
            if is_late():
                return written, "time"
    finally:
        os.close(ended)


def _read(descriptor: int) -> bytes:
    """What is there, at most some; nothing at its end, or if nothing is there."""
    try:
        return os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return b""


def _end(status: int, seconds: float, *, is_late: bool) -> str:
    """What was wrong with a process's end; empty: nothing."""
    if is_late:
        return f"took longer than {seconds:g} s (hook_seconds), and was killed"
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        return f"was killed by {signal.Signals(-code).name}"
    return f"ended with exit code {code}" if code else ""


def _last_line(written: bytes) -> str:
    lines = written.strip().splitlines()
    return f": {printable(lines[-1])[:LINE_CHARACTERS]}" if lines else ""
