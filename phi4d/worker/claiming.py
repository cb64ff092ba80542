"""What a worker takes next: whose turn it is, of what it may take."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from phi4d.job import Job, Priority, likely_seconds
from phi4d.scheduler import Pauses, Turns
from phi4d.slots import Slots
from phi4d.store import Store
from phi4d.task import Rule, Task
from phi4d.worker.endings import Endings

LONG_SECONDS = 600.0
"""a recording of more keeps its decode process for about as long as its answers take"""
LOOK_PAST = 256
"""long recordings that wait may stand before what is short in their queue"""


class Claiming:
    """Claims jobs for one worker.

    Args:
        device: the worker's.
        store: where jobs come from.
        rules: the inboxes by name.
        pauses: the inboxes that wait.
        slots: all workers' slots.
        slot: what the worker's own is known by among them.
        endings: tells whether an inbox whose pause is over can go on.
    """

    def __init__(
        self,
        device: str,
        store: Store,
        rules: Mapping[str, Rule],
        pauses: Pauses,
        slots: Slots,
        slot: object,
        endings: Endings,
    ) -> None:
        self._device = device
        self._store = store
        self._rules = rules
        self._pauses = pauses
        self._slots = slots
        self._slot = slot
        self._endings = endings
        self._turns = Turns(self._priority)

    def claim(
        self, count: int, inboxes: Sequence[str], tasks: Collection[Task], ahead: int
    ) -> list[Job]:
        """Take what comes next.

        Who has something to do leaves as many files as there are slots without.

        Args:
            count: how many at most.
            inboxes: to take from; none of them pauses.
            tasks: what the worker has.
            ahead: how many files it may have decoded at once.

        Raises:
            EnvironmentFault: the store cannot be read or written.
        """
        for inbox in inboxes:  # one for which nothing is to be done works again, too
            if self._pauses.on_trial(inbox) and not self._store.busy([inbox]):
                self._endings.try_again(inbox)
        others = self._slots.resting(self._slot)
        has_long = sum(is_long(task.job) for task in tasks if not task.decoded)
        waiting = self._waiting(count + others, inboxes, max(1, ahead - 1) - has_long)
        left = len(waiting) - others
        chosen = self._turns.pick(waiting, min(count, left if tasks else max(1, left)))
        for inbox in {job.inbox for job in chosen}:
            if self._pauses.on_trial(inbox) and not self._endings.can_go_on(inbox):
                chosen = [job for job in chosen if job.inbox != inbox]
        return self._store.claim([job.id for job in chosen], self._device) if chosen else []

    def _waiting(self, each: int, inboxes: Sequence[str], long: int) -> list[Job]:
        """What waits, with no more long recordings than so many: a process is for what is short."""
        if long <= 0:
            each += LOOK_PAST
        jobs = self._store.waiting(each, inboxes, self._slots.refused(self._device))
        too_many = {job.id for job in [job for job in jobs if is_long(job)][max(0, long) :]}
        return [job for job in jobs if job.id not in too_many]

    def _priority(self, inbox: str) -> Priority:
        rule = self._rules.get(inbox)
        return rule.priority if rule else "normal"


def is_long(job: Job) -> bool:
    """Whether decoding a job's file probably lasts for about as long as its answers take."""
    return likely_seconds(job.kind, job.fingerprint.size) > LONG_SECONDS
