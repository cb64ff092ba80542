"""The vocabulary as frozen values: what waits, what is asked, what is answered.

Nothing here does I/O or imports a heavy package.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Literal, TypeAlias, cast

if TYPE_CHECKING:
    from collections.abc import Sized

    import numpy as np
    from numpy.typing import NDArray

    from phi4d.prepared.clip import Clip
    from phi4d.prepared.tiles import Tiles

    Media: TypeAlias = NDArray[np.uint8] | NDArray[np.float32] | Tiles | Clip

SAMPLE_RATE_HZ = 16_000
"""Rate of all audio inside phi4d: the model's feature extractor takes no other."""
CROP_PX = 448
"""Side of the squares that pictures are cut into: the model's vision tower takes no other."""
RECORDING_BYTES_S = 16_000
"""Bytes of a second of a usual recording: 128 kbit/s. See `likely_seconds`."""
LONGEST_LIKELY_SECONDS = 10_800.0
"""No recording counts as longer: three hours. The store's index `job_due` has both numbers."""


class Kind(StrEnum):
    """What a file holds, and so which adapter answers for it."""

    IMAGE = "image"
    AUDIO = "audio"

    @property
    def noun(self) -> str:
        """What people call such a file."""
        return "picture" if self is Kind.IMAGE else "recording"


class State(StrEnum):
    """Where a job stands in the store."""

    QUEUED = "queued"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    DROPPED = "dropped"
    """Overtaken by a newer version of the file, or the file is gone."""


Priority = Literal["high", "normal", "low"]
"""which inboxes' files go before which others"""


class FinishReason(StrEnum):
    """Why an answer ends where it does."""

    STOP = "stop"
    """the model ended it"""
    LENGTH = "length"
    """it was cut at the token limit"""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """Tells one version of a file at a path from another.

    The device number is not part of it: it changes when a disk is mounted again, and every file
    would be done twice (docs/decisions/0001-fingerprint.md).
    """

    inode: int
    size: int
    """bytes"""
    mtime_ns: int

    @classmethod
    def of(cls, stat: os.stat_result) -> Fingerprint:
        """The fingerprint of a file from its ``stat``."""
        return cls(stat.st_ino, stat.st_size, stat.st_mtime_ns)


@dataclass(frozen=True, slots=True)
class Arrival:
    """A settled file that wants a job."""

    inbox: str
    path: bytes
    """below the inbox folder"""
    kind: Kind
    fingerprint: Fingerprint


@dataclass(frozen=True, slots=True)
class Inspection:
    """What a look at a file's beginning and end tells, before anything is decoded."""

    kind: Kind | None
    """None: neither a picture nor a recording, by its name and by its content"""
    whole: bool
    """False: its format tells a length, or has an end mark, that is not there yet"""
    why: str = ""
    """in words"""


def likely_seconds(kind: Kind, size: int) -> float:
    """What a file is likely to cost beyond what all of its kind do, as far as its size tells.

    A recording counts for as long as it probably lasts, which is what it takes where the model is
    no faster than the speaker. Pictures all count the same: the model sees a bounded number of
    crops of each.

    Args:
        kind: of the file.
        size: bytes.
    """
    if kind is Kind.IMAGE:
        return 0.0
    return min(size / RECORDING_BYTES_S, LONGEST_LIKELY_SECONDS)


@dataclass(frozen=True, slots=True)
class Job:
    """One version of one file under one inbox rule; a row in the store."""

    id: int
    inbox: str
    """name of the inbox rule"""
    path: bytes
    """path below the inbox folder, as the file system has it (any bytes)"""
    kind: Kind
    fingerprint: Fingerprint
    attempts: int = 0
    """how often it was started and not finished, this time included"""
    crashes: int = 0
    """how many decode processes died on it"""
    deaths: int = 0
    """how often a device was lost while it answered for this job and for no other"""
    waits: int = 0
    """how often it was put off since somebody last asked for it"""
    fresh: bool = False
    """it is to be answered anew, even if an answer is known"""
    queued: float = 0.0
    """since when it waits for its turn: it came in, or somebody wanted it again; seconds since
    the epoch"""

    @property
    def due(self) -> float:
        """By what the jobs of a queue are ordered: since when it waits, and what it may cost.

        A memo goes before a long recording that came a little earlier, but not before one that has
        waited for longer than it lasts: so each has its turn. Seconds since the epoch.
        """
        return self.queued + likely_seconds(self.kind, self.fingerprint.size)

    @property
    def name(self) -> str:
        """The relative path, printable whatever its bytes are."""
        return printable(self.path)

    @property
    def display_name(self) -> str:
        """The file as people see it: the inbox, then the path below it."""
        return display_name(self.inbox, self.path)


def printable(path: bytes | str | os.PathLike[str]) -> str:
    """A path as one printable line: control characters and invalid bytes are escaped."""
    text = os.fsencode(path).decode("utf-8", "backslashreplace")
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def display_name(inbox: str, path: bytes) -> str:
    """A file's name as people see it: the inbox, then the path below it."""
    return f"{inbox}/{printable(path)}"


@dataclass(frozen=True, slots=True)
class Piece:
    """What a decode process makes of a file: a picture, or one stretch of a recording.

    A picture is one piece; a recording is one or more, in order of time.
    """

    media: Media
    """picture: (height, width, 3) uint8 RGB. audio: (samples,) float32 in [-1, 1], 16 kHz mono.
    Or either as it was prepared for the model: `prepared.tiles.Tiles`, `prepared.clip.Clip`"""
    start: float = 0.0
    """seconds from the beginning of the recording; 0 for a picture"""
    end: float = 0.0
    """seconds; 0 for a picture"""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the tokens of an answer are chosen; as it stands here, the likeliest one always."""

    temperature: float = 0.0
    """0 = the likeliest token; above, tokens are drawn by softmax(logits / temperature)"""
    repetition_penalty: float = 1.0
    """the logits of tokens of the prompt and of the answer so far are divided by it where they
    are positive, and multiplied where they are negative"""
    seed: int = 0
    """of the drawing, from 0 to 2⁶³ - 1"""


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One model call: a picture with a prompt, or one stretch of audio with a prompt."""

    kind: Kind
    prompt: str
    """the user's words alone, without role tokens and media placeholders"""
    media: Media
    """as in `Piece.media`"""
    max_new_tokens: int = 512
    sampling: Sampling = GREEDY
    max_crops: int | None = None
    """at most so many crops for this picture; None = the model's own"""

    @property
    def seconds(self) -> float:
        """How long the sound is; 0 for a picture."""
        return len(cast("Sized", self.media)) / SAMPLE_RATE_HZ if self.kind is Kind.AUDIO else 0.0


@dataclass(frozen=True, slots=True)
class Completion:
    """The answer to one request."""

    text: str
    prompt_tokens: int
    new_tokens: int
    finish_reason: FinishReason = FinishReason.STOP


@dataclass(frozen=True, slots=True)
class Segment:
    """A stretch of a recording with its text."""

    start: float
    """seconds"""
    end: float
    """seconds"""
    text: str
    finish_reason: FinishReason = FinishReason.STOP


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a job's file: everything that the sidecars tell."""

    kind: Kind
    text: str
    prompt: str
    model: str
    device: str
    segments: tuple[Segment, ...] = ()
    """empty for a picture"""
    prompt_tokens: int = 0
    new_tokens: int = 0
    finish_reason: FinishReason = FinishReason.STOP
    """of a recording: length, if any of its segments was cut"""
    sampling: Sampling = GREEDY
    seconds: float = 0.0
    """wall-clock time from claim to answer"""
    media: tuple[tuple[str, float], ...] = ()
    """facts of the source, e.g. (("width", 640), ("height", 480)) or (("duration", 3.2),)"""
    reduced: str = ""
    """what the model was given less of than usual, and why; empty: nothing"""

    @property
    def is_whole(self) -> bool:
        """Neither cut at the token limit nor reduced: good for any file with the same bytes."""
        return self.finish_reason is FinishReason.STOP and not self.reduced


def question(kind: Kind, model: str, prompt: str, sampling: Sampling) -> bytes:
    """What decides the answer to a file's bytes, as one hash (SHA-256).

    Two files with the same bytes and the same question have the same answer, as long as it was not
    cut and nothing was reduced.
    """
    asked: list[object] = [kind.value, model, prompt, sampling.repetition_penalty]
    if sampling.temperature:
        asked += [sampling.temperature, sampling.seed]
    return hashlib.sha256(json.dumps(asked).encode()).digest()
