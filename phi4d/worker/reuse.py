"""Answers that are known: of files with the same bytes, about which the same was asked."""

from __future__ import annotations

from collections.abc import Mapping

from phi4d.job import display_name
from phi4d.outputs import told
from phi4d.store import Store
from phi4d.task import Rule, Task
from phi4d.worker.endings import Endings


class Reuse:
    """Finds and copies them for one worker.

    Args:
        store: knows what was answered.
        rules: the inboxes by name.
        endings: makes the copy durable.
        enabled: whether to look at all; may be changed at any time.
    """

    def __init__(
        self, store: Store, rules: Mapping[str, Rule], endings: Endings, *, enabled: bool
    ) -> None:
        self.enabled = enabled
        self._store = store
        self._rules = rules
        self._endings = endings
        self._gone: set[int] = set()
        """jobs whose answer was known, but whose sidecars to copy had gone"""

    def contents(self, task: Task) -> list[str] | None:
        """The contents of which the answer to a task's question is known; None: do not look."""
        if not self.enabled:
            return None
        if task.job.fresh or task.job.id in self._gone:
            return []
        task.answered = self._store.answered(task.job.fingerprint.size, task.question)
        return list(task.answered)

    def copy(self, task: Task) -> None:
        """Answer a file with the sidecars of another one that has the same bytes."""
        inbox, path = task.answered[task.digest]
        rule = self._rules.get(inbox)
        known = rule and told.read(rule.outbox, path)
        if (
            not known
            or known.content != task.digest
            or known.question != task.question
            or not known.reusable
        ):
            self._gone.add(task.job.id)
            self._endings.put_back([task], count=False)
        else:
            self._endings.done(task, known.result, reused_from=display_name(inbox, path))

    def forget(self, task: Task) -> None:
        """A task has its answer."""
        self._gone.discard(task.job.id)
