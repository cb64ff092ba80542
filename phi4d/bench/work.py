"""What is asked while it is measured: clips and pictures made here, or files of one's own."""

from __future__ import annotations

import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from phi4d.config import Config
from phi4d.daemon import make_pool
from phi4d.errors import EnvironmentFault, FileError
from phi4d.job import SAMPLE_RATE_HZ, Kind, Request
from phi4d.media.pool import DecodePool
from phi4d.media.probe import look
from phi4d.prepared.preparation import Preparation

MOST = 64
"""requests of a kind that are made of files: so much is kept in memory"""
CLIP_SECONDS = tuple(5 + 25 * (part + 0.5) / 8 for part in (0, 4, 2, 6, 1, 5, 3, 7))
"""from 5 to 30 s, in an order in which any few that follow each other are as long on the average"""
TOKENS_PER_SECOND = 3.3
"""of English speech, in the model's tokens: some 150 words a minute"""
PICTURE_TOKENS = 100
PICTURES = 4
SIZES = {"cpu": (448, 448), "cuda": (1920, 1080)}
"""of the pictures, width and height: on the CPU one of many crops takes a minute and more"""


def generated(config: Config, device: str) -> dict[Kind, list[Request]]:
    """Noise, the same each time; the answers are as long as they may be (an `endless` engine).

    Args:
        config: the prompts and the sampling.
        device: where it is answered.
    """
    rng = np.random.default_rng(0)
    clips = [
        Request(
            Kind.AUDIO,
            config.speech_prompt,
            rng.normal(0, 0.1, round(seconds * SAMPLE_RATE_HZ)).astype(np.float32),
            round(seconds * TOKENS_PER_SECOND),
            config.sampling,
        )
        for seconds in CLIP_SECONDS
    ]
    width, height = SIZES[device.partition(":")[0]]
    pictures = [
        Request(
            Kind.IMAGE,
            config.image_prompt,
            rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
            PICTURE_TOKENS,
            config.sampling,
        )
        for _ in range(PICTURES)
    ]
    return {Kind.AUDIO: clips, Kind.IMAGE: pictures}


def of_files(config: Config, files: Sequence[str]) -> dict[Kind, list[Request]]:
    """A request for each picture and each stretch of a recording, as the daemon would ask.

    Args:
        config: the prompts, the limits and the sampling.
        files: their paths; of many, or long ones, the first `MOST` requests of a kind.

    Raises:
        FileError: one of them cannot be answered, or none gives anything to ask about.
    """
    made: dict[Kind, list[Request]] = {}
    with make_pool(config) as pool:
        for file in files:
            try:
                _add(made, config, pool, Path(file).expanduser().absolute())
            except (FileError, EnvironmentFault) as error:
                raise FileError(f"{file}: {error}") from error
    found = {kind: some for kind, some in made.items() if some}
    if not found:
        raise FileError(f"{', '.join(files)}: nothing is said in it: name a recording of speech")
    return found


def prepared(
    asked: Mapping[Kind, Sequence[Request]], preparation: Preparation | None
) -> dict[Kind, list[Request]]:
    """The same with media as decode processes make them ready for an engine."""

    def ready(request: Request) -> Request:
        media: Any = request.media
        if preparation is None:
            return request
        make = preparation.picture if request.kind is Kind.IMAGE else preparation.sound
        return replace(request, media=make(media))

    return {kind: [ready(request) for request in some] for kind, some in asked.items()}


def _add(made: dict[Kind, list[Request]], config: Config, pool: DecodePool, path: Path) -> None:
    kind, fingerprint = look(path)
    prompt = config.image_prompt if kind is Kind.IMAGE else config.speech_prompt
    there = made.setdefault(kind, [])
    with pool.decode(os.fsencode(path), kind, fingerprint) as pieces:
        there += (
            Request(kind, prompt, piece.media, config.max_new_tokens, config.sampling)
            for piece in itertools.islice(pieces, MOST - len(there))
        )
