"""The keys: each is declared once, as a field of `Config` or `Inbox`, with its meaning below it."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import platformdirs
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PrivateAttr,
    ValidationInfo,
    model_validator,
)
from pydantic_core import PydanticCustomError

from phi4d.config import hook
from phi4d.config.listen import Listen, listen
from phi4d.config.origins import Origin, Origins
from phi4d.config.places import KeyPath
from phi4d.job import Kind, Priority, Sampling, printable

BESIDE = Path("beside")
"""Value of ``outbox`` that puts sidecars next to their sources; every other outbox is absolute."""


def _state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/phi4d")
    return platformdirs.user_state_path("phi4d")


def _cache_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/cache/phi4d")
    return platformdirs.user_cache_path("phi4d")


def _to_path(value: object, info: ValidationInfo) -> Path:
    """An absolute path. In a file it is meant from the file's folder, which the context tells."""
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError("expected the path of a folder")
    try:
        os.fsencode(value)
        path = Path(value).expanduser()
    except UnicodeEncodeError:
        raise ValueError("expected the path of a folder, which this cannot be") from None
    except RuntimeError:
        raise ValueError("expected the path of a folder; there is no such user") from None
    folder: Path = (info.context or {}).get("folder", Path())
    return folder.absolute() / path


def _to_file(value: object, info: ValidationInfo) -> Path:
    try:
        return _to_path(value, info)
    except ValueError as error:
        raise ValueError(str(error).replace("folder", "file")) from None


def _to_outbox(value: object, info: ValidationInfo) -> Path:
    return BESIDE if value in (BESIDE, str(BESIDE)) else _to_path(value, info)


def _to_pattern(value: str) -> str:
    from phi4d import patterns  # late: most configurations have none

    if not patterns.is_one(value):
        raise ValueError(patterns.EXPECTED)
    return value


def _not_empty(value: str) -> str:
    if not value.strip():
        raise ValueError("expected some text")
    return value


def _to_name(value: str) -> str:
    # it is a folder's name in results_dir, and part of every line of the log
    if not value.strip() or not value.isprintable() or "/" in value or value in (".", ".."):
        raise ValueError("expected a name without / and line breaks")
    return value


def _to_devices(value: str) -> str:
    names = [name.strip().lower() for name in value.split(",")]
    if names not in (["auto"], ["cuda"]):
        for name in names:
            if not re.fullmatch(r"cpu|cuda:\d{1,4}", name):
                raise ValueError(
                    'expected "auto", "cuda", "cpu", or a list such as "cuda:0,cuda:1" or "cpu,cpu"'
                )
    return value


def _to_listen(value: str) -> str:
    return str(listen(value))


def _to_hook(value: object) -> object:
    """A command as a tuple, or the URL of a webhook."""
    if isinstance(value, str):
        return hook.url(value)
    return hook.command(value) if isinstance(value, list | tuple) else value


Folder = Annotated[Path, BeforeValidator(_to_path)]
File = Annotated[Path, BeforeValidator(_to_file)]
Outbox = Annotated[Path, BeforeValidator(_to_outbox)]
Text = Annotated[str, AfterValidator(_not_empty)]
Name = Annotated[str, AfterValidator(_to_name)]
Devices = Annotated[str, AfterValidator(_to_devices)]
Pattern = Annotated[str, AfterValidator(_to_pattern)]
Patterns = Annotated[tuple[Pattern, ...], Field(strict=False)]
ListenAt = Annotated[str, AfterValidator(_to_listen)]
Hook = Annotated[tuple[str, ...] | str, BeforeValidator(_to_hook)]
Seconds = Annotated[float, Field(gt=0, le=86_400, allow_inf_nan=False)]


@dataclass(frozen=True, slots=True)
class Clash:
    """Values that are right alone and wrong together.

    Validators of `Config` raise them all in one `PydanticCustomError` of the type `CLASHES`.
    """

    at: KeyPath
    """the key that it is told of"""
    words: str
    lacks: tuple[str, ...] = ()
    """keys of which one is missing: nothing is said where one was given, but could not be read"""


CLASHES = "clashes"


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
    name: Name = ""
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
    priority: Priority = "normal"
    """whose files go first: those of high before normal before low, but for one in eight"""
    originals: Literal["leave", "move", "delete"] = "leave"
    """what becomes of a file when its sidecars are safe on the disk; move: to done_dir"""
    done_dir: Folder | None = None
    """where originals are moved, subfolders mirrored; nothing there is ever overwritten"""
    failed_dir: Folder | None = None
    """where files that are at fault themselves are moved; default: they stay where they are"""
    on_done: Hook | None = None
    """what to run or tell when a file is done: a command as a list, or the URL of a webhook"""
    on_failed: Hook | None = None
    """the same when a file has failed"""
    hook_seconds: Seconds = 30.0
    """how long such a command may run, or a webhook take to answer"""
    webhook_secret_file: File | None = None
    """file with the secret that webhooks are signed with; default: they are not signed"""
    webhook_hours: Annotated[float, Field(ge=0, le=8760, allow_inf_nan=False)] = 24.0
    """how long after the end of its file a webhook that does not get through is tried again"""
    webhook_text: bool = False
    """whether a webhook is told the description or transcript itself"""
    image_prompt: Text | None = None
    """question about each picture; default: the general image_prompt"""
    speech_prompt: Text | None = None
    """instruction for each recording; default: the general speech_prompt"""

    @model_validator(mode="before")
    @classmethod
    def _name_from_folder(cls, data: Any, info: ValidationInfo) -> Any:
        if isinstance(data, dict) and "name" not in data and "path" in data:
            with contextlib.suppress(ValueError):  # the path's own check tells
                path = _to_path(data["path"], info)
                return {**data, "name": printable(Path(os.path.normpath(path)).name) or "root"}
        return data

    @property
    def has_webhook(self) -> bool:
        """Whether something is told over the network."""
        return isinstance(self.on_done, str) or isinstance(self.on_failed, str)

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
    device: Devices = "auto"
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
    batch_size: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """answers that each worker writes at a time at most; auto: as many as pay and fit its device"""
    threads: Literal["auto"] | Annotated[int, Field(ge=1, le=1024)] = "auto"
    """CPU threads of the model's arithmetic for each worker; auto: by the CPUs that there are"""
    max_new_tokens: Annotated[int, Field(ge=1, le=4096)] = 512
    """tokens of one answer at most"""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 0.0
    """0 = the likeliest token always; above, tokens are drawn, the flatter the higher"""
    repetition_penalty: Annotated[float, Field(gt=0, le=10, allow_inf_nan=False)] = 1.0
    """above 1, tokens of the prompt and of the answer so far become less likely"""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """of the drawing: the same file with the same seed has the same answer"""
    on_idle: Literal["keep", "unload"] = "keep"
    """when there is no work: keep the model loaded, or unload it and load it for the next file"""
    idle_unload_seconds: Seconds = 600.0
    """so long there must be no work before on_idle = "unload" gives the devices' memory back"""

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
    runtime_dir: Folder | None = None
    """where the daemon's control socket is, which its group may write to; default: state_dir"""
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
    """how long files that the model has may go on at a stop before they are put back"""
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

    metrics_listen: ListenAt | None = None
    """where metrics are served for Prometheus: "127.0.0.1:9464", "[::1]:9464" or "unix:/PATH";
    default: nowhere"""

    # the log
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """what is said: from debug, every detail, to error, only what failed"""
    log_format: Literal["auto", "plain", "json"] = "auto"
    """auto: fields in the journal under systemd, plain lines elsewhere; json: an object a line"""
    log_file: File | None = None
    """file to log to, in place of stderr or the journal"""
    log_file_mb: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 10.0
    """size at which log_file is rotated, in MB (10^6 bytes); 0 = never, for logrotate"""
    log_file_count: Annotated[int, Field(ge=1, le=1000)] = 5
    """rotated files that are kept: log_file.1 is the latest"""
    debug: bool = False
    """the same as log_level = "debug" (the old script's key)"""

    _origins: Origins = PrivateAttr(default_factory=Origins)

    @model_validator(mode="after")
    def _inboxes_fit_together(self) -> Self:
        clashes = [*_inbox_conflicts(self.inbox), *_originals_conflicts(self.inbox)]
        if self.results_dir is None:
            clashes += [
                Clash(
                    ("inbox", n),
                    f'inbox "{box.name}": no outbox; give it a folder or "{BESIDE}", or set '
                    "results_dir",
                    lacks=("outbox", "results_dir"),
                )
                for n, box in enumerate(self.inbox)
                if box.outbox is None
            ]
        if clashes:
            raise PydanticCustomError(
                CLASHES,
                "{words}",
                {"words": "\n".join(clash.words for clash in clashes), "clashes": clashes},
            )
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

    def origin(self, *path: str | int) -> Origin:
        """What set a value: ``origin("batch_size")``, ``origin("inbox", 0, "outbox")``."""
        return self._origins.of(path)

    def placed(self, fault: str) -> str:
        """A fault that shows at work only, with what set the key that it speaks of.

        Args:
            fault: words that begin with a key, or with the model.
        """
        if fault.startswith(f"{self.model_path}: "):
            fault = f"model_path: {fault}"
        origin = self.origin(fault.partition(":")[0])
        return fault if origin.kind == "default" else f"{origin}: {fault}"

    def log_settings(self) -> dict[str, Any]:
        """The arguments of `phi4d.log.configure`."""
        keys = {"log_level", "log_format", "log_file", "log_file_mb", "log_file_count"}
        settings = self.model_dump(include=keys)
        return {**settings, "log_level": "debug"} if self.debug else settings

    @property
    def sampling(self) -> Sampling:
        """How the tokens of an answer are chosen."""
        return Sampling(self.temperature, self.repetition_penalty, self.seed)

    @property
    def store_path(self) -> Path:
        """The store's file."""
        return self.state_dir / "jobs.sqlite3"

    @property
    def has_webhook(self) -> bool:
        """Whether an inbox wants something told over the network."""
        return any(box.has_webhook for box in self.inbox)

    @property
    def metrics_at(self) -> Listen | None:
        """Where metrics are served; None: nowhere."""
        return None if self.metrics_listen is None else listen(self.metrics_listen)

    @property
    def control_path(self) -> Path:
        """The daemon's control socket."""
        return (self.runtime_dir or self.state_dir) / "control"


def _plain(folder: Path) -> Path:
    """A folder without ``..``, to be compared; links are not looked at."""
    return Path(os.path.normpath(folder))


def _inbox_conflicts(boxes: tuple[Inbox, ...]) -> Iterator[Clash]:
    """Pairs of inboxes that would do a file twice or write over each other."""
    for n, a in enumerate(boxes):
        for m, b in enumerate(boxes[n + 1 :], n + 1):
            folders = _plain(a.path), _plain(b.path)
            if folders[0] == folders[1]:
                yield Clash(
                    ("inbox", m, "path"),
                    f'inbox "{a.name}" and inbox "{b.name}" are the same folder, {a.path}; leave '
                    "one of them out",
                )
                continue
            if a.name == b.name:
                yield Clash(
                    ("inbox", m, "name"),
                    f'inbox: two are named "{a.name}" ({a.path} and {b.path}); give one of them '
                    "another name",
                )
            if folders[0] in folders[1].parents or folders[1] in folders[0].parents:
                yield Clash(
                    ("inbox", m, "path"),
                    f'inbox "{a.name}" ({a.path}) and inbox "{b.name}" ({b.path}) hold the same '
                    "files; each file may belong to one inbox only",
                )
            elif a.outbox is not None and _plain(a.outbox_root()) == _plain(b.outbox_root()):
                yield Clash(
                    ("inbox", m, "outbox"),
                    f'inbox "{a.name}" and inbox "{b.name}" share the outbox {a.outbox_root()}; '
                    "files of the same name would overwrite each other's results",
                )


def _originals_conflicts(boxes: tuple[Inbox, ...]) -> Iterator[Clash]:
    """Folders for originals that are missing, or would hand the files back to their inbox."""
    for n, box in enumerate(boxes):
        if box.originals == "move" and box.done_dir is None:
            yield Clash(
                ("inbox", n, "originals"),
                f'inbox "{box.name}": originals = "move" needs done_dir, where to',
                lacks=("done_dir",),
            )
        for key, folder in (("done_dir", box.done_dir), ("failed_dir", box.failed_dir)):
            for other in boxes:
                if folder is None or _plain(folder) != _plain(other.path):
                    continue
                which = "the inbox itself" if other is box else f'the inbox "{other.name}"'
                yield Clash(
                    ("inbox", n, key),
                    f'inbox "{box.name}": {key} is {which}, where files are taken again; expected '
                    "another folder, which may be below it",
                )
