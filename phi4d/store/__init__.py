"""The store room: every job and where it stands. The only SQL in the house.

`Store` is the read-write side, of which there is one, the daemon's; `Reader` is for everybody else.
"""

from __future__ import annotations

from phi4d.store.hooks import Facts, Target
from phi4d.store.reader import Reader
from phi4d.store.rows import Chosen, Due, Failure, Notice, Paused, Row
from phi4d.store.schema import SCHEMA_VERSION, SQLITE_VERSION
from phi4d.store.store import ADD_ROWS, FIRST_FEW, Store

__all__ = [
    "ADD_ROWS",
    "FIRST_FEW",
    "SCHEMA_VERSION",
    "SQLITE_VERSION",
    "Chosen",
    "Due",
    "Facts",
    "Failure",
    "Notice",
    "Paused",
    "Reader",
    "Row",
    "Store",
    "Target",
]
