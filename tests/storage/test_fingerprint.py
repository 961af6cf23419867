"""The fingerprint tells two checkpoints apart without reading them whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lm_eval_aft.storage.fingerprint import FILE_END_BYTES, checkpoint_fingerprint

# Rows of 64 float32 numbers that make a tensor as long as the end of a file that is read.
ROWS = FILE_END_BYTES // 256


def save(folder: Path, trained: str | None) -> str:
    """A checkpoint of three layers, one of them trained. Only the first and the last reach an end of the file."""
    folder.mkdir()
    weights = {name: torch.zeros(2 * ROWS, 64) for name in ("a.first", "b.middle", "c.last")}
    if trained:
        weights[trained] += 1
    save_file(weights, folder / "model.safetensors")
    return checkpoint_fingerprint(str(folder), None, None)


def test_one_layer_that_was_trained_further_is_noticed(tmp_path):
    layers = (None, "a.first", "b.middle", "c.last")
    fingerprints = [save(tmp_path / str(number), trained) for number, trained in enumerate(layers)]
    assert len(set(fingerprints)) == len(layers)
    assert save(tmp_path / "again", None) == fingerprints[0]


@pytest.mark.parametrize("name", ["model.gguf", "pytorch_model.bin"])
def test_the_middle_of_other_files_is_looked_at_too(tmp_path, name):
    content = bytearray(8 * FILE_END_BYTES)
    fingerprints = []
    for folder, value in (("one", 0), ("two", 1)):
        content[2 * FILE_END_BYTES : 6 * FILE_END_BYTES] = bytes([value]) * 4 * FILE_END_BYTES
        (tmp_path / folder).mkdir()
        (tmp_path / folder / name).write_bytes(content)
        fingerprints.append(checkpoint_fingerprint(str(tmp_path / folder), None, None))
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1", b"\x02\0\0\0\0\0\0\0[]"])
def test_a_file_that_is_no_safetensors_file_in_spite_of_its_name_is_looked_at_as_any_other(tmp_path, content):
    (tmp_path / "consolidated.safetensors").write_bytes(content)
    assert checkpoint_fingerprint(str(tmp_path), None, None).startswith("folder:")


def test_an_adapter_from_the_hub_is_known_by_its_commit(tmp_path, monkeypatch):
    repository = tmp_path / "models--somebody--adapter"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("c0ffee")
    (repository / "snapshots" / "c0ffee").mkdir(parents=True)
    (repository / "snapshots" / "c0ffee" / "adapter_config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.file_download.constants.HF_HUB_CACHE", str(tmp_path))
    assert checkpoint_fingerprint("somebody/adapter", None, None) == "hub:somebody/adapter@c0ffee"
    assert checkpoint_fingerprint("somebody/other", None, None) == "hub:somebody/other@main"
    assert checkpoint_fingerprint("a name/that cannot be", "v1", None) == "hub:a name/that cannot be@v1"


def test_the_state_of_an_optimizer_is_no_part_of_a_checkpoint(tmp_path):
    plain = save(tmp_path / "plain", None)
    # As version 0.1.0 identified it.
    assert plain == "folder:ba460ab74dc79ab6abc3e77025aa0786a2fff780b9a3d6d0454b46f5b450c551"
    for name in ("optimizer.pt", "scheduler.pt"):
        (tmp_path / "plain" / name).write_bytes(b"state")
        assert checkpoint_fingerprint(str(tmp_path / "plain"), None, None) == plain
    # Weights of any other name still count.
    (tmp_path / "plain" / "extra.pt").write_bytes(b"weights")
    assert checkpoint_fingerprint(str(tmp_path / "plain"), None, None) != plain
