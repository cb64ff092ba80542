"""Where the log goes: the journal, stderr, or a file. Where one fails, another takes its lines."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import sys
from pathlib import Path
from typing import Any

from phi4d import events
from phi4d.errors import refusal
from phi4d.log import formats

JOURNAL_SOCKET = Path("/run/systemd/journal/socket")


def make(log_format: str, file: Path | None, max_bytes: int, count: int) -> logging.Handler:
    """The handler for the log; arguments as in `phi4d.log.configure`.

    Raises:
        ConfigError: the file cannot be written.
        EnvironmentFault: there is no room for the file.
    """
    target = _journal() if log_format == "auto" else None
    if target is None:
        target = _stderr(log_format)
    if file is None:
        return target
    try:
        log_file = LogFile(file, max_bytes, count, target)
    except OSError as error:
        target.close()
        raise refusal(
            error,
            f"log_file: {file} cannot be written: {error.strerror}; name a file in a folder that "
            "is there and that the daemon's user can write, or leave log_file out",
        ) from error
    log_file.setFormatter(formats.Json() if log_format == "json" else formats.plain())
    return log_file


def _stderr(log_format: str) -> logging.Handler:
    handler = _Stderr(sys.stderr)
    lines = formats.Json() if log_format == "json" else formats.plain()
    if _stderr_is_journal():
        # the journal has the time itself
        lines = lines if log_format == "json" else logging.Formatter("%(message)s")
        lines = formats.Prioritized(lines)
    handler.setFormatter(lines)
    return handler


class _Stderr(logging.StreamHandler[Any]):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 -- its name there
        """What cannot be written cannot be said either; it would come out when there is room."""
        if not isinstance(sys.exception(), OSError):
            super().handleError(record)


def _journal() -> logging.Handler | None:
    """Fields in the journal, if stderr leads there and its library is installed."""
    # without its socket the journal's handler drops everything in silence
    if not _stderr_is_journal() or not JOURNAL_SOCKET.exists():
        return None
    try:
        from systemd.journal import JournalHandler
        from systemd.journal import send as send_to_journal
    except ImportError:
        return None

    def send(message: str, /, **fields: Any) -> None:
        if not JOURNAL_SOCKET.exists():
            raise OSError(errno.ENOENT, "no journal", str(JOURNAL_SOCKET))
        fields.pop("EXCEPTION_INFO", None)  # an object's address is of no use to anybody
        # a record's own attributes, in lower case, are no fields
        told = {key: _printable(fields[key]) for key in fields if key.isupper()}
        send_to_journal(_printable(message), **told)

    handler: Any = JournalHandler(sender_function=send, SYSLOG_IDENTIFIER="phi4d")
    handler.setFormatter(logging.Formatter("%(message)s"))
    handler.handleError = _stderr("plain").handle  # what it could not send
    made: logging.Handler = handler
    return made


def _printable(value: Any) -> Any:
    """A field that can be sent: a path in it need not be UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    return value


def _stderr_is_journal() -> bool:
    """Whether stderr is the stream that the service manager connected to the journal."""
    try:
        found = os.fstat(2)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


class LogFile(logging.Handler):
    """A file that is rotated by its size, or by others.

    As of `logging.handlers`, RotatingFileHandler and WatchedFileHandler in one: it is opened again
    when it was moved away or removed, as logrotate does. While it cannot be written, as on a full
    disk, its lines go elsewhere; that it cannot, and that it can again, is said there once.

    Args:
        path: the file; it is added to.
        max_bytes: size at which it is rotated; 0 = never.
        count: older files that are kept, at least 1.
        instead: takes the lines that cannot be written.

    Raises:
        OSError: the file cannot be written.
    """

    def __init__(self, path: Path, max_bytes: int, count: int, instead: logging.Handler) -> None:
        super().__init__()
        self._path = path
        self._max_bytes = max_bytes
        self._count = count
        self._instead = instead
        self._is_torn = False
        """the file ends within a line"""
        self._trouble = ""
        self._fd = self._opened()

    def _opened(self) -> int:
        # a pipe that nobody reads is refused, and not waited for
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NONBLOCK | os.O_NOCTTY
        return os.open(self._path, flags | os.O_CLOEXEC, 0o640)

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line; if that cannot be, elsewhere."""
        try:
            line = f"{self.format(record)}\n".encode("utf-8", "backslashreplace")
        except Exception:  # a wrong format string, say: the log must not end what it tells of
            self.handleError(record)
            return
        try:
            self._rotate_if_due(len(line))
            self._write(line)
        except OSError as error:
            self._say(f"cannot be written: {error.strerror}; until it can, the log goes here")
            self._instead.handle(record)
        else:
            self._say("")

    def _write(self, line: bytes) -> None:
        rest = b"\n" + line if self._is_torn else line
        while rest:
            written = os.write(self._fd, rest)
            rest = rest[written:]
            self._is_torn = bool(rest)

    def _rotate_if_due(self, more: int) -> None:
        """See that the file at the path is the one that is open, and small enough."""
        ours = os.fstat(self._fd)
        try:
            there = os.stat(self._path)
            is_ours = (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            is_ours = False
        if is_ours and stat.S_ISREG(ours.st_mode) and self._max_bytes and ours.st_size:
            is_ours = ours.st_size + more <= self._max_bytes or not self._rotated()
        if not is_ours:
            fresh = self._opened()
            os.close(self._fd)
            self._fd, self._is_torn = fresh, False

    def _rotated(self) -> bool:
        """Give the file the name PATH.1, the one before PATH.2 and so on; whether it could be."""
        names = [self._path, *(Path(f"{self._path}.{n + 1}") for n in range(self._count))]
        try:
            for older, newer in zip(names[:0:-1], names[-2::-1], strict=True):
                with contextlib.suppress(FileNotFoundError):
                    os.replace(newer, older)
        except OSError as error:
            self._say(f"cannot be rotated: {error.strerror}; it grows on")
            return False
        return True

    def _say(self, trouble: str) -> None:
        """Say once what is wrong with the file, or that nothing is any more."""
        if trouble and trouble != self._trouble:
            self._tell(logging.ERROR, trouble, events.LOG_TROUBLED)
        elif not trouble and self._trouble.startswith("cannot be written"):
            self._tell(logging.WARNING, "is written again", events.LOG_HEALED)
        elif not trouble:
            return  # one that only cannot be rotated is not healed by being written
        self._trouble = trouble

    def _tell(self, level: int, words: str, event: events.Event) -> None:
        record = logging.makeLogRecord(
            {
                "name": __name__,
                "levelno": level,
                "levelname": logging.getLevelName(level),
                "msg": f"log_file: {self._path} {words}",
                **event(),
            }
        )
        self._instead.handle(record)

    def close(self) -> None:
        """Close the file, and what took its lines."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
        self._instead.close()
        super().close()
