"""The inbox room: notice files, wait until they are complete, hand them on.

Events are hints and may be lost; what counts is the comparison of the folders with the store: at
the start, every so often, and when something was missed. Each folder is watched before it is
listed, so nothing falls between the two.
"""

from __future__ import annotations

from phi4d.inbox.configured import roots
from phi4d.inbox.place import Root
from phi4d.inbox.rules import Rules, Verdict, worth_opening
from phi4d.inbox.scan import explain
from phi4d.inbox.watcher import Health, Watcher
from phi4d.job import Inspection

__all__ = [
    "Health",
    "Inspection",
    "Root",
    "Rules",
    "Verdict",
    "Watcher",
    "explain",
    "roots",
    "worth_opening",
]
