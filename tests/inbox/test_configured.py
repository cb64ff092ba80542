"""From the configuration to roots."""

from __future__ import annotations

import os
from pathlib import Path

from phi4d import config as configuration
from phi4d.inbox import roots
from phi4d.job import Kind


def load(tmp_path: Path, text: str) -> configuration.Config:
    path = tmp_path / "phi4d.toml"
    path.write_text(text)
    return configuration.load(config=path, environ={})


def test_an_inbox_as_it_is_configured(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'state_dir = "state"\n[[inbox]]\npath = "in"\noutbox = "out"\nkinds = ["audio"]\n'
        'watch = "poll"\ninclude = ["*.wav", "*.jpg"]\nexclude = ["raw/"]\n',
    )
    (root,) = roots(config)
    assert (root.name, root.path) == ("in", os.fsencode(tmp_path / "in"))
    assert (root.mode, root.kinds) == ("poll", {Kind.AUDIO})
    assert root.rules.verdict(b"a.jpg").taken
    assert not root.rules.verdict(b"a.png").taken
    assert not root.rules.verdict(b"raw/a.jpg").taken


def test_phi4ds_own_folders_below_an_inbox_are_passed_over(tmp_path: Path) -> None:
    config = load(
        tmp_path,
        'state_dir = "in/state"\n[[inbox]]\npath = "in"\noutbox = "in/out"\n'
        'done_dir = "in/done"\nfailed_dir = "failed"\noriginals = "move"\n'
        '[[inbox]]\npath = "b"\noutbox = "beside"\ndone_dir = "in/from b"\n',
    )
    first, second = roots(config)
    for folder in ("state", "out", "done", "from b"):
        assert not first.rules.verdict(f"{folder}/a.jpg".encode()).taken, folder
    assert first.rules.verdict(b"failed/a.jpg").taken
    assert 'the outbox of inbox "in"' in first.rules.verdict(b"out/a.jpg").why
    assert second.rules.verdict(b"a.jpg").taken


def test_one_that_is_reached_by_a_link_too(tmp_path: Path) -> None:
    (tmp_path / "disk/in").mkdir(parents=True)
    (tmp_path / "in").symlink_to(tmp_path / "disk/in")
    config = load(tmp_path, f'[[inbox]]\npath = "in"\noutbox = "{tmp_path}/disk/in/out"\n')
    (root,) = roots(config)
    assert not root.rules.verdict(b"out/a.jpg").taken
