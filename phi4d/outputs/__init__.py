"""The outputs room: names of sidecars, a writer for each format, and the one atomic write.

`told` reads a sidecar again; `originals` moves or deletes what the sidecars are about.
"""

from __future__ import annotations

import os
import time

from phi4d.errors import FileError
from phi4d.job import Job, Result, printable
from phi4d.outputs import atomic, error, foreign, names, record, text


def write(
    job: Job,
    result: Result,
    outbox: bytes,
    *,
    content: str = "",
    reused_from: str = "",
    beside: bool = False,
) -> list[bytes]:
    """Write the sidecars of a job durably into the outbox, subfolders mirrored.

    The JSON becomes visible last: where it stands, the whole result does. An error record of an
    earlier attempt goes.

    Args:
        job: the job; its path below the inbox is mirrored below the outbox.
        result: what to tell.
        outbox: the outbox's root, which must exist.
        content: SHA-256 of the file's bytes in hexadecimal; empty: not known.
        reused_from: the file whose answer this is a copy of, as people see it; empty: none.
        beside: whether the outbox is the inbox itself.

    Returns:
        The paths written: the text, then the JSON.

    Raises:
        EnvironmentFault: the outbox cannot be written now.
        FileError: the path of the sidecars is too long, or something that is not phi4d's is in
            their place.
    """
    folder, name = _place(job, outbox)
    words = text.render(result)
    foreign.refuse(job, folder, name, words, beside=beside)
    told = record.render(job, result, time.time(), content=content, reused_from=reused_from)
    files = [
        (names.sidecar(name, names.TEXT), words),
        (names.sidecar(name, names.RECORD), told),
    ]
    paths = atomic.write_all(folder, files)
    _remove_error(folder, name)
    return paths


def written(outbox: bytes, path: bytes, *, failed: bool = False) -> list[bytes]:
    """The sidecars of a file that are there: the text and the JSON, or the error record.

    Args:
        outbox: the outbox's root.
        path: the source file's path below its inbox.
        failed: whether its job failed.
    """
    folder, name = os.path.split(os.path.join(outbox, path))
    suffixes = (names.ERROR,) if failed else (names.TEXT, names.RECORD)
    paths = [os.path.join(folder, names.sidecar(name, suffix)) for suffix in suffixes]
    return [path for path in paths if os.path.lexists(path)]


def clear_error(job: Job, outbox: bytes) -> None:
    """Remove the error record of a job whose sidecars are safe, if there is one.

    Raises:
        EnvironmentFault: it is there, and cannot be removed now.
    """
    _remove_error(*os.path.split(os.path.join(outbox, job.path)))


def _remove_error(folder: bytes, name: bytes) -> None:
    record = names.sidecar(name, names.ERROR)
    if foreign.is_ours(os.path.join(folder, record)):
        atomic.remove(folder, record)


def write_error(
    job: Job, outbox: bytes, *, fault: str, phase: str, message: str, began: float, now: float
) -> bytes:
    """Write the error record of a job that was given up, durably, where its sidecars would be.

    Args:
        job: the job.
        outbox: the outbox's root, which must exist.
        fault: whose fault it is, as in `Phi4dError.fault`.
        phase: where it went wrong: "decode", "answer", "write".
        message: what went wrong, in words.
        began: when the file was first tried, seconds since the epoch.
        now: when it was given up, seconds since the epoch.

    Returns:
        The path written.

    Raises:
        EnvironmentFault: the outbox cannot be written now.
        FileError: the path of the record is too long, or something that is not phi4d's is in its
            place.
    """
    folder, name = _place(job, outbox)
    foreign.refuse_error(folder, name)
    told = error.render(job, fault=fault, phase=phase, message=message, began=began, now=now)
    return atomic.write(folder, names.sidecar(name, names.ERROR), told)


def _place(job: Job, outbox: bytes) -> tuple[bytes, bytes]:
    """The folder of a job's sidecars, made if need be, and the source's name."""
    folder, name = os.path.split(os.path.join(outbox, job.path))
    longest = os.path.join(folder, names.sidecar(name, names.ERROR))
    if len(longest) > names.PATH_MAX:
        raise FileError(
            f"the path of its sidecars in {printable(outbox)} would have {len(longest)} bytes; "
            f"Linux takes {names.PATH_MAX}: shorten the names of its folders, or give the inbox "
            "an outbox with a shorter path"
        )
    atomic.make_folder(folder, outbox)
    return folder, name
