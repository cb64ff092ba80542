"""The JSON sidecar: everything that is known about the answer and how it came about."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import phi4d
from phi4d.job import Job, Result

SUFFIX = b".json"


def render(job: Job, result: Result, now: float) -> bytes:
    """The record as JSON, UTF-8, with one newline at its end.

    Args:
        job: the job that was done.
        result: what came of it.
        now: seconds since the epoch.
    """
    sampling = result.sampling
    record = {
        "source": job.name,
        "inbox": job.inbox,
        "kind": result.kind.value,
        "text": result.text,
        "segments": [
            {
                "start": round(s.start, 3),
                "end": round(s.end, 3),
                "text": s.text,
                "finish_reason": s.finish_reason.value,
            }
            for s in result.segments
        ],
        "finish_reason": result.finish_reason.value,
        **({"reduced": result.reduced} if result.reduced else {}),
        "prompt": result.prompt,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "repetition_penalty": sampling.repetition_penalty,
        "model": result.model,
        "device": result.device,
        "media": {key: _number(value) for key, value in result.media},
        "source_bytes": job.fingerprint.size,
        "source_modified": _iso(job.fingerprint.mtime_ns / 1e9),
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "seconds": round(result.seconds, 3),
        "created": _iso(now),
        "phi4d": phi4d.__version__,
    }
    if result.kind.value == "image":
        del record["segments"]
    if sampling.temperature == 0:
        del record["temperature"], record["seed"]
    if sampling.repetition_penalty == 1:
        del record["repetition_penalty"]
    return (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "replace")


def _number(value: float) -> float | int:
    """Whole numbers without a decimal point: nobody has 640.0 pixels."""
    return int(value) if value == int(value) else round(value, 3)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
