"""What was measured, for the eyes and as JSON."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from phi4d.bench.rate import Rate
from phi4d.bench.sweep import Choice, Point, Sweep, fastest
from phi4d.job import Kind

BAR = 40
"""columns of the longest"""
TIMES = "× real time"  # noqa: RUF001 -- the sign is meant
COLUMNS = {Kind.AUDIO: ("clips/s", TIMES), Kind.IMAGE: ("pictures/s",)}
TITLES = {Kind.AUDIO: f"clips, {TIMES}", Kind.IMAGE: "pictures a second"}
_EIGHTHS = " ▏▎▍▌▋▊▉"


def render(sweeps: Sequence[Sweep], choice: Choice) -> str:
    """Of each device tables and bars; then the lines for the configuration."""
    lines: list[str] = []
    for one in sweeps:
        lines += [f"{one.device}  {one.model}, {one.precision}", ""]
        lines += _measured("batch_size", one.points)
        if one.ended:
            lines += [f"no larger batch_size was tried: {one.ended}", ""]
        if one.threads:
            lines += _measured("threads", one.threads)
    return "\n".join([*lines, "for phi4d.toml:", *settings(choice)])


def settings(choice: Choice) -> list[str]:
    """The lines to put into the configuration."""
    return [f"{key} = {value}" for key, value in _chosen(choice).items()]


def _chosen(choice: Choice) -> dict[str, int]:
    threads = {} if choice.threads is None else {"threads": choice.threads}
    return {"batch_size": choice.size, **threads}


def as_json(sweeps: Sequence[Sweep], choice: Choice) -> dict[str, Any]:
    """Everything; seconds, bytes, and rates a second."""
    return {
        "devices": [
            {
                "device": one.device,
                "model": one.model,
                "precision": one.precision,
                "batch_size": _points(one.points),
                "ended": one.ended,
                "threads": _points(one.threads),
            }
            for one in sweeps
        ],
        "config": _chosen(choice),
    }


def _points(points: Sequence[Point]) -> list[dict[str, Any]]:
    return [
        {
            "value": point.value,
            **{kind.value: _fields(rate) for kind, rate in point.rates.items()},
        }
        for point in points
    ]


def _fields(rate: Rate) -> dict[str, float]:
    fields = {
        "seconds": rate.seconds,
        "requests": rate.requests,
        "requests_per_second": rate.requests_per_second,
        "tokens_per_second": rate.tokens_per_second,
        "memory_bytes": rate.memory_bytes,
    }
    if rate.kind is Kind.AUDIO:
        fields["times_real_time"] = rate.times_real_time
    return {name: round(value, 3) for name, value in fields.items()}


def _measured(key: str, points: Sequence[Point]) -> Iterator[str]:
    """A table and bars, by the values of a key."""
    yield from [*_table(key, points), ""]
    for kind in points[0].rates:
        yield from [*_bars(key, points, kind), ""]


def _table(key: str, points: Sequence[Point]) -> list[str]:
    kinds = list(points[0].rates)
    rows = [[key, *(name for k in kinds for name in (*COLUMNS[k], "tokens/s")), "memory"]]
    for point in points:
        row = [str(point.value)]
        for kind in kinds:
            rate = point.rates[kind]
            row.append(number(rate.requests_per_second))
            if kind is Kind.AUDIO:
                row.append(number(rate.times_real_time))
            row.append(number(rate.tokens_per_second))
        memory = max(rate.memory_bytes for rate in point.rates.values())
        rows.append([*row, f"{memory / 1e9:.1f} GB" if memory else "not told"])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]


def _bars(key: str, points: Sequence[Point], kind: Kind) -> Iterator[str]:
    yield f"{TITLES[kind]}, by {key}"
    width = len(str(max(point.value for point in points)))
    for point in points:
        speed = point.rates[kind].speed
        share = speed / fastest(points, kind)
        yield f"{point.value:>{width + 2}}  {bar(share):{BAR}}  {number(speed)}"


def bar(share: float) -> str:
    """A bar of so much of the longest, to the eighth of a column."""
    whole, part = divmod(round(share * BAR * 8), 8)
    return ("█" * whole + _EIGHTHS[part]).rstrip()


def number(value: float) -> str:
    """With three figures or so."""
    digits = 0 if value >= 99.95 else 1 if value >= 9.995 else 2
    return f"{value:,.{digits}f}"
