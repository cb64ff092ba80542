"""Standard streams as a shell or a service manager left them: closed, in ASCII, on a full disk."""

from __future__ import annotations

import errno
import io
import os
import sys

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO}


def mend() -> None:
    """Give those that are closed a place where nothing comes of them, and let all take any text.

    A file that is opened later must not become the standard error of codecs.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest number is free
        if getattr(sys, name) is None:
            mode = "w" if number else "r"
            setattr(sys, name, os.fdopen(number, mode, encoding="utf-8", closefd=False))
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a test may have put something else there
            stream.reconfigure(errors="backslashreplace")


def is_lost(error: OSError) -> bool:
    """Whether it is standard output that could not be written; what is left of it is given up.

    Whoever writes files says which, or handles it.
    """
    if error.errno not in _NO_ROOM or error.filename is not None:
        return False
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())  # or the interpreter would try it again at its end
    os.close(nowhere)
    return True
