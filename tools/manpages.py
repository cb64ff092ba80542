"""Write the man pages, docs/man/phi4d.8 and docs/man/phi4d.toml.5: `make man`.

What can be known from elsewhere is taken from there and never written twice: commands and options
from the command line, keys from etc/phi4d.toml and the configuration's types, exit codes and
signals from the README. The rest stands in the frames beside the pages, which end in .in.
"""

from __future__ import annotations

import re
import textwrap
import typing
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import typer.main
from pydantic import BaseModel

import phi4d
from phi4d import cli
from phi4d.config import Config, Inbox

TOP = Path(__file__).resolve().parents[1]
MAN = TOP / "docs" / "man"
PAGES = ("phi4d.8", "phi4d.toml.5")
COMMON = 5
"""commands that an option must be the same in to be described once, for all"""
WIDTH = 78
"""columns of a line of the source; what is shown is filled by whoever shows it"""


def pages() -> dict[str, str]:
    """Every page's name, and its text."""
    readme = (TOP / "README.md").read_text("utf-8")
    sample = (TOP / "etc" / "phi4d.toml").read_text("utf-8")
    parts = {
        "VERSION": phi4d.__version__,
        "COMMANDS": commands(),
        "COMMON": common_options(),
        "EXIT": exit_codes(readme),
        "SIGNALS": paragraphs(markdown(section(readme, "Signals"))),
        "SOURCES": paragraphs(markdown(section(readme, "Configuration").split("```")[0])),
        "KEYS": keys(sample),
    }
    return {name: _filled((MAN / f"{name}.in").read_text("utf-8"), parts) for name in PAGES}


def _filled(frame: str, parts: dict[str, str]) -> str:
    return re.sub(r"@([A-Z]+)@", lambda found: parts[found[1]].rstrip("\n"), frame)


# ---- roff -------------------------------------------------------------------------------------


def escaped(text: str) -> str:
    """Text as roff shows it: nothing in it is a command."""
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("^", "\\(ha").replace("~", "\\(ti")
    return text.replace("`", "\\(ga").replace("'", "\\(aq")


def prose(text: str) -> str:
    """Sentences: hyphens and apostrophes may be what the language makes of them."""
    return text.replace("\\", "\\e").replace("^", "\\(ha").replace("~", "\\(ti")


def wrapped(text: str) -> str:
    """Lines of the source, none of which begins like a command of roff's."""
    lines = textwrap.wrap(text, WIDTH, break_long_words=False, break_on_hyphens=False)
    return "\n".join(f"\\&{line}" if line[:1] in ".'" else line for line in lines)


def paragraphs(text: str) -> str:
    """Paragraphs that blank lines divide."""
    return "\n.PP\n".join(wrapped(block) for block in re.split(r"\n\s*\n", text.strip()))


def markdown(text: str) -> str:
    """What the README's paragraphs use of Markdown: code and links."""
    text = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", text)
    parts = re.split(r"`([^`]+)`", text)
    parts[::2] = [prose(part) for part in parts[::2]]
    parts[1::2] = [rf"\fB{escaped(part)}\fR" for part in parts[1::2]]
    return "".join(parts)


def section(text: str, title: str) -> str:
    """What stands below a heading of the README's, down to the next."""
    found = re.search(rf"^##+ {re.escape(title)}\n(.*?)(?=^##|\Z)", text, re.MULTILINE | re.DOTALL)
    if not found:
        raise SystemExit(
            f"README.md: there is no heading {title!r}, which the man pages are made of"
        )
    return found[1]


# ---- phi4d(8) ---------------------------------------------------------------------------------


def every_command() -> Iterator[tuple[str, Any]]:
    """Each command's words, and what typer made of it."""

    def below(words: str, command: Any) -> Iterator[tuple[str, Any]]:
        if hasattr(command, "commands"):
            for name, child in command.commands.items():
                yield from below(f"{words} {name}".strip(), child)
        elif not command.hidden:
            yield words, command

    yield from below("", typer.main.get_command(cli.app))


def options(command: Any) -> dict[str, Any]:
    """Its options, by how they are written."""
    return {
        _written(parameter): parameter
        for parameter in command.params
        if parameter.param_type_name == "option" and not parameter.hidden
    }


def _written(option: Any) -> str:
    names = [*option.opts, *option.secondary_opts]
    metavar = "" if option.is_flag else option.metavar or "VALUE"
    value = rf" \fI{escaped(metavar)}\fR" if metavar else ""
    return ", ".join(rf"\fB{escaped(name)}\fR" for name in names) + value


def common() -> dict[str, Any]:
    """Options that many commands have, with the same words in each."""
    times: Counter[tuple[str, str]] = Counter()
    found: dict[str, Any] = {}
    for _, command in every_command():
        for written, option in options(command).items():
            times[written, option.help] += 1
            found[written] = option
    return {
        written: option
        for written, option in found.items()
        if times[written, option.help] >= COMMON
    }


def described(written: str, option: Any) -> str:
    """An option, and what it is for."""
    words = option.help or ""
    if option.default not in (None, False, [], ()) and not option.is_flag:
        words += f" Default: {option.default}."
    return f".TP\n{written}\n{wrapped(markdown(words.strip()))}\n"


def common_options() -> str:
    """Those of many commands."""
    return "".join(described(written, option) for written, option in common().items())


def commands() -> str:
    """Every command: how it is given, what it does, its own options."""
    shared = common()
    text = ""
    for words, command in every_command():
        own = {key: option for key, option in options(command).items() if key not in shared}
        arguments = [one for one in command.params if one.param_type_name == "argument"]
        line = rf"\fBphi4d {escaped(words)}\fR"
        if options(command):
            line += r" [\fIOPTION\fR]\|.\|.\|."
        for one in arguments:
            name = rf"\fI{escaped(one.metavar or one.name.upper())}\fR"
            line += f" {name}" if one.required else f" [{name}]"
        text += f".SS {line}\n{paragraphs(markdown(command.help or ''))}\n"
        for one in arguments:
            if one.help:
                name = rf"\fI{escaped(one.metavar or one.name.upper())}\fR"
                text += f".TP\n{name}\n{wrapped(markdown(one.help))}\n"
        text += "".join(described(written, option) for written, option in own.items())
        also = [option.opts[0] for key, option in options(command).items() if key in shared]
        if also:
            names = ", ".join(rf"\fB{escaped(name)}\fR" for name in also)
            text += f".PP\n{wrapped(f'Of the options of many commands: {names}.')}\n"
    return text


def exit_codes(readme: str) -> str:
    """The README's table."""
    rows = re.findall(r"^\| (\d+) \| (.+) \|$", section(readme, "Exit codes"), re.MULTILINE)
    return "".join(f".TP\n.B {code}\n{wrapped(markdown(words))}\n" for code, words in rows)


# ---- phi4d.toml(5) ----------------------------------------------------------------------------

KEY = re.compile(r"^(?:#(?:e\.g\. )?)?([a-z_0-9]+) = (.*)$")
HEADING = re.compile(r"^# -{4} (.*?) -+$")


def keys(sample: str) -> str:
    """Every key of the sample, with type and default, and what the sample says of it."""
    text = ""
    model: type[BaseModel] = Config
    above: list[str] = []
    words = ""
    named: list[str] = []
    for line in [*sample.split("\n\n", 1)[1].splitlines(), ""]:
        if heading := HEADING.match(line):
            text += f".SS {prose(heading[1].capitalize())}\n"
            above = []
        elif line == "[[inbox]]":
            model = Inbox
        elif key := KEY.match(line):
            # the keys of one thought stand together, and the words above the first are of all
            words = " ".join(above) or words
            tag = r"\fB" + escaped(key[1]) + r"\fR"
            text += f".TP\n{tag} = \\fI{escaped(kind(model, key[1]))}\\fR\n"
            named.append(key[1])
            text += wrapped(markdown(words)) + "\n.br\n"
            text += wrapped(prose(default(model, key[1], line))) + "\n"
            above = []
        elif line.startswith("#  "):  # an example
            above.append(f"`{line[1:].strip()}`.")
        elif line.startswith("# "):
            above.append(line[2:].strip())
        elif not line:
            above, words = [], ""
    wanted = [*(set(Config.model_fields) - {"inbox"}), *Inbox.model_fields]
    if sorted(named) != sorted(wanted):
        missing = sorted((Counter(wanted) - Counter(named)) + (Counter(named) - Counter(wanted)))
        raise SystemExit(f"etc/phi4d.toml: not the keys of the configuration: {', '.join(missing)}")
    return text


def default(model: type[BaseModel], name: str, line: str) -> str:
    """What holds if nothing is said; what the sample sets, if that is something else."""
    field = model.model_fields[name]
    value = line.partition(" = ")[2]
    if line.startswith("#e.g. "):
        return f"Not set by default; for example: {value}"
    if line.startswith("#"):
        return f"Default: {value}"
    if field.is_required():
        return f"Needed. In the sample: {value}"
    return f"In the sample: {value}"


def kind(model: type[BaseModel], name: str) -> str:
    """A key's type in words, with its bounds."""
    field = model.model_fields[name]
    hints = typing.get_type_hints(model, include_extras=True)
    return _kind(hints[name], list(field.metadata))


def _kind(hint: Any, metadata: list[Any]) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Annotated:
        return _kind(arguments[0], [*arguments[1:], *metadata])
    if origin is Literal:
        return " | ".join(f'"{choice}"' for choice in arguments)
    if origin is tuple:
        return f"[ {_kind(arguments[0], [])}, … ]"
    if origin is not None and type(None) in arguments:  # X | None
        (inner,) = (one for one in arguments if one is not type(None))
        return _kind(inner, metadata)
    if origin is not None and arguments:
        return " | ".join(dict.fromkeys(_kind(one, []) for one in arguments))
    if hint is bool:
        return "true | false"
    if hint in (int, float):
        return ("whole number" if hint is int else "number") + _bounds(metadata)
    return "path" if hint is Path else "text" if hint is str else "table"


def _bounds(metadata: list[Any]) -> str:
    found: dict[str, Any] = {}
    for one in metadata:
        for part in (one, *getattr(one, "metadata", [])):
            for bound in ("ge", "gt", "le", "lt"):
                if getattr(part, bound, None) is not None:
                    found[bound] = getattr(part, bound)
    words = [
        f"{phrase} {found[bound]:g}"
        for bound, phrase in (("ge", "from"), ("gt", "above"), ("le", "to"), ("lt", "below"))
        if bound in found and found[bound] < 2**53
    ]
    return f", {' '.join(words)}" if words else ""


def main() -> None:
    """Write them."""
    for name, text in pages().items():
        (MAN / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
