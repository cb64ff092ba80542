"""What every engine asks of its requests, and how they come in a stream. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from phi4d.errors import Phi4dError
from phi4d.job import Completion, Kind, Request
from phi4d.prepared.clip import Clip
from phi4d.prepared.tiles import Tiles

if TYPE_CHECKING:
    from phi4d.job import Media


@dataclass(eq=False, slots=True)
class Asked:
    """A request of a stream; see `phi4d.engine.Engine.serve`."""

    request: Request
    key: object = None
    """whatever its asker knows it by"""
    cancelled: bool = False
    """set by anybody, at any time: its answer is wanted no more, and nothing is told of it"""


Source = Callable[[int], Sequence[Asked]]
"""told how many more there is room for, gives no more than so many; none: nothing is there now"""
Ended = Completion | Phi4dError | ValueError
"""an answer, or why there is none"""


def check_requests(requests: Sequence[Request]) -> Kind:
    """The kind that all requests have.

    Raises:
        ValueError: no requests, requests of different kinds, media of the wrong shape or type, a
            limit below one token or one crop, or a sampling that is none.
    """
    kinds = {request.kind for request in requests}
    if len(kinds) != 1:
        found = " and ".join(sorted(kinds)) or "none"
        raise ValueError(f"requests of one kind were expected, found {found}")
    for request in requests:
        _check_media(request.kind, request.media)
        if request.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens: {request.max_new_tokens} is less than 1")
        sampling = request.sampling
        if not 0 <= sampling.temperature < math.inf:
            raise ValueError(f"temperature: {sampling.temperature} is not 0 or more")
        if not 0 < sampling.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty: {sampling.repetition_penalty} is not above 0")
        if request.max_crops is not None and request.max_crops < 1:
            raise ValueError(f"max_crops: {request.max_crops} is less than 1")
    return kinds.pop()


def _check_media(kind: Kind, media: Media) -> None:
    if isinstance(media, Tiles if kind is Kind.IMAGE else Clip):
        return  # it was looked at when it was made
    expected, fits = "(samples,) float32", False
    if kind is Kind.IMAGE:
        expected = "(height, width, 3) uint8"
    if isinstance(media, np.ndarray):
        if kind is Kind.IMAGE:
            fits = media.dtype == np.uint8 and media.ndim == 3 and media.shape[2] == 3
            fits = fits and media.size > 0
        else:
            fits = media.dtype == np.float32 and media.ndim == 1
        found = f"{media.shape} {media.dtype}"
    else:
        found = type(media).__name__
    if not fits:
        raise ValueError(f"{kind}: {expected} expected, found {found}")
