"""How systemd's files are written, compared with systemd's own tools where they are."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import PurePath

import pytest

from phi4d.unit import syntax

NAMES = [
    "/srv/plain-name_1.2",
    "/srv/a b",
    '/srv/"quoted"',
    "/srv/it's",
    "/srv/back\\slash\\",
    "/srv/100%%",
    "/srv/a:b;c#d",
    "/srv/été/日本",
    "/.hidden/.x",
    "/",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_path_is_one_word_and_comes_back(name: str):
    word = syntax.quoted(PurePath(name), "-")

    assert word is not None
    assert syntax.words(f"/before {word} /after") == ["/before", f"-{name}", "/after"]


@pytest.mark.parametrize("name", ["/srv/two\nlines", "/srv/tab\there", "/srv/\udcff"])
def test_what_systemd_cannot_be_told_is_not_told(name: str):
    assert syntax.quoted(PurePath(name)) is None


@pytest.mark.skipif(not shutil.which("systemd-escape"), reason="needs systemd-escape")
@pytest.mark.parametrize("name", NAMES)
def test_mount_units_are_called_as_systemd_calls_them(name: str):
    done = subprocess.run(
        ["systemd-escape", "--path", "--suffix=mount", name],
        capture_output=True,
        text=True,
        check=True,
    )
    assert syntax.mount_unit(PurePath(name)) == done.stdout.strip()


def test_a_unit_is_read_with_comments_and_long_lines():
    text = "\n".join(
        [
            "# Type=simple",
            "[Service]",
            "ReadWritePaths = /a \\",
            "; passed over",
            "   /b",
            "ReadWritePaths=",
            "no setting",
            "[Install]",
            "WantedBy=x.target",
        ]
    )
    assert list(syntax.assignments(text)) == [
        ("Service", "ReadWritePaths", "/a  /b"),
        ("Service", "ReadWritePaths", ""),
        ("Install", "WantedBy", "x.target"),
    ]
