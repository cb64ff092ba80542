"""Configuration: defaults < TOML (or the old script's JSON) < ``PHI4_*`` < command line.

Each key is declared once, as a field of `Config` or `Inbox`. Loading either returns a valid
configuration or raises one `ConfigError` that names every fault at once; it never exits and never
touches the folders that it names.
"""

from __future__ import annotations

import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from phi4d.errors import ConfigError
from phi4d.job import Kind

ENV_PREFIX = "PHI4_"
SYSTEM_FILE = Path("/etc/phi4d/phi4d.toml")
BESIDE = Path("beside")
"""Value of ``outbox`` that puts sidecars next to their sources; every other outbox is absolute."""


def user_file() -> Path:
    """The user's own configuration file; it is read after the system's."""
    return platformdirs.user_config_path("phi4d") / "phi4d.toml"


def _state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/phi4d")
    return platformdirs.user_state_path("phi4d")


def _cache_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/phi4d")
    return platformdirs.user_cache_path("phi4d")


def _to_path(value: object) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("expected the path of a folder")
    return Path(value).expanduser().absolute()


def _to_outbox(value: object) -> Path:
    return BESIDE if value in (BESIDE, str(BESIDE)) else _to_path(value)


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("expected some text")
    return value


Folder = Annotated[Path, BeforeValidator(_to_path)]
Outbox = Annotated[Path, BeforeValidator(_to_outbox)]
Text = Annotated[str, AfterValidator(_not_empty)]
Patterns = Annotated[tuple[Text, ...], Field(strict=False)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


class _Model(BaseModel):
    # strict: a number in quotes is a mistake in a file; variables are converted beforehand
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Inbox(_Model):
    """A watched folder with its own rules."""

    path: Folder
    """folder to watch, with everything below it"""
    outbox: Outbox | None = None
    """folder for the sidecars, subfolders mirrored; "beside" = next to the source; default: a
    folder with the inbox's name in results_dir"""
    name: Text = ""
    """name in the log, the status and the store; default: the folder's name. Keep it when the
    folder moves, or its files are done again"""
    kinds: Annotated[tuple[Literal["image", "audio"], ...], Field(strict=False, min_length=1)] = (
        "image",
        "audio",
    )
    """what to take: pictures, recordings, or both"""
    watch: Literal["auto", "inotify", "poll"] = "auto"
    """how new files are noticed; auto: poll on network and FUSE file systems, inotify elsewhere"""
    include: Patterns = ()
    """patterns as in .gitignore: if there are any, only files that one of them matches are taken"""
    exclude: Patterns = ()
    """patterns as in .gitignore of files and folders to pass over, besides the usual litter"""
    originals: Literal["leave", "move", "delete"] = "leave"
    """what becomes of a file when its sidecars are safe on the disk; move: to done_dir"""
    done_dir: Folder | None = None
    """where originals are moved, subfolders mirrored; nothing there is ever overwritten"""
    failed_dir: Folder | None = None
    """where files that are at fault themselves are moved; default: they stay where they are"""
    image_prompt: Text | None = None
    """question about each picture; default: the general image_prompt"""
    speech_prompt: Text | None = None
    """instruction for each recording; default: the general speech_prompt"""

    @model_validator(mode="before")
    @classmethod
    def _name_from_folder(cls, data: Any) -> Any:
        if isinstance(data, dict) and "name" not in data and isinstance(data.get("path"), str):
            return {**data, "name": Path(data["path"]).name or "root"}
        return data

    def outbox_root(self) -> Path:
        """Where the sidecars' tree begins."""
        return self.path if self.outbox is None or self.outbox == BESIDE else self.outbox


class Config(_Model):
    """Every key, with its default, unit and reason."""

    # the model
    model_path: Text = "microsoft/Phi-4-multimodal-instruct"
    """hub id or folder of the model; "demo" = the tiny checkpoint that ships for trying out"""
    revision: Text = "main"
    """branch, tag or commit of a model on the hub"""
    cache_dir: Annotated[Folder, Field(default_factory=_cache_dir)]
    """where `phi4d model pull` puts models; the hub library's own cache is looked in as well"""
    device: Text = "auto"
    """auto, cpu, cuda, or a list with one worker each: "cuda:0,cuda:2", "cpu,cpu" """
    force_cpu: bool = False
    """use the CPU even if there are GPUs"""
    disable_parallel: bool = False
    """use one GPU even if there are several"""
    multi_gpu_threshold_gb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 8.0
    """free memory, in GB (10^9 bytes), that a GPU must have to get a worker of its own"""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """number format; auto: what the device computes fastest without losing the answer"""
    attention: Literal["auto", "flash_attention_2", "sdpa", "eager"] = "auto"
    """attention kernels of the language model; auto: FlashAttention 2 where it can be had"""
    quantization: Literal["auto", "none", "8bit", "4bit"] = "auto"
    """weights of the language model; auto: as precise as fits the device's free memory"""
    merge_adapters: Literal["auto", "always", "never"] = "auto"
    """keep the language model twice, once with each adapter added in: faster; auto: if it fits"""
    offload: Literal["auto", "never"] = "auto"
    """what fits no GPU's memory even in 4 bits: auto = part of it waits in main memory (slow)"""
    batch_size: Annotated[int, Field(ge=1, le=1024)] = 8
    """pictures, or stretches of recordings, that one model call takes at most"""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 512
    """tokens of one answer at most"""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    """0 = the likeliest token always; above, tokens are drawn, the flatter the higher"""
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1.0
    """above 1, tokens of the prompt and of the answer so far become less likely"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """of the drawing: the same file with the same seed has the same answer"""

    # the questions
    image_prompt: Text = "Describe the image."
    """question about each picture"""
    speech_prompt: Text = "Transcribe the audio clip into text."
    """instruction for each recording; the model was trained with just these words"""
    user_prompt: str = "<|user|>"
    """token that opens the user's turn"""
    prompt_suffix: str = "<|end|>"
    """token that ends a turn"""
    assistant_prompt: str = "<|assistant|>"
    """token that opens the answer"""

    # the folders
    inbox: Annotated[tuple[Inbox, ...], Field(strict=False)] = ()
    """watched folders, one [[inbox]] table each"""
    results_dir: Folder | None = None
    """outbox of inboxes that name none, and of `phi4d process`"""
    state_dir: Annotated[Folder, Field(default_factory=_state_dir)]
    """where the store is: what waits, runs, is done, has failed"""
    image_url: Text | None = None
    """picture for `phi4d process` without a file (the old script's key)"""
    audio_url: Text | None = None
    """recording for `phi4d process` without a file (the old script's key)"""

    # the daemon
    settle_seconds: Seconds = 2.0
    """how long a file must stay unchanged when no event tells that it is complete"""
    settle_max: Seconds = 300.0
    """seconds that a file which its own format says is incomplete must stay unchanged to count as
    cut off"""
    rescan_seconds: Seconds = 60.0
    """how often the inboxes are compared with the store, whatever the events said"""
    poll_seconds: Seconds = 10.0
    """how often inboxes are looked through that send no events (network and FUSE file systems)"""
    pause_seconds: Seconds = 5.0
    """first pause of an inbox whose outbox cannot be written; doubles up to 5 minutes"""
    retry_seconds: Seconds = 5.0
    """first wait of a file that is tried again; doubles up to 5 minutes"""
    stop_seconds: Seconds = 20.0
    """how long a running model call may go on at a stop before its files are put back"""
    hang_seconds: Seconds = 300.0
    """a worker without a sign of life for so long counts as hung"""
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """starts without an end after which a file is taken for the cause"""

    reuse: bool = True
    """copy the answer of a file with the same bytes that was asked the same of the same model"""

    # decoding
    decode_processes: Annotated[int, Field(ge=1, le=64)] = 2
    """processes for each worker that decode pictures and recordings, apart from the model"""
    decode_seconds: Seconds = 60.0
    """limit on wall-clock and on CPU time for one picture, or for one stretch of a recording"""
    max_file_mb: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 8192.0
    """largest file taken, in MB (10^6 bytes)"""
    max_megapixels: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 200.0
    """largest picture taken, in millions of pixels"""
    max_frames: Annotated[int, Field(ge=1)] = 10_000
    """most frames of an animation, or pages of a TIFF; only the first is looked at"""
    max_duration_hours: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 24.0
    """longest recording taken"""
    decode_memory_gb: Annotated[float, Field(ge=0.5, allow_inf_nan=False)] = 4.0
    """memory of one decode process at most, in GB (10^9 bytes)"""

    debug: bool = False
    """log in detail"""

    @model_validator(mode="after")
    def _inboxes_fit_together(self) -> Self:
        faults = [*_inbox_conflicts(self.inbox), *_originals_conflicts(self.inbox)]
        if self.results_dir is None:
            faults += [
                f'inbox "{i.name}": no outbox; give it a folder or "{BESIDE}", or set results_dir'
                for i in self.inbox
                if i.outbox is None
            ]
        if faults:
            raise ValueError("\n".join(faults))
        return self

    def inboxes(self) -> tuple[Inbox, ...]:
        """The inboxes with nothing left to default: outbox and prompts are all set."""
        return tuple(
            box.model_copy(
                update={
                    "outbox": box.outbox or (self.results_dir and self.results_dir / box.name),
                    "image_prompt": box.image_prompt or self.image_prompt,
                    "speech_prompt": box.speech_prompt or self.speech_prompt,
                }
            )
            for box in self.inbox
        )

    def prompt(self, box: Inbox, kind: Kind) -> str:
        """The prompt for a kind of file in an inbox."""
        if kind is Kind.IMAGE:
            return box.image_prompt or self.image_prompt
        return box.speech_prompt or self.speech_prompt

    @property
    def store_path(self) -> Path:
        """The store's file."""
        return self.state_dir / "jobs.sqlite3"

    @property
    def control_path(self) -> Path:
        """The daemon's control socket."""
        return self.state_dir / "control"


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

    anchor(data, ("cache_dir", "results_dir", "state_dir"))
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


def _inbox_conflicts(boxes: tuple[Inbox, ...]) -> Iterator[str]:
    """Pairs of inboxes that would do a file twice or write over each other."""
    for n, a in enumerate(boxes):
        for b in boxes[n + 1 :]:
            if a.name == b.name:
                yield f'inbox: two are named "{a.name}"; give one of them another name'
            if a.path == b.path or a.path in b.path.parents or b.path in a.path.parents:
                yield (
                    f'inbox "{a.name}" ({a.path}) and inbox "{b.name}" ({b.path}) hold the same '
                    "files; each file may belong to one inbox only"
                )
            elif a.outbox is not None and a.outbox_root() == b.outbox_root():
                yield (
                    f'inbox "{a.name}" and inbox "{b.name}" share the outbox {a.outbox_root()}; '
                    "files of the same name would overwrite each other's results"
                )


def _originals_conflicts(boxes: tuple[Inbox, ...]) -> Iterator[str]:
    """Folders for originals that are missing, or would hand the files back to their inbox."""
    for box in boxes:
        if box.originals == "move" and box.done_dir is None:
            yield f'inbox "{box.name}": originals = "move" needs done_dir, where to'
        for key, folder in (("done_dir", box.done_dir), ("failed_dir", box.failed_dir)):
            if folder == box.path:
                yield (
                    f'inbox "{box.name}": {key} is the inbox itself; expected another folder, '
                    "which may be below it"
                )


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
