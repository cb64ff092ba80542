"""The service as it is installed, and what of a configuration it lacks."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from unitkit import UNIT, config_of, machine

from phi4d.unit import Service
from phi4d.unit.dropin import DROP_IN, render, settings

Put = Callable[[str, str], None]


@pytest.fixture
def put(tmp_path: Path) -> Put:
    """Puts the unit that ships below `tmp_path / "root"`, and files beside it."""
    root = tmp_path / "root"
    unit = root / "usr/local/lib/systemd/system/phi4d.service"
    unit.parent.mkdir(parents=True)
    unit.write_text(UNIT.read_text())

    def do(path: str, text: str) -> None:
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    return do


def find(tmp_path: Path) -> Service:
    found = Service.find(tmp_path / "root")
    assert found is not None
    return found


def lacks(tmp_path: Path, keys: str, **facts: object) -> list[str]:
    return find(tmp_path).lacks(config_of(keys, tmp_path), machine(**facts))  # type: ignore[arg-type]


def test_where_there_is_none(tmp_path: Path):
    assert Service.find(tmp_path) is None
    # nor where it is masked
    masked = tmp_path / "etc/systemd/system/phi4d.service"
    masked.parent.mkdir(parents=True)
    masked.symlink_to(os.devnull)
    assert Service.find(tmp_path) is None


def test_the_stronger_folder_s_unit_is_read_and_drop_ins_of_all_by_their_names(
    tmp_path: Path, put: Put
):
    put("etc/systemd/system/phi4d.service", "[Service]\nUser=mine\nReadWritePaths=/a\n")
    put("usr/lib/systemd/system/phi4d.service.d/10.conf", "[Service]\nUser=ten\n")
    put("usr/lib/systemd/system/phi4d.service.d/20.conf", "[Service]\nUser=vendor\n")
    put(
        "etc/systemd/system/phi4d.service.d/20.conf",
        "[Service]\nReadWritePaths=\nReadWritePaths=/b",
    )

    found = find(tmp_path)

    assert found.unit == tmp_path / "root/etc/systemd/system/phi4d.service"
    assert [file.name for file in found.drop_ins] == ["10.conf", "20.conf"]
    assert found.value("User") == "ten"
    assert found.values["ReadWritePaths"] == ("/b",)


TEMPORARY = "/tmp/in"  # noqa: S108  # a name only
MUCH = """
model_path = "/home/ada/model"
state_dir = "/data/state"
runtime_dir = "/run/phi4d-two"
metrics_listen = "127.0.0.1:9464"
log_file = "/var/log/phi4d/x.log"
[[inbox]]
path = "/data/in: 100%"
outbox = "beside"
on_done = "https://example.com"
[[inbox]]
path = "/tmp/in"
outbox = "/home/ada/out"
"""


def test_with_the_drop_in_it_lacks_nothing(tmp_path: Path, put: Put):
    host = machine(rocm=True, gpu_groups=("render",))
    config = config_of(MUCH, tmp_path)
    assert len(find(tmp_path).lacks(config, host)) == 10
    # when
    put(str(DROP_IN.relative_to("/")), render(settings(config, host), source="here"))
    # then
    found = find(tmp_path)
    assert found.lacks(config, host) == []
    assert found.strays(settings(config, host)) == []


def test_what_is_missing_is_told_with_its_key(tmp_path: Path, put: Put):
    why = 'path, written to for outbox = "beside"'
    assert lacks(tmp_path, MUCH, rocm=True) == [
        f'/data/in: 100% is read-only to it (inbox "in: 100%": {why})',
        f'{TEMPORARY} is hidden from it (inbox "in": path)',
        '/home/ada/out is hidden from it (inbox "in": outbox)',
        "/home/ada/model is hidden from it (model_path)",
        "/data/state is read-only to it (state_dir)",
        "/run/phi4d-two is read-only to it (runtime_dir)",
        "/var/log/phi4d is read-only to it (log_file)",
        "it has no network (metrics_listen)",
        'it has no network (inbox "in: 100%": on_done)',
        "it may not use AMD's GPUs (device)",
    ]


@pytest.mark.parametrize(
    "text",
    [
        "ReadWritePaths=/data",
        'ReadWritePaths=/x "-/data/out"',
        "BindPaths=/elsewhere:/data/out:rbind",
        "ProtectSystem=full",
    ],
)
def test_an_operator_s_own_words_do_as_well(tmp_path: Path, put: Put, text: str):
    keys = '[[inbox]]\npath = "/in"\noutbox = "/data/out"'
    assert lacks(tmp_path, keys) == ['/data/out is read-only to it (inbox "in": outbox)']
    put("etc/systemd/system/phi4d.service.d/mine.conf", f"[Service]\n{text}\n")
    assert lacks(tmp_path, keys) == []


@pytest.mark.parametrize(
    ("text", "works"),
    [
        ("ProtectHome=no", False),  # the file system is read-only all the same
        ("ProtectHome=tmpfs\nBindPaths=/home/ada/out", True),
        ("ProtectHome=read-only", False),
        ("ProtectHome=read-only\nReadWritePaths=/home", True),
    ],
)
def test_homes_may_be_opened_in_other_ways(tmp_path: Path, put: Put, text: str, works: bool):
    put("etc/systemd/system/phi4d.service.d/mine.conf", f"[Service]\n{text}\n")

    found = lacks(tmp_path, '[[inbox]]\npath = "/in"\noutbox = "/home/ada/out"')

    assert (found == []) is works


@pytest.mark.parametrize(
    ("allowed", "address", "works"),
    [
        ("localhost", "127.0.0.1:9464", True),
        ("localhost", "0.0.0.0:9464", False),
        ("any", "0.0.0.0:9464", True),
        ("10.0.0.0/8", "0.0.0.0:9464", True),
        ("", "127.0.0.1:9464", False),
    ],
)
def test_a_network_is_one_if_the_addresses_may_be_reached(
    tmp_path: Path, put: Put, allowed: str, address: str, works: bool
):
    put(
        "etc/systemd/system/phi4d.service.d/mine.conf",
        "[Service]\nPrivateNetwork=no\nRestrictAddressFamilies=AF_INET\n"
        f"IPAddressAllow={allowed}\n",
    )
    found = lacks(tmp_path, f'metrics_listen = "{address}"')

    assert (found == []) is works


@pytest.mark.parametrize(("limit", "works"), [("5G", False), ("5T", True), ("infinity", True)])
def test_a_limit_of_memory_that_would_end_it(tmp_path: Path, put: Put, limit: str, works: bool):
    put("etc/systemd/system/phi4d.service.d/mine.conf", f"[Service]\nMemoryMax={limit}\n")

    found = lacks(tmp_path, 'model_path = "microsoft/Phi-4-multimodal-instruct"', memory_gb=99)

    assert (found == []) is works


def test_what_is_no_longer_wanted_of_its_own_drop_in_is_told(tmp_path: Path, put: Put):
    first = config_of('[[inbox]]\npath = "/in"\noutbox = "/data/old"', tmp_path)
    text = render(settings(first, machine()), source="here")
    put(str(DROP_IN.relative_to("/")), text + "\nMemoryMax=9G\n")
    put("etc/systemd/system/phi4d.service.d/mine.conf", "[Service]\nReadWritePaths=/mine\n")
    # when
    second = config_of('[[inbox]]\npath = "/in"\noutbox = "/srv/phi4d/out"', tmp_path)
    # then
    assert find(tmp_path).strays(settings(second, machine())) == ["ReadWritePaths=-/data/old"]
    assert find(tmp_path).strays(settings(first, machine())) == []
