"""The table, the bars, the drawing, JSON."""

from __future__ import annotations

import dataclasses
import json
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from benchkit import measured, points

from phi4d import bench
from phi4d.bench import plot
from phi4d.bench.telling import BAR, bar, number
from phi4d.config import Config
from phi4d.errors import FileError

SPEEDS = {1: 2.0, 8: 16.0}
BOTH = measured("cuda:0", "more gained nothing", audio={1: 150.0, 8: 1200.0}, image=SPEEDS)


def test_the_table_has_a_row_for_each_size():
    lines = bench.render([BOTH], bench.choose([BOTH])).splitlines()

    assert lines[0] == "cuda:0  model <1>, float32"
    # the sign is meant
    assert re.split(r"  +", lines[2].strip()) == [
        "batch_size", "clips/s", "× real time", "tokens/s",  # noqa: RUF001
        "pictures/s", "tokens/s", "memory",
    ]  # fmt: skip
    assert [line.split() for line in lines[3:5]] == [
        ["1", "150", "150", "1,500", "2.00", "20.0", "2.0", "GB"],
        ["8", "1,200", "1,200", "12,000", "16.0", "160", "2.0", "GB"],
    ]
    assert "no larger batch_size was tried: more gained nothing" in lines


def test_of_one_kind_there_are_only_its_columns():
    told = bench.render([measured(image=SPEEDS)], bench.Choice(8))

    assert "pictures/s" in told
    assert "clips" not in told


def test_bars_are_as_long_as_the_speeds():
    told = bench.render([measured(image=SPEEDS)], bench.Choice(8))

    assert f"  1  {'█' * (BAR // 8):{BAR}}  2.00" in told
    assert f"  8  {'█' * BAR}  16.0" in told
    assert (bar(0), bar(0.5), bar(1 / BAR / 8)) == ("", "█" * (BAR // 2), "▏")


def test_the_last_lines_are_a_configuration():
    one = dataclasses.replace(BOTH, threads=points(image={2: 1.0}))

    told = bench.render([one], bench.choose([one]))

    configured = Config(**tomllib.loads(told.partition("for phi4d.toml:")[2]))
    assert (configured.batch_size, configured.threads) == (8, 2)


def test_json_has_all_of_it():
    told = json.loads(json.dumps(bench.as_json([BOTH], bench.Choice(8))))

    assert told["config"] == {"batch_size": 8}
    (device,) = told["devices"]
    assert (device["device"], device["ended"]) == ("cuda:0", "more gained nothing")
    assert [point["value"] for point in device["batch_size"]] == [1, 8]
    assert device["threads"] == []
    assert device["batch_size"][1]["audio"] == {
        "seconds": 10.0,
        "requests": 12_000,
        "requests_per_second": 1200.0,
        "times_real_time": 1200.0,
        "tokens_per_second": 12_000.0,
        "memory_bytes": 2_000_000_000,
    }
    assert "times_real_time" not in device["batch_size"][1]["image"]


def test_threads_have_a_table_of_their_own():
    one = dataclasses.replace(measured(image=SPEEDS), threads=points(image={2: 4.0, 4: 3.0}))

    told = bench.render([one], bench.choose([one]))

    lines = told.splitlines()
    begin = next(i for i, line in enumerate(lines) if line.startswith("threads"))
    assert [line.split()[:2] for line in lines[begin + 1 : begin + 3]] == [
        ["2", "4.00"],
        ["4", "3.00"],
    ]
    assert "pictures a second, by threads" in lines
    assert lines[-2:] == ["batch_size = 8", "threads = 2"]
    shown = bench.as_json([one], bench.choose([one]))
    assert shown["config"] == {"batch_size": 8, "threads": 2}
    assert [point["value"] for point in shown["devices"][0]["threads"]] == [2, 4]


@pytest.mark.parametrize(
    ("value", "words"),
    [(0.123, "0.12"), (9.99, "9.99"), (9.999, "10.0"), (99.97, "100"), (12_345.6, "12,346")],
)
def test_a_number_has_three_figures_or_so(value: float, words: str):
    assert number(value) == words


def test_the_drawing_has_a_panel_a_kind_and_a_line_a_device(tmp_path: Path):
    other = measured("cuda:1", audio={1: 100.0, 8: 600.0}, image={1: 1.0, 8: 8.0})
    file = tmp_path / "plot.svg"

    plot.draw(file, [BOTH, other])

    drawing = ElementTree.fromstring(file.read_text("utf-8"))  # noqa: S314 -- drawn here
    name = "{http://www.w3.org/2000/svg}"
    lines = [line.get("points", "").split() for line in drawing.iter(f"{name}polyline")]
    assert [len(points) for points in lines] == [2, 2, 2, 2]
    # the highest point of each panel is at its ceiling, and twice the speed is twice as high
    heights = [[float(point.split(",")[1]) for point in points] for points in lines]
    assert heights[0][1] == plot.TOP
    base = plot.HEIGHT - plot.BOTTOM
    assert base - heights[1][1] == pytest.approx((base - heights[0][1]) / 2, abs=0.1)
    assert {text.text for text in drawing.iter(f"{name}text")} >= {"cuda:0", "cuda:1", "1", "8"}


def test_a_drawing_that_cannot_be_written_is_told(tmp_path: Path):
    with pytest.raises(FileError, match=r"plot.svg: cannot be written: No such file"):
        plot.draw(tmp_path / "none" / "plot.svg", [BOTH])
