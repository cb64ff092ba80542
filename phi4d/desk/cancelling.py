"""What is wanted no more: the order of `phi4d cancel`. Carried out by who has the store."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from phi4d.config import Inbox
from phi4d.desk.again import Outcome, locate
from phi4d.job import display_name, printable
from phi4d.store import Store


def fields(paths: Sequence[bytes], inbox: str | None) -> dict[str, Any]:
    """The order as JSON has it; no paths: all that waits, in an inbox or in all."""
    return {"paths": [os.fsdecode(path) for path in paths], "inbox": inbox}


def of(told: Mapping[str, Any]) -> tuple[list[bytes], str | None]:
    """The paths and the inbox that fields of JSON tell.

    Raises:
        ValueError: they are none of an order's.
    """
    paths, inbox = told.get("paths", []), told.get("inbox")
    if not isinstance(paths, list) or not all(isinstance(path, str) for path in paths):
        raise ValueError("paths: expected a list of absolute paths")
    if not isinstance(inbox, str | None):
        raise ValueError("inbox: expected a name")  # noqa: TRY004 -- as all that is wrong here
    return [os.fsencode(path) for path in paths], inbox


def carry_out(
    paths: Sequence[bytes], inbox: str | None, store: Store, boxes: Sequence[Inbox], who: str
) -> Outcome:
    """Give up what waits; of what is named, what is being worked on as well.

    Whoever works on that must be told: it stops when it looks, unless it is done by then.

    Raises:
        EnvironmentFault: the store cannot be changed now.
    """
    boxes = [box for box in boxes if inbox in (None, box.name)]
    reason = f"cancelled by {who}; phi4d retry takes it up again"
    outcome = Outcome()
    places = [(box, b"", b"") for box in boxes] if not paths else []
    for path in paths:
        found = locate(path, boxes, lambda box, relative: store.holds(box.name, relative))
        if found is None:
            outcome += Outcome(left=((printable(path), "is in no inbox"),))
        else:
            places.append((*found, path))
    for box, relative, path in places:
        taken, stopping = store.cancel(box.name, relative, reason, running=bool(path))
        first = tuple(display_name(box.name, name) for name in taken.first)
        outcome += Outcome(taken.count, first, stopping=stopping)
        if path and not taken.count and not stopping:
            why = "neither waits nor is being worked on"
            outcome += Outcome(left=((printable(path), why),))
    return outcome
