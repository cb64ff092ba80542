from __future__ import annotations

import shutil

import pytest
from enginekit import CHECKPOINT

from phi4d.engine import folder, hub
from phi4d.errors import ConfigError

DOWNLOAD = "hf download microsoft/Phi-4-multimodal-instruct --revision refs/pr/70"


@pytest.mark.parametrize("text", ["/srv/model", "./model", "../model", "model", "a/b/c", "."])
def test_what_looks_like_a_path_is_one(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert str(hub.resolve(text)) == text.removeprefix("./")


def test_the_home_folder_is_put_in(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert hub.resolve("~/model") == tmp_path / "model"


def test_an_existing_folder_goes_before_the_hub(monkeypatch, tmp_path):
    (tmp_path / "microsoft" / "phi").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert str(hub.resolve("microsoft/phi")) == "microsoft/phi"


def hub_cache(root, revision, commit="0123456789abcdef0123456789abcdef01234567"):
    """A hub cache that holds the demo checkpoint as Phi-4-multimodal."""
    repository = root / "models--microsoft--Phi-4-multimodal-instruct"
    reference = repository / "refs" / revision
    reference.parent.mkdir(parents=True)
    reference.write_text(commit)
    snapshot = repository / "snapshots" / commit
    shutil.copytree(CHECKPOINT, snapshot)
    return snapshot


def test_a_downloaded_model_is_found_at_the_converted_revision(tmp_path):
    snapshot = hub_cache(tmp_path, "refs/pr/70")
    found = hub.resolve(hub.HUB_ID, cache_dir=tmp_path)
    assert found == snapshot
    folder.check(found)


def test_a_revision_can_be_named(tmp_path):
    snapshot = hub_cache(tmp_path, "v2")
    assert hub.resolve(hub.HUB_ID, "v2", str(tmp_path)) == snapshot


def test_a_model_that_was_not_downloaded_names_the_command(tmp_path):
    with pytest.raises(ConfigError) as caught:
        hub.resolve(hub.HUB_ID, cache_dir=tmp_path)
    assert str(caught.value).endswith(f"{DOWNLOAD} --cache-dir {tmp_path}")


def test_another_revision_than_the_downloaded_names_the_command(tmp_path):
    hub_cache(tmp_path, "refs/pr/70")
    with pytest.raises(ConfigError, match="--revision main"):
        hub.resolve(hub.HUB_ID, "main", tmp_path)
