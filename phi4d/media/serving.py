"""One request of the pool at a time: a file in, its pieces out, each when it is asked for.

Runs in a decode process. Whatever a codec raises is the file's fault; only opening and reading the
file can be somebody else's.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, BinaryIO, cast

from phi4d.errors import EnvironmentFault, Phi4dError
from phi4d.job import Fingerprint, Kind, Piece
from phi4d.media import audio, images, speech
from phi4d.media.files import opened, read_fault
from phi4d.media.shared import filled
from phi4d.media.wire import Channel, Header, packed
from phi4d.prepared.preparation import Preparation

if TYPE_CHECKING:
    from phi4d.media.readers import Samples

PROGRESS_S = 1.0
"""how often a process that has no piece to send yet says that it is alive, in seconds"""
_HASH_BYTES = 1 << 20  # read at once; the page cache gives no more for larger ones


class Server:
    """Answers a pool. Loads everything that decoding needs, once.

    Args:
        channel: to the pool.
        sign_of_life: called when a file is begun and whenever something was said about it.
    """

    def __init__(self, channel: Channel, sign_of_life: Callable[[], None]) -> None:
        self._channel = channel
        self._sign_of_life = sign_of_life
        self._speech = speech.SpeechModel()

    def serve(self, request: Header, known: list[str]) -> None:
        """Answer one request: see `phi4d.media.pool.DecodePool.decode`.

        Args:
            request: what is asked.
            known: digests of files that need not be decoded.
        """
        self._sign_of_life()
        facts: dict[str, float] = {}
        path = os.fsencode(request["path"])
        expected = Fingerprint(*request["fingerprint"]) if request["fingerprint"] else None
        try:
            with opened(path, expected, request["max_file_bytes"]) as file:
                if not (request["hash"] and self._is_known(file, known)):
                    for piece in self._pieces(file, request, facts):
                        self._give(piece, facts)
        except MemoryError:
            # What it holds, and how scattered, is anyone's guess: a new process is cheap.
            self._say({"is": "error", "class": "MemoryError", "text": ""})
            os._exit(1)
        except Phi4dError as error:
            self._say({"is": "error", "class": type(error).__name__, "text": str(error)})
        else:
            self._say({"is": "end", "facts": facts})

    def _pieces(self, file: BinaryIO, request: Header, facts: dict[str, float]) -> Iterator[Piece]:
        prepare = Preparation.from_json(request["prepare"]) if request["prepare"] else None
        if request["kind"] == Kind.IMAGE:
            picture, size = images.picture(
                file,
                max_pixels=request["max_pixels"],
                max_frames=request["max_frames"],
                looked_at=prepare.looked_at if prepare else None,
            )
            facts.update(size)
            yield Piece(prepare.picture(picture) if prepare else images.samples(picture))
            return
        recording = audio.Recording(file, max_duration_s=request["max_duration_s"])
        facts.update(recording.facts)
        for piece in speech.pieces(self._alive(recording.blocks()), self._speech.judge()):
            samples = cast("Samples", piece.media)
            yield replace(piece, media=prepare.sound(samples)) if prepare else piece
        facts.update(recording.facts)

    def _give(self, piece: Piece, facts: dict[str, float]) -> None:
        """Hand a piece over when it is asked for; until then nothing more is worked out."""
        header, body = packed(piece, facts)
        try:
            memory = filled(body)
        except OSError as error:
            raise EnvironmentFault(
                f"a decode process cannot hand over what it decoded ({error}): give phi4d more "
                "memory, or more open files (LimitNOFILE)"
            ) from error
        try:
            self._channel.receive()
        except EOFError:
            os._exit(0)
        self._say(header, memory)
        os.close(memory)

    def _say(self, header: Header, memory: int | None = None) -> None:
        try:
            self._channel.hand_over(header, memory)
        except OSError:
            os._exit(0)  # nobody listens any more
        self._sign_of_life()

    def _is_known(self, file: BinaryIO, known: list[str]) -> bool:
        found = digest(file, self._progress())
        self._say({"is": "digest", "digest": found, "known": found in known})
        return found in known

    def _alive(self, blocks: Iterator[Samples]) -> Iterator[Samples]:
        tick = self._progress()
        for block in blocks:
            tick()
            yield block

    def _progress(self) -> Callable[[], None]:
        """To be called again and again: says now and then that this process is alive."""
        said = time.monotonic()

        def call() -> None:
            nonlocal said
            if time.monotonic() - said > PROGRESS_S:
                self._say({"is": "progress"})
                said = time.monotonic()

        return call


def digest(file: BinaryIO, tick: Callable[[], None]) -> str:
    """SHA-256 of a whole file, in hexadecimal; the file is at its beginning before and after.

    Args:
        file: open for reading and seekable.
        tick: called for every megabyte.

    Raises:
        SourceFault: it cannot be read.
    """
    found = hashlib.sha256()
    block = memoryview(bytearray(_HASH_BYTES))
    try:
        while count := file.readinto(block):  # type: ignore[attr-defined]  # a real file has it
            found.update(block[:count])
            tick()
        file.seek(0)
    except OSError as error:
        raise read_fault(error) from error
    return found.hexdigest()
