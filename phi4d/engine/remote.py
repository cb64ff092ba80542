"""A model on the Hugging Face hub: what it consists of, and its bytes. No torch.

The hub's library does the asking; what it raises becomes our own words here. Where the bytes go is
``pull.py``'s.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from phi4d import __version__
from phi4d.engine import hub
from phi4d.errors import ConfigError, EnvironmentFault

TRIES = 6
"""connections in a row that bring nothing, after which a download is given up"""
PAUSE_SECONDS = 1.0
"""before the second try; doubles with each"""
BUSY = {408, 425, 429}
"""HTTP's codes, of those below 500, that are not the asker's fault"""


@dataclass(frozen=True, slots=True)
class File:
    """A file on the hub."""

    name: str
    size: int
    digest: str
    """SHA-256 of a large file, git's SHA-1 of a small one; the hub's library names blobs so"""


class Remote:
    """A model on the hub."""

    def __init__(self, model: str, endpoint: str | None, pause_seconds: float) -> None:
        self.model = model
        self._endpoint = endpoint
        self._pause_seconds = pause_seconds

    def list(self, revision: str) -> tuple[str, dict[str, File]]:
        """The commit that a revision is now, and its files by name."""
        from huggingface_hub import HfApi
        from huggingface_hub.constants import HF_HUB_ETAG_TIMEOUT

        api = HfApi(self._endpoint, library_name="phi4d", library_version=__version__)
        with self._faults(revision):
            try:
                info = api.model_info(
                    self.model, revision=revision, files_metadata=True, timeout=HF_HUB_ETAG_TIMEOUT
                )
            except (KeyError, TypeError, json.JSONDecodeError) as error:
                raise EnvironmentFault(
                    f"{api.endpoint}: what answers there is not the hub ({error!r}). Look at "
                    "HF_ENDPOINT, and for a network that wants a login first; then try again"
                ) from error
        files = {}
        for sibling in info.siblings or []:
            digest = (sibling.lfs.sha256 if sibling.lfs else sibling.blob_id) or ""
            if sibling.size is not None and re.fullmatch(r"[0-9a-f]{40,64}", digest):
                files[sibling.rfilename] = File(sibling.rfilename, sibling.size, digest)
        return info.sha or revision, files

    def fetch(self, file: File, commit: str, part: Path, arrived: Callable[[int], None]) -> None:
        """Bring a file to its full size, from what is there of it.

        Args:
            file: what to get.
            commit: of the model.
            part: where to; stays as it is when the download breaks off.
            arrived: called with the bytes of each piece; below 0, so many have to come again.
        """
        failures = 0
        part.touch()
        while (before := part.stat().st_size) != file.size:
            try:
                with self._faults(commit):
                    self._append(file, commit, part, arrived)
            except EnvironmentFault:
                failures = 1 if part.stat().st_size > before else failures + 1
                if failures == TRIES:
                    raise
                time.sleep(self._pause_seconds * 2 ** (failures - 1))

    def _append(self, file: File, commit: str, part: Path, arrived: Callable[[int], None]) -> None:
        """Ask once for what a file lacks, and write what comes."""
        from huggingface_hub import hf_hub_url
        from huggingface_hub.constants import HF_HUB_DOWNLOAD_TIMEOUT
        from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

        url = hf_hub_url(self.model, file.name, revision=commit, endpoint=self._endpoint)
        headers = build_hf_headers(library_name="phi4d", library_version=__version__)
        # Compressed, the bytes would not be those that a range counts.
        headers |= {"Accept-Encoding": "identity"}
        have = part.stat().st_size
        if 0 < have < file.size:
            headers |= {"Range": f"bytes={have}-"}
        request = get_session().stream("GET", url, headers=headers, timeout=HF_HUB_DOWNLOAD_TIMEOUT)
        with request as response, part.open("ab") as target:
            hf_raise_for_status(response)
            if response.status_code != 206:  # not the range that was asked for, but the whole
                arrived(-min(have, file.size))
                target.truncate(0)
            for chunk in response.iter_bytes():
                target.write(chunk)
                arrived(len(chunk))
        if (have := part.stat().st_size) != file.size:
            raise EnvironmentFault(
                f"{self.model}: {file.name} ended at {size(have)} of {size(file.size)}. Go on with "
                "the same command"
            )

    @contextmanager
    def _faults(self, revision: str) -> Iterator[None]:
        """What the hub's library raises becomes our own words: what is wrong, and what to do."""
        from huggingface_hub import constants, errors

        endpoint = self._endpoint or constants.ENDPOINT
        model = self.model
        try:
            yield
        except errors.HFValidationError as error:
            raise ConfigError(f"{model}: not the name of a model on the hub: {error}") from error
        except errors.GatedRepoError as error:
            raise ConfigError(
                f"{model}: its owner gives it to those who asked. Ask on {endpoint}/{model}, then "
                "set HF_TOKEN to a token of the same account"
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ConfigError(
                f"{model}: the hub has no such model, or it is private. Look at the name; for a "
                "private one, set HF_TOKEN to a token that may read it"
            ) from error
        except errors.RevisionNotFoundError as error:
            raise ConfigError(
                f"{model}: the hub has no revision {revision!r} of it. Give a branch, tag or "
                f"commit that {endpoint}/{model} lists; {hub.REVISION!r} is the newest"
            ) from error
        except errors.OfflineModeIsEnabled as error:
            raise EnvironmentFault(
                f"{model}: HF_HUB_OFFLINE is set, so the hub is not asked. Unset it to download"
            ) from error
        except errors.HfHubHTTPError as error:
            code = error.response.status_code
            said = f"the hub answered {code} {error.response.reason_phrase}"
            if code >= 500 or code in BUSY:
                raise EnvironmentFault(f"{model}: {said}. Try again later") from error
            if code in (401, 403):
                raise ConfigError(
                    f"{model}: {said}. Look at the name, and set HF_TOKEN to a valid token that "
                    "may read it"
                ) from error
            raise ConfigError(f"{model}: {said} for revision {revision!r}") from error
        except errors.HTTPError as error:  # of httpx, or in newer versions of httpx2
            raise EnvironmentFault(
                f"{model}: the hub ({endpoint}) cannot be reached: {error}. Look at the network, "
                "and at HTTPS_PROXY if there is a proxy; then go on with the same command"
            ) from error


def size(count: int) -> str:
    """A number of bytes in words: GB are 10^9, MB 10^6."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
