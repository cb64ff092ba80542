"""The plain sidecar: the description or transcript and nothing else."""

from __future__ import annotations

from phi4d.job import Result

SUFFIX = b".txt"


def render(result: Result) -> bytes:
    """The text, UTF-8, with one newline at its end; a recording has a line for each segment."""
    lines = [segment.text for segment in result.segments] or [result.text]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")
