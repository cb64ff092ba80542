"""The decode pool: keeps decode processes warm, lends them out, and replaces them.

This is the media room's door: the rest of phi4d calls nothing else in it but
`phi4d.media.probe`, and `phi4d doctor` asks `phi4d.media.codecs`. It must not import a codec;
those live in the processes.

Each process gets its requests and answers over a socket of its own, and has the read end of a
pipe as standard input whose write end only this process holds: when this process dies, however it
dies, the kernel kills them.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from types import TracebackType
from typing import Self

import numpy as np

from phi4d.errors import (
    DecoderDied,
    EnvironmentFault,
    FileChanged,
    FileError,
    Phi4dError,
    SourceFault,
    Stopped,
)
from phi4d.job import CROP_PX, SAMPLE_RATE_HZ, Fingerprint, Kind, Piece
from phi4d.media.process import DecodeProcess
from phi4d.media.wire import TICK_S, Header, piece_of
from phi4d.meter import Meter
from phi4d.prepared.preparation import Preparation

log = logging.getLogger(__name__)

GIB = 1 << 30
_ERRORS: dict[str, type[Phi4dError]] = {
    error.__name__: error for error in (FileError, FileChanged, SourceFault, EnvironmentFault)
}
_MAX_AUDIO_BYTES = 30 * SAMPLE_RATE_HZ * 4


def _most_bytes(prepare: Preparation) -> int:
    """The most that a prepared piece may have."""
    frames = _MAX_AUDIO_BYTES // 4 // prepare.mel.hop_length + 1
    return max(3 * CROP_PX**2 * prepare.max_crops, 4 * prepare.mel.feature_size * frames)


class DecodePool:
    """Decode processes, shared by all threads.

    Args:
        processes: how many. One consumer that decodes ahead by one file keeps two busy.
        timeout_s: how long a process may be silent while somebody waits for it. It says that it
            is alive once a second while it works through a recording, so this limits one
            picture, or one second of work, and not the length of a recording.
        cpu_s: how long a process may compute between two signs of life (RLIMIT_CPU), also while
            nobody waits for it.
        max_pixels: of a picture.
        max_frames: of an animation, or pages of a TIFF.
        max_duration_s: of a recording.
        max_file_bytes: of any file.
        memory_bytes: address space of one process (RLIMIT_AS).
        replace_after: files, after which a process is replaced: codecs leak.
        meter: counts the processes that are replaced.

    Raises:
        EnvironmentFault: no process can be started.
    """

    def __init__(
        self,
        processes: int = 2,
        *,
        timeout_s: float = 60.0,
        cpu_s: float = 60.0,
        max_pixels: int = 200_000_000,
        max_frames: int = 10_000,
        max_duration_s: float = 24 * 3600.0,
        max_file_bytes: int = 8 * GIB,
        memory_bytes: int = 4_000_000_000,
        replace_after: int = 500,
        meter: Meter | None = None,
    ) -> None:
        self._replace_after = replace_after
        self._meter = meter or Meter()
        self._closed = False
        self._changed = threading.Condition()
        self._all: set[DecodeProcess] = set()
        self._idle: list[DecodeProcess] = []
        self._wanted = processes
        self.change(
            timeout_s=timeout_s,
            cpu_s=cpu_s,
            max_pixels=max_pixels,
            max_frames=max_frames,
            max_duration_s=max_duration_s,
            max_file_bytes=max_file_bytes,
            memory_bytes=memory_bytes,
        )
        try:
            self.grow(processes)
        except BaseException:
            self.close()
            raise

    def change(
        self,
        *,
        timeout_s: float,
        cpu_s: float,
        max_pixels: int,
        max_frames: int,
        max_duration_s: float,
        max_file_bytes: int,
        memory_bytes: int,
    ) -> None:
        """Set other limits, for the next file of each process; see the class.

        A process that was started with other limits on its memory or CPU time is replaced before
        its next file.
        """
        with self._changed:
            self.timeout_s = timeout_s
            self.cpu_s = cpu_s
            self.memory_bytes = memory_bytes
            self.max_body_bytes = max(3 * max_pixels, _MAX_AUDIO_BYTES)
            self._limits = {
                "max_pixels": max_pixels,
                "max_frames": max_frames,
                "max_duration_s": max_duration_s,
                "max_file_bytes": max_file_bytes,
            }

    def grow(self, processes: int) -> None:
        """Start processes until there are so many; it never ends one.

        Raises:
            Stopped: the pool is closed.
            EnvironmentFault: one cannot be started.
        """
        with self._changed:
            self._check_open()
            self._wanted = max(self._wanted, processes)
            while len(self._all) < self._wanted:
                self._idle.append(self._start())
                self._changed.notify()

    def resize(self, processes: int) -> None:
        """Have so many processes: too many end when they have nothing to do, too few are started.

        Raises:
            Stopped: the pool is closed.
            EnvironmentFault: one cannot be started.
        """
        with self._changed:
            self._wanted = processes
            while self._idle and len(self._all) > processes:
                self._retire(self._idle.pop())
        self.grow(processes)

    def decode(
        self,
        path: bytes,
        kind: Kind,
        fingerprint: Fingerprint | None = None,
        *,
        known: Collection[str] | None = None,
        prepare: Preparation | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Decoding:
        """Begin to decode a file; blocks until a process is idle.

        The process begins at once and works ahead by one piece, which it keeps until it is asked
        for; so a second call prefetches while the first's pieces are used. A thread that holds as
        many decodings as there are processes waits for itself: see `try_decode`.

        Args:
            path: where the file is.
            kind: what it is to be read as.
            fingerprint: the version that is wanted; None takes any.
            known: digests (SHA-256, hexadecimal; some thousands at most) of files that need not
                be decoded: `Decoding.digest` then tells the file's own. None: it is not asked.
            prepare: how an engine wants media prepared, which is done there, too; None: they come
                as they were decoded.
            on_wait: called about four times a second while waiting here and in the decoding;
                what it raises ends the wait.

        Raises:
            Stopped: the pool is closed.
            EnvironmentFault: no process can be started.
        """
        while True:
            decoding = self.try_decode(
                path, kind, fingerprint, known=known, prepare=prepare, on_wait=on_wait
            )
            if decoding is not None:
                return decoding
            with self._changed:
                self._changed.wait_for(lambda: self._idle or self._closed, TICK_S)
            if on_wait:
                on_wait()

    def try_decode(
        self,
        path: bytes,
        kind: Kind,
        fingerprint: Fingerprint | None = None,
        *,
        known: Collection[str] | None = None,
        prepare: Preparation | None = None,
        on_wait: Callable[[], None] | None = None,
    ) -> Decoding | None:
        """As `decode`, but None if no process is idle.

        For whoever already holds a decoding: two threads that hold one each and wait for another
        would wait for ever.
        """
        with self._changed:
            self._check_open()
            if not self._idle:
                return None
            if not self._idle[-1].alive():  # the kernel was short of memory, perhaps
                log.warning("an idle decode process %s; it is replaced", self._idle[-1].ended())
                self._idle[-1] = self._replaced(self._idle[-1], "died")
            elif self._is_outdated(self._idle[-1]):
                self._idle[-1] = self._replaced(self._idle[-1], "outdated")
            process = self._idle.pop()
        request = {
            "is": "file",
            "path": os.fsdecode(path),
            "kind": kind.value,
            "fingerprint": fingerprint
            and (fingerprint.inode, fingerprint.size, fingerprint.mtime_ns),
            "hash": known is not None,
            "prepare": prepare and prepare.to_json(),
            **self._limits,
        }
        body = np.frombuffer(" ".join(known).encode(), np.uint8) if known else None
        process.ask(request, body)
        return Decoding(self, process, kind, prepare, on_wait)

    def close(self) -> None:
        """End all processes, also those at work: their decodings raise `Stopped`. Idempotent."""
        with self._changed:
            self._closed = True
            idle, self._idle = self._idle, []
            everyone, self._all = self._all, set()
            self._changed.notify_all()
        for process in everyone:
            process.kill()
        for process in idle:
            process.channel.close()  # those of the others are still being waited on

    def _give_back(self, process: DecodeProcess, why_not: str) -> None:
        """A decoding is over; a process that is of no more use is replaced, for the reason given.

        So is one that has decoded its share of files.
        """
        with self._changed:
            if self._closed:
                process.channel.close()
                return
            process.files += 1
            if len(self._all) > self._wanted:
                self._retire(process)
                return
            if not why_not and process.files >= self._replace_after:
                why_not = "worn out"
            if why_not:
                # If none can be started, that is not this file's to suffer: the dead one stays
                # in its place, and whoever takes it next tries again and is told.
                with suppress(EnvironmentFault):
                    process = self._replaced(process, why_not)
            self._idle.append(process)
            self._changed.notify()

    def _is_outdated(self, process: DecodeProcess) -> bool:
        return (process.memory_bytes, process.cpu_s) != (self.memory_bytes, self.cpu_s)

    def _retire(self, process: DecodeProcess) -> None:
        process.kill()
        process.channel.close()
        self._all.discard(process)

    def _replaced(self, process: DecodeProcess, why: str) -> DecodeProcess:
        process.kill()
        process.channel.close()
        fresh = self._start()
        self._all.discard(process)
        self._meter.restarted(why)
        return fresh

    def _start(self) -> DecodeProcess:
        process = DecodeProcess(self.memory_bytes, self.cpu_s)
        self._all.add(process)
        return process

    def _check_open(self) -> None:
        if self._closed:
            raise Stopped("the decode pool is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class Decoding:
    """A file that is being decoded: iterate over its pieces, once. For one thread at a time.

    Who has something else to do meanwhile calls `poll`, and waits for `fileno` to be readable
    between two calls that brought nothing.

    Ends by itself with the last piece or an error; whoever stops before must `close` it (or use
    it as a context manager).

    Raises, while it is iterated over or polled:
        FileError: the file cannot be decoded, and why.
        DecoderDied: the process that decoded it crashed, hung, or ran out of memory or CPU time.
        FileChanged: it is not the version wanted, changed while it was read, or is gone.
        SourceFault: it cannot be read at the moment.
        EnvironmentFault: decode processes do not start.
        Stopped: the pool was closed.

    Attributes:
        facts: what is known of the source: ``width`` and ``height`` (pixels) of a picture;
            ``rate`` (Hz) and ``channels`` of a recording with the first piece, ``duration``
            (seconds) at its end.
        digest: the file's SHA-256 in hexadecimal if it was asked for, with the first piece at the
            latest; else empty.
        is_known: the digest is among those known; there are no pieces then.
        seconds: how long the pieces were wanted and not there.
    """

    def __init__(
        self,
        pool: DecodePool,
        process: DecodeProcess,
        kind: Kind,
        prepare: Preparation | None,
        on_wait: Callable[[], None] | None,
    ) -> None:
        self.facts: dict[str, float] = {}
        self.digest = ""
        self.is_known = False
        self.seconds = 0.0
        self._pool = pool
        # as they are now: the pool's may be changed while this goes on
        self._timeout_s = pool.timeout_s
        self._max_body_bytes = pool.max_body_bytes if prepare is None else _most_bytes(prepare)
        # If it is gone already, the first wait for an answer finds out and says how.
        self._process: DecodeProcess | None = process
        self._kind = kind
        self._prepare = prepare
        self._on_wait = on_wait
        self._wanted_since: float | None = None
        self._silent_since: float | None = None
        self._asked = False

    @property
    def over(self) -> bool:
        """All was given out, or it was broken off: nothing more comes."""
        return self._process is None

    def fileno(self) -> int:
        """A descriptor that is readable when `poll` has something to do.

        Poll once before waiting for it: that asks for a piece. As soon as the decoding is over,
        the descriptor may be another's, or closed.

        Raises:
            ValueError: it is over.
        """
        if self._process is None:
            raise ValueError("the decoding is over")
        return self._process.channel.fileno()

    def poll(self) -> Piece | None:
        """The next piece if it is there, without waiting; None if not, or if it is over.

        A process that has said nothing since an earlier poll, for longer than the pool's
        ``timeout_s``, counts as hung. Its silence before the first of them does not count.
        """
        if self._process is None:
            return None
        now = time.monotonic()
        if self._wanted_since is None:
            self._wanted_since = now
        piece = None
        try:
            piece = self._poll(self._process)
        except (DecoderDied, EnvironmentFault):  # the latter: it did not even start
            self._release("died")
            raise
        except BaseException:
            self._release("broken off")
            raise
        finally:
            if piece is not None or self.over:
                self.seconds += time.monotonic() - self._wanted_since
                self._wanted_since = None
        return piece

    def __iter__(self) -> Iterator[Piece]:
        return self

    def __next__(self) -> Piece:
        while True:
            piece = self.poll()
            if piece is not None:
                return piece
            if self._process is None:
                raise StopIteration
            try:
                if not self._process.channel.wait(TICK_S) and self._on_wait:
                    self._on_wait()
            except BaseException:
                self._release("broken off")
                raise

    def close(self) -> None:
        """Give the process back; if the file was not read to its end, it is killed."""
        self._release("broken off")

    def _release(self, why_not: str = "") -> None:
        process, self._process = self._process, None
        if process is not None:
            self._pool._give_back(process, why_not)

    def _poll(self, process: DecodeProcess) -> Piece | None:
        if not self._asked:
            process.ask({"is": "next"})
            self._asked = True
        while (message := self._receive(process)) is not None:
            header, piece = message
            match header["is"]:
                case "piece":
                    self._asked = False
                    return piece
                case "end":
                    self._release()
                    return None
                case "ready":
                    process.ready = True
                case "progress":
                    pass
                case "digest":
                    self.digest, self.is_known = str(header["digest"]), bool(header["known"])
                case _ if header["class"] == "MemoryError":
                    raise DecoderDied(
                        f"the decode process ran out of its memory limit of "
                        f"{process.memory_bytes / 1e9:.1f} GB (decode_memory_gb)"
                    )
                case _:
                    self._release()  # the file's error, not the process's
                    raise _ERRORS.get(header["class"], DecoderDied)(header["text"])
        return None

    def _receive(self, process: DecodeProcess) -> tuple[Header, Piece | None] | None:
        """The next message if it is there."""
        try:
            message = process.channel.poll(self._max_body_bytes)
            if message is not None:
                self._silent_since = None
                header, body = message
                facts = header.get("facts", {})
                self.facts.update({str(key): float(value) for key, value in facts.items()})
                if header["is"] == "piece":
                    return header, piece_of(header, body, self._kind, self._prepare)
                return header, None
            now = time.monotonic()
            if self._silent_since is None:
                self._silent_since = now
            if now - self._silent_since <= self._timeout_s:
                return None
            reason = f"the decode process took longer than {self._timeout_s:g} s"
        except EOFError:
            reason = f"the decode process {process.ended()}"
        except OSError as error:
            raise EnvironmentFault(
                f"what was decoded cannot be taken over ({error}): give phi4d more open files "
                "(LimitNOFILE)"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            reason = f"the decode process answered nonsense ({error})"
        self._pool._check_open()
        if not process.ready:
            raise EnvironmentFault(
                f"{reason} before its first file: 'python -m phi4d.media.decoder' does not start"
            )
        raise DecoderDied(reason)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()
