"""Where metrics may be served, as configured."""

from __future__ import annotations

from pathlib import Path

import pytest

from phi4d.config import Listen, load
from phi4d.config.listen import listen
from phi4d.errors import ConfigError


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("127.0.0.1:9464", Listen("127.0.0.1", 9464)),
        ("[::1]:9464", Listen("::1", 9464)),
        ("0.0.0.0:1", Listen("0.0.0.0", 1)),  # noqa: S104 -- it is only spelled
        ("[::]:65535", Listen("::", 65535)),
        ("unix:/run/phi4d/metrics.sock", Listen(path=Path("/run/phi4d/metrics.sock"))),
    ],
)
def test_what_is_a_place(text: str, place: Listen) -> None:
    assert listen(text) == place
    assert str(place) == text


def test_an_address_is_told_in_its_shortest_form() -> None:
    assert str(listen("[0:0::0001]:9464")) == "[::1]:9464"


@pytest.mark.parametrize(
    ("text", "local"),
    [
        ("127.0.0.1:9464", True),
        ("127.1.2.3:9464", True),
        ("[::1]:9464", True),
        ("unix:/m.sock", True),
        ("0.0.0.0:9464", False),
        ("[::]:9464", False),
        ("192.168.1.2:9464", False),
    ],
)
def test_who_can_reach_it(text: str, local: bool) -> None:
    assert listen(text).is_local is local


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "an address with a port"),
        ("9464", "an address with a port"),
        (":9464", "an address with a port"),
        ("127.0.0.1", "an address with a port"),
        ("127.0.0.1:", "an address with a port"),
        ("127.0.0.1:http", "an address with a port"),
        ("127.0.0.1:0", "a port from 1 to 65535"),
        ("127.0.0.1:70000", "a port from 1 to 65535"),
        ("127.0.0.256:9464", "an address with a port"),
        ("::1:9464", "an address with a port"),
        ("[127.0.0.1]:9464", "an address with a port"),
        ("[::1]", "an address with a port"),
        ("localhost:9464", "a name may mean another machine"),
        ("http://127.0.0.1:9464", "an address with a port"),
        ("/run/m.sock", '"unix:" is the beginning'),
        ("unix:", "the whole path of the socket"),
        ("unix:m.sock", "the whole path of the socket"),
        ("unix:/run/", "the whole path of the socket"),
        ("unix:/run/\0", "the whole path of the socket"),
        ("unix:/run/\ud800", "which this cannot be"),
        ("unix:/" + "x" * 107, "less than 108 bytes, found 108"),
    ],
)
def test_what_is_none(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=r"^expected ") as caught:
        listen(text)
    assert words in str(caught.value)


def test_the_configuration_says_what_was_found_and_expected(tmp_path: Path) -> None:
    file = tmp_path / "phi4d.toml"
    file.write_text('metrics_listen = "localhost:9464"\n')
    with pytest.raises(ConfigError) as caught:
        load(config=file, environ={})
    (fault,) = caught.value.faults
    assert 'metrics_listen: found "localhost:9464"; expected an address with a port' in fault


def test_by_default_there_is_none() -> None:
    assert load(config=Path("/dev/null"), environ={}).metrics_at is None
