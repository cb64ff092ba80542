"""What opens a recording: libsndfile for what it reads well, FFmpeg (PyAV) for the rest.

Both are chosen by content, never by extension, and both give mono blocks at the file's own rate.
FFmpeg may open nothing but the file that it is given: playlists and other formats that name
further files or addresses are not on the list.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, TypeAlias

import av
import numpy as np
import soundfile
from numpy.typing import NDArray

from phi4d.errors import FileError
from phi4d.job import Kind
from phi4d.media.files import cause
from phi4d.media.probe import HEAD_BYTES, describe, identify

Samples: TypeAlias = NDArray[np.float32]

AV_FORMATS = (
    "aac,ac3,aiff,amr,asf,au,avi,caf,eac3,flac,flv,matroska,mov,mp3,mpeg,mpegts,ogg,spdif,voc,w64,"
    "wav"
)
"""FFmpeg's demuxers that may be used (its option ``format_whitelist``)"""
_AV_EXACT = ("mov", "matroska", "asf", "wav", "w64", "aiff", "caf", "flac")
"""containers whose duration is written down, not guessed from the bit rate"""


@dataclass(slots=True)
class Source:
    """An opened recording."""

    rate: int
    """samples a second of the first block, and as a rule of all"""
    channels: int
    declared_s: float | None
    """seconds that the file says it lasts; None where it says nothing that can be relied on"""
    blocks: Iterator[tuple[int, Samples]]
    """(samples a second, (n,) float32 mono)"""
    reached_s: float = 0.0
    """the time stamp at which the sound ended: later than the decoded samples add up to where
    the recording has gaps"""


def open_source(file: BinaryIO) -> Source:
    """Open a recording.

    Raises:
        FileError: neither library can read it, or it is a video without sound.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    if (source := _sndfile(file)) is not None:
        return source
    file.seek(0)
    try:
        return _libav(file, head)
    except (FileError, MemoryError):
        raise
    except Exception as error:
        raise FileError(_unreadable(head, error)) from error


def _sndfile(file: BinaryIO) -> Source | None:
    """Open with libsndfile; None leaves it to FFmpeg."""
    try:
        # By descriptor: libsndfile then reads by itself instead of calling Python for each block.
        sound = soundfile.SoundFile(file.fileno(), closefd=False)
    except soundfile.LibsndfileError:
        return None
    if "MPEG" in sound.subtype:
        # Without a Xing header libsndfile guesses the length from the first frame's bit rate and
        # stops there: of 40 s with a variable bit rate it gave 16.
        sound.close()
        return None
    # An unknown length is told as the greatest number there is.
    declared_s = sound.frames / sound.samplerate if 0 < sound.frames < 1 << 48 else None
    if declared_s is not None:
        declared_s *= _missing(sound.extra_info)

    def blocks() -> Iterator[tuple[int, Samples]]:
        # A second at most, and never more than 4 MB however many channels a header claims.
        frames = max(1, min(sound.samplerate, (1 << 20) // sound.channels))
        with sound:
            while len(block := sound.read(frames, dtype="float32", always_2d=True)):
                yield sound.samplerate, block.mean(axis=1, dtype=np.float32)

    return Source(sound.samplerate, sound.channels, declared_s, blocks())


_SHOULD_BE = re.compile(r"^\s*(?:data|SSND|Data Size|riff)\s*: (\d+) \(should be (\d+)\)", re.M)


def _missing(log: str) -> float:
    """Declared size over actual size; 1 if they agree.

    libsndfile mends the length of a cut-off file in silence and only its log tells, per chunk of
    samples: ``data : 441000 (should be 264582)``. Programs that write to a pipe cannot know the
    size and write the greatest (``0x7FFFF000`` and above): that is no truncation.
    """
    for declared, actual in _SHOULD_BE.findall(log):
        if int(actual) < int(declared) < 0x7FFFF000 and int(actual):
            return int(declared) / int(actual)
    return 1.0


def _libav(file: BinaryIO, head: bytes) -> Source:
    exact_mp3 = _has_length(file, head)
    options = {"format_whitelist": AV_FORMATS, "protocol_whitelist": "none"}
    container = av.open(file, mode="r", options=options, metadata_errors="replace")
    stream = container.streams.best("audio")
    if not isinstance(stream, av.AudioStream):
        videos = len(container.streams.video)
        container.close()
        if not videos:
            raise ValueError("no sound in it")
        raise FileError("is a video without sound: there is nothing to transcribe; remove it")
    if getattr(stream, "codec_context", None) is None:  # PyAV's types promise that there is one
        container.close()
        raise FileError("holds sound in a coding that is not known: convert it to WAV or FLAC")
    container_name = container.format.name.split(",")[0]
    exact = exact_mp3 if container_name == "mp3" else container_name in _AV_EXACT
    opened = Source(
        stream.rate or 0,
        stream.channels,
        _av_declared_s(container, stream) if exact else None,
        iter(()),
    )

    def blocks() -> Iterator[tuple[int, Samples]]:
        packets = bad = 0
        packer = _Packer()
        with container:
            for packet in container.demux(stream):
                packets += 1
                try:
                    frames = packet.decode()
                except av.FFmpegError:
                    # A recording cut out of a stream begins and ends within a packet. What is
                    # missing beyond that shows in the duration, or here.
                    bad += 1
                    if bad > 3 + packets // 100:
                        raise
                    continue
                for frame in frames:
                    if frame.time is not None:
                        opened.reached_s = frame.time + frame.samples / frame.sample_rate
                    for packed in packer.packed(frame):
                        yield packed.sample_rate, _mono(packed)

    opened.blocks = blocks()
    return opened


class _Packer:
    """Puts frames of many channels into one plane.

    FFmpeg has the first eight planes of a frame in an array of eight, and PyAV (18.1) looks for
    their end behind it: with eight channels, as 7.1 has, or more, ``to_ndarray`` takes whatever it
    finds there for a plane, and crashes.
    """

    def __init__(self) -> None:
        self._resampler: av.AudioResampler | None = None
        self._takes = ("", "", 0)

    def packed(self, frame: av.AudioFrame) -> list[av.AudioFrame]:
        """The frame, changed only if it must be; neither samples nor their order change."""
        if not frame.format.is_planar or frame.layout.nb_channels < 8:
            return [frame]
        takes = (frame.format.name, frame.layout.name, frame.sample_rate)
        if self._resampler is None or takes != self._takes:
            self._takes = takes
            self._resampler = av.AudioResampler(
                frame.format.packed, frame.layout, frame.sample_rate
            )
        return self._resampler.resample(frame)


def _mono(frame: av.AudioFrame) -> Samples:
    """The mean of a frame's channels, whole numbers scaled to [-1, 1].

    Not FFmpeg's own downmix: it adds stereo up to 3 dB above full scale, and drops channels.
    """
    samples = frame.to_ndarray()
    if not frame.format.is_planar:
        samples = samples.reshape(-1, frame.layout.nb_channels).T
    mono: Samples = samples.mean(axis=0, dtype=np.float32)
    if samples.dtype.kind == "u":
        return (mono - 128.0) / 128.0
    if samples.dtype.kind == "i":
        return mono / np.float32(2.0 ** (8 * samples.dtype.itemsize - 1))
    return mono


def _av_declared_s(container: av.container.InputContainer, stream: av.AudioStream) -> float | None:
    """Seconds that the stream, or else the container with nothing but the stream, declares."""
    if stream.duration and stream.time_base:
        return float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):  # Matroska: "00:00:05.008000000"
        try:
            hours, minutes, seconds = tag.split(":")
            return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
        except ValueError:
            return None
    if container.duration and len(container.streams) == 1:
        return container.duration / av.time_base
    return None


def _has_length(file: BinaryIO, head: bytes) -> bool:
    """Whether an MP3's first frame is the header that tells its length; else FFmpeg guesses it.

    The frame follows an ID3v2 tag, which may hold a cover of any size; the tag's length is four
    bytes of seven bits each (ID3v2.4, 3.1).
    """
    start = 0
    if head.startswith(b"ID3") and len(head) >= 10:
        for byte in head[6:10]:
            start = start << 7 | byte & 0x7F
        start += 10
    file.seek(start)
    frame = file.read(256)
    file.seek(0)
    return any(mark in frame for mark in (b"Xing", b"Info", b"VBRI"))


def _unreadable(head: bytes, error: Exception) -> str:
    found = identify(head)
    if found and found.kind is Kind.AUDIO:
        return (
            f"begins as {found.words} but is damaged or cut off ({cause(error)}): "
            "copy it again from its source"
        )
    return (
        f"is not a recording that can be read: it holds {describe(head)}. "
        "Give it its right name, convert it to WAV or FLAC, or remove it"
    )
