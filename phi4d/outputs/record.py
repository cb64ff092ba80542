"""The JSON sidecar: everything that is known about the answer and how it came about.

`phi4d.outputs.told` reads it again: what is left out here, it has to know.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import phi4d
from phi4d.job import Job, Result


def render(
    job: Job, result: Result, now: float, *, content: str = "", reused_from: str = ""
) -> bytes:
    """The record as JSON, UTF-8, with one newline at its end.

    Args:
        job: the job that was done.
        result: what came of it.
        now: seconds since the epoch.
        content: SHA-256 of the file's bytes in hexadecimal; empty: not known.
        reused_from: the file whose answer was copied, as people see it; empty: it was asked.
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
        **({"reused_from": reused_from} if reused_from else {}),
        "prompt": result.prompt,
        "temperature": sampling.temperature,
        "seed": sampling.seed,
        "repetition_penalty": sampling.repetition_penalty,
        "model": result.model,
        "device": result.device,
        "media": {key: _number(value) for key, value in result.media},
        **version(job),
        **({"source_sha256": content} if content else {}),
        "prompt_tokens": result.prompt_tokens,
        "new_tokens": result.new_tokens,
        "seconds": round(result.seconds, 3),
        "created": iso(now),
        "phi4d": phi4d.__version__,
    }
    if result.kind.value == "image":
        del record["segments"]
    if sampling.temperature == 0:
        del record["temperature"], record["seed"]
    if sampling.repetition_penalty == 1:
        del record["repetition_penalty"]
    return dump(record)


def version(job: Job) -> dict[str, Any]:
    """What tells the version of the source file that a sidecar is about."""
    return {
        "source_bytes": job.fingerprint.size,
        "source_modified": iso(job.fingerprint.mtime_ns / 1e9),
        "source_mtime_ns": job.fingerprint.mtime_ns,
    }


def iso(seconds: float) -> str | None:
    """A time since the epoch as ISO 8601 in UTC; None beyond the years 1 to 9999.

    A file may claim to be from any year.
    """
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError):
        return None


def dump(record: dict[str, Any]) -> bytes:
    """JSON as UTF-8, with one newline at its end."""
    return (json.dumps(record, ensure_ascii=False, indent=2) + "\n").encode("utf-8", "replace")


def _number(value: float) -> float | int:
    """Whole numbers without a decimal point: nobody has 640.0 pixels."""
    return int(value) if value == int(value) else round(value, 3)
