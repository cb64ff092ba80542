"""What the drop-in says for which configuration."""

from __future__ import annotations

from pathlib import Path

import pytest
from unitkit import UNIT, config_of, machine

from phi4d.unit import dropin
from phi4d.unit.dropin import for_user, render, settings
from phi4d.unit.host import Host
from phi4d.unit.syntax import assignments, words


def lines(text: str, folder: Path, host: Host | None = None) -> list[str]:
    """The drop-in's settings, without its comments."""
    found = settings(config_of(text, folder), host or machine())
    return [str(setting) for setting in found if setting.name]


def test_the_unit_that_ships_is_what_the_drop_in_adds_to():
    values = {name: value for _, name, value in assignments(UNIT.read_text())}

    assert (values["ProtectHome"], values["PrivateTmp"]) == ("yes", "yes")
    assert values["ProtectSystem"] == "strict"
    assert values["PrivateNetwork"] == "yes"
    made = {
        Path(base, values[f"{name}Directory"])
        for name, base in (("State", "/var/lib"), ("Cache", "/var/cache"), ("Runtime", "/run"))
    }
    written = {Path(word.removeprefix("-")) for word in words(values["ReadWritePaths"])}
    assert made | written == set(dropin.WRITABLE)


def test_the_configuration_that_ships_wants_nothing_more(tmp_path: Path):
    sample = (UNIT.parents[1] / "etc/phi4d.toml").read_text()
    config = config_of(sample + "\n# model_path", tmp_path)

    text = render(settings(config, machine()), source="here")

    assert "The unit allows all that this configuration wants." in text
    assert list(assignments(text)) == []


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ('outbox = "beside"', ["/data/in"]),
        ('outbox = "/data/out"', ["/data/out"]),
        ('outbox = "/srv/phi4d/out"', []),
        ('outbox = "/srv/phi4d/out"\noriginals = "delete"', ["/data/in"]),
        (
            'outbox = "/data/out"\noriginals = "move"\ndone_dir = "/data/done"',
            ["/data/in", "/data/out", "/data/done"],
        ),
        ('outbox = "/data/out"\nfailed_dir = "/bad"', ["/data/in", "/data/out", "/bad"]),
        # a folder within another that may be written to needs no line of its own
        ('outbox = "/data/out"\nfailed_dir = "/data/out/bad"', ["/data/in", "/data/out"]),
        # not used, and so not opened
        ('outbox = "/data/out"\ndone_dir = "/data/done"', ["/data/out"]),
    ],
)
def test_it_may_write_where_it_writes(tmp_path: Path, keys: str, expected: list[str]):
    found = lines(f'[[inbox]]\npath = "/data/in"\n{keys}', tmp_path)

    assert found == [f"ReadWritePaths=-{folder}" for folder in expected]


def test_each_line_tells_the_key_that_it_comes_from(tmp_path: Path):
    config = config_of(
        'results_dir = "/data/results"\n'
        '[[inbox]]\npath = "/data/in"\noriginals = "delete"\nfailed_dir = "/data/bad"',
        tmp_path,
    )
    text = render(settings(config, machine()), source="/etc/phi4d/phi4d.toml")

    missing = "# it is not there: make it for the user phi4d before the service starts"
    assert text.partition("[Service]\n")[2].splitlines()[:9] == [
        '# inbox "in": path, written to for originals = "delete" and failed_dir',
        missing,
        "ReadWritePaths=-/data/in",
        '# results_dir, for inbox "in"',
        missing,
        "ReadWritePaths=-/data/results",
        '# inbox "in": failed_dir',
        missing,
        "ReadWritePaths=-/data/bad",
    ]
    assert "lacks for /etc/phi4d/phi4d.toml" in text.splitlines()[0]


def test_a_link_is_opened_where_it_leads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dropin, "TEMPORARY", ())
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")

    found = lines(f'[[inbox]]\npath = "/data/in"\noutbox = "{tmp_path}/link"', tmp_path)

    assert found == [f"ReadWritePaths=-{tmp_path}/real"]


def test_homes_are_shown_for_what_is_in_them_and_written_to_where_it_must_be(tmp_path: Path):
    text = (
        'model_path = "/root/models/phi4"\n'
        '[[inbox]]\npath = "/home/ada/in"\noutbox = "/home/ada/out"'
    )
    config = config_of(text, tmp_path)

    found = settings(config, machine())

    assert [str(each) for each in found if each.name] == [
        "ProtectHome=read-only",
        "ReadWritePaths=-/home/ada/out",
    ]
    assert found[0].why == 'in a home folder: inbox "in": path; inbox "in": outbox; model_path'


def test_the_service_s_own_tmp_is_seen_through(tmp_path: Path):
    found = lines('[[inbox]]\npath = "/tmp/in"\noutbox = "/var/tmp/out"', tmp_path)

    assert found == ["BindReadOnlyPaths=-/tmp/in", "BindPaths=-/var/tmp/out"]


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ('state_dir = "/data/state"', ["ReadWritePaths=-/data/state"]),
        ('state_dir = "/var/lib/phi4d/deeper"', []),
        # systemd makes these, for the user of the service
        ('state_dir = "/var/lib/phi4d-two"', ["StateDirectory=phi4d-two"]),
        ('runtime_dir = "/run/phi4d-two/x"', ["RuntimeDirectory=phi4d-two/x"]),
        ('metrics_listen = "unix:/run/phi4d/metrics.sock"', []),
        ('metrics_listen = "unix:/run/phi4d-m/sock"', ["RuntimeDirectory=phi4d-m"]),
        ('log_file = "/var/log/phi4d/phi4d.log"', ["LogsDirectory=phi4d"]),
        # of what is another's systemd must not make phi4d the owner
        ('log_file = "/var/log/nginx/phi4d.log"', ["ReadWritePaths=-/var/log/nginx"]),
        ('runtime_dir = "/run/web"', ["ReadWritePaths=-/run/web"]),
        ('state_dir = "/var/lib/phi4d two"', ['ReadWritePaths="-/var/lib/phi4d two"']),
    ],
)
def test_the_daemon_s_own_folders(tmp_path: Path, key: str, expected: list[str]):
    assert lines(key, tmp_path) == expected


def test_without_the_key_the_store_is_where_the_service_may_write(tmp_path: Path):
    # given defaults that are in the home of whoever asks
    assert lines("", tmp_path) == []


def test_inboxes_on_mounts_come_after_these_and_the_store_not_without_its_own(tmp_path: Path):
    host = machine(mounts=frozenset({Path("/mnt/na s"), Path("/data")}))
    found = lines(
        'state_dir = "/data/state"\n[[inbox]]\npath = "/mnt/na s/a"\noutbox = "/mnt/na s/b"',
        tmp_path,
        host,
    )
    assert found == [
        "Wants=mnt-na\\x20s.mount",
        "After=mnt-na\\x20s.mount",
        "RequiresMountsFor=/data/state",
        'ReadWritePaths="-/mnt/na s/b"',
        "ReadWritePaths=-/data/state",
    ]


@pytest.mark.parametrize(
    ("address", "families", "allowed"),
    [
        ("127.0.0.1:9464", "AF_UNIX AF_INET", "localhost"),
        ("[::1]:9464", "AF_UNIX AF_INET6", "localhost"),
        ("0.0.0.0:9464", "AF_UNIX AF_INET", "any"),
    ],
)
def test_metrics_at_an_address_want_a_network(
    tmp_path: Path, address: str, families: str, allowed: str
):
    key = f'metrics_listen = "{address}"'

    assert lines(key, tmp_path) == [
        "PrivateNetwork=no",
        f"RestrictAddressFamilies={families}",
        f"IPAddressAllow={allowed}",
    ]
    of_a_user = for_user(config_of(key, tmp_path), machine())
    assert [str(each) for each in of_a_user if each.name] == [f"RestrictAddressFamilies={families}"]


@pytest.mark.parametrize(
    ("url", "allowed"),
    [
        ("https://example.com/done", "any"),
        ("http://localhost:8080/done", "localhost"),
        ("http://[::1]/done", "localhost"),
        ("http://10.0.0.1/done", "any"),
    ],
)
def test_webhooks_want_a_network(tmp_path: Path, url: str, allowed: str):
    found = lines(
        f'[[inbox]]\npath = "/data/in"\noutbox = "/srv/phi4d/out"\non_failed = "{url}"\n'
        'webhook_secret_file = "/root/secret"\n',
        tmp_path,
    )
    assert found == [
        "ProtectHome=read-only",
        "PrivateNetwork=no",
        "RestrictAddressFamilies=AF_UNIX AF_INET AF_INET6",
        f"IPAddressAllow={allowed}",
    ]


def test_commands_want_none_and_are_seen_wherever_they_are(tmp_path: Path):
    inbox = '[[inbox]]\npath = "/data/in"\noutbox = "/srv/phi4d/out"\n'

    assert lines(inbox + 'on_done = ["/usr/bin/true"]', tmp_path) == []
    assert lines(inbox + 'on_done = ["/home/ada/told"]', tmp_path) == ["ProtectHome=read-only"]


def test_amd_s_gpus_are_opened_where_they_are_and_wanted(tmp_path: Path):
    host = machine(rocm=True, gpu_groups=("render", "video"))

    assert lines("", tmp_path, host) == [
        "DeviceAllow=char-kfd rw",
        "DeviceAllow=char-drm rw",
        "SupplementaryGroups=render video",
    ]
    assert lines("force_cpu = true", tmp_path, host) == []
    assert lines('device = "cpu"', tmp_path, host) == []


def test_a_name_that_no_unit_can_hold_is_told_and_breaks_nothing(tmp_path: Path):
    text = render(
        settings(
            config_of('[[inbox]]\npath = "/in"\noutbox = "/two\\nExecStart=/bin/sh"', tmp_path),
            machine(),
        ),
        source="two\nlines",
    )
    assert list(assignments(text)) == []
    assert "cannot be named in a unit" in text
