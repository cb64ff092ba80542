"""The man pages: what they say is what the code says, and every reader of man pages shows them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from phi4d.config import Config, Inbox

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import manpages


@pytest.mark.parametrize("name", manpages.PAGES)
def test_the_pages_are_those_of_the_code(name: str):
    committed = (manpages.MAN / name).read_text("utf-8")

    assert committed == manpages.pages()[name], "run `make man`, and commit what it writes"


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man-db")
@pytest.mark.parametrize("name", manpages.PAGES)
def test_man_shows_them_without_a_warning(name: str):
    done = subprocess.run(
        ["man", "--warnings", "-E", "UTF-8", "-l", "-Tutf8", "-Z", manpages.MAN / name],
        env={**os.environ, "LC_ALL": "C.UTF-8", "MANROFFSEQ": "", "MANWIDTH": "80"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.skipif(shutil.which("mandoc") is None, reason="needs mandoc")
@pytest.mark.parametrize("name", manpages.PAGES)
def test_mandoc_finds_no_fault(name: str):
    done = subprocess.run(
        ["mandoc", "-Tlint", "-Wwarning", manpages.MAN / name],
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.skipif(shutil.which("man") is None, reason="needs man-db")
def test_what_is_shown_has_every_key_and_command():
    shown = {
        name: subprocess.run(
            ["man", "-l", "-Tutf8", "-P", "cat", manpages.MAN / name],
            env={**os.environ, "LC_ALL": "C.UTF-8", "MANWIDTH": "200", "GROFF_NO_SGR": "1"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for name in manpages.PAGES
    }
    plain = {name: re.sub(".\b", "", text) for name, text in shown.items()}

    for key in {*Config.model_fields, *Inbox.model_fields} - {"inbox"}:
        assert re.search(rf"^ +{key} = ", plain["phi4d.toml.5"], re.MULTILINE), key
    for words, command in manpages.every_command():
        assert re.search(rf"^ +phi4d {words}\b", plain["phi4d.8"], re.MULTILINE), words
        for option in manpages.options(command).values():
            assert option.opts[0] in plain["phi4d.8"], words


def test_nothing_in_a_text_is_a_command_of_roff_s():
    assert manpages.wrapped(".SH is no heading here") == r"\&.SH is no heading here"
    assert manpages.wrapped("'tis") == r"\&'tis"
    assert manpages.markdown(r"a\b `--x`") == r"a\eb \fB\-\-x\fR"


@pytest.mark.parametrize(
    ("model", "key", "expected"),
    [
        (Config, "batch_size", '"auto" | whole number, from 1 to 1024'),
        (Config, "settle_seconds", "number, above 0 to 86400"),
        (Config, "seed", "whole number, from 0"),
        (Config, "offload", '"auto" | "never"'),
        (Config, "debug", "true | false"),
        (Config, "state_dir", "path"),
        (Inbox, "include", "[ text, … ]"),
        (Inbox, "kinds", '[ "image" | "audio", … ]'),
        (Inbox, "image_prompt", "text"),
    ],
)
def test_a_type_is_told_in_words(model: type, key: str, expected: str):
    assert manpages.kind(model, key) == expected


def test_a_key_that_the_sample_lacks_is_named():
    sample = (manpages.TOP / "etc" / "phi4d.toml").read_text("utf-8")

    with pytest.raises(SystemExit, match=r"of the configuration: seed$"):
        manpages.keys(sample.replace("#seed = 0\n", ""))
