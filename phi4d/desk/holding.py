"""What is held back: inboxes that somebody pauses and resumes; carried out by who has the store."""

from __future__ import annotations

import pwd
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from phi4d.store import Store


@dataclass(frozen=True, slots=True)
class Hold:
    """An order to let nothing be taken from inboxes, or to end that."""

    inboxes: tuple[str, ...] = ()
    """their names; none: all, or, to end it, all that are paused"""
    pause: bool = True
    why: str = ""
    """in the words of who gives it"""

    @property
    def name(self) -> str:
        """The name that the order has for the daemon."""
        return "pause" if self.pause else "resume"

    def fields(self) -> dict[str, Any]:
        """The order as JSON has it."""
        return {"inboxes": self.inboxes, "why": self.why}

    @classmethod
    def of(cls, fields: Mapping[str, Any], *, pause: bool) -> Hold:
        """The order that fields of JSON tell.

        Raises:
            ValueError: they are none of an order's.
        """
        names, why = fields.get("inboxes") or [], fields.get("why") or ""
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError("inboxes: expected a list of names")
        if not isinstance(why, str):
            raise ValueError("why: expected text")  # noqa: TRY004 -- as all that is wrong here
        return cls(tuple(names), pause, " ".join(why.split()))


@dataclass(frozen=True, slots=True)
class Held:
    """What came of such an order."""

    changed: tuple[str, ...]
    """inboxes that were not as was wanted, and are now"""
    already: tuple[str, ...] = ()
    """inboxes that were as was wanted"""

    def fields(self) -> dict[str, Any]:
        """It as JSON has it."""
        return {"changed": self.changed, "already": self.already}

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Held:
        """It as fields of JSON tell."""
        return cls(tuple(fields["changed"]), tuple(fields["already"]))


def carry_out(order: Hold, store: Store, known: Sequence[str], who: str) -> Held:
    """Change the store as an order wants it.

    Args:
        order: the order.
        store: the store.
        known: the names of the inboxes that are configured.
        who: gives the order.

    Raises:
        ValueError: an inbox is not known.
        EnvironmentFault: the store cannot be changed now.
    """
    paused = store.paused()
    for name in order.inboxes:
        # one that is configured no more can be paused no more, but resumed
        if name not in known and (order.pause or name not in paused):
            raise ValueError(f"no inbox is named {name!r:.80}; there are: {', '.join(known)}")
    changed: list[str] = []
    already: list[str] = []
    for name in order.inboxes or (known if order.pause else tuple(paused)):
        done = store.pause(name, who, order.why) if order.pause else store.resume(name)
        (changed if done else already).append(name)
    return Held(tuple(changed), tuple(already))


def user(uid: int) -> str:
    """A user's name, or number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
