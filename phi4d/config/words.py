"""Keys and values in words: what a key takes, its unit and meaning, the nearest right key."""

from __future__ import annotations

import ast
import datetime
import difflib
import functools
import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MinLen
from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from phi4d.config import hook, keys
from phi4d.config import listen as listening
from phi4d.config.keys import Config, Inbox
from phi4d.config.places import KeyPath

LISTED = "`phi4d config default` prints those that there are"
LONGEST = 80  # characters of a value that are shown in a fault
UNITS = {
    "_seconds": "seconds",
    "_hours": "hours",
    "_gb": "GB (10^9 bytes)",
    "_mb": "MB (10^6 bytes)",
    "_megapixels": "megapixels (10^6 pixels)",
    "settle_max": "seconds",
    "_tokens": "tokens",
}
"""units by how a key ends"""


def unit(name: str) -> str:
    """The unit of a key's number, or nothing."""
    return next((words for ending, words in UNITS.items() if name.endswith(ending)), "")


def wanted(name: str, field: FieldInfo) -> str:
    """What a key takes: ``a whole number from 1 to 1024``."""
    marked: Any = field.annotation
    if field.metadata:
        marked = Annotated[(marked, *field.metadata)]
    return _wanted(marked, unit(name))


def expected(name: str, field: FieldInfo, inner: KeyPath) -> str:
    """What is expected in a key, or in an item of the list that it is; empty: not known."""
    if not inner:
        return f"expected {wanted(name, field)}"
    for arm in _arms(field.annotation):
        if get_origin(arm) in (tuple, list) and len(inner) == 1:
            return f"expected {_wanted(get_args(arm)[0])}"
    return ""


def _wanted(kind: Any, measure: str = "") -> str:
    if get_origin(kind) is Annotated:
        return _marked(*get_args(kind), measure=measure)
    if get_origin(kind) in (Union, types.UnionType):
        arms = [arm for arm in get_args(kind) if arm is not type(None)]
        return listed([_wanted(arm, measure) for arm in arms])
    if get_origin(kind) is Literal:
        return listed([as_toml(value) for value in get_args(kind)])
    if get_origin(kind) in (tuple, list):
        items = get_args(kind)[0]
        return "[[inbox]] tables" if items is Inbox else f"a list of {_several(items)}"
    if kind in (int, float):
        return _number(kind, [], measure)
    return {bool: "true or false", str: "text", Path: "a path"}.get(kind, "a table")


def _marked(inner: Any, *marks: Any, measure: str) -> str:
    """The same of a type with marks, such as bounds and checks."""
    marks = tuple(m for mark in marks for m in getattr(mark, "metadata", [mark]))
    checks = [getattr(mark, "func", None) for mark in marks]
    for function, words in _CHECKED.items():
        if function in checks:
            return words
    if inner in (int, float):
        return _number(inner, marks, measure)
    several = any(isinstance(mark, MinLen) for mark in marks)
    return _wanted(inner, measure) + (", at least one" if several else "")


def _several(kind: Any) -> str:
    words = _wanted(kind)
    return {
        "text": "texts",
        "some text": "texts",
        "a table": "tables",
        "a pattern as in .gitignore": "patterns as in .gitignore",
    }.get(words, words)


def _number(kind: type, marks: Iterable[Any], measure: str) -> str:
    words = "a whole number" if kind is int else "a number"
    if measure:
        words = f"{words} of {measure}"
    least, most = "", ""
    inclusive = True
    for mark in marks:
        if isinstance(mark, Ge):
            least = f"{mark.ge:g}" if kind is float else f"{mark.ge}"
        elif isinstance(mark, Gt):
            least, inclusive = f"{mark.gt:g}", False
        elif isinstance(mark, Le):
            most = f"{mark.le:g}" if kind is float else f"{mark.le}"
        elif isinstance(mark, Lt):
            most = f"{int(str(mark.lt)) - 1}" if kind is int else f"below {mark.lt}"
    if least and most and inclusive:
        return f"{words} from {least} to {most}"
    if least and most:
        return f"{words} above {least}, at most {most}"
    if least:
        return f"{words}, {least} or more" if inclusive else f"{words} above {least}"
    return f"{words}, {most} at most" if most else words


_CHECKED: dict[Callable[..., Any], str] = {
    keys._to_path: "the path of a folder",
    keys._to_file: "the path of a file",
    keys._to_hook: hook.EXPECTED,
    keys._to_outbox: f'the path of a folder, or "{keys.BESIDE}"',
    keys._not_empty: "some text",
    keys._to_name: "a name without / and line breaks",
    keys._to_devices: '"auto", "cuda", "cpu", or a list such as "cuda:0,cuda:1" or "cpu,cpu"',
    keys._to_listen: listening.EXPECTED,
    keys._to_pattern: "a pattern as in .gitignore",
}


def listed(words: list[str]) -> str:
    """``a, b or c``."""
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[:-1] else words)


def default(field: FieldInfo) -> str:
    """The default of a key as TOML, or why there is none."""
    value = field.get_default(call_default_factory=True)
    if value is PydanticUndefined:
        return "none: it is needed"
    return "not set" if value is None else as_toml(value)


def as_toml(value: object) -> str:
    """A value as TOML has it, in one line."""
    if isinstance(value, BaseModel):
        value = {k: v for k, v in value if v is not None}
    if isinstance(value, Mapping):
        pairs = ", ".join(f"{_toml_key(k)} = {as_toml(v)}" for k, v in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(as_toml(item) for item in value)}]"
    return _scalar(value)


def _scalar(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | Path):
        return printable(json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f"))
    if isinstance(value, datetime.datetime | datetime.date | datetime.time):
        return value.isoformat()
    return "null" if value is None else str(value)


def printable(text: str) -> str:
    """A text that any stream takes: a path, or a variable, need not be UTF-8."""
    return text.encode("utf-8", "backslashreplace").decode()


def _toml_key(key: object) -> str:
    text = str(key)
    plain = text.replace("_", "").replace("-", "").isalnum() and text.isascii()
    return text if plain else as_toml(text)


def shown(value: object) -> str:
    """A value in a fault: as TOML, and no more of it than is needed to know it again."""
    text = re.sub(r"://[^/@\s\"]+@", "://…@", as_toml(value))  # a password is for no log
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 2]} …"


def cut(text: str) -> str:
    """A piece of a file in a fault: nothing that a terminal would obey, and not too long."""
    safe = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
    return safe if len(safe) <= LONGEST else f"{safe[: LONGEST - 2]} …"


@functools.cache
def meanings(model: type[BaseModel]) -> Mapping[str, str]:
    """Each key's docstring, the text that stands below it in the source."""
    (body,) = ast.parse(inspect.getsource(model)).body
    assert isinstance(body, ast.ClassDef)  # noqa: S101  the source of a class is a class
    return {
        field.target.id: " ".join(text.value.value.split())
        for field, text in zip(body.body, body.body[1:], strict=False)
        if isinstance(field, ast.AnnAssign)
        and isinstance(field.target, ast.Name)
        and isinstance(text, ast.Expr)
        and isinstance(text.value, ast.Constant)
        and isinstance(text.value.value, str)
    }


def nearest(name: str, names: Iterable[str]) -> str:
    """The name that was meant, or nothing."""
    known = list(names)
    plain = name.strip().lower().replace("-", "_").replace(" ", "_")
    if plain in known:
        return plain
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.7)
    if close:
        return close[0]
    with_it = [key for key in known if plain in key.split("_")] if len(plain) > 2 else []
    if len(with_it) == 1:
        return with_it[0]
    close = difflib.get_close_matches(plain, known, n=1, cutoff=0.64)
    return close[0] if close else ""


def unknown(name: str, table: type[BaseModel]) -> str:
    """What is said of a key that a table does not have.

    Args:
        name: the key as it was found.
        table: the model whose table it stands in.
    """
    own = nearest(name, table.model_fields)
    if table is Inbox and name in Config.model_fields:
        return (
            "is no key of an inbox but of the whole configuration; put it above the first [[inbox]]"
        )
    if table is Config and name in Inbox.model_fields:
        return "is a key of an inbox; put it below an [[inbox]]"
    if own:
        return f"unknown key; did you mean {own}?"
    other = nearest(name, (Config if table is Inbox else Inbox).model_fields)
    if other and table is Config:
        return f"unknown key; did you mean {other}, a key of an [[inbox]]?"
    if other and table is Inbox:
        return f"unknown key; did you mean {other}, which stands above the first [[inbox]]?"
    return f"unknown key; {LISTED}"


def takes_json(field: FieldInfo) -> bool:
    """Whether a text source gives this key as JSON, because it is a list or a table."""
    return any(_is_container(arm) for arm in _arms(field.annotation))


def takes_text(field: FieldInfo) -> bool:
    """Whether a plain text may be a value of this key as it is."""
    return any(get_origin(arm) is Literal or arm in (str, Path) for arm in _arms(field.annotation))


def scalar(field: FieldInfo) -> type | None:
    """The type that a text is converted to: int, float or bool; None: none of them."""
    for arm in _arms(field.annotation):
        if arm in (int, float, bool):
            return typing.cast("type", arm)
    return None


def _arms(kind: Any) -> list[Any]:
    """The types of a union, without their marks."""
    if get_origin(kind) is Annotated:
        return _arms(get_args(kind)[0])
    if get_origin(kind) in (Union, types.UnionType):
        return [arm for part in get_args(kind) for arm in _arms(part) if arm is not type(None)]
    return [kind]


def _is_container(kind: Any) -> bool:
    if get_origin(kind) in (tuple, list, dict):
        return True
    return isinstance(kind, type) and issubclass(kind, BaseModel)
