"""`phi4d unit` as an operator calls it."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from phi4d import cli
from phi4d.unit import dropin
from phi4d.unit.syntax import assignments


def call(*words: object) -> Result:
    return CliRunner().invoke(cli.app, ["unit", *map(str, words)])


@pytest.fixture
def config(tmp_path: Path) -> Path:
    file = tmp_path / "phi4d.toml"
    file.write_text('model_path = "demo"\n[[inbox]]\npath = "/data/in"\noutbox = "/data/out"\n')
    return file


def test_it_prints_what_is_to_be_put_in_place_and_how(config: Path):
    done = call("--config", config)

    assert done.exit_code == 0
    assert f"lacks for {config}." in done.stdout.splitlines()[0]
    assert "phi4d unit --write && systemctl daemon-reload && systemctl restart phi4d" in done.stdout
    assert ("Service", "ReadWritePaths", "-/data/out") in list(assignments(done.stdout))


def test_the_shell_s_variables_are_not_the_service_s(config: Path, environment: pytest.MonkeyPatch):
    environment.setenv("PHI4_METRICS_LISTEN", "127.0.0.1:9464")

    assert "PrivateNetwork" not in call("--config", config).stdout
    assert "RestrictAddressFamilies" in call("--config", config, "--user").stdout


def test_of_a_user_s_own_service_no_folders_are_told(config: Path):
    done = call("--config", config, "--user")

    assert "ReadWritePaths" not in done.stdout
    assert "systemctl --user daemon-reload" in done.stdout


def test_it_is_put_in_place_and_again(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    place = tmp_path / "system/phi4d.service.d/phi4d.conf"
    monkeypatch.setattr(dropin, "DROP_IN", place)

    for _ in range(2):
        done = call("--config", config, "--write")

        assert done.exit_code == 0
        assert place.read_text() == done.stdout
        assert f"{place} is written; it is in force after: systemctl daemon-reload" in done.stderr
    assert [file.name for file in place.parent.iterdir()] == ["phi4d.conf"]
    assert place.stat().st_mode & 0o777 == 0o644


def test_a_user_s_is_in_the_user_s_own_folder(
    config: Path, tmp_path: Path, environment: pytest.MonkeyPatch
):
    environment.setenv("XDG_CONFIG_HOME", str(tmp_path / ".config"))

    done = call("--config", config, "--user", "--write")

    place = tmp_path / ".config/systemd/user/phi4d.service.d/phi4d.conf"
    assert place.read_text() == done.stdout
    assert "systemctl --user restart phi4d" in done.stderr


def test_where_it_may_not_be_written_it_says_what_to_do(
    config: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").touch()
    monkeypatch.setattr(dropin, "DROP_IN", tmp_path / "file/phi4d.conf")

    done = call("--config", config, "--write")

    assert done.exit_code == 1
    assert f"{tmp_path}/file/phi4d.conf: cannot be written: " in done.stderr


def test_without_the_machine_s_configuration_it_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("phi4d.config.SYSTEM_FILE", tmp_path / "none.toml")

    done = call()

    assert done.exit_code == 78
    assert f"{tmp_path}/none.toml: cannot be read" in done.stderr
