"""The events of the log: their ids are their own, and the journal's catalog explains each."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
import typer

from phi4d import cli, events

CATALOG = Path(__file__).parents[1] / "systemd" / "phi4d.catalog"


def entries() -> dict[str, str]:
    """The catalog's texts by their ids."""
    parts = re.split(r"^-- ([0-9a-f]{32})\n", CATALOG.read_text("utf-8"), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def test_every_event_has_a_name_and_an_id_of_its_own() -> None:
    assert len({event.name for event in events.ALL}) == len(events.ALL)
    assert len({event.id for event in events.ALL}) == len(events.ALL)
    assert all(re.fullmatch(r"[0-9a-f]{32}", event.id) for event in events.ALL)


def test_every_event_is_told_of_somewhere() -> None:
    sources = "".join(
        path.read_text("utf-8")
        for path in Path(events.__file__).parent.rglob("*.py")
        if path != Path(events.__file__)
    )
    names = {event: name for name, event in vars(events).items() if isinstance(event, events.Event)}
    told = {event for event in events.ALL if re.search(rf"\bevents\.{names[event]}\b", sources)}
    assert told == set(events.ALL)


def test_the_catalog_explains_every_event_and_no_other() -> None:
    assert list(entries()) == [event.id for event in events.ALL]
    for event in events.ALL:
        assert f"# {event.name}\n-- {event.id}\n" in CATALOG.read_text("utf-8")


@pytest.mark.parametrize("event", events.ALL, ids=lambda event: event.name)
def test_an_explanation_is_whole(event: events.Event) -> None:
    head, _, text = entries()[event.id].partition("\n\n")
    keys = [line.partition(": ")[0] for line in head.splitlines()]
    assert keys == ["Subject", "Defined-By", "Support", "Documentation"]
    assert text.strip()
    # systemd fills in no field whose name has a digit
    assert "@" not in head + text


def test_commands_that_the_catalog_names_are_there() -> None:
    named = re.findall(r"^    phi4d ([a-z]+)|`phi4d ([a-z]+)", CATALOG.read_text("utf-8"), re.M)
    there = set(typer.main.get_command(cli.app).commands)  # type: ignore[attr-defined]
    assert named
    assert {one or other for one, other in named} <= there


@pytest.mark.skipif(not shutil.which("journalctl"), reason="systemd's journalctl is not installed")
def test_systemd_takes_the_catalog(tmp_path: Path) -> None:
    # given a system of its own, which has this catalog
    there = tmp_path / "usr/lib/systemd/catalog"
    there.mkdir(parents=True)
    (tmp_path / "var/lib/systemd/catalog").mkdir(parents=True)
    shutil.copy(CATALOG, there)
    # when its database is made
    made = journalctl(tmp_path, "--update-catalog")
    # then nothing is said against it, and every entry is in it
    assert (made.returncode, made.stderr) == (0, "")
    listed = journalctl(tmp_path, "--list-catalog").stdout.splitlines()
    assert {line.split()[0] for line in listed} == {event.id for event in events.ALL}


def journalctl(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["journalctl", f"--root={root}", *words],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "SYSTEMD_LOG_LEVEL": "warning"},
    )


def test_an_event_gives_the_fields_of_its_line() -> None:
    assert events.FILE_FAILED(inbox="photos", fault="file", job=7, output=None, device="") == {
        "MESSAGE_ID": events.FILE_FAILED.id,
        "PHI4D_EVENT": "file-failed",
        "PHI4D_INBOX": "photos",
        "PHI4D_FAULT": "file",
        "PHI4D_JOB": 7,
    }
