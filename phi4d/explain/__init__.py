"""`phi4d explain`: why a file is taken or not, where it stands, and what to do. Changes nothing.

It answers for any path, also one that never existed, with a daemon and without one, and as far as
this user may look. What a file holds is told by its first bytes alone; nothing that could block is
opened.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence

from phi4d.config import Config, Inbox
from phi4d.desk.again import locate
from phi4d.explain.explanation import Explanation, as_json, render
from phi4d.explain.standing import Books, advise, say_sidecars, say_state
from phi4d.explain.taking import say_found, say_taken
from phi4d.job import printable
from phi4d.outputs import names
from phi4d.paths import as_configured, below, inbox_of
from phi4d.status import at

__all__ = ["Explanation", "as_json", "explain", "render"]


def explain(path: str, config: Config) -> Explanation:
    """Find out everything about a path.

    Raises:
        ConfigError: a pattern of an inbox is none.
    """
    boxes = config.inboxes()
    told = Explanation(as_configured(path, boxes))
    with Books(config) as books:
        found = _meant(told, boxes, books)
        if found is None:
            _say_outside(told, boxes)
        else:
            _say_inside(told, config, *found, books)
    return told


def _meant(told: Explanation, boxes: Sequence[Inbox], books: Books) -> tuple[Inbox, bytes] | None:
    """The file that a path means; a sidecar means its source."""

    def known(box: Inbox, relative: bytes) -> bool:
        path = os.path.join(os.fsencode(box.path), relative)
        # a file of a sidecar's name may be what phi4d wrote about another
        return (
            bool(books.versions(box, relative))
            or os.path.isdir(path)
            or (os.path.lexists(path) and not path.endswith((names.TEXT, names.RECORD)))
        )

    itself, found = inbox_of(told.path, boxes), locate(told.path, boxes, known)
    if found is None or found == itself:
        return itself
    box, relative = found
    if itself is not None and not known(box, relative):
        return itself  # among its sources an inbox may hold texts that phi4d did not write
    source = os.path.join(os.fsencode(box.path), relative)
    told.say("sidecar", f"of {printable(source)}, which this is about")
    told.path = source
    return found


def _say_outside(told: Explanation, boxes: Sequence[Inbox]) -> None:
    """It is in no inbox; perhaps in another folder of phi4d's."""
    told.say("inbox", "none: only what is below an inbox is taken")
    told.say("inboxes", ", ".join(f"{box.name} ({box.path})" for box in boxes) or "none configured")
    for box in boxes:
        for key, folder in (
            ("done_dir", box.done_dir),
            ("failed_dir", box.failed_dir),
            ("outbox", box.outbox_root()),
        ):
            if folder is not None and below(told.path, os.fsencode(folder)) is not None:
                told.say("folder", f'in the {key} of inbox "{box.name}"')
    told.advice = "put it into an inbox, or configure an inbox for its folder"


def _say_inside(
    told: Explanation, config: Config, box: Inbox, relative: bytes, books: Books
) -> None:
    told.inbox = box.name
    there = "" if os.path.isdir(box.path) else ", which is not there"
    told.say("inbox", f"{box.name} ({box.path}){there}")
    found = say_found(told)
    say_taken(told, config, box, relative, found)
    if found is None or not stat.S_ISDIR(found.st_mode):
        versions = books.versions(box, relative)
        say_state(told, box, books, versions, found)
        say_sidecars(told, box, relative)
        advise(told, config, books, versions)
    for notice in books.notices(box):
        told.say("held up", f"inbox {box.name}, since {at(notice.since)}: {notice.text}")
    told.say("daemon", books.daemon)
