"""The error record: why a file has no answer, and what to do about it."""

from __future__ import annotations

import phi4d
from phi4d.job import Job
from phi4d.outputs.record import dump, iso, version

ADVICE = (
    "replace the file by a good one, which is taken up by itself; or mend what the message names "
    "and run `phi4d retry` with the file's path"
)


def render(job: Job, *, fault: str, phase: str, message: str, began: float, now: float) -> bytes:
    """The record as JSON, UTF-8, with one newline at its end.

    Args:
        job: the job that was given up.
        fault: whose fault it is, as in `Phi4dError.fault`.
        phase: where it went wrong: "decode", "answer", "write".
        message: what went wrong, in words.
        began: when the file was first tried, seconds since the epoch.
        now: when it was given up, seconds since the epoch.
    """
    return dump(
        {
            "source": job.name,
            "inbox": job.inbox,
            "kind": job.kind.value,
            "fault": fault,
            "phase": phase,
            "message": message,
            "advice": ADVICE,
            "attempts": job.attempts,
            "crashes": job.crashes,
            "first_tried": iso(began),
            "failed": iso(now),
            **version(job),
            "phi4d": phi4d.__version__,
        }
    )
