"""Reads what a sidecar tells: for a store that was lost, and for an answer that serves again.

A hint and no more: what is damaged, foreign or out of reach tells nothing, and is no fault.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import dataclass
from typing import NoReturn, TypeVar

from phi4d.job import (
    Fingerprint,
    FinishReason,
    Kind,
    Result,
    Sampling,
    Segment,
    printable,
    question,
)
from phi4d.outputs import names

MOST_BYTES = 16_000_000
"""of a JSON sidecar; a day's recording in stretches of 8 s has some 3 MB"""
_SHA256 = re.compile(r"[0-9a-f]{64}\Z|\Z")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Told:
    """What a JSON sidecar tells of a file and its answer."""

    kind: Kind
    size: int
    """bytes of the file"""
    mtime_ns: int
    content: str
    """SHA-256 of the file's bytes in hexadecimal; empty: not known"""
    result: Result

    def is_about(self, fingerprint: Fingerprint) -> bool:
        """Whether it was written about this version; inodes are not told, they do not last."""
        return (self.size, self.mtime_ns) == (fingerprint.size, fingerprint.mtime_ns)

    @property
    def question(self) -> bytes:
        """What was asked, see `phi4d.job.question`."""
        result = self.result
        return question(self.kind, result.model, result.prompt, result.sampling)

    @property
    def reusable(self) -> bool:
        """Whether another file with the same bytes would be given this very answer."""
        return self.result.is_whole and bool(self.content)


def read(outbox: bytes, path: bytes) -> Told | None:
    """What the sidecars of a file tell; None if they do not, whatever the reason.

    Args:
        outbox: the outbox's root.
        path: the source file's path below its inbox.
    """
    folder, name = os.path.split(os.path.join(outbox, path))
    try:
        data = bytes_of(os.path.join(folder, names.sidecar(name, names.RECORD)))
        told = _parse(json.loads(data, parse_constant=_refuse), printable(path))
        text = os.lstat(os.path.join(folder, names.sidecar(name, names.TEXT)))
    # damaged JSON can be wrong in each of these ways, and nested too deep
    except (OSError, ValueError, OverflowError, RecursionError):
        return None
    return told if stat.S_ISREG(text.st_mode) else None


def bytes_of(path: bytes) -> bytes:
    """The content of a sidecar.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or too large to be a sidecar.
    """
    # a pipe in its place must not hold us up, a link not lead us elsewhere
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    descriptor = os.open(path, flags)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > MOST_BYTES:
            raise ValueError("not a sidecar")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read(MOST_BYTES)
    finally:
        os.close(descriptor)


def _parse(record: object, source: str) -> Told:
    if not isinstance(record, dict):
        raise ValueError("not an object")  # noqa: TRY004 -- one class for all that is damaged
    if _get(record, "source", str) != source:
        raise ValueError("another file's")
    kind = Kind(_get(record, "kind", str))
    content = _get(record, "source_sha256", str, "")
    if not _SHA256.match(content):
        raise ValueError("not a SHA-256")
    media = _get(record, "media", dict)
    result = Result(
        kind=kind,
        text=_get(record, "text", str),
        prompt=_get(record, "prompt", str),
        model=_get(record, "model", str),
        device=_get(record, "device", str),
        segments=tuple(
            Segment(
                _number(segment, "start"),
                _number(segment, "end"),
                _get(segment, "text", str),
                FinishReason(_get(segment, "finish_reason", str)),
            )
            for segment in _get(record, "segments", list, [])
        ),
        prompt_tokens=_get(record, "prompt_tokens", int),
        new_tokens=_get(record, "new_tokens", int),
        finish_reason=FinishReason(_get(record, "finish_reason", str)),
        sampling=Sampling(
            temperature=_number(record, "temperature", 0.0),
            repetition_penalty=_number(record, "repetition_penalty", 1.0),
            seed=_get(record, "seed", int, 0),
        ),
        seconds=_number(record, "seconds"),
        media=tuple((key, _number(media, key)) for key in media),
        reduced=_get(record, "reduced", str, ""),
    )
    return Told(
        kind=kind,
        size=_get(record, "source_bytes", int),
        mtime_ns=_get(record, "source_mtime_ns", int),
        content=content,
        result=result,
    )


def _get(record: object, key: str, kind: type[T], default: T | None = None) -> T:
    """A value of just this type; a bool is no int here."""
    value = record.get(key, default) if isinstance(record, dict) else None
    if type(value) is not kind:
        raise ValueError(f"{key}: found {value!r}, expected {kind.__name__}")
    return value


def _number(record: object, key: str, default: float | None = None) -> float:
    """A finite number; JSON's 3 is as good as 3.0."""
    value = record.get(key, default) if isinstance(record, dict) else None
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise ValueError(f"{key}: found {value!r}, expected a number")
    return float(value)


def _refuse(constant: str) -> NoReturn:
    """Python's JSON knows numbers that JSON does not: NaN and infinities."""
    raise ValueError(constant)
