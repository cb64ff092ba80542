"""Lines of keys and values: the locator agrees with the parsers on what there is."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from phi4d.config import places

TOML = '''# a comment = "no key"
a = 1
"b c".'d.e' = """x
[[no]] = "no"
""""  # the text ends with a quote
list = [ # comments are let through
  "a", 'b]', # "
  { x = 1, "y z".w = [1,
   2] },
]
date = 1979-05-27 07:32:00
dates = [1979-05-27 07:32:00, 07:32:00]
[[inbox]]
path = "p#q\\"["
kinds = [
 "image",
 "audio"
]
[inbox.hook]
u = -inf
[[ inbox ]]
[t."q.r"]
v = \'\'\'
m\'\'\'
k.l.m = {}
'''
LINES = {
    "a": 2,
    "b c.d.e": 3,
    "list.1": 7,
    "list.2.x": 8,
    "list.2.y z.w.1": 9,
    "date": 11,
    "dates.1": 12,
    "inbox.0": 13,
    "inbox.0.path": 14,
    "inbox.0.kinds": 15,
    "inbox.0.kinds.1": 17,
    "inbox.0.hook.u": 20,
    "inbox.1": 21,
    "t.q.r": 22,
    "t.q.r.v": 23,
    "t.q.r.k.l": 25,
}


def paths(value: Any, path: places.KeyPath = ()) -> Iterator[places.KeyPath]:
    """The way to everything in a value."""
    inner: Any = ()
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, list):
        inner = enumerate(value)
    for key, item in inner:
        yield (*path, key)
        yield from paths(item, (*path, key))


def named(path: places.KeyPath) -> str:
    return ".".join(map(str, path))


def test_every_key_and_item_of_a_toml_file_has_its_line():
    found = places.of_toml(TOML)

    assert set(paths(tomllib.loads(TOML))) <= set(found.lines) | {("inbox",), ("t",)}
    lines = {named(path): line for path, line in found.lines.items()}
    assert {name: lines[name] for name in LINES} == LINES


def test_what_has_no_line_of_its_own_has_that_of_what_it_is_in():
    found = places.of_toml("\na = { b = 1 }\n")

    assert found.line(("a", "b", "c")) == 2
    assert found.line(("z",)) == 0


@pytest.mark.parametrize(
    ("line", "table"), [(2, ()), (19, ("inbox", 0, "hook")), (40, ("t", "q.r"))]
)
def test_a_line_is_known_by_its_table(line: int, table: places.KeyPath):
    assert places.of_toml(TOML).table_at(line) == table


def test_keys_of_json_that_stand_twice():
    found = places.of_json('{"a": 1,\n "b": {"c": 2},\n "\\u0061": [{"c": 1, "c": 2}]}')

    assert found.twice == [(("a",), 1, 3), (("a", 0, "c"), 3, 3)]


def test_nested_beyond_reason():
    assert places.of_json("[" * 20_000 + "]" * 20_000).line((0, 0)) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@given(st.dictionaries(st.text(), VALUES), st.sampled_from([None, 1]))
def test_of_any_json_every_place_is_found(data: dict[str, Any], indent: int | None):
    text = json.dumps(data, indent=indent)
    found = places.of_json(text)

    assert set(paths(data)) | {()} == set(found.lines)
    assert not found.twice
    assert max(found.lines.values()) <= text.count("\n") + 1


@given(st.lists(st.dictionaries(st.text(), st.text() | st.booleans() | st.lists(st.text()))))
def test_of_toml_tables_every_key_is_on_its_line(tables: list[dict[str, Any]]):
    lines, expected = ["# begin"], {}
    for n, table in enumerate(tables):
        lines.append("[[t]]")
        for key, value in table.items():
            expected["t", n, key] = len(lines) + 1
            # JSON's texts, lists and truths are TOML's too
            lines.append(f"{quoted(key)} = {quoted(value)}")
    text = "\n".join(lines)
    assert tomllib.loads(text) == ({"t": tables} if tables else {})

    found = places.of_toml(text)

    assert {path: found.lines[path] for path in expected} == expected


def quoted(value: object) -> str:
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
