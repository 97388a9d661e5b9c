"""What is asked of the hub, and when: config and tokenizer first, weights only where they are read and the data are
known to be right. The hub is a stand-in; nothing here uses a network."""

from __future__ import annotations

import fnmatch
import json
import shutil
from pathlib import Path

import huggingface_hub
import pytest
from helpers.commands import SMALL, mmeureka, prompt_row, write_rows
from safetensors.numpy import load_file, save_file

from mmeureka_jax.formats.hub import fetch_weights, resolve_checkpoint
from mmeureka_jax.formats.hugging_face import load_params, read_config, stored_dtypes
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

pytestmark = pytest.mark.usefixtures("shared_reward_workers")
COMMIT = "0123abc"


@pytest.fixture(scope="module")
def repository(tmp_path_factory) -> Path:
    """What the hub has under owner/tiny: a model whose weights lie in two files."""
    folder = tmp_path_factory.mktemp("repository") / "tiny"
    write_tiny_checkpoint(folder, SMALL)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    weight_map = {name: f"model-0000{1 + number % 2}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        save_file({name: tensors[name] for name, one in weight_map.items() if one == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return folder


@pytest.fixture
def hub(repository, tmp_path, monkeypatch) -> list[str]:
    """Stands for `owner/tiny`; the list says in order what was downloaded: "small" files or "weights"."""
    folder = tmp_path / "hub" / "models--owner--tiny" / "snapshots" / COMMIT
    asked: list[str] = []

    def download(name: str, *, allow_patterns: list[str], revision: str | None = None) -> str:
        assert name == "owner/tiny" and revision in (None, COMMIT)
        folder.mkdir(parents=True, exist_ok=True)
        wanted = [file for file in repository.iterdir() if any(fnmatch.fnmatch(file.name, p) for p in allow_patterns)]
        for file in wanted:
            shutil.copyfile(file, folder / file.name)
        kinds = {".json": "small", ".safetensors": "weights"}
        asked.extend(kind for end, kind in kinds.items() if any(file.name.endswith(end) for file in wanted))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


@pytest.fixture
def rows(tmp_path) -> Path:
    return write_rows(tmp_path / "rows.jsonl", [prompt_row("a", "what is 1 + 1 ?", answer="2")])


def test_a_check_of_data_needs_no_weights(hub, rows):
    assert mmeureka("data", "check", rows, "--model", "owner/tiny") == 0
    assert hub == ["small"]


@pytest.mark.parametrize("command", ["train", "sft"])
def test_training_looks_at_the_data_first(hub, tmp_path, capsys, command):
    (tmp_path / "bad.jsonl").write_text('{"id": "a", "question": "?"}\n')
    config = tmp_path / "run.yaml"
    config.write_text(f"run_dir: {tmp_path / 'run'}\nmodel: {{checkpoint: owner/tiny}}\n")
    sizes = ["rl.prompts_per_rollout=8", "rl.prompts_per_update=8", "sft.problems_per_step=8"]
    assert mmeureka(command, config, f"data.train={tmp_path / 'bad.jsonl'}", *sizes) == 2
    assert "no row can be used" in capsys.readouterr().err
    assert hub == ["small"]


@pytest.mark.parametrize("command", ["sample", "score"])
def test_prompts_are_read_first(hub, rows, tmp_path, capsys, command):
    arguments = ["--model", "owner/tiny", "--output", tmp_path / "out.jsonl"]
    assert mmeureka(command, "--input", write_rows(tmp_path / "bad.jsonl", [{"id": "a"}]), *arguments) == 2
    assert hub == ["small"]


def test_weights_come_when_they_are_read(hub, rows, tmp_path, capsys):
    arguments = ["--model", "owner/tiny", "--max-new-tokens", 1, "--output", tmp_path / "out.jsonl"]
    assert mmeureka("sample", "--input", rows, *arguments) == 0
    assert hub == ["small", "weights"]
    assert "downloading the weights of owner/tiny" in capsys.readouterr().err


def test_they_are_those_of_the_config(hub, repository):
    folder = resolve_checkpoint("owner/tiny", weights=False)
    config = read_config(folder)
    assert hub == ["small"]
    assert stored_dtypes(folder) == stored_dtypes(repository) and hub == ["small", "weights"]
    assert load_params(folder, config).keys() == load_params(repository, config).keys()
    fetch_weights(folder)
    assert hub == ["small", "weights"]  # once


def test_a_folder_of_ones_own_is_never_downloaded(hub, repository, tmp_path):
    folder = shutil.copytree(repository, tmp_path / "own", ignore=shutil.ignore_patterns("*.safetensors"))
    fetch_weights(folder)
    assert hub == []
