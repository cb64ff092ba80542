"""A hook that is a command: a program and its arguments, no shell between, ended as a whole.

It gets no standard input, and what it writes goes to the log at DEBUG. It is started in a session
of its own with no signal blocked; when it has ended, or has had its time, whatever is left of its
process group is killed.
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

from phi4d.errors import HookFailed, Stopped
from phi4d.job import printable

log = logging.getLogger(__name__)

LOOK_SECONDS = 0.1  # how often a stop and the time are looked at
OUTPUT_BYTES = 4_000  # of what it writes, for the log
_READ_BYTES = 65_536
_WORD = re.compile(rb"\{\{(\w+)\}\}|\{(\w+)\}")
_OURS = ("PHI4_", "PHI4D_", "WATCHDOG_", "LISTEN_", "MEMORY_PRESSURE_", "FDSTORE")
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
        raise HookFailed(f"{command[0]}: no such program, or not executable; see PATH and its mode")
    arguments = [os.fsencode(command[0]), *filled(command[1:], words, sidecars)]
    reading, writing = os.pipe()
    try:
        pid = os.posix_spawn(
            program,
            arguments,
            environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_DUP2, writing, 1),
                (os.POSIX_SPAWN_DUP2, writing, 2),
            ],
            setsid=True,
            # phi4d blocks the signals that stop it, and Python ignores these two
            setsigmask=[],
            setsigdef=[signal.SIGPIPE, signal.SIGXFSZ],
        )
    except OSError as error:
        os.close(reading)
        raise HookFailed(f"{command[0]}: cannot be started: {error.strerror}") from error
    finally:
        os.close(writing)
    try:
        until = clock() + seconds
        output, why = _attend(pid, reading, lambda: clock() >= until, aborting)
    finally:
        with suppress(ProcessLookupError):  # not yet reaped, so the number is still its own
            os.killpg(pid, signal.SIGKILL)
        _, status = os.waitpid(pid, 0)
        os.close(reading)
    if output:
        log.debug("%s wrote: %s", command[0], printable(output[:OUTPUT_BYTES]))
    if why == "stop":
        raise Stopped("the daemon is stopping")
    if why == "time":
        raise HookFailed(
            f"{command[0]}: took longer than {seconds:g} s (hook_seconds), and was killed"
        )
    code = os.waitstatus_to_exitcode(status)
    if code < 0:
        raise HookFailed(f"{command[0]}: was killed by {signal.Signals(-code).name}")
    if code:
        raise HookFailed(f"{command[0]}: ended with exit code {code}; debug = true logs its output")


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
    """Ours without what is meant for us alone, and what a command is told as PHI4D_PATH and so on."""
    kept = {
        key: value
        for key, value in os.environb.items()
        if not os.fsdecode(key).startswith(_OURS) and os.fsdecode(key) not in _OURS_ALONE
    }
    told = {b"PHI4D_" + key.upper().encode(): value for key, value in words.items()}
    return kept | told


def _attend(
    pid: int, reading: int, is_over: Callable[[], bool], aborting: threading.Event
) -> tuple[bytes, str]:
    """Read what a process writes until it ends, is out of time, or we stop.

    Returns:
        The beginning of what it wrote, and "", "time" or "stop".
    """
    output = b""
    os.set_blocking(reading, False)
    ended = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(ended, select.POLLIN)
        poll.register(reading, select.POLLIN)
        while True:
            ready = dict(poll.poll(LOOK_SECONDS * 1000))
            if reading in ready or ended in ready:
                some = _read(reading)
                output += some[: OUTPUT_BYTES - len(output)] if len(output) < OUTPUT_BYTES else b""
                if not some and reading in ready:
                    poll.unregister(reading)  # it closed its output, and works on
            if ended in ready:
                return output, ""
            if aborting.is_set():
                return output, "stop"
            if is_over():
                return output, "time"
    finally:
        os.close(ended)


def _read(descriptor: int) -> bytes:
    """What is there, at most some; nothing at its end, or if nothing is there."""
    try:
        return os.read(descriptor, _READ_BYTES)
    except BlockingIOError:
        return b""
