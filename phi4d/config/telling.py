"""The configuration in words: all that is in force, and all about one key. Reads no folder."""

from __future__ import annotations

import functools
import re
import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from phi4d.config import words
from phi4d.config.keys import Config, Inbox
from phi4d.config.loading import ENV_PREFIX, Reading
from phi4d.config.origins import Origin

SAMPLE = Path(__file__).with_name("phi4d.toml")
"""the sample that ships, with every key and why one would change it"""
_COLUMN = 44  # where the comments begin, unless a value is longer
_SECRET = re.compile(r"(^|_)(secret|token|password)$")
HIDDEN = "(hidden)"


@dataclass(frozen=True, slots=True)
class Setting:
    """A value that is in force, and what set it."""

    key: str
    value: Any
    set_by: str

    @property
    def shown(self) -> str:
        """The value as TOML; not that of a secret."""
        if _SECRET.search(self.key) and self.value is not None:
            return words.as_toml(HIDDEN)
        return words.as_toml(self.value)


def sample() -> str:
    """The sample configuration, every key with its default and its reason."""
    return SAMPLE.read_text("utf-8")


def settings(config: Config) -> list[Setting]:
    """Every value but the inboxes."""
    return [
        Setting(name, getattr(config, name), str(config.origin(name)))
        for name in Config.model_fields
        if name != "inbox"
    ]


def inbox_settings(config: Config) -> list[list[Setting]]:
    """Every value of each inbox, as it holds: what it leaves open comes from the general keys."""
    general = {"outbox": "results_dir", "image_prompt": "image_prompt"}
    general["speech_prompt"] = "speech_prompt"
    told = []
    for n, (box, whole) in enumerate(zip(config.inbox, config.inboxes(), strict=True)):
        values = []
        for name in Inbox.model_fields:
            value = getattr(whole, name)
            set_by = str(config.origin("inbox", n, name))
            if value is not None and getattr(box, name) is None:
                above = general[name]
                set_by = f"{above} ({config.origin(above)})"
            values.append(Setting(name, value, set_by))
        told.append(values)
    return told


def as_toml(reading: Reading, config: Config) -> str:
    """All that is in force, as TOML; a comment beside each value tells what set it."""
    read = [source.name for source in reading.sources if source.values]
    lines = [f"# in force, from weakest to strongest: {', '.join(['defaults', *read])}", ""]
    lines += map(_line, settings(config))
    for values in inbox_settings(config):
        lines += ["", "[[inbox]]", *map(_line, values)]
    return "\n".join(lines)


def _line(setting: Setting) -> str:
    if setting.value is None:
        return f"# {setting.key} is not set"
    return f"{f'{setting.key} = {setting.shown}':<{_COLUMN}} # {setting.set_by}"


def as_json(config: Config) -> dict[str, Any]:
    """The same for programs: each key with ``value`` and ``set_by``; ``inbox`` is a list."""
    return {
        **_pairs(settings(config)),
        "inbox": [_pairs(values) for values in inbox_settings(config)],
    }


def _pairs(values: list[Setting]) -> dict[str, Any]:
    return {
        one.key: {
            "value": HIDDEN if HIDDEN in one.shown else _plain(one.value),
            "set_by": one.set_by,
        }
        for one in values
    }


def _plain(value: Any) -> Any:
    """A value as JSON has it."""
    if isinstance(value, BaseModel):
        return {key: _plain(item) for key, item in value}
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return words.printable(str(value)) if isinstance(value, Path) else value


# All about one key


@dataclass(frozen=True, slots=True)
class Key:
    """A key, and the table that it belongs to."""

    table: type[BaseModel]
    name: str

    def __str__(self) -> str:
        return f"inbox.{self.name}" if self.table is Inbox else self.name


def find(asked: str) -> Key | None:
    """The key that somebody asks for: ``batch_size``, ``inbox.originals``, ``PHI4_BATCH_SIZE``."""
    plain = asked.strip()
    if plain.upper().startswith(ENV_PREFIX):
        plain = plain[len(ENV_PREFIX) :]
    plain = re.sub(r"\[\d*\]", "", plain).lower().replace("-", "_")
    table, _, name = plain.rpartition(".")
    if table == "inbox" and name in Inbox.model_fields:
        return Key(Inbox, name)
    if not table and name in Config.model_fields:
        return Key(Config, name)
    if not table and name in Inbox.model_fields:
        return Key(Inbox, name)
    return None


def unknown(asked: str) -> str:
    """What is said about a key that there is not."""
    every = [str(Key(Config, name)) for name in Config.model_fields]
    every += [str(Key(Inbox, name)) for name in Inbox.model_fields]
    close = words.nearest(asked, every)
    if not close and "." in asked:
        name = words.nearest(asked.rpartition(".")[2], Inbox.model_fields)
        close = name and f"inbox.{name}"
    if not close:
        close = words.nearest(asked, Inbox.model_fields)
    hint = f"did you mean {close}?" if close else "`phi4d config explain` lists them"
    return f"{asked}: unknown key; {hint}"


def listing() -> str:
    """Every key with its meaning."""
    keys = [Key(Config, name) for name in Config.model_fields]
    keys += [Key(Inbox, name) for name in Inbox.model_fields]
    width = max(len(str(key)) for key in keys)
    return "\n".join(f"{key!s:<{width}}  {words.meanings(key.table)[key.name]}" for key in keys)


def explain(key: Key, reading: Reading, width: int = 100, *, changed: str = "") -> str:
    """All about a key: what it takes, its default, where it is set now, what it means, and why.

    Args:
        key: it.
        reading: of the configuration.
        width: columns.
        changed: how a running daemon takes up another value, if that is to be told.
    """
    about = key.table.model_fields[key.name]
    facts: list[tuple[str, str]] = [
        ("takes", words.wanted(key.name, about)),
        ("default", words.default(about)),
        *(("now" if n == 0 else "", line) for n, line in enumerate(_now(key, reading))),
        ("meaning", words.meanings(key.table)[key.name]),
    ]
    why = reasons().get((key.table is Inbox, key.name))
    if why:
        facts.append(("why", why))
    facts.append(("set it", _ways(key)))
    if changed:
        facts.append(("changed", changed))
    lines = [str(key)]
    for label, text in facts:
        lines += textwrap.wrap(
            text,
            width,
            initial_indent=f"  {label:<9}",
            subsequent_indent=" " * 11,
            break_long_words=False,
            break_on_hyphens=False,
        )
    if key.table is Config and key.name in Inbox.model_fields:
        lines.append(f"  see also inbox.{key.name}, for one inbox alone")
    return "\n".join(lines)


def _now(key: Key, reading: Reading) -> Iterator[str]:
    """The value in force, or why there is none."""
    config = reading.config
    if config is None:
        own = [fault for fault in reading.faults if _speaks_of(key, fault.key)]
        yield from map(str, own)
        if not own:
            yield "not known: the configuration is wrong elsewhere; see `phi4d config check`"
    elif key.name == "inbox" and key.table is Config:
        for n, box in enumerate(config.inbox):
            yield f'"{box.name}", {box.path}, {_set_by(config.origin("inbox", n))}'
        if not config.inbox:
            yield "none"
    elif key.table is Config:
        (setting,) = (one for one in settings(config) if one.key == key.name)
        yield _held(setting, config.origin(key.name))
    else:
        for n, values in enumerate(inbox_settings(config)):
            (setting,) = (one for one in values if one.key == key.name)
            origin = config.origin("inbox", n, key.name)
            yield f'inbox "{config.inbox[n].name}": {_held(setting, origin)}'
        if not config.inbox:
            yield "there is no inbox"


def _held(setting: Setting, origin: Origin) -> str:
    if setting.value is None:
        return "not set"
    if origin.kind == "default" and setting.set_by != "default":
        return f"{setting.shown}, by {setting.set_by}"
    return f"{setting.shown}, {_set_by(origin)}"


def _set_by(origin: Origin) -> str:
    if origin.kind == "default":
        return "the default"
    return f"set {'in' if origin.kind == 'file' else 'by'} " + (
        "the command line" if origin.kind == "command line" else str(origin)
    )


def _speaks_of(key: Key, path: tuple[str | int, ...]) -> bool:
    if key.table is Inbox:
        return len(path) > 2 and path[0] == "inbox" and path[2] == key.name
    return path[:1] == (key.name,)


def _ways(key: Key) -> str:
    if key.table is Inbox:
        return "in a file, below its [[inbox]]; for all inboxes at once in PHI4_INBOX, as JSON"
    variable = f"{ENV_PREFIX}{key.name.upper()}"
    if key.name == "inbox":
        return f"in a file, one [[inbox]] for each; {variable} as JSON; or --inbox"
    json = ", as JSON" if words.takes_json(Config.model_fields[key.name]) else ""
    return f"in a file, above the first [[inbox]]; {variable}=…; --set {key.name}=…{json}"


@functools.cache
def reasons() -> Mapping[tuple[bool, str], str]:
    """The comment above each key of the sample, by whether it is an inbox's key, and its name."""
    found = {}
    general, _, inbox = sample().partition("\n[[inbox]]\n")
    for is_inbox, text in ((False, general), (True, inbox)):
        for block in text.split("\n\n"):
            comment: list[str] = []
            for line in block.splitlines():
                key = re.match(r"#?(?:e\.g\. )?([a-z_]+) = ", line)
                if key:
                    found[is_inbox, key[1]] = " ".join(comment)
                elif line.startswith("# "):
                    comment.append(line[2:].strip())
    return found
