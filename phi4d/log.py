"""Logging: structured fields in the journal, or plain lines on stderr.

A line about a job carries the job's file, inbox and device as fields; `for_job` makes a logger
that adds them. What is logged, and where, is decided where an error is handled.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

from phi4d.job import Job

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")
_LEVEL_TO_PRIORITY = ((logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))


def setup(level: int = logging.INFO) -> None:
    """Send phi4d's log to where it is read. Replaces what an earlier call had set."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(_handler())
    root.setLevel(logging.WARNING)
    logging.getLogger("phi4d").setLevel(level)


def for_job(logger: logging.Logger, job: Job, device: str) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose lines carry the job and the device as journal fields."""
    fields = {
        "PHI4D_JOB": str(job.id),
        "PHI4D_INBOX": job.inbox,
        "PHI4D_FILE": job.name,
        "PHI4D_DEVICE": device,
    }
    return _Fields(logger, fields)


class _Fields(logging.LoggerAdapter[logging.Logger]):
    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **kwargs.get("extra", {})}
        return msg, kwargs


def _handler() -> logging.Handler:
    if not _stderr_is_journal():
        handler: logging.Handler = logging.StreamHandler(sys.stderr)
        handler.setFormatter(
            logging.Formatter("%(asctime)s %(levelname)-7s %(message)s", "%Y-%m-%d %H:%M:%S")
        )
        return handler
    # without its socket the journal's handler drops everything in silence
    if JOURNAL_SOCKET.exists():
        try:
            from systemd.journal import JournalHandler
        except ImportError:
            pass
        else:
            handler = JournalHandler(SYSLOG_IDENTIFIER="phi4d")
            handler.setFormatter(logging.Formatter("%(message)s"))
            return handler
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_PriorityPrefix("%(message)s"))
    return handler


class _PriorityPrefix(logging.Formatter):
    """Lines with the ``<N>`` prefix by which the journal knows a priority, see sd-daemon(3)."""

    def format(self, record: logging.LogRecord) -> str:
        priority = next((p for level, p in _LEVEL_TO_PRIORITY if record.levelno >= level), 7)
        return "\n".join(f"<{priority}>{line}" for line in super().format(record).split("\n"))


def _stderr_is_journal() -> bool:
    """Whether stderr is the stream that the service manager connected to the journal."""
    try:
        stat = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{stat.st_dev}:{stat.st_ino}"
