"""What every engine asks of its requests, the fake one too. No torch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from phi4d.job import Kind, Request


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
        media = request.media
        if request.kind is Kind.IMAGE:
            fits = (
                media.dtype == np.uint8 and media.ndim == 3 and media.shape[2] == 3 and media.size
            )
            expected = "(height, width, 3) uint8"
        else:
            fits = media.dtype == np.float32 and media.ndim == 1
            expected = "(samples,) float32"
        if not fits:
            raise ValueError(
                f"{request.kind}: {expected} expected, found {media.shape} {media.dtype}"
            )
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
