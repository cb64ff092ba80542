"""The plain sidecar: the description or transcript and nothing else."""

from __future__ import annotations

from phi4d.job import FinishReason, Result, Segment

CUT = " […]"
"""ends a line whose answer was cut at the token limit"""


def render(result: Result) -> bytes:
    """The text, UTF-8, with one newline at its end; a recording has a line for each segment."""
    lines = [_marked(answer) for answer in result.segments or [result]]
    return ("\n".join(lines) + "\n").encode("utf-8", "replace")


def _marked(answer: Result | Segment) -> str:
    return answer.text + (CUT if answer.finish_reason is FinishReason.LENGTH else "")
