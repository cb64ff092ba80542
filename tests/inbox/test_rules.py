"""What is taken, by its name; and that git would say the same."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from phi4d.errors import ConfigError
from phi4d.inbox.rules import LITTER, SIDECARS, Rules, heard_of
from phi4d.outputs import names


def taken(rules: Rules, path: bytes) -> bool:
    """By the sieves alone, as the scan asks; the explanation must say the same."""
    *folders, name = path.split(b"/")
    here, result = b"", True
    for folder in folders:
        result = result and rules.within(here).enters(folder)
        here = os.path.join(here, folder)
    result = result and rules.within(here).takes(name)
    assert rules.verdict(path).taken == result
    return result


class TestLitter:
    @pytest.mark.parametrize(
        "name",
        [
            b".hidden.jpg",
            b"._photo.jpg",
            b".DS_Store",
            b".photo.jpg.Xy12ab",
            b".syncthing.photo.jpg.tmp",
            b".photo.jpg.~3fa4",
            b"._sync_12.db",
            b"~syncthing~photo.jpg",
            b"photo.jpg.crdownload",
            b"photo.jpg.part",
            b"photo.jpg.filepart",
            b"photo.jpg.!qB",
            b"photo.jpg~",
            b"~$report.png",
            b"Thumbs.db",
            b"@eaDir/photo.jpg/SYNOPHOTO_THUMB_M.jpg",
            b"#recycle/photo.jpg",
            b"$RECYCLE.BIN/a/photo.jpg",
            b"lost+found/photo.jpg",
            b"a/b/__MACOSX/photo.jpg",
            b".Trash-1000/files/photo.jpg",
            b".stversions/photo.jpg",
        ],
    )
    def test_the_usual_litter_is_passed_over(self, name: bytes) -> None:
        assert not taken(Rules(), name)
        assert "(usual litter)" in Rules().verdict(name).why

    @pytest.mark.parametrize(
        "name",
        [
            b"photo.jpg",
            b"photo",
            b"-rf.jpg",
            b"#1.jpg",
            b"!important.jpg",
            b"a~b.jpg",
            b"participant.jpg",
            b"tmp/photo.jpg",
            b"new\nline.jpg",
            b"\xff\xfe.jpg",
            b"a/b/c/d.jpg",
        ],
    )
    def test_other_names_are_taken(self, name: bytes) -> None:
        assert taken(Rules(), name)
        assert Rules().verdict(name).why == "no pattern excludes it"

    def test_each_pattern_of_the_litter_says_something(self) -> None:
        for pattern in LITTER:
            name = os.fsencode(pattern.removeprefix("\\").replace("*", "x"))
            assert not taken(Rules(), name), pattern


class TestPatterns:
    def test_exclude(self) -> None:
        rules = Rules(exclude=["raw/", "*.bak.*", "/top.jpg", "2024/**/draft*.png"])
        assert not taken(rules, b"a/raw/photo.jpg")
        assert taken(rules, b"a/raw")
        assert not taken(rules, b"x.bak.jpg")
        assert not taken(rules, b"top.jpg")
        assert taken(rules, b"a/top.jpg")
        assert not taken(rules, b"2024/05/01/draft2.png")
        assert taken(rules, b"2023/draft2.png")

    def test_what_is_litter_can_be_taken_back(self) -> None:
        rules = Rules(exclude=["!*.part", "!.hidden/"])
        assert taken(rules, b"a.part")
        assert taken(rules, b".hidden/photo.jpg")
        assert not taken(rules, b".other/photo.jpg")
        assert rules.verdict(b"a.part").why == 'taken back by "!*.part" (exclude)'

    def test_the_last_pattern_that_matches_decides(self) -> None:
        rules = Rules(exclude=["*.png", "!keep.png", "/x/keep.png"])
        assert taken(rules, b"keep.png")
        assert not taken(rules, b"x/keep.png")
        assert not taken(rules, b"other.png")

    def test_include(self) -> None:
        rules = Rules(include=["*.jpg", "/scans/", "[0-9]*.png"])
        assert taken(rules, b"deep/down/a.jpg")
        assert taken(rules, b"scans/deep/a.tif")
        assert not taken(rules, b"other/scans/a.tif")
        assert taken(rules, b"5.png")
        assert not taken(rules, b"x5.png")
        assert not taken(rules, b"scans/a.jpg.part")
        assert rules.verdict(b"a.tif").why == "none of the include patterns matches"
        assert rules.verdict(b"a.jpg").why == 'included by "*.jpg"'

    def test_include_with_something_taken_back(self) -> None:
        rules = Rules(include=["photos/", "!*.png"])
        assert taken(rules, b"photos/a.jpg")
        assert not taken(rules, b"photos/a.png")

    @pytest.mark.parametrize("name", ["[ab", "!", "a\\", "# not a name"])
    @pytest.mark.parametrize("key", ["include", "exclude"])
    def test_what_is_no_pattern_is_refused_with_its_key(self, key: str, name: str) -> None:
        with pytest.raises(ConfigError) as caught:
            Rules(inbox="photos", **{key: [name]})
        assert f'inbox "photos": {key}: found {name!r}; expected a pattern' in str(caught.value)

    def test_own_sidecars_are_never_input(self) -> None:
        rules = Rules(include=["*"], exclude=["!*.txt"])
        assert not taken(rules, b"a.jpg.txt")
        assert not taken(rules, b"a.jpg.json")
        assert "phi4d writes itself" in rules.verdict(b"a.jpg.json").why

    def test_every_output_is_among_them(self) -> None:
        assert all(end.endswith(SIDECARS) for end in (names.TEXT, names.RECORD, names.ERROR))

    def test_folders_of_phi4ds_own_below_the_inbox_are_passed_over(self) -> None:
        rules = Rules(
            b"/srv/in", apart={b"/srv/in/done": "the done_dir", b"/srv/in": "x", b"/srv/out": "y"}
        )
        assert not taken(rules, b"done/a.jpg")
        assert taken(rules, b"a/done/a.jpg")
        assert taken(rules, b"a.jpg")
        assert rules.verdict(b"done/a.jpg").why == "its folder done is passed over: the done_dir"


class TestIgnoreFiles:
    def test_it_holds_from_its_folder_down(self) -> None:
        rules = Rules()
        assert rules.set_ignore(b"2024", ["# what I do not want", "", "raw/", "/x.jpg"]) == []
        assert not taken(rules, b"2024/a/raw/b.jpg")
        assert taken(rules, b"2023/raw/b.jpg")
        assert not taken(rules, b"2024/x.jpg")
        assert taken(rules, b"2024/a/x.jpg")
        assert rules.verdict(b"2024/raw/b.jpg").why == (
            'its folder 2024/raw is excluded by "raw/" in 2024/.phi4dignore'
        )

    def test_the_deeper_one_is_stronger_and_both_are_stronger_than_exclude(self) -> None:
        rules = Rules(exclude=["*.tif"])
        rules.set_ignore(b"", ["!*.tif", "*.png"])
        rules.set_ignore(b"a", ["!*.png"])
        assert taken(rules, b"x.tif")
        assert not taken(rules, b"x.png")
        assert taken(rules, b"a/b/x.png")

    def test_it_may_change_and_go(self) -> None:
        rules = Rules()
        rules.set_ignore(b"", ["*.png"])
        assert not taken(rules, b"a.png")
        rules.set_ignore(b"", ["*.jpg"])
        assert taken(rules, b"a.png")
        rules.set_ignore(b"", None)
        assert taken(rules, b"a.jpg")

    def test_lines_that_are_no_patterns_are_told_and_passed_over(self) -> None:
        rules = Rules()
        assert rules.set_ignore(b"", ["[ab", "*.png", "!"]) == ["[ab", "!"]
        assert not taken(rules, b"a.png")


@pytest.mark.parametrize(
    ("extension", "expected"),
    [(b"pdf", True), (b"TXT", True), (b"gz", True), (b"xyz", False), (b"2024", False)],
)
def test_extensions_that_stand_for_something(extension: bytes, expected: bool) -> None:
    assert heard_of(extension) is expected


_words = st.sampled_from(["a", "b", "ab", "a.b", "x"])
_glob = st.sampled_from(["*", "a*", "*b", "?", "[ab]", "[!a]", "a", "b", "ab", "x"])
_patterns = st.lists(
    st.builds(
        lambda back, start, parts, last, end: back + start + "/".join([*parts, last]) + end,
        st.sampled_from(["", "", "!"]),
        st.sampled_from(["", "", "/", "**/"]),
        st.lists(_glob, max_size=2),
        _glob,
        st.sampled_from(["", "", "/", "/**"]),
    ),
    min_size=1,
    max_size=4,
)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
class TestAgainstGit:
    @pytest.fixture
    def repository(self, tmp_path: Path) -> Path:
        subprocess.run(["git", "init", "-q", tmp_path], check=True)
        return tmp_path

    @settings(
        max_examples=100,
        deadline=None,
        suppress_health_check=[HealthCheck.function_scoped_fixture],
    )
    @given(
        top=_patterns,
        inner=_patterns,
        paths=st.lists(st.lists(_words, min_size=1, max_size=3), min_size=1, max_size=8),
    )
    def test_the_same_paths_are_passed_over(
        self, repository: Path, top: list[str], inner: list[str], paths: list[list[str]]
    ) -> None:
        # given the same patterns, at the top and in a folder
        (repository / "d").mkdir(exist_ok=True)
        (repository / ".gitignore").write_text("\n".join(top))
        (repository / "d" / ".gitignore").write_text("\n".join(inner))
        rules = Rules()
        rules.set_ignore(b"", top)
        rules.set_ignore(b"d", inner)
        # when both judge paths that need not exist
        given = ["/".join(path) for path in paths]
        given += [f"d/{name}" for name in given]
        done = subprocess.run(
            ["git", "check-ignore", "--no-index", "--stdin", "-z"],
            cwd=repository,
            input="\0".join(given).encode(),
            capture_output=True,
            check=False,
        )
        # then they agree
        ignored = set(done.stdout.decode().split("\0"))
        for name in given:
            assert taken(rules, name.encode()) == (name not in ignored), (name, top, inner)
