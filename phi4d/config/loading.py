"""Put the configuration together from its sources, and tell every fault of theirs at once."""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import platformdirs
from pydantic import BaseModel, TypeAdapter, ValidationError

from phi4d.config.keys import BESIDE, Config, Inbox
from phi4d.errors import ConfigError

ENV_PREFIX = "PHI4_"
SYSTEM_FILE = Path("/etc/phi4d/phi4d.toml")


def user_file() -> Path:
    """The user's own configuration file; it is read after the system's."""
    return platformdirs.user_config_path("phi4d") / "phi4d.toml"


def load(
    *,
    config: Path | None = None,
    config_file: Path | None = None,
    environ: Mapping[str, str] = os.environ,
    options: Mapping[str, Any] | None = None,
) -> Config:
    """Put the configuration together and check it.

    Args:
        config: a TOML file that takes the place of the system's and the user's.
        config_file: the old script's JSON file; its keys win over the TOML ones.
        environ: the environment; ``PHI4_`` and a key in capitals. ``PHI4_INBOX`` holds JSON.
        options: keys given on the command line; text values are converted. None is "not given".

    Raises:
        ConfigError: with every fault of all sources.
    """
    faults: list[str] = []
    values: dict[str, Any] = {}
    source: dict[str, str] = {}

    def layer(name: str, layer_values: Mapping[str, Any]) -> None:
        for key, value in layer_values.items():
            if key not in Config.model_fields:
                faults.append(f"{name}: {key}: unknown key{_nearest(key)}")
            else:
                values[key] = value
                source[key] = name

    try:
        for path in [config] if config else [SYSTEM_FILE, user_file()]:
            # one that may not even be looked at, as with another user's HOME, counts as none
            if config or os.path.exists(path):
                layer(str(path), _read_toml(path))
        if config_file:
            layer(str(config_file), _read_json(config_file))
    except ConfigError as error:
        faults += error.faults
    layer("environment", dict(_from_text(_env_keys(environ, faults), "environment", faults)))
    given = {k: v for k, v in (options or {}).items() if v is not None}
    layer("command line", dict(_from_text(given, "command line", faults)))

    try:
        result = Config.model_validate(values)
    except ValidationError as error:
        faults += _readable(error, source)
        wrong = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
        if wrong and not wrong & _TOGETHER:  # else it was checked, or cannot be
            try:
                Config.model_validate({key: values[key] for key in _TOGETHER & values.keys()})
            except ValidationError as together:
                faults += _readable(together, source)
    if faults:
        raise ConfigError(*faults)
    return result


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = tomllib.load(file)
    except (OSError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as TOML: {_words(error)}") from error
    return _anchored(data, path.parent)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as JSON: {_words(error)}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"{path}: holds {type(data).__name__}; expected an object with keys")
    # the old script wrote null for "not set"
    return {key: value for key, value in data.items() if value is not None}


def _anchored(data: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Folders in a file are meant from where the file is, not from where the daemon starts."""

    def anchor(table: dict[str, Any], keys: tuple[str, ...]) -> None:
        for key in keys:
            value = table.get(key)
            if (
                isinstance(value, str)
                and value
                and value != str(BESIDE)
                and not value.startswith("~")
            ):
                table[key] = str(folder.absolute() / value)

    anchor(data, ("cache_dir", "results_dir", "state_dir", "runtime_dir"))
    tables = data.get("inbox")
    for table in tables if isinstance(tables, list) else []:
        if isinstance(table, dict):
            anchor(table, ("path", "outbox", "done_dir", "failed_dir"))
    return data


def _env_keys(environ: Mapping[str, str], faults: list[str]) -> dict[str, str]:
    found = {}
    for variable, text in sorted(environ.items()):
        if not variable.startswith(ENV_PREFIX):
            continue
        key = variable.removeprefix(ENV_PREFIX).lower()
        if key in Config.model_fields:
            found[key] = text
        else:
            faults.append(f"environment: {variable}: unknown key{_nearest(key, ENV_PREFIX)}")
    return found


def _from_text(
    values: Mapping[str, Any], name: str, faults: list[str]
) -> Iterator[tuple[str, Any]]:
    """Values of text sources in the type that the key wants; misfits are faults."""
    for key, value in values.items():
        field = Config.model_fields.get(key)
        if not isinstance(value, str) or field is None:
            yield key, value
        elif key == "inbox":
            try:
                yield key, json.loads(value)
            except ValueError:
                faults.append(
                    f"{name}: inbox: found {value!r}; expected JSON such as "
                    '[{"path": "/in", "outbox": "/out"}]'
                )
        elif (kind := field.annotation) is int or kind is float or kind is bool:
            try:
                yield key, TypeAdapter(kind).validate_python(value)
            except ValidationError:
                faults.append(f"{name}: {key}: found {value!r}; expected {_WANTED[kind]}")
        else:
            yield key, value


def _readable(error: ValidationError, source: Mapping[str, str]) -> Iterator[str]:
    """A line for each fault: source, key, what was found, what was expected."""
    for fault in error.errors():
        place = fault["loc"]
        if not place:
            yield from str(fault["msg"]).removeprefix("Value error, ").split("\n")
            continue
        key = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in place).lstrip(".")
        origin = source.get(str(place[0]), "defaults")
        if fault["type"] == "extra_forbidden":
            yield f"{origin}: {key}: unknown key{_nearest(str(place[-1]), '', Inbox)}"
        elif fault["type"] == "missing":
            yield f"{origin}: {key}: missing; every inbox needs one"
        else:
            expected = str(fault["msg"]).removeprefix("Value error, ")
            expected = expected.replace("Input should be", "expected")
            for pydantic_says, we_say in _PLAIN_WORDS.items():
                expected = expected.replace(pydantic_says, we_say)
            yield f"{origin}: {key}: found {fault['input']!r}; {expected}"


_TOGETHER = {"inbox", "results_dir"}
"""Keys that are checked against each other, which pydantic leaves out when any key is wrong."""
_WANTED: dict[Any, str] = {int: "a whole number", float: "a number", bool: "true or false"}
_PLAIN_WORDS = {
    "a valid integer": "a whole number",
    "a valid boolean": "true or false",
    "a valid ": "a ",
}


def _nearest(key: str, prefix: str = "", model: type[BaseModel] = Config) -> str:
    close = difflib.get_close_matches(key, model.model_fields, n=1)
    if not close:
        return ""
    word = prefix + (close[0].upper() if prefix else close[0])
    return f"; did you mean {word}?"


def _words(error: Exception) -> str:
    if isinstance(error, OSError):
        return error.strerror or str(error)
    return str(error)
