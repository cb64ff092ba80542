"""One daemon for one state folder: a lock that ends with its process, however it ends."""

from __future__ import annotations

import fcntl
import math
import os
import struct
import time
from pathlib import Path

from phi4d.errors import ConfigError, refusal

_FLOCK = "hhqqi"  # struct flock on 64-bit Linux: type, whence, start, length, pid; see fcntl(2)


class Lock:
    """Holds a lock file until `release`.

    Raises:
        ConfigError: another process holds it, or the file cannot be written.
        EnvironmentFault: its disk is full or failing.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise refusal(
                error,
                f"{path}: cannot be written: {error.strerror}; state_dir must be a folder that "
                "the daemon's user can write, with room for a few files",
            ) from error
        try:
            fcntl.lockf(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(self._fd)
            raise ConfigError(
                f"{path.parent}: another phi4d works here (pid {holder(path)}); stop it, or give "
                "this one a state_dir of its own"
            ) from error

    def release(self) -> None:
        """Let the lock go. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def age_seconds(pid: int) -> float:
    """How long a process has run; endless if that cannot be told."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return math.inf
    # the second field is a name in brackets, of any bytes; the 22nd the start, see proc(5)
    ticks = int(stat.rpartition(b")")[2].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


def holder(path: Path) -> int | None:
    """Process id of who holds the lock; None when nobody does. Takes no lock itself."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # LOCK_SH asks whether even a reader would have to wait: a read-only file allows no more
        answer = fcntl.fcntl(fd, fcntl.F_GETLK, struct.pack(_FLOCK, fcntl.F_RDLCK, 0, 0, 0, 0))
    finally:
        os.close(fd)
    kind, _, _, _, pid = struct.unpack(_FLOCK, answer)
    return None if kind == fcntl.F_UNLCK else pid
