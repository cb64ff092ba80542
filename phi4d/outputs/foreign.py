"""Files that have a sidecar's name but are not phi4d's: they are somebody's, and never overwritten.

Photo services put `IMG.JPG.json` beside `IMG.JPG`, people their own transcripts beside a recording.
"""

from __future__ import annotations

import json
import os
import stat

from phi4d.errors import FileError
from phi4d.job import Job, printable
from phi4d.outputs import names
from phi4d.outputs.told import bytes_of


def refuse(job: Job, folder: bytes, name: bytes, text: bytes, *, beside: bool) -> None:
    """Look whether what stands in the place of a file's sidecars is phi4d's.

    A record tells by its content whose it is. A text tells nothing: it is ours if the record
    beside it is, or if it says what we would say; or if this job was begun before, because a
    daemon that is killed may leave the text alone. In an outbox of its own it is ours anyway.

    Args:
        job: the job whose sidecars are to be written.
        folder: where.
        name: the source's name.
        text: what the text is to be.
        beside: whether the sidecars stand beside their sources, where people keep texts too.

    Raises:
        FileError: a file is in the way, and somebody would miss it.
    """
    record = os.path.join(folder, names.sidecar(name, names.RECORD))
    ours = is_ours(record)
    if ours is False:
        raise _in_the_way(record)
    if ours is None and beside and job.attempts < 2:
        path = os.path.join(folder, names.sidecar(name, names.TEXT))
        if _holds_other(path, text):
            raise _in_the_way(path)


def refuse_error(folder: bytes, name: bytes) -> None:
    """Look whether what stands in the place of a file's error record is phi4d's.

    Raises:
        FileError: it is somebody's.
    """
    record = os.path.join(folder, names.sidecar(name, names.ERROR))
    if is_ours(record) is False:
        raise _in_the_way(record)


def is_ours(path: bytes) -> bool | None:
    """Whether a record is phi4d's; None: there is none, or it cannot be read now."""
    try:
        record = json.loads(bytes_of(path))
    except OSError:
        return None
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "phi4d" in record and "source" in record


def _holds_other(path: bytes, text: bytes) -> bool:
    """Whether a file is there, and holds something else."""
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return not stat.S_ISDIR(status.st_mode)  # of a folder, the rename tells
        return status.st_size != len(text) or bytes_of(path) != text
    except (OSError, ValueError):
        return False


def _in_the_way(path: bytes) -> FileError:
    return FileError(
        f"{printable(path)} is in the way of its sidecar and is not phi4d's: move it away, or give "
        "the inbox another outbox; then phi4d retry"
    )
