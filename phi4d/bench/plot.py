"""The plot as a drawing: for each kind of media the speed over ``batch_size``, a line a device."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from phi4d.bench.sweep import Sweep, fastest
from phi4d.bench.telling import TITLES, number
from phi4d.errors import FileError
from phi4d.job import Kind

WIDTH, HEIGHT = 440, 280
"""of a panel, in pixels"""
LEFT, RIGHT, TOP, BOTTOM = 56, 16, 40, 48
"""margins of a panel"""
COLOURS = ("#2f6fb7", "#c0652a", "#3d8a56", "#8a4fa3", "#a33c4c", "#5f6b76")


def draw(path: Path, sweeps: Sequence[Sweep]) -> None:
    """Write the plot, in place of what is there.

    Raises:
        FileError: it cannot be written.
    """
    try:
        path.write_text(svg(sweeps), "utf-8")
    except OSError as error:
        raise FileError(
            f"{path}: cannot be written: {error.strerror}; name a file in a folder that you may "
            "write to"
        ) from error


def svg(sweeps: Sequence[Sweep]) -> str:
    """A panel for each kind, side by side, on a ground of its own."""
    kinds = list(sweeps[0].points[0].rates)
    width = WIDTH * len(kinds)
    parts = [part for i, kind in enumerate(kinds) for part in _panel(sweeps, kind, WIDTH * i)]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {HEIGHT}" '
            f'width="{width}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
            f'<rect width="{width}" height="{HEIGHT}" fill="#ffffff"/>',
            *parts,
            "</svg>\n",
        ]
    )


def _panel(sweeps: Sequence[Sweep], kind: Kind, left: int) -> Iterator[str]:
    sizes = sorted({point.value for one in sweeps for point in one.points})
    most = max(fastest(one.points, kind) for one in sweeps)
    base, ceiling = HEIGHT - BOTTOM, TOP
    begin, end = left + LEFT, left + WIDTH - RIGHT

    def x(size: int) -> float:  # sizes double: so they stand at equal distances
        return begin + (end - begin) * (sizes.index(size) + 0.5) / len(sizes)

    def y(speed: float) -> float:
        return base - (base - ceiling) * speed / most

    yield f'<text x="{begin}" y="20" font-weight="bold">{escape(TITLES[kind])}</text>'
    for speed in (0.0, most / 2, most):
        height = y(speed)
        yield (
            f'<path d="M{begin} {height:.1f}H{end}" stroke="#d5dae0"/>'
            f'<text x="{begin - 6}" y="{height + 4:.1f}" text-anchor="end">{number(speed)}</text>'
        )
    for size in sizes:
        yield f'<text x="{x(size):.1f}" y="{base + 18}" text-anchor="middle">{size}</text>'
    middle = (begin + end) / 2
    yield f'<text x="{middle:.1f}" y="{base + 36}" text-anchor="middle">batch_size</text>'
    for n, one in enumerate(sweeps):
        colour = COLOURS[n % len(COLOURS)]
        places = [(x(point.value), y(point.rates[kind].speed)) for point in one.points]
        line = " ".join(f"{across:.1f},{down:.1f}" for across, down in places)
        yield f'<polyline points="{line}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for across, down in places:
            yield f'<circle cx="{across:.1f}" cy="{down:.1f}" r="3" fill="{colour}"/>'
        yield (
            f'<text x="{end}" y="{20 + 14 * n}" text-anchor="end" fill="{colour}">'
            f"{escape(one.device)}</text>"
        )
