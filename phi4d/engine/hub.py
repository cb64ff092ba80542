"""Where the model lies on this machine. No torch, no network.

What is in the folder is ``folder.py``'s to judge.
"""

from __future__ import annotations

import re
from pathlib import Path

from phi4d.errors import ConfigError

HUB_ID = "microsoft/Phi-4-multimodal-instruct"
REVISION = "refs/pr/70"
"""the revision of `HUB_ID` with the converted layout, which transformers' own classes load"""


def resolve(model: str, revision: str | None = None, cache_dir: str | Path | None = None) -> Path:
    """Find the folder of a model on this machine. Never downloads.

    Args:
        model: a folder, or a name on the Hugging Face hub such as `HUB_ID`. An existing folder, or
            a text that begins with ``/``, ``.`` or ``~``, is a folder; so is anything that cannot
            be a hub's name.
        revision: branch, tag or commit of the hub's model; None for `REVISION`.
        cache_dir: the hub's cache; None for the user's (``HF_HOME``).

    Raises:
        ConfigError: the hub's model was not downloaded; the message has the command that does it.
    """
    path = Path(model).expanduser()
    if path.is_dir() or not _is_hub_id(model):
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    revision = revision or REVISION
    try:
        return Path(
            snapshot_download(model, revision=revision, cache_dir=cache_dir, local_files_only=True)
        )
    except (LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ConfigError(
            f"{model}: neither a folder nor in the hub's cache"
            f"{f' {cache_dir}' if cache_dir else ''} at revision {revision}. "
            f"Download it with: {download_command(model, revision, cache_dir)}"
        ) from error


def download_command(
    model: str = HUB_ID, revision: str = REVISION, cache_dir: str | Path | None = None
) -> str:
    """The command line that downloads a model where `resolve` finds it."""
    cache = f" --cache-dir {cache_dir}" if cache_dir else ""
    return f"hf download {model} --revision {revision}{cache}"


def _is_hub_id(text: str) -> bool:
    """Whether a text can be the name of a model on the hub: ``owner/name``."""
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", text) is not None
