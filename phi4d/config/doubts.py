"""What a configuration may say and yet is probably wrong. Looks at the folders; changes nothing."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path

from phi4d.config import files, hook, words
from phi4d.config.keys import Config, Inbox
from phi4d.config.loading import ENV_PREFIX, Reading
from phi4d.config.origins import Fault, Origin

_MISTAKEN = ("PHI4D_", "PHI_", "PHI4")
"""what variables are begun with by mistake"""


def doubts(reading: Reading, config: Config, environ: Mapping[str, str]) -> list[Fault]:
    """Everything that an operator should look at, in the order of the keys."""
    return [
        *_unread(reading),
        *_variables(environ),
        *_general(config),
        *_priorities(config),
        *(doubt for n, box in enumerate(config.inbox) for doubt in _of_inbox(config, n, box)),
    ]


def _unread(reading: Reading) -> Iterator[Fault]:
    folders = dict.fromkeys(source.conf_d for source in reading.sources if source.conf_d)
    for path in files.ignored(folders):
        said = "is not read; expected a name that ends with .toml"
        yield Fault(Origin("file", str(path)), (), said)


def _variables(environ: Mapping[str, str]) -> Iterator[Fault]:
    for name in sorted(environ):
        for prefix in _MISTAKEN:
            key = name.removeprefix(prefix).lower()
            if (
                name.startswith(prefix)
                and not name.startswith(ENV_PREFIX)
                and key in Config.model_fields
            ):
                said = f"is not looked at; did you mean {ENV_PREFIX}{key.upper()}?"
                yield Fault(Origin("environment", name), (), said)
                break


def _general(config: Config) -> Iterator[Fault]:
    def doubt(key: str, said: str) -> Fault:
        return Fault(config.origin(key), (key,), said)

    if not config.inbox:
        yield doubt("inbox", "there is none, so `phi4d run` does not start; add an [[inbox]]")
    if config.force_cpu and "cuda" in config.device:
        yield doubt("device", f'"{config.device}" is not used, because of force_cpu')
    if config.disable_parallel and "," in config.device:
        yield doubt(
            "device", f'of "{config.device}" only the first is used, because of disable_parallel'
        )
    if config.settle_max < config.settle_seconds:
        yield doubt("settle_max", "is below settle_seconds, and has no effect")
    model = Path(config.model_path).expanduser()
    if config.model_path.startswith(("/", "~", "./", "../")) and not model.is_dir():
        yield doubt("model_path", f"{config.model_path} is no folder; `phi4d run` does not start")
    if config.results_dir and not config.results_dir.is_dir() and config.results_dir.exists():
        yield doubt("results_dir", f"{config.results_dir} is no folder")


def _priorities(config: Config) -> Iterator[Fault]:
    if {box.priority for box in config.inbox} in ({"high"}, {"low"}):
        for n in range(len(config.inbox)):
            place = ("inbox", n, "priority")
            said = "is the same for all inboxes, and has no effect"
            yield Fault(config.origin(*place), place, said)


def _of_inbox(config: Config, n: int, box: Inbox) -> Iterator[Fault]:
    def doubt(key: str, said: str) -> Fault:
        return Fault(config.origin("inbox", n, key), ("inbox", n, key), said)

    if not os.path.lexists(box.path):
        yield doubt("path", f"{box.path} is not there; make or mount it, or nothing is taken")
    elif not box.path.is_dir():
        yield doubt("path", f"{box.path} is no folder, so nothing is taken; expected one")
    outbox = config.inboxes()[n].outbox_root()
    if outbox.exists() and not outbox.is_dir():
        yield doubt("outbox", f"{outbox} is no folder; expected one, or a name that is free")
    if box.done_dir is not None and box.originals != "move":
        yield doubt("done_dir", f'is not used, because originals = "{box.originals}"')
    if said := _of_secret(box):
        yield doubt("webhook_secret_file", said)
    for key, found in (("on_done", box.on_done), ("on_failed", box.on_failed)):
        if not isinstance(found, tuple):
            continue
        if shutil.which(found[0]) is None:
            yield doubt(key, f"{found[0]} is no program that is found here and may be run")
        for word in hook.unknown(found):
            close = words.nearest(word, hook.WORDS)
            said = f"; did you mean {{{close}}}?" if close else ""
            yield doubt(key, f"{{{word}}} is no word that is replaced, and stays as it is{said}")
    for kind, key in (("image", "image_prompt"), ("audio", "speech_prompt")):
        if kind not in box.kinds and getattr(box, key) is not None:
            yield doubt(key, f'is not used, because kinds has no "{kind}"')
    for pattern in sorted(set(box.include) & set(box.exclude)):
        yield doubt("exclude", f'"{pattern}" is in include as well; exclude is the stronger')


def _of_secret(box: Inbox) -> str:
    file = box.webhook_secret_file
    if file is None:
        return ""
    if not box.has_webhook:
        return "is not used, because no hook of the inbox is a webhook"
    try:
        mode = os.stat(file).st_mode
    except FileNotFoundError:
        return f"{file} is not there, so no webhook is sent"
    except OSError:  # the daemon's user may see more
        return ""
    if mode & stat.S_IROTH:
        return f"{file} can be read by every user; chmod o-r keeps the secret"
    return ""
