"""Names of sidecars: they fit, stay apart and stay readable."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from phi4d.outputs import names

SUFFIXES = [names.TEXT, names.RECORD, names.ERROR]


def fits(name: bytes) -> bool:
    return 0 < len(name) <= names.NAME_MAX and name not in {b".", b".."}


def of_bytes(least: int = 1) -> st.SearchStrategy[bytes]:
    return (
        st.binary(min_size=least, max_size=255)
        .map(lambda some: some.translate(bytes.maketrans(b"/\0", b"\n\xff")))
        .filter(fits)
    )


def of_text(least: int = 1) -> st.SearchStrategy[bytes]:
    characters = st.characters(codec="utf-8", exclude_characters="/\0")
    return (
        st.text(characters, min_size=least, max_size=255)
        .map(lambda text: text.encode()[:255].decode("utf-8", "ignore").encode())
        .filter(fits)
    )


any_name = of_bytes() | of_bytes(240) | of_text() | of_text(240)
suffixes = st.sampled_from(SUFFIXES)


def is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


@given(any_name, suffixes)
def test_every_sidecars_name_fits(name: bytes, suffix: bytes) -> None:
    assert len(names.sidecar(name, suffix)) <= names.NAME_MAX
    assert b"/" not in names.sidecar(name, suffix)


@given(any_name)
@example(b"a.png")
@example(b"x" * names.ROOM)
def test_a_name_that_fits_is_kept(name: bytes) -> None:
    told = names.sidecar(name, names.TEXT)
    if len(name) > names.ROOM:
        assert told != name + names.TEXT
    elif not name.endswith(b".error") and b"~" not in name:
        assert told == name + names.TEXT


@given(any_name, any_name, suffixes, suffixes)
@example(b"x" * 255, b"x" * 254 + b"y", names.TEXT, names.TEXT)
@example(b"a", b"a.error", names.ERROR, names.RECORD)
def test_no_two_files_share_a_sidecar(one: bytes, two: bytes, this: bytes, that: bytes) -> None:
    assert (names.sidecar(one, this) == names.sidecar(two, that)) == ((one, this) == (two, that))


@given(any_name, suffixes)
def test_a_file_named_like_the_stem_of_a_sidecar_is_kept_apart(name: bytes, suffix: bytes) -> None:
    stem = names.sidecar(name, b"")
    if stem != name:
        assert names.sidecar(stem, suffix) != names.sidecar(name, suffix)


@given(any_name)
def test_all_sidecars_of_a_file_share_one_stem(name: bytes) -> None:
    assert len({names.sidecar(name, suffix).removesuffix(suffix) for suffix in SUFFIXES}) == 1


@given(of_text(200) | of_text(), st.integers(0, 3))
@example("ä".encode() * 127, 1)
@example("€".encode() * 85, 1)
@example("😀".encode() * 63, 1)
def test_what_was_utf8_stays_so(name: bytes, number: int) -> None:
    assert is_utf8(names.sidecar(name, names.ERROR))
    assert is_utf8(names.numbered(name, number))


@given(of_bytes(), st.integers(4, 255))
@example(b"\x80" * 255, 240)
def test_a_cut_keeps_the_beginning_and_gives_up_at_most_a_character(
    name: bytes, length: int
) -> None:
    short = names.cut(name, length)
    assert name.startswith(short)
    assert min(len(name), length) - 3 <= len(short) <= length


@given(any_name, st.integers(0, 99_999), st.integers(0, 99_999))
def test_numbered_names_fit_and_differ(name: bytes, one: int, two: int) -> None:
    assert len(names.numbered(name, one)) <= names.NAME_MAX
    assert (names.numbered(name, one) == names.numbered(name, two)) == (one == two)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        (b"a.png", b"a-2.png"),
        (b"a", b"a-2"),
        (b".hidden", b".hidden-2"),
        (b"a.tar.gz", b"a.tar-2.gz"),
        (b"-\xff.wav", b"-\xff-2.wav"),
        (b"x" * 255, b"x" * 253 + b"-2"),
        (b"x" * 251 + b".png", b"x" * 249 + b"-2.png"),
        (b"a." + b"x" * 253, b"a." + b"x" * 251 + b"-2"),
    ],
)
def test_a_number_stands_before_the_extension(name: bytes, expected: bytes) -> None:
    assert names.numbered(name, 2) == expected
    assert names.numbered(name, 0) == name


@given(of_bytes(250), suffixes)
def test_the_file_system_takes_them(
    tmp_path_factory: pytest.TempPathFactory, name: bytes, suffix: bytes
) -> None:
    folder = os.fsencode(tmp_path_factory.getbasetemp())
    path = os.path.join(folder, names.sidecar(name, suffix))
    Path(os.fsdecode(path)).write_bytes(b"x")
    os.unlink(path)


class TestSource:
    @given(any_name, st.lists(any_name), suffixes)
    def test_it_is_the_other_way_round(
        self, name: bytes, others: list[bytes], suffix: bytes
    ) -> None:
        written = names.sidecar(name, suffix)
        assert names.source(written, lambda: [*others, name]) == name

    @given(any_name, suffixes)
    def test_a_name_that_was_cut_tells_nothing_where_the_file_is_gone(
        self, name: bytes, suffix: bytes
    ) -> None:
        kept = names.sidecar(name, b"") == name
        assert names.source(names.sidecar(name, suffix), list) == (name if kept else None)

    @pytest.mark.parametrize("name", [b"a.png", b".txt", b".error.json", b"", b"a.json.bak"])
    def test_what_is_named_like_no_sidecar(self, name: bytes) -> None:
        assert names.source(name, lambda: [b"a.png"]) is None

    def test_a_name_that_no_sidecar_has(self) -> None:
        assert names.source(b"x" * 250 + b".txt", lambda: [b"x" * 250]) is None
        assert names.source(b"a.error.txt", lambda: [b"a", b"a.error"]) is None
