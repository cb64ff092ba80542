"""The scheduler: pure policy, from what waits to what a worker takes next. No I/O."""

from __future__ import annotations

from collections.abc import Sequence

from phi4d.job import Job


def pick(waiting: Sequence[Job], capacity: int) -> list[Job]:
    """Choose what a worker takes next: jobs of one kind, the oldest first.

    The kinds are never mixed, because one adapter answers for a whole batch (correction G). A
    job that was started before and not finished goes alone: if it takes the process down again,
    it takes no other file's attempt with it.

    Args:
        waiting: queued jobs, oldest first.
        capacity: how many jobs at most.
    """
    if not waiting:
        return []
    first = waiting[0]
    if first.attempts:
        return [first]
    same = [job for job in waiting if job.kind is first.kind and not job.attempts]
    return same[:capacity]
