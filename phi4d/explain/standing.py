"""Where a file stands by the store: its state, its versions, its sidecars, and what to do."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import Self, TypeVar

from phi4d import lock
from phi4d.config import Config, Inbox
from phi4d.errors import Cancelled, EnvironmentFault
from phi4d.explain.explanation import Explanation, size
from phi4d.job import Fingerprint, State, printable
from phi4d.outputs import foreign, names
from phi4d.status import at
from phi4d.store import Notice, Reader, Row

T = TypeVar("T")


class Books:
    """What this user can read of the store, and of the lock. Nothing here raises."""

    def __init__(self, config: Config) -> None:
        self.fault = ""
        """why the store tells nothing"""
        self.closed = False
        """there is a store, and this user may not read it, or nobody can"""
        self._reader: Reader | None = None
        try:
            self._reader = Reader(config.store_path)
        except FileNotFoundError:
            self.fault = f"{config.store_path} is not there: phi4d has not run so configured"
        except EnvironmentFault as fault:
            self.fault, self.closed = str(fault), True
        held = config.state_dir / "lock"
        self.pid = lock.holder(held)
        """the daemon's; None: none runs"""
        self.daemon = f"runs, pid {self.pid}" if self.pid else "does not run"
        """the same in words"""
        if self.closed and not os.access(config.state_dir, os.X_OK, effective_ids=True):
            self.daemon = "not known: this user may not look"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._reader is not None:
            self._reader.close()

    def versions(self, box: Inbox, relative: bytes) -> list[Row]:
        """Every version of a file that is known, the newest first."""
        return self._ask(lambda reader: reader.versions(box.name, relative))

    def turn(self, row: Row, box: Inbox) -> str:
        """When a version has its turn, in words; empty: it does not wait for one."""
        if row.state is not State.QUEUED or row.next_try:
            return ""
        nouns = f"{row.job.kind.noun}s of its inbox"
        words = [
            f"{n:,} of the {nouns} go before it" if n else f"first of the {nouns}"
            for n in self._ask(lambda reader: [reader.before(row.job)])
        ]
        if box.priority != "normal":
            words.append(f"the inbox has {box.priority} priority")
        return "; ".join(words)

    def notices(self, box: Inbox) -> list[Notice]:
        """What holds an inbox up."""
        found = self._ask(lambda reader: reader.notices())
        return [notice for notice in found if notice.inbox == box.name]

    def _ask(self, question: Callable[[Reader], list[T]]) -> list[T]:
        if self._reader is None:
            return []
        try:
            return question(self._reader)
        except EnvironmentFault as fault:
            self.fault, self.closed = str(fault), True
            return []


def say_state(
    told: Explanation,
    box: Inbox,
    books: Books,
    versions: Sequence[Row],
    found: os.stat_result | None,
) -> None:
    """Where the newest version stands, which others there are, what became of the original."""
    if not versions:
        why = f"not known: {books.fault}" if books.fault else "phi4d does not know it"
        told.say("state", why)
        return
    row, *older = versions
    told.state = row.state
    told.say("state", _state(row, running=books.pid is not None))
    if turn := books.turn(row, box):
        told.say("turn", turn)
    job = row.job
    if row.state in (State.QUEUED, State.RUNNING):
        tries = [f"begun {_times(job.attempts)}"] if job.attempts else []
        tries += [f"put off {_times(job.waits)}"] if job.waits else []
        if tries:
            told.say("attempts", ", ".join(tries))
    if job.crashes:
        told.say("crashes", f"its decode process died {_times(job.crashes)}")
    if job.deaths:
        told.say("crashes", f"the device was lost {_times(job.deaths)} over it alone")
    if row.fault not in (None, Cancelled.fault) and row.state in (State.QUEUED, State.FAILED):
        phase = f", at {row.phase}" if row.phase else ""
        told.say("fault", f"{row.fault}{phase}: {row.reason}")
    told.is_newer = found is not None and Fingerprint.of(found) != job.fingerprint
    if told.is_newer:
        was = f"{size(job.fingerprint.size)}, changed {at(job.fingerprint.mtime_ns / 1e9)}"
        told.say("version", f"the file is a newer one than that ({was})")
    _say_original(told, row)
    if older:
        words = "1 older version" if len(older) == 1 else f"{len(older)} older versions"
        told.say("before", f"{words}; the last: {_state(older[0], running=True)}")


def _state(row: Row, *, running: bool) -> str:
    """Where a version stands, with its times."""
    on = f" on {row.device}" if row.device else ""
    when = f" {at(row.finished)}" if row.finished else ""
    tries = row.job.attempts
    match row.state:
        case State.QUEUED if row.next_try:
            words = f"waits for its next try, at {at(row.next_try)}"
        case State.QUEUED:
            words = f"waits for its turn, since {at(row.job.queued)}"
        case State.RUNNING if running and row.fault == Cancelled.fault:
            words = f"runs{on}, and is about to stop: {row.reason}"
        case State.RUNNING if running:
            words = f"runs{on}, since {at(row.started or row.added)}"
        case State.RUNNING:
            words = f"ran{on} when phi4d ended; is begun again at its next start"
        case State.DROPPED:
            words = f"set aside{when}: {row.reason}"
        case State.FAILED if row.fault == Cancelled.fault:
            words = f"given up{when}: {row.reason}"
        case _ if tries:
            words = f"{row.state}{when}{on} after {tries} attempt{'s' if tries > 1 else ''}"
        case _:
            words = f"{row.state}{when}, by the sidecars that were there"
    return words


def _say_original(told: Explanation, row: Row) -> None:
    if row.original == "due":
        told.say("original", "is about to be moved or deleted")
    elif row.original == "moved" and row.moved_to:
        there = "" if os.path.lexists(row.moved_to) else ", and is not there any more"
        told.say("original", f"was moved to {printable(row.moved_to)}{there}")
    elif row.original == "deleted":
        told.say("original", "was deleted when it was done with")


def say_sidecars(told: Explanation, box: Inbox, relative: bytes) -> None:
    """Where the sidecars are, or would have to be."""
    folder, name = os.path.split(os.path.join(os.fsencode(box.outbox_root()), relative))
    paths = [
        os.path.join(folder, names.sidecar(name, suffix))
        for suffix in (names.TEXT, names.RECORD, names.ERROR)
    ]
    there = [path for path in paths if os.path.lexists(path)]
    for path in there:
        if not path.endswith(names.TEXT) and foreign.is_ours(path) is False:
            told.say("in the way", f"{printable(path)}, which is not phi4d's")
        else:
            told.say("sidecar", printable(path))
    if not there and told.state is State.DONE:
        told.say("sidecar", f"not there any more: {printable(paths[0])}")


def advise(told: Explanation, config: Config, books: Books, versions: Sequence[Row]) -> None:
    """What to do, for what is taken; for what is not, it has been said."""
    path = printable(told.path)
    if versions and told.state is State.FAILED and not told.is_newer:
        moved_to = versions[0].moved_to
        told.advice = (
            f"put it back from {printable(moved_to)}, then: phi4d retry {path}"
            if moved_to
            else f"to have it done after all: phi4d retry {path}"
            if versions[0].fault == Cancelled.fault
            else f"mend or replace it, or have it tried again: phi4d retry {path}"
        )
    elif not told.ok or (told.state is State.DONE and not told.is_newer):
        return
    elif books.closed:
        return  # what keeps the store shut has been said, and what to do
    elif books.pid is None:
        told.advice = "start phi4d"
    elif not versions or told.is_newer:
        told.advice = (
            "nothing: it is taken when it is complete, at the latest "
            f"{config.rescan_seconds:.0f} s later"
        )


def _times(n: int) -> str:
    return "once" if n == 1 else f"{n} times"
