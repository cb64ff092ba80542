"""Put the configuration together from its sources, and tell every fault of theirs at once.

Each source is checked by itself, so that what a stronger one overrides is told as well; then what
is right of them is checked together.
"""

from __future__ import annotations

import functools
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import platformdirs
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from phi4d.config import files, words
from phi4d.config.files import Source
from phi4d.config.keys import CLASHES, Clash, Config, Inbox
from phi4d.config.origins import Fault, Origin, Origins
from phi4d.config.places import KeyPath
from phi4d.errors import ConfigError

ENV_PREFIX = "PHI4_"
SYSTEM_FILE = Path("/etc/phi4d/phi4d.toml")


def user_file() -> Path:
    """The user's own configuration file; it is read after the system's."""
    return platformdirs.user_config_path("phi4d") / "phi4d.toml"


@dataclass(frozen=True, slots=True)
class Reading:
    """What all sources together are."""

    sources: tuple[Source, ...]
    """what was read, from weakest to strongest"""
    config: Config | None
    """None if there are faults"""
    faults: tuple[Fault, ...]
    control_path: Path
    """the daemon's control socket, as far as what is right of the sources tells"""


def load(
    *,
    config: Path | None = None,
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Put the configuration together and check it.

    Args:
        config: a TOML file that takes the place of the system's and the user's; the folder
            ``conf.d`` beside it is read as well.
        config_file: the old script's JSON file; its keys win over the TOML ones.
        environ: the environment; ``PHI4_`` and a key in capitals. Lists and tables are JSON.
        options: keys given on the command line; text values are converted. None is "not given".

    Raises:
        ConfigError: with every fault of all sources.
    """
    reading = read(config=config, config_file=config_file, environ=environ, options=options)
    if reading.config is None:
        raise ConfigError(*map(str, reading.faults))
    return reading.config


def read(
    *,
    config: Path | None = None,
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    options: Mapping[str, Any] | None = None,
) -> Reading:
    """As `load`, with what was read and what is wrong, and without an exception."""
    groups = (
        [files.group(config, named=True)]
        if config
        else [files.group(SYSTEM_FILE), files.group(user_file(), others=True)]
    )
    if config_file:
        groups.append([files.legacy(config_file)])
    groups.append([_from_environment(environ)])
    groups.append([_from_options(options or {})])
    together = _Together()
    for sources in groups:
        together.add(sources)
    settled = together.settle()
    read_ = tuple(source for sources in groups for source in sources)
    order = {id(source): n for n, source in enumerate(read_)}
    faults = [
        (order[id(source)], fault.origin.line, fault.origin.name, fault)
        for source in read_
        for fault in source.faults
    ]
    faults.sort(key=lambda one: one[:3])
    told = dict.fromkeys([fault for *_, fault in faults] + together.faults)
    return Reading(read_, None if told else settled, tuple(told), together.control_path())


@dataclass(slots=True)
class _Together:
    """What the sources so far come to; a later one wins."""

    values: dict[str, Any] = field(default_factory=dict)
    origins: dict[KeyPath, Origin] = field(default_factory=dict)
    boxes: list[_Box] = field(default_factory=list)
    wrong: set[str] = field(default_factory=set)
    """keys that were given, but not so that they could be used"""
    whole: bool = True
    """whether every source could be read to its end"""
    faults: list[Fault] = field(default_factory=list)
    """those of no single source"""

    def add(self, sources: Iterable[Source]) -> None:
        """Take in the sources of one rank. Their inboxes add up, and replace those of weaker ones.

        Of the same rank, an inbox that names itself as an earlier one is named, or that has the
        name and the folder of an earlier one, takes its place.
        """
        boxes: list[_Box] = []
        given = False
        for source in sources:
            self.whole = self.whole and source.whole
            for key, value in source.values.items():
                if key not in Config.model_fields:
                    self.wrong.add(words.nearest(key, Config.model_fields))
                    source.wrong((key,), _no_key(key, value, Config))
                elif key == "inbox":
                    given = True
                    for box in self._inboxes(source, value):
                        box.put_into(boxes)
                else:
                    self._take(source, key, value)
        if given:
            self.boxes = boxes

    def _take(self, source: Source, key: str, value: Any) -> None:
        try:
            adapter = _adapter(Config, key)
            self.values[key] = adapter.validate_python(value, context=_context(source))
            self.origins[key,] = source.origin((key,))
        except ValidationError as error:
            self.wrong.add(key)
            _tell(source, (key,), value, error.errors(), Config)

    def _inboxes(self, source: Source, tables: Any) -> Iterator[_Box]:
        if not isinstance(tables, list | tuple):
            source.wrong(("inbox",), _no_tables(source, tables))
            return
        for n, table in enumerate(tables):
            path: KeyPath = ("inbox", n)
            if not isinstance(table, dict):
                said = f"found {words.shown(table)}; expected a table with path and other keys"
                source.wrong(path, said)
                continue
            right, wrong = _right_keys(source, path, table)
            self.wrong |= wrong
            if "path" not in table and "path" not in wrong and source.whole:
                source.wrong((*path, "path"), "missing; every inbox needs one")
            if "path" not in right:
                continue
            try:
                box = Inbox.model_validate(right, context=_context(source))
            except ValidationError as error:
                _tell(source, path, right, error.errors(), Inbox)
                continue
            yield _Box(box, source, path, named="name" in right)

    def settle(self) -> Config | None:
        """All of it as one configuration, if its values go together."""
        origins = dict(self.origins)
        for n, box in enumerate(self.boxes):
            origins["inbox", n] = box.source.origin(box.path)
            for key in box.inbox.model_fields_set:
                if key != "name" or box.named:
                    origins["inbox", n, key] = box.source.origin((*box.path, key))
        if self.boxes:
            origins["inbox",] = origins["inbox", 0]
        values = {**self.values, "inbox": tuple(box.inbox for box in self.boxes)}
        try:
            config = Config.model_validate(values)
        except ValidationError as error:
            for fault in error.errors():
                self._tell_together(fault)
            return None
        config._origins = Origins(origins)
        return config

    def control_path(self) -> Path:
        """Where the daemon's control socket is, by what is right."""
        of_it = {"state_dir", "runtime_dir"} & self.values.keys()
        return Config.model_validate({key: self.values[key] for key in of_it}).control_path

    def _tell_together(self, fault: ErrorDetails) -> None:
        """Note what is wrong with values that are right alone."""
        if fault["type"] != CLASHES:
            said = str(fault["msg"]).removeprefix("Value error, ")
            self.faults += [Fault(Origin(), (), line) for line in said.split("\n")]
            return
        for clash in fault["ctx"]["clashes"]:
            if clash.lacks and (not self.whole or self.wrong & set(clash.lacks)):
                continue
            self._tell_clash(clash)

    def _tell_clash(self, clash: Clash) -> None:
        key, *rest = clash.at
        if key == "inbox" and rest:
            box = self.boxes[int(rest[0])]
            box.source.wrong((*box.path, *rest[1:]), clash.words)
        else:
            self.faults.append(
                Fault(self.origins.get(clash.at[:1], Origin()), clash.at, clash.words)
            )


@dataclass(frozen=True, slots=True)
class _Box:
    """An inbox, and where it stands."""

    inbox: Inbox
    source: Source
    path: KeyPath
    named: bool
    """whether its name was given, and is not its folder's"""

    def put_into(self, boxes: list[_Box]) -> None:
        for n, other in enumerate(boxes):
            same = other.inbox.name == self.inbox.name and other.source is not self.source
            if same and (self.named or other.inbox.path == self.inbox.path):
                boxes[n] = self
                return
        boxes.append(self)


_TABLES = {
    "file": "[[inbox]] tables, each with path and other keys",
    "environment": 'JSON such as [{"path": "/in", "outbox": "/out"}]',
    "command line": 'JSON such as [{"path": "/in", "outbox": "/out"}]',
}


def _context(source: Source) -> dict[str, Path]:
    return {"folder": source.folder} if source.folder else {}


@functools.cache
def _adapter(model: type[BaseModel], key: str) -> TypeAdapter[Any]:
    """What checks a key alone."""
    about = model.model_fields[key]
    kind: Any = about.annotation
    if about.metadata:
        kind = Annotated[(kind, *about.metadata)]
    return TypeAdapter(kind, config=ConfigDict(strict=True))


def _right_keys(
    source: Source, path: KeyPath, table: Mapping[str, Any]
) -> tuple[dict[str, Any], set[str]]:
    """The keys of an inbox that are right, and the names of those that are not."""
    right: dict[str, Any] = {}
    wrong: set[str] = set()
    for key, value in table.items():
        if key not in Inbox.model_fields:
            wrong.add(words.nearest(key, Inbox.model_fields))  # which it stands for, most likely
            source.wrong((*path, key), _no_key(key, value, Inbox))
            continue
        try:
            _adapter(Inbox, key).validate_python(value, context=_context(source))
            right[key] = value
        except ValidationError as error:
            wrong.add(key)
            _tell(source, (*path, key), value, error.errors(), Inbox)
    return right, wrong


def _no_key(key: str, value: Any, table: type[BaseModel]) -> str:
    if isinstance(value, dict | list) and key.lower().startswith("inbox"):
        return f"found {key}; expected inbox: [[inbox]] begins each of them"
    if isinstance(value, dict):
        joined = [f"{key}_{inner}" for inner in value if f"{key}_{inner}" in table.model_fields]
        if joined:
            return f"found a table; did you mean {joined[0]}?"
        return "found a table; there are none but [[inbox]]: the keys stand above these"
    inbox, dot, name = key.partition(".")
    if dot and inbox == "inbox" and name in Inbox.model_fields:
        return "is a key of an inbox; put it into a file below an [[inbox]]"
    return words.unknown(key, table)


def _no_tables(source: Source, found: Any) -> str:
    """What is said of an inbox that is no list of tables."""
    if isinstance(found, dict) and len(found) == 1 and source.kind == "file":
        ((name, inner),) = found.items()
        if isinstance(inner, dict):
            return f'found [inbox.{name}]; expected [[inbox]], and name = "{name}" below it'
    return f"found {words.shown(found)}; expected {_TABLES[source.kind]}"


def _tell(
    source: Source,
    path: KeyPath,
    value: Any,
    errors: list[ErrorDetails],
    model: type[BaseModel],
) -> None:
    """Note what is wrong with a value, each place in it once.

    Args:
        source: where it was set.
        path: its key.
        value: the value.
        errors: of pydantic, with places from the value on.
        model: what has the key.
    """
    told: set[KeyPath] = set()
    for error in errors:
        inner, found = _within(value, error["loc"])
        place = (*path, *inner)
        if place in told:
            continue  # a union complains once for each of its types
        told.add(place)
        name = str(path[-1])
        about = model.model_fields.get(name)
        expected = words.expected(name, about, inner) if about else ""
        source.wrong(place, _said(error, found, expected))


def _within(value: Any, loc: tuple[int | str, ...]) -> tuple[KeyPath, Any]:
    """The part of a place that leads into the value, without pydantic's names of types."""
    inner: list[int | str] = []
    for part in loc:
        leads = (
            part in value
            if isinstance(value, dict)
            else (isinstance(value, list | tuple) and isinstance(part, int) and part < len(value))
        )
        if leads:
            value = value[part]
            inner.append(part)
    return tuple(inner), value


def _said(error: ErrorDetails, found: Any, expected: str) -> str:
    """What was found and what was expected."""
    own = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error" and not expected.startswith(own):
        return f"found {words.shown(found)}; {own}"
    if error["type"] == "missing":
        return f"found nothing; expected {error['loc'][-1]} in it"
    if error["type"] == "extra_forbidden":
        return "unknown key"
    return f"found {words.shown(found)}; {expected or _plain(own)}"


_PLAIN_WORDS = {
    "Input should be": "expected",
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid string": "text",
    "a valid ": "a ",
}


def _plain(said: str) -> str:
    for pydantic_says, we_say in _PLAIN_WORDS.items():
        said = said.replace(pydantic_says, we_say)
    return said


# Sources of text: the environment, the command line


def _from_environment(environ: Mapping[str, str]) -> Source:
    source = Source("environment", "environment")
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        source.variables[key] = variable
        if key not in Config.model_fields or variable != variable.upper():
            _wrong_variable(source, variable, key)
            continue
        _take_text(source, key, text)
    return source


def _wrong_variable(source: Source, variable: str, key: str) -> None:
    close = words.nearest(key, Config.model_fields)
    if not close and key in Inbox.model_fields:
        said = "is a key of an inbox; PHI4_INBOX sets them all, as JSON"
    else:
        said = "unknown key; " + (
            f"did you mean {ENV_PREFIX}{close.upper()}?" if close else words.LISTED
        )
    source.faults.append(Fault(Origin("environment", variable), (key,), said))


def _from_options(options: Mapping[str, Any]) -> Source:
    source = Source("command line", "command line")
    for key, value in options.items():
        if value is None:
            continue
        if isinstance(value, str) and key in Config.model_fields:
            _take_text(source, key, value)
        else:
            source.values[key] = value
    return source


def _take_text(source: Source, key: str, text: str) -> None:
    """A text in the type that its key wants; what it cannot be is a fault."""
    about = Config.model_fields[key]
    scalar = words.scalar(about)
    if words.takes_json(about) and (not words.takes_text(about) or text.lstrip()[:1] in ("[", "{")):
        try:
            source.values[key] = json.loads(text)
        except (ValueError, RecursionError):
            wanted = (
                _TABLES[source.kind] if key == "inbox" else (f"{words.wanted(key, about)}, as JSON")
            )
            source.wrong((key,), f"found {words.shown(text)}; expected {wanted}")
            return
    elif scalar is not None:
        try:
            source.values[key] = TypeAdapter(scalar).validate_python(text)
        except ValidationError:
            if words.takes_text(about):
                source.values[key] = text
                return
            source.wrong((key,), f"found {words.shown(text)}; expected {words.wanted(key, about)}")
    else:
        source.values[key] = text
