"""One decode process as its parent sees it: started, asked, ended. It decides nothing."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from phi4d.errors import EnvironmentFault
from phi4d.media.wire import Channel, Header, pair

_KEPT = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV", "TZ")
_KEPT_PREFIXES = ("LC_", "LD_", "PYTHON", "COV")
_DEATH_S = 5.0  # a process stuck in a dead mount does not even die of SIGKILL: do not wait for it


class DecodeProcess:
    """A decode process, our end of its socket, and our end of its lifeline (its standard input).

    Args:
        memory_bytes: its limit on address space.
        cpu_s: its limit on CPU time between two signs of life.

    Raises:
        EnvironmentFault: it cannot be started.

    Attributes:
        memory_bytes: as it was given.
        cpu_s: as it was given.
        channel: where it is asked and answers.
        files: how many it has decoded.
        ready: it has said that it started.
    """

    def __init__(self, memory_bytes: int, cpu_s: float) -> None:
        self.memory_bytes = memory_bytes
        self.cpu_s = cpu_s
        self.files = 0
        self.ready = False
        ours, theirs = pair()
        self.channel = Channel(ours)
        # -P: no module in the daemon's working folder may pass for a library.
        command = [sys.executable, "-P", "-m", "phi4d.media.decoder"]
        with theirs:
            try:
                self._popen = subprocess.Popen(
                    [*command, str(theirs.fileno()), str(memory_bytes), str(cpu_s)],
                    stdin=subprocess.PIPE,
                    pass_fds=[theirs.fileno()],
                    env=_environment(),
                    # Keeps a terminal's Ctrl-C from it even before it can ignore it.
                    process_group=0,
                )
            except OSError as error:
                self.channel.close()
                raise EnvironmentFault(f"a decode process cannot be started: {error}") from error

    @property
    def pid(self) -> int:
        """Its process number."""
        return self._popen.pid

    def alive(self) -> bool:
        """Whether it runs."""
        return self._popen.poll() is None

    def ask(self, request: Header, body: NDArray[np.uint8] | None = None) -> None:
        """Send a request. If it is gone, who waits for the answer finds out, and how it ended."""
        with suppress(OSError):
            self.channel.send(request, body)

    def ended(self) -> str:
        """How it ended, in words; for when its end of the socket is closed."""
        try:
            status = self._popen.wait(_DEATH_S)
        except subprocess.TimeoutExpired:
            return "hung up and does not end"
        if status == -signal.SIGXCPU:
            return f"used more than {self.cpu_s:g} s of CPU time (decode_seconds)"
        if status < 0:
            return f"was killed by {signal.Signals(-status).name}"
        return f"ended with status {status}"

    def kill(self) -> None:
        """End it now. Idempotent; the channel stays open for whoever is waiting on it."""
        self._popen.kill()
        with suppress(subprocess.TimeoutExpired):
            self._popen.wait(_DEATH_S)
        if self._popen.stdin:
            self._popen.stdin.close()


def _environment() -> dict[str, str]:
    """What a decode process may know of our environment: no tokens, no notify socket."""
    kept = {k: v for k, v in os.environ.items() if k in _KEPT or k.startswith(_KEPT_PREFIXES)}
    # One thread: the pool is the parallelism, and on a machine of many cores the stacks and malloc
    # arenas (64 MB each) of a thread for each core would use up the address space.
    single = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "2"}
    return kept | single
