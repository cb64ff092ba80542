"""A Hugging Face hub on 127.0.0.1, as far as phi4d asks one."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"
LARGE_BYTES = 10_000
"""files from this size on are as on the hub those in its large file storage: named by SHA-256"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def original_layout() -> dict[str, bytes]:
    """The names of what the hub's main revision consists of, with little in them."""
    files = {name: f"this is {name}".encode() for name in ORIGINAL_NEEDED | ORIGINAL_OTHERS}
    files |= {"processor_config.json": b"{}", "tokenizer_config.json": b'{"x": 1}'}
    files["config.json"] = b'{"model_type": "phi4mm"}'
    key = "model.layers.0.mlp.down_proj"
    index = {
        f"{key}.base_layer.weight": "model-00001-of-00002.safetensors",
        f"{key}.lora_A.speech.weight": "model-00001-of-00002.safetensors",
        f"{key}.lora_A.vision.weight": "model-00002-of-00002.safetensors",
    }
    files["model.safetensors.index.json"] = json.dumps({"weight_map": index}).encode()
    return files


ORIGINAL_NEEDED = {
    "config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json",
    "preprocessor_config.json", "processor_config.json", "model.safetensors.index.json",
    "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
}  # fmt: skip
ORIGINAL_OTHERS = {
    ".gitattributes", "README.md", "LICENSE", "phi_4_mm.tech_report.02252025.pdf",
    "figures/audio_understand.png", "examples/what_is_shown_in_this_image.wav",
    "modeling_phi4mm.py", "processing_phi4mm.py", "configuration_phi4mm.py", "vocab.json",
    "merges.txt", "added_tokens.json", "special_tokens_map.json", "sample_inference_phi4mm.py",
    "vision-lora/adapter_config.json", "vision-lora/adapter_model.safetensors",
    "speech-lora/adapter_config.json", "speech-lora/adapter_model.safetensors",
}  # fmt: skip


def digest(content: bytes) -> str:
    if len(content) >= LARGE_BYTES:
        return hashlib.sha256(content).hexdigest()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


class FakeHub:
    """Holds one model, ``org/name``, at one commit. Its attributes may be changed at any time."""

    MODEL = "org/name"

    def __init__(self, files: Mapping[str, bytes]) -> None:
        self.files = dict(files)
        self.commit = COMMIT
        self.revisions = {"main", "refs/pr/70"}
        self.sizes: dict[str, int] = {}
        """sizes that it claims, other than the true ones"""
        self.token: str | None = None
        """whom it lets in; None for everybody"""
        self.status: int | None = None
        """what it answers instead, whatever is asked"""
        self.error_code = ""
        """what the hub calls that answer"""
        self.listing: bytes | None = None
        """what it answers when it is asked for the files; None for the truth"""
        self.break_offs: list[tuple[str, int]] = []
        """a file's name, and after how many bytes the connection ends; each happens once"""
        self.hold: tuple[str, int] | None = None
        """a file's name, and after how many bytes of it nothing comes until `release` is set"""
        self.held = threading.Event()
        """it has come so far"""
        self.release = threading.Event()
        self.ranges = True
        """whether it knows ranges"""
        self.garble: set[str] = set()
        """files that it sends with a wrong byte"""
        self.asked: list[str] = []
        """paths, in order"""
        self.fetched: list[tuple[str, str]] = []
        """files that were asked for, each with its range, or nothing"""
        self.tokens: set[str] = set()
        self.endpoint = ""


@contextmanager
def running(files: Mapping[str, bytes]) -> Iterator[FakeHub]:
    """A hub that answers until the end of the block."""
    hub = FakeHub(files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = False  # closing then waits for the connections' threads
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    hub.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        hub = self.hub
        path = unquote(self.path.partition("?")[0])
        hub.asked.append(path)
        token = self.headers.get("Authorization", "")
        hub.tokens.add(token)
        if hub.status is not None:
            self._refuse(hub.status, hub.error_code)
        elif hub.token is not None and token != f"Bearer {hub.token}":
            self._refuse(401, "GatedRepo")
        elif path.startswith(f"/api/models/{hub.MODEL}/revision/"):
            self._list(path.partition("/revision/")[2])
        elif path.startswith(f"/{hub.MODEL}/resolve/{hub.commit}/"):
            self._send(path.partition(f"/{hub.commit}/")[2])
        else:
            self._refuse(404, "RepoNotFound")

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        if code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _list(self, revision: str) -> None:
        hub = self.hub
        if revision not in hub.revisions | {hub.commit}:
            self._refuse(404, "RevisionNotFound")
            return
        siblings = []
        for name, content in hub.files.items():
            size = hub.sizes.get(name, len(content))
            sibling = {"rfilename": name, "size": size, "blobId": digest(content)[:40]}
            if len(content) >= LARGE_BYTES:
                sibling["lfs"] = {"sha256": digest(content), "size": size, "pointerSize": 135}
            siblings.append(sibling)
        answer = json.dumps({"id": hub.MODEL, "sha": hub.commit, "siblings": siblings}).encode()
        answer = answer if hub.listing is None else hub.listing
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def _send(self, name: str) -> None:
        hub = self.hub
        asked = self.headers.get("Range", "")
        hub.fetched.append((name, asked))
        content = hub.files[name]
        if name in hub.garble:
            content = content[:-1] + bytes([content[-1] ^ 1])
        begin = 0
        if asked and hub.ranges:
            begin = int(asked.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - begin))
        self.end_headers()
        end = len(content)
        if hub.break_offs and hub.break_offs[0][0] == name:
            end = begin + hub.break_offs.pop(0)[1]
            self.close_connection = True
        if hub.hold and hub.hold[0] == name:
            middle = begin + hub.hold[1]
            self.wfile.write(content[begin:middle])
            hub.held.set()
            hub.release.wait(60)
            begin = middle
        with contextlib.suppress(ConnectionError):  # who asked may be gone
            self.wfile.write(content[begin:end])
