"""What configuration files hold: which there are, their values with their lines, what is wrong.

A file that cannot be read is a fault, never an exception; what can be made of it is handed on, so
that its other faults, and those of other files, are told in the same breath.
"""

from __future__ import annotations

import codecs
import errno
import json
import os
import re
import stat
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from phi4d.config import places, words
from phi4d.config.keys import Config, Inbox
from phi4d.config.origins import Fault, Origin
from phi4d.config.places import KeyPath, Places

DROPIN_FOLDER = "conf.d"
MOST_BYTES = 4_000_000  # a configuration is never so large; a device or a recording is
MOST_LINES = 10_000  # after which a statement that never ends is not looked for
MOST_MENDED = 100  # lines that are no TOML, after which a file is given up
_UTF16 = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@dataclass(slots=True)
class Source:
    """What one source sets."""

    name: str
    """for people: the file's path, "environment", "command line" """
    kind: str = "file"
    values: dict[str, Any] = field(default_factory=dict)
    places: Places = field(default_factory=Places)
    folder: Path | None = None
    """where folders in it are meant from; None: from where phi4d starts"""
    faults: list[Fault] = field(default_factory=list)
    whole: bool = True
    """whether nothing of it is missing because it could not be read"""
    variables: dict[str, str] = field(default_factory=dict)
    """names of the variables that set keys"""
    conf_d: Path | None = None
    """the folder of further files that it stands beside or in"""

    def origin(self, path: KeyPath) -> Origin:
        """Where in this source a value stands."""
        if self.kind == "environment":
            return Origin("environment", self.variables.get(str(path[0]), "") if path else "")
        if self.kind == "command line":
            return Origin("command line")
        return Origin("file", self.name, self.places.line(path))

    def summary(self) -> str:
        """What it sets, in a few words."""
        boxes = self.values.get("inbox")
        count = len(boxes) if isinstance(boxes, list | tuple) else 0
        keys = [key for key in self.values if key != "inbox"]
        if self.kind != "file":
            return ", ".join(self.variables.get(key, key) for key in self.values)
        told = [_counted(len(keys), "key")] if keys else []
        told += [f"{count} inbox{'es' if count != 1 else ''}"] if count else []
        return ", ".join(told) or "nothing"

    def wrong(self, path: KeyPath, said: str, line: int = 0) -> None:
        """Note a fault."""
        origin = Origin("file", self.name, line) if line else self.origin(path)
        self.faults.append(Fault(origin, path, said))


def group(main: Path, *, named: bool = False, others: bool = False) -> list[Source]:
    """A TOML file and the ``*.toml`` of the folder ``conf.d`` beside it, in the order of names.

    Args:
        main: the file.
        named: whether somebody named it; then it must be there.
        others: whether it may be somebody else's, as with another user's HOME: one that may not be
            looked at then counts as none.
    """
    folder = main.parent / DROPIN_FOLDER
    sources = []
    if named or _is_there(main, others):
        sources.append(toml(main))
    if not _is_there(folder, others):
        return sources
    try:
        entries = sorted(os.listdir(folder))
    except OSError as error:
        broken = Source(str(folder), whole=False)
        if error.errno == errno.ENOTDIR:
            broken.wrong((), "is no folder; expected one with *.toml files, or none")
        else:
            broken.wrong((), f"cannot be listed: {_reason(error)}")
        return [*sources, broken]
    sources += [toml(folder / name, plain=True) for name in entries if is_dropin(name)]
    for source in sources:
        source.conf_d = folder
    return sources


def is_dropin(name: str) -> bool:
    """Whether a file of ``conf.d`` is read, by its name."""
    return name.endswith(".toml") and not name.startswith(".")


def _is_there(path: Path, others: bool) -> bool:
    """Whether there is something, or, unless it is others', something that may not be seen."""
    try:
        os.lstat(path)
    except PermissionError:
        return not others
    except (OSError, ValueError):
        return False
    return True


def toml(path: Path, *, plain: bool = False) -> Source:
    """Read a TOML file.

    Args:
        path: the file.
        plain: whether it must be a regular file; one that somebody named may be a pipe.
    """
    source = Source(str(path), folder=path.parent)
    text = _text(source, path, "a TOML file", plain=plain)
    if text is None:
        return source
    if text.lstrip()[:1] == "{":
        source.whole = False
        source.wrong((), "is JSON, which goes with --config-file; expected TOML: KEY = VALUE", 1)
        return source
    wrong: list[_Wrong] = []
    source.values, text = _mended(text, wrong)
    source.places = places.of_toml(text)
    source.whole = source.whole and not wrong
    for fault in wrong:
        key, said = _in_words(fault, source.places)
        source.wrong(key, said, fault.line)
    _single_table(source)
    return source


def legacy(path: Path) -> Source:
    """Read the old script's JSON file. Its folders are meant from where phi4d starts, as ever."""
    source = Source(str(path))
    text = _text(source, path, "a JSON file", plain=False)
    if text is None:
        return source
    try:
        data = json.loads(text, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        source.whole = False
        _tell_no_json(source, text, error)
        return source
    except (ValueError, RecursionError) as error:
        source.whole = False
        constant = re.search(r"NaN|-?Infinity", text)
        line = text.count("\n", 0, constant.start()) + 1 if constant else 0
        source.wrong((), f"is no JSON: {_short(error)}", line)
        return source
    if not isinstance(data, dict):
        source.whole = False
        source.wrong((), f"found {words.shown(data)}; expected an object {{…}} with keys", 1)
        return source
    source.places = places.of_json(text)
    for key, first, again in source.places.twice:
        source.wrong(key, f"stands twice, first in line {first}; expected it once", again)
    # the old script wrote null for "not set"
    source.values = {key: value for key, value in data.items() if value is not None}
    return source


def _tell_no_json(source: Source, text: str, error: json.JSONDecodeError) -> None:
    if not text.strip():
        source.wrong((), "is empty; expected an object {…} with keys")
        return
    try:
        tomllib.loads(text)
    except ValueError:
        found = words.cut(_line(text, error.lineno).strip())
        said = f"is no JSON: {_lowered(error.msg)}" + (f" at {found}" if found else "")
        source.wrong((), said, error.lineno)
    else:
        source.wrong((), "is TOML, which goes with --config; expected JSON: an object {…}", 1)


def _no_constant(name: str) -> float:
    raise ValueError(f"found {name}; expected a number")


def _text(source: Source, path: Path, what: str, *, plain: bool) -> str | None:
    """The text of a file; None, with a fault, if it cannot be had."""
    try:
        data = _bytes(path, plain=plain)
    except (OSError, ValueError) as error:
        source.whole = False
        source.wrong((), f"cannot be read: {_reason(error)}; expected {what}")
        return None
    if len(data) > MOST_BYTES:
        source.whole = False
        source.wrong((), f"holds more than {MOST_BYTES // 10**6} MB; expected {what}")
        return None
    if data.startswith(_UTF16) or b"\0" in data[:100]:
        source.whole = False
        source.wrong((), f"is no text in UTF-8; expected {what}: save it in the encoding UTF-8")
        return None
    if data.startswith(codecs.BOM_UTF8):
        source.whole = False
        source.wrong((), "begins with a byte order mark; save it as UTF-8 without one (BOM)", 1)
        data = data.removeprefix(codecs.BOM_UTF8)
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        source.whole = False
        line = data.count(b"\n", 0, error.start) + 1
        source.wrong(
            (),
            f"found the byte 0x{data[error.start]:02x}, which is no UTF-8; save the file in the "
            "encoding UTF-8",
            line,
        )
        return data.decode("utf-8", "replace")


def _bytes(path: Path, *, plain: bool) -> bytes:
    # a pipe without a writer would hold up the opening
    flags = os.O_RDONLY | os.O_CLOEXEC | (os.O_NONBLOCK if plain else 0)
    with open(os.open(path, flags), "rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        if stat.S_ISDIR(mode):
            raise ValueError("is a folder")
        if plain and not stat.S_ISREG(mode):
            raise ValueError("is no regular file")
        return file.read(MOST_BYTES + 1)


def _reason(error: Exception) -> str:
    said = error.strerror if isinstance(error, OSError) else str(error)
    said = said or str(error)
    return said[:1].lower() + said[1:]


# What is no TOML


@dataclass(frozen=True, slots=True)
class _Wrong:
    """A line that the parser refused."""

    line: int
    text: str
    said: str
    """by the parser"""
    noticed: int = 0
    """the line where the parser noticed that the statement does not end; 0: it ends"""


_PLACE = re.compile(r"(.*) \(at (?:line (\d+), column \d+|end of document)\)", re.DOTALL)
_STATEMENT = re.compile(
    r"""\s*(?P<key>(?:[A-Za-z0-9_-]+|"[^"\n]*"|'[^'\n]*')(?:\s*\.\s*[A-Za-z0-9_."'-]+)*)
    \s*(?P<sign>[=:]?)\s*(?P<value>.*?)\s*$""",
    re.VERBOSE,
)
_OPENS = ('"""', "'''")
_CURLY = "\u201c\u201d\u201e\u201f\u2018\u2019\u201a\xab\xbb"
"""quotes as word processors have them"""


def _mended(text: str, wrong: list[_Wrong]) -> tuple[dict[str, Any], str]:
    """The values of a TOML text without the lines that are none; these are noted as wrong.

    Returns:
        The values, and the text that they are of, with its lines where they were.
    """
    lines = text.split("\n")
    while True:
        text = "\n".join(lines)
        try:
            return tomllib.loads(text), text
        except RecursionError:
            wrong.append(_Wrong(0, "", "Nested too deeply"))
        except ValueError as error:
            found = _PLACE.fullmatch(str(error))
            said = found[1] if found else str(error)
            number = int(found[2]) if found and found[2] else 0
            line = lines[number - 1] if number else ""
            wrong.append(_Wrong(number, line, said))
            if number and _stands_alone(line) and len(wrong) < MOST_MENDED:
                lines[number - 1] = ""
                continue
        return _before(lines, wrong)


def _before(lines: list[str], wrong: list[_Wrong]) -> tuple[dict[str, Any], str]:
    """What stands before a statement that takes the rest of its file along, like an open bracket.

    The last fault becomes that of the line where the statement begins.
    """
    fault = wrong.pop()
    end = fault.line or len(lines)
    for begin in range(min(end, MOST_LINES), 0, -1):
        before = "\n".join(lines[: begin - 1])
        try:
            values = tomllib.loads(before)
        except (ValueError, RecursionError):
            continue
        # the lines that it took along were not read as what they are
        wrong[:] = [other for other in wrong if other.line < begin]
        wrong.append(_Wrong(begin, lines[begin - 1], fault.said, end))
        return values, before
    wrong.append(fault)
    return {}, ""


def _stands_alone(line: str) -> bool:
    """Whether a wrong line can be left out without a change to those that follow it."""
    code = line.partition("#")[0]
    if any(quotes in code for quotes in _OPENS):
        return False
    if any(code.count(a) != code.count(b) for a, b in ("[]", "{}")):
        return False
    if code.lstrip().startswith("["):
        return False  # the head of a table: what follows it would fall to another one
    return _STATEMENT.fullmatch(line) is not None


def _in_words(wrong: _Wrong, where: Places) -> tuple[KeyPath, str]:
    """The key that a wrong line speaks of, and what is said about it."""
    line = wrong.text.strip()
    found = words.cut(line)
    head = line.split("#")[0].strip()
    if head in ("[inbox]", "[ inbox ]"):
        return ("inbox",), "found [inbox]; expected [[inbox]], in double brackets, for each of them"
    statement = _STATEMENT.fullmatch(wrong.text)
    seen = f" at {found}" if line else ""
    if not wrong.line or not statement or line.startswith("["):
        return (), f"is no TOML: {_lowered(wrong.said)}{seen}"
    table = where.table_at(wrong.line)
    name = statement["key"].strip("\"'")
    key = (*table, name)
    if wrong.noticed:
        place = f" (noticed in line {wrong.noticed})" if wrong.noticed > wrong.line else ""
        return key, (
            f"found {found}, which does not end as it should{place}; expected commas between "
            "items, and each bracket and quote closed"
        )
    if wrong.said.startswith("Cannot overwrite"):
        first = where.lines.get(key)
        place = f", first in line {first}" if first else ""
        return key, f"is set twice{place}; expected it once"
    if statement["sign"] != "=":
        return key, f"found {found}; expected KEY = VALUE"
    return key, _value_in_words(statement["value"], name, table, wrong.said)


def _value_in_words(value: str, name: str, table: KeyPath, said: str) -> str:
    """What is said about a value that is none in TOML."""
    model = Inbox if table[:1] == ("inbox",) else Config
    known = model.model_fields.get(name)
    expected = words.wanted(name, known) if known else "a value as TOML has it"
    found = words.cut(value)
    if not value or value.startswith("#"):
        return f"found nothing behind the =; expected {expected}"
    if "\\" in value and ("escape" in said or "hex" in said.lower()):
        return f"found {found}; expected a backslash doubled, or the text in single quotes"
    if value[0] in "\"'":
        if value.count(value[0]) % 2:
            return f"found {found}; expected a quote at the end of the text as well"
        return f"found {found}; expected nothing behind the text but a # comment"
    curly = value[0] in _CURLY
    if curly or (known and words.takes_text(known)):
        without = "" if curly else " without quotes"
        quotes = 'straight quotes: "' if curly else "quotes"
        return f"found {found}{without}; expected {expected}, in {quotes}"
    return f"found {found}; expected {expected}"


def _single_table(source: Source) -> None:
    """``[inbox]`` is valid TOML, and not what was meant."""
    table = source.values.get("inbox")
    if isinstance(table, dict):
        line = source.places.line(("inbox",))
        if any(path == ("inbox",) for _, path in source.places.headers):
            said = "found [inbox]; expected [[inbox]], in double brackets, for each of them"
            source.wrong(("inbox",), said, line)
            source.values["inbox"] = [table]
            for path, at in list(source.places.lines.items()):
                if path[0] == "inbox":
                    source.places.lines["inbox", 0, *path[1:]] = at


def _line(text: str, number: int) -> str:
    lines = text.split("\n")
    return lines[number - 1] if 0 < number <= len(lines) else ""


def _counted(number: int, thing: str) -> str:
    return f"{number} {thing}{'' if number == 1 else 's'}"


def _lowered(said: str) -> str:
    return said[:1].lower() + said[1:]


def _short(error: Exception) -> str:
    return "nested too deeply" if isinstance(error, RecursionError) else _lowered(str(error))


def ignored(folders: Iterable[Path]) -> list[Path]:
    """Files in ``conf.d`` folders that are not read, though somebody may think so."""
    found = []
    for folder in folders:
        try:
            names = sorted(os.listdir(folder))
        except OSError:
            continue
        found += [
            folder / name
            for name in names
            if not is_dropin(name)
            and not name.startswith((".", "README"))
            and not name.endswith(("~", ".bak", ".orig", ".disabled", ".off"))
            and ".dpkg-" not in name
        ]
    return found
