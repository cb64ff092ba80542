"""How a line of the log is written: plain, with the journal's priorities, or as JSON."""

from __future__ import annotations

import json
import logging
from datetime import datetime
from typing import Any

FIELD = "PHI4D_"
"""what names of fields begin with"""
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_PRIORITY_DEBUG = 7


def plain() -> logging.Formatter:
    """Lines with time and level, for people."""
    return logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")


class Json(logging.Formatter):
    """One JSON object a line: ts, level, message, and a line's fields in lower case."""

    def format(self, record: logging.LogRecord) -> str:
        """The object as text, without a line break."""
        when = datetime.fromtimestamp(record.created)
        told: dict[str, Any] = {
            "ts": when.astimezone().isoformat("T", "milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        told |= {
            key.removeprefix(FIELD).lower(): value
            for key, value in vars(record).items()
            if key.startswith(FIELD)
        }
        if record.exc_info:
            told["traceback"] = self.formatException(record.exc_info)
        return json.dumps(told, ensure_ascii=False, default=str)


class Prioritized(logging.Formatter):
    """Lines with the ``<N>`` prefix by which the journal knows a priority, see sd-daemon(3).

    Args:
        lines: how the lines are written behind it.
    """

    def __init__(self, lines: logging.Formatter) -> None:
        super().__init__()
        self._lines = lines

    def format(self, record: logging.LogRecord) -> str:
        """The lines, a prefix before each."""
        priority = next((p for level, p in _PRIORITIES if record.levelno >= level), _PRIORITY_DEBUG)
        text = self._lines.format(record)
        return "\n".join(f"<{priority}>{line}" for line in text.split("\n"))
