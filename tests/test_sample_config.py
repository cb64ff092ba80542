"""etc/phi4d.toml says what the code says: every key, no other, each with its true default."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from phi4d.config import Config, Inbox, load

SAMPLE = Path(__file__).parents[1] / "etc" / "phi4d.toml"
DEFAULT = re.compile(r"^#(?=[a-z_]+ = )", re.MULTILINE)
EXAMPLE = re.compile(r"^#e\.g\. (?=[a-z_]+ = )", re.MULTILINE)


@pytest.fixture
def text() -> str:
    return SAMPLE.read_text("utf-8")


def with_defaults(text: str) -> str:
    return DEFAULT.sub("", text)


def loaded(tmp_path: Path, text: str) -> Config:
    file = tmp_path / "phi4d.toml"
    file.write_text(text, "utf-8")
    return load(config=file, environ={})


def keys(text: str) -> tuple[set[str], set[str]]:
    """Keys at the top, and of the one inbox."""
    table = tomllib.loads(text)
    (inbox,) = table.pop("inbox")
    return set(table), set(inbox)


def test_it_loads_as_it_is():
    config = load(config=SAMPLE, environ={})

    assert config.state_dir == Path("/var/lib/phi4d")
    assert config.control_path == Path("/run/phi4d/control")
    assert config.cache_dir == Path("/var/cache/phi4d")
    assert [(box.path, box.outbox) for box in config.inbox] == [
        (Path("/srv/phi4d/inbox"), Path("/srv/phi4d/outbox"))
    ]


def test_what_it_says_are_the_defaults(tmp_path: Path, text: str):
    config = loaded(tmp_path, with_defaults(text))

    assert config == load(config=SAMPLE, environ={})
    defaults = load(
        environ={},
        options={
            "state_dir": config.state_dir,
            "runtime_dir": config.runtime_dir,
            "cache_dir": config.cache_dir,
            "inbox": [{"path": "/srv/phi4d/inbox", "outbox": "/srv/phi4d/outbox"}],
        },
        config=_empty(tmp_path),
    )
    assert config == defaults


def test_it_has_every_key_and_no_other(text: str):
    top, inbox = keys(EXAMPLE.sub("", with_defaults(text)))

    assert top == set(Config.model_fields) - {"inbox"}
    assert inbox == set(Inbox.model_fields)


def test_keys_that_have_no_default_are_examples_and_these_are_valid(tmp_path: Path, text: str):
    with_examples = EXAMPLE.sub("", with_defaults(text))
    top, inbox = keys(with_examples)
    top_set, inbox_set = keys(with_defaults(text))

    loaded(tmp_path, with_examples)
    assert top - top_set == {
        name for name, field in Config.model_fields.items() if field.default is None
    } - {"runtime_dir"}
    assert inbox - inbox_set == {
        name for name, field in Inbox.model_fields.items() if field.default is None
    } - {"outbox"}


def test_every_key_is_explained(text: str):
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if line and not line.startswith("# ----")]
        if any(re.match(r"#?(e\.g\. )?[a-z_]+ = ", line) for line in lines):
            assert lines[0].startswith("# "), block


def _empty(folder: Path) -> Path:
    file = folder / "empty.toml"
    file.touch()
    return file
