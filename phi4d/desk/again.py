"""What is to be done again: the orders of `phi4d retry` and `phi4d regenerate`.

An order comes from `orders.py`, as a value or as JSON; it is carried out by who has the store.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from phi4d.config import Config, Inbox
from phi4d.job import Fingerprint, Job, Kind, State, display_name, printable, question
from phi4d.outputs import names
from phi4d.paths import inbox_of, outboxes_of
from phi4d.store import FIRST_FEW, Chosen, Row, Store

_UNDER_WAY = {State.QUEUED: "waits for its turn already", State.RUNNING: "is being worked on"}

Asked = Callable[[Inbox, Kind], bytes]
"""What is asked today about a kind of file in an inbox; see `phi4d.job.question`."""


@dataclass(frozen=True, slots=True)
class Order:
    """What somebody wants done again."""

    paths: tuple[bytes, ...] = ()
    """absolute: files, folders with everything in them, sidecars, which mean their source; none:
    everything"""
    inbox: str | None = None
    """this inbox alone"""
    anew: bool = False
    """what is done is answered anew; otherwise what failed or waits is taken up"""
    stale: bool = False
    """of what is done, only what was asked something else than would be asked today"""
    dry_run: bool = False
    """only count"""

    @property
    def name(self) -> str:
        """The name that the order has for the daemon."""
        return "regenerate" if self.anew else "retry"

    def fields(self) -> dict[str, Any]:
        """The order as JSON has it."""
        paths = [os.fsdecode(path) for path in self.paths]
        return {
            "paths": paths, "inbox": self.inbox, "stale": self.stale, "dry_run": self.dry_run
        }  # fmt: skip

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, anew: bool) -> Order:
        """The order that fields of JSON tell.

        Raises:
            ValueError: they are none of an order's.
        """
        paths, inbox = fields.get("paths", []), fields.get("inbox")
        if not isinstance(paths, list) or not all(
            isinstance(path, str) and path.startswith("/") for path in paths
        ):
            raise ValueError("paths: expected a list of absolute paths")
        if not isinstance(inbox, str | None):
            raise ValueError("inbox: expected a name")  # noqa: TRY004 -- as all that is wrong here
        order = cls(
            tuple(map(os.fsencode, paths)),
            inbox,
            anew,
            fields.get("stale") is True,
            fields.get("dry_run") is True,
        )
        if anew and not order.paths and not order.stale:
            raise ValueError("expected paths, or stale")
        return order


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an order brought about."""

    taken: int = 0
    """how many files"""
    first: tuple[str, ...] = ()
    """the first few of them, as people see them"""
    left: tuple[tuple[str, str], ...] = ()
    """paths of the order that led to no file, and why"""
    stopping: int = 0
    """how many of what is being worked on were told to stop"""

    def __add__(self, other: Outcome) -> Outcome:
        first = (self.first + other.first)[:FIRST_FEW]
        stopping = self.stopping + other.stopping
        return Outcome(self.taken + other.taken, first, self.left + other.left, stopping)

    def fields(self) -> dict[str, Any]:
        """The outcome as JSON has it."""
        return {
            "taken": self.taken, "first": self.first, "left": self.left, "stopping": self.stopping
        }  # fmt: skip

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Outcome:
        """The outcome that fields of JSON tell."""
        left = tuple((path, why) for path, why in fields["left"])
        return cls(fields["taken"], tuple(fields["first"]), left, fields.get("stopping", 0))


def todays(config: Config, model: str) -> Asked:
    """What is asked today, by the configuration and of a model of that name."""

    def asked(box: Inbox, kind: Kind) -> bytes:
        return question(kind, model, config.prompt(box, kind), config.sampling)

    return asked


def carry_out(order: Order, store: Store, boxes: Sequence[Inbox], asked: Asked) -> Outcome:
    """Change the store as an order wants it.

    Raises:
        EnvironmentFault: the store cannot be changed now.
    """
    boxes = [box for box in boxes if order.inbox in (None, box.name)]
    outcome = Outcome()
    if not order.paths:
        for box in boxes:
            outcome += _named(box, _take(order, store, box, b"", asked))
    for path in order.paths:
        found = locate(path, boxes, lambda box, relative: store.holds(box.name, relative))
        if found is None:
            inboxes = ", ".join(str(box.path) for box in boxes) or "none"
            outcome += Outcome(left=((printable(path), f"is in no inbox; inboxes: {inboxes}"),))
            continue
        box, relative = found
        taken = _take(order, store, box, relative, asked)
        outcome += _named(box, taken)
        if not taken.count:
            outcome += Outcome(left=((printable(path), _why_not(order, store, box, relative)),))
    return outcome


def locate(
    path: bytes, boxes: Sequence[Inbox], known: Callable[[Inbox, bytes], bool]
) -> tuple[Inbox, bytes] | None:
    """The file that an absolute path means: itself, or, if it is a sidecar, the source.

    Args:
        path: any.
        boxes: the inboxes.
        known: whether anything is known of a path below an inbox.

    Returns:
        Its inbox and the path below it; None: it belongs to none.
    """
    found = inbox_of(path, boxes)
    if found is not None and known(*found):
        return found
    for box, relative in outboxes_of(path, boxes):
        folder, name = os.path.split(relative)
        source = names.source(name, partial(_listed, box, folder))
        if source is not None:
            return box, os.path.join(folder, source)
    return found


def _listed(box: Inbox, folder: bytes) -> list[bytes]:
    try:
        return os.listdir(os.path.join(os.fsencode(box.path), folder))
    except OSError:
        return []


def _take(order: Order, store: Store, box: Inbox, relative: bytes, asked: Asked) -> Chosen:
    state = State.DONE if order.anew else State.FAILED
    if not order.dry_run:
        for job in store.gone(state, box.name, relative):
            if _is_there(box, job):
                store.came_back(job)
    if not order.anew:
        return store.retry(box.name, relative)
    if not order.stale:
        return store.regenerate(box.name, relative, dry_run=order.dry_run)
    stale = [
        store.regenerate_stale(box.name, kind, asked(box, kind), relative, dry_run=order.dry_run)
        for kind in Kind
    ]
    return Chosen(
        sum(some.count for some in stale), tuple(path for some in stale for path in some.first)
    )


def _named(box: Inbox, taken: Chosen) -> Outcome:
    return Outcome(taken.count, tuple(display_name(box.name, path) for path in taken.first))


def _is_there(box: Inbox, job: Job) -> bool:
    """Whether a file that was moved away is at its place again."""
    try:
        status = os.lstat(os.path.join(os.fsencode(box.path), job.path))
    except OSError:
        return False
    return Fingerprint.of(status) == job.fingerprint


def _why_not(order: Order, store: Store, box: Inbox, relative: bytes) -> str:
    """Why a path led to no file that could be taken."""
    versions = store.versions(box.name, relative)
    if versions:
        return _why_not_this(order, versions[0])
    if not store.holds(box.name, relative):
        return "is not known; phi4d explain tells why"
    if not order.anew:
        return "nothing in it has failed or waits for its next try"
    return f"nothing in it is {'stale' if order.stale else 'done'}"


def _why_not_this(order: Order, row: Row) -> str:
    if row.state in _UNDER_WAY:
        return _UNDER_WAY[row.state]
    if row.state is State.DROPPED:
        return f"was set aside ({row.reason}); if it is there, it is taken by itself"
    ended = "is done" if row.state is State.DONE else "has failed"
    command = "phi4d regenerate" if row.state is State.DONE else "phi4d retry"
    if row.original == "moved" and row.moved_to:
        return f"{ended}, and was moved to {printable(row.moved_to)}: put it back, then {command}"
    if row.original == "deleted":
        return f"{ended}, and was deleted: copy it here again"
    if order.anew and row.state is State.DONE:
        return "is not stale: it was asked the same, of the same model"
    return f"{ended}: {command} does it again"
