"""The decode process: files in, pieces out, one file at a time, until nobody asks any more.

Started by `phi4d.media.process` as ``python -m phi4d.media.decoder FD MEMORY_BYTES CPU_SECONDS``;
standard input is the pool's lifeline and carries no data. It runs codecs on strangers' files, so it
gives up rights before the first one, has limits, and holds nothing that would be missed: the pool
kills it whenever that is simplest.
"""

from __future__ import annotations

import ctypes
import fcntl
import math
import os
import resource
import select
import signal
import socket
import sys
import time
from contextlib import suppress

_MAX_KNOWN_BYTES = 1 << 20
_NICENESS = 5  # decoding is ahead of the model; the threads that feed it go first
_OOM_SCORE = 500  # of 1000, see proc(5): any user may raise it
_PR_SET_NO_NEW_PRIVS = 38  # linux/prctl.h


def main(argv: list[str]) -> None:
    """Serve one pool until it is gone.

    ``argv``: the socket's descriptor, the limit on memory in bytes, that on CPU time in seconds.
    """
    harden(int(argv[1]))
    # Only now: what decoding needs is loaded within the limits.
    from phi4d.media.serving import Server
    from phi4d.media.wire import Channel

    channel = Channel(socket.socket(fileno=int(argv[0])))
    cpu_s = float(argv[2])
    server = Server(channel, lambda: allow_cpu(cpu_s))
    _silence(2)  # from here on only codecs would write there
    channel.send({"is": "ready"})
    while True:
        try:
            request, known = channel.receive(_MAX_KNOWN_BYTES)
        except EOFError:
            return
        if request["is"] == "file":  # else the last one had no more pieces to ask for
            server.serve(request, known.tobytes().decode().split())


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


if __name__ == "__main__":
    main(sys.argv[1:])
