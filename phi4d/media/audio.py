"""Recordings: from an open file to a stream of 16 kHz mono samples, whatever its rate and channels.

Runs in a decode process. It must never hold a whole recording: an hour is 230 MB, and a few
megabytes of FLAC unfold to gigabytes. What a file declares is compared with what comes out,
because codecs end a cut-off file in silence.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO

import numpy as np
import soxr
from numpy.typing import NDArray

from phi4d.errors import FileError
from phi4d.job import SAMPLE_RATE_HZ
from phi4d.media import readers
from phi4d.media.files import cause
from phi4d.media.readers import Samples, Source

MIN_DURATION_S = 0.1
"""A shorter recording holds no word, and the model's feature extractor hardly a frame."""
MAX_DURATION_S = 24 * 3600.0
"""default cap on the decoded duration"""
RATES_HZ = range(1_000, 768_001)
"""Sample rates taken for real; anything else is a damaged header."""


class Recording:
    """A recording that is being decoded.

    Args:
        file: a real file, open for reading, at its beginning. Not closed here.
        max_duration_s: more than this, declared or decoded, is an error.

    Raises:
        FileError: not a recording, a video without sound, or declared too long.

    Attributes:
        facts: ``rate`` (Hz) and ``channels`` of the source at once; ``duration`` (seconds, of
            what was decoded) once `blocks` has ended.
    """

    def __init__(self, file: BinaryIO, *, max_duration_s: float = MAX_DURATION_S) -> None:
        self._file = file  # a reader may hold only its descriptor
        self._max_duration_s = max_duration_s
        self._source = source = readers.open_source(file)
        self.facts = {"rate": float(source.rate), "channels": float(source.channels)}
        self._check_length(source.declared_s or 0.0)

    def blocks(self) -> Iterator[Samples]:
        """The whole recording as (n,) float32 blocks in [-1, 1] at 16 kHz, about a second each.

        Raises:
            FileError: damaged, cut off, too long, or shorter than `MIN_DURATION_S`.
        """
        source, count = self._source, 0
        try:
            for block in _resampled(_seconds(source)):
                count += len(block)
                self._check_length(count / SAMPLE_RATE_HZ)
                # Not a number in a float file would poison the speech finder's state for good.
                yield np.clip(np.nan_to_num(block, copy=False), -1.0, 1.0)
        except (FileError, MemoryError):
            raise
        except Exception as error:
            raise FileError(_broken(error, count / SAMPLE_RATE_HZ, source)) from error
        decoded_s = count / SAMPLE_RATE_HZ
        self.facts["duration"] = decoded_s
        _check_complete(source, decoded_s)
        if decoded_s < MIN_DURATION_S:
            raise FileError(
                f"holds {decoded_s:.4f} s of sound; at least {MIN_DURATION_S} s are needed: "
                "record it again, or remove it"
            )

    def _check_length(self, seconds: float) -> None:
        if seconds > self._max_duration_s:
            raise FileError(
                f"lasts {_hours(seconds)} or more; at most {_hours(self._max_duration_s)} are "
                "read: cut it into parts, or raise max_duration_hours"
            )


def _seconds(source: Source) -> Iterator[tuple[int, Samples]]:
    """The source's blocks joined to about a second: codecs give some 20 ms at a time."""
    waiting: list[Samples] = []
    size, rate = 0, source.rate
    for block_rate, block in source.blocks:
        if waiting and (block_rate != rate or size >= rate):
            yield rate, np.concatenate(waiting)
            waiting, size = [], 0
        if block_rate not in RATES_HZ:
            raise FileError(
                f"declares {block_rate} samples a second, which is not a recording's rate: "
                "its header is damaged; copy or export it again"
            )
        rate = block_rate
        waiting.append(block)
        size += len(block)
    if waiting:
        yield rate, np.concatenate(waiting)


def _resampled(blocks: Iterator[tuple[int, Samples]]) -> Iterator[Samples]:
    """Blocks at any rate, which may change on the way, as blocks at 16 kHz."""
    resampler: soxr.ResampleStream | None = None
    current = SAMPLE_RATE_HZ
    nothing: NDArray[np.float32] = np.empty(0, np.float32)
    for rate, block in blocks:
        if rate != current:
            if resampler is not None:
                yield resampler.resample_chunk(nothing, last=True)
            current, resampler = rate, None
            if rate != SAMPLE_RATE_HZ:
                resampler = soxr.ResampleStream(rate, SAMPLE_RATE_HZ, 1, dtype="float32")
        yield block if resampler is None else resampler.resample_chunk(block)
    if resampler is not None:
        yield resampler.resample_chunk(nothing, last=True)


def _check_complete(source: Source, decoded_s: float) -> None:
    # Encoder delay and padding, and containers that round: half a second, or one part in 100.
    declared_s, heard_s = source.declared_s, max(decoded_s, source.reached_s)
    if declared_s is not None and heard_s < declared_s - max(0.5, declared_s / 100):
        raise FileError(
            f"is cut off: it declares {declared_s:.1f} s and holds {decoded_s:.1f} s of sound; "
            "copy it again from its source"
        )


def _broken(error: Exception, decoded_s: float, source: Source) -> str:
    of = f" of {source.declared_s:.1f} s" if source.declared_s is not None else ""
    return (
        f"is damaged or cut off: decoding stopped after {decoded_s:.1f} s{of} ({cause(error)}); "
        "copy it again from its source"
    )


def _hours(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds:.1f} s"
