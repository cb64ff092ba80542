"""Logging: structured fields in the journal, plain or JSON lines on stderr, or a file.

`configure` sets it up, and may be called again while the daemon runs. A line about a job carries
the job's file, inbox and device as fields; `for_job` makes a logger that adds them. What is logged,
and where, is decided where an error is handled. Lines of which there are too many are counted in
place of said (`funnel`); none is ever dropped in silence.

What pictures show and recordings say is never logged, nor what is asked about them,
at any level.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
import warnings
from collections.abc import Callable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from phi4d.job import Job
from phi4d.log import targets
from phi4d.log.funnel import Funnel

_LEVELS = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
    "critical": logging.CRITICAL,
}


def configure(
    *,
    log_level: str = "info",
    log_format: str = "auto",
    log_file: Path | None = None,
    log_file_mb: float = 10.0,
    log_file_count: int = 5,
) -> None:
    """Send phi4d's log to where it is read; what an earlier call had set is replaced.

    Warnings of Python and exceptions that nobody handles go the same way.

    Args:
        log_level: "debug", "info", "warning", "error" or "critical"; other libraries are heard
            from "warning" on.
        log_format: "auto" = fields in the journal where stderr leads there, else plain lines;
            "plain" or "json" lines.
        log_file: where to write, in place of stderr or the journal; None: no file.
        log_file_mb: size at which the file is rotated, in MB (10^6 bytes); 0 = never.
        log_file_count: older files that are kept.

    Raises:
        ConfigError: the file cannot be written; nothing has changed then.
        EnvironmentFault: there is no room for the file.
    """
    level = _LEVELS[log_level]
    target = targets.make(log_format, log_file, int(log_file_mb * 1e6), log_file_count)
    root = logging.getLogger()
    funnel = _funnel()
    if funnel is None:
        funnel = Funnel(time.monotonic)
        root.addHandler(funnel)
    funnel.aim(target, level)
    for other in root.handlers[:]:
        if other is not funnel:
            root.removeHandler(other)
            other.close()
    root.setLevel(max(logging.WARNING, level))
    logging.getLogger("phi4d").setLevel(level)
    warnings.showwarning = _warned
    sys.excepthook = _unhandled
    threading.excepthook = _unhandled_in_thread


def for_job(logger: logging.Logger, job: Job, device: str) -> logging.LoggerAdapter[logging.Logger]:
    """A logger whose lines carry the job and the device as fields."""
    fields = {
        "PHI4D_JOB": job.id,
        "PHI4D_INBOX": job.inbox,
        "PHI4D_FILE": job.name,
        "PHI4D_DEVICE": device,
    }
    return _Fields(logger, fields)


def tick(waiting: Callable[[], int] | None = None) -> None:
    """Say the counts that are due; to be called about once a second.

    Args:
        waiting: how many files wait, if that can be told; called when it is said.
    """
    if funnel := _funnel():
        funnel.tick(waiting)


def settle() -> None:
    """Say all that was counted and not yet said: at the end, nothing stays untold."""
    if funnel := _funnel():
        funnel.settle()


def _funnel() -> Funnel | None:
    return next((h for h in logging.getLogger().handlers if isinstance(h, Funnel)), None)


class _Fields(logging.LoggerAdapter[logging.Logger]):
    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        kwargs["extra"] = {**(self.extra or {}), **(kwargs.get("extra") or {})}
        return msg, kwargs


def _warned(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """A warning of Python's as one line, without the source beside it."""
    if file is not None:  # it was asked for there
        file.write(warnings.formatwarning(message, category, filename, lineno, line))
        return
    logging.getLogger("py.warnings").warning(
        "%s:%d: %s: %s", filename, lineno, category.__name__, message
    )


def _unhandled(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """What nobody handled ends the process; the log tells why."""
    if issubclass(kind, KeyboardInterrupt):
        sys.__excepthook__(kind, error, trace)
        return
    logging.getLogger("phi4d").critical(
        "phi4d ends: an error that nobody foresaw; please report it",
        exc_info=(kind, error, trace),
    )


def _unhandled_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is None or issubclass(args.exc_type, SystemExit):
        return
    logging.getLogger("phi4d").critical(
        "thread %s ends: an error that nobody foresaw; please report it",
        args.thread.name if args.thread else "?",
        exc_info=(args.exc_type, args.exc_value, args.exc_traceback),
    )
