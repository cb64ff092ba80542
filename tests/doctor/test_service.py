"""What `phi4d doctor` says of an installed service."""

from __future__ import annotations

from pathlib import Path

import pytest
from kit import NOBODY

from phi4d.config import Config, load
from phi4d.doctor.check import Check, Status
from phi4d.doctor.service import service
from phi4d.unit import DROP_IN, render, settings
from phi4d.unit.host import look

UNIT = Path(__file__).parents[2] / "systemd" / "phi4d.service"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A system with the service."""
    unit = tmp_path / "usr/lib/systemd/system/phi4d.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT.read_text())
    return tmp_path


def config_with(root: Path, outbox: str) -> Config:
    """The machine's configuration, with an inbox that has this outbox."""
    file = root / "etc/phi4d/phi4d.toml"
    file.parent.mkdir(parents=True, exist_ok=True)
    inbox = f'inbox = [{{ path = "/srv/phi4d/inbox", outbox = "{outbox}" }}]'
    file.write_text(f'model_path = "demo"\n{inbox}\n')
    return load(config=file, environ={})


def checks(root: Path, outbox: str, *, stale: bool = False) -> list[Check]:
    config = config_with(root, outbox)
    return list(service(config, root=root, etc=root / "etc/phi4d", stale=lambda: stale))


@pytest.fixture(autouse=True)
def _as_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)


def test_where_it_allows_all_that_is_wanted(root: Path):
    (check,) = checks(root, "/srv/phi4d/outbox")

    assert (check.status, check.check) == (Status.OK, "service")


def test_a_drop_in_that_is_missing(root: Path):
    (check,) = checks(root, "/data/out")

    assert check.status is Status.WARN
    assert '/data/out is read-only to it (inbox "inbox": outbox)' in check.found
    assert check.advice == (
        "as root: phi4d unit --write && systemctl daemon-reload && systemctl restart phi4d"
    )


def test_a_drop_in_that_is_there_and_one_that_is_out_of_date(root: Path):
    file = root / DROP_IN.relative_to("/")
    file.parent.mkdir(parents=True)
    file.write_text(render(settings(config_with(root, "/data/out"), look()), source="here"))

    assert [check.status for check in checks(root, "/data/out")] == [Status.OK]
    (check,) = checks(root, "/srv/phi4d/outbox")
    assert check.status is Status.WARN
    assert "is out of date: the configuration no longer wants ReadWritePaths=-/data/out" in (
        check.found
    )


def test_one_that_systemd_has_not_read(root: Path):
    (check,) = checks(root, "/srv/phi4d/outbox", stale=True)

    assert check.status is Status.WARN
    assert check.advice == "as root: systemctl daemon-reload && systemctl restart phi4d"


def test_nothing_is_said_without_a_service_or_to_others(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    assert checks(tmp_path / "none", "/data/out") == []
    # nor of a configuration of which nothing is the machine's
    config = config_with(root, "/data/out")
    assert list(service(config, root=root, etc=root / "etc/other", stale=lambda: False)) == []
    monkeypatch.setattr("os.geteuid", lambda: NOBODY)
    assert checks(root, "/data/out") == []
