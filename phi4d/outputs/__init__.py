"""The outputs room: one writer for each format, and the one atomic write."""

from __future__ import annotations

import os
import time

from phi4d.job import Job, Result
from phi4d.outputs import atomic, record, text


def write(job: Job, result: Result, outbox: bytes) -> list[bytes]:
    """Write the sidecars of a job durably into the outbox, subfolders mirrored.

    The JSON comes last: where it stands, the whole result does.

    Args:
        job: the job; its path below the inbox is mirrored below the outbox.
        result: what to tell.
        outbox: the outbox's root, which must exist.

    Returns:
        The paths written.

    Raises:
        EnvironmentFault: the outbox cannot be written now.
        FileError: the file's name leaves no room for a suffix.
    """
    folder, name = os.path.split(os.path.join(outbox, job.path))
    atomic.make_folder(folder, outbox)
    return [
        atomic.write(folder, name + text.SUFFIX, text.render(result)),
        atomic.write(folder, name + record.SUFFIX, record.render(job, result, time.time())),
    ]
