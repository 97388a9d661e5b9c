"""Accuracy per problem over several answers, and training on a range of it."""

from __future__ import annotations

import json
import shutil
from collections import Counter

import pytest
from flax.traverse_util import unflatten_dict
from helpers.commands import mmeureka, read_rows
from helpers.guessing import write_guessing_checkpoint
from safetensors.numpy import load_file, save_file

from mmeureka_jax.config.schema import DataConfig, LoraConfig
from mmeureka_jax.data.check import CheckReport
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.formats.peft import save_adapters
from mmeureka_jax.models.lora import Lora, initial_adapters
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.process.console import plural
from mmeureka_jax.runs.provenance import PROVENANCE_FILE
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.setup.difficulty import read_difficulty, rows_by_difficulty
from mmeureka_jax.setup.problems import CheckedProblems

pytestmark = pytest.mark.usefixtures("shared_reward_workers")

SPEC = "tfds:shapes/dots@train[:6]"


def checked() -> CheckedProblems:
    source = open_problems(SPEC)
    return CheckedProblems(SPEC, source, CheckReport(list(range(6)), [], 0, 0))


def write(path, accuracies, first=0):
    source = open_problems(SPEC)
    rows = [{"id": source[first + i].id, "accuracy": accuracy} for i, accuracy in enumerate(accuracies)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.mark.slow
def test_an_interrupted_measurement_goes_on(tmp_path, capsys):
    write_guessing_checkpoint(tmp_path / "model", layers=1)
    output = tmp_path / "d.jsonl"
    command = ["data", "difficulty", SPEC, "--model", tmp_path / "model", "--output", output, "--n", 4]
    options = ["--max-new-tokens", 6, "--batch-size", 4, "--prompt-style", "plain", "--max-pixels", 12544]
    assert mmeureka(*command, *options) == 0
    shown = capsys.readouterr().out.splitlines()
    rows = read_rows(output)
    text = output.read_text()
    assert [row["id"] for row in rows] == [open_problems(SPEC)[i].id for i in range(6)]
    counts = Counter(round(row["accuracy"] * 4) for row in rows)
    assert shown[:5] == [f"{right} of 4 right: {plural(counts[right], 'problem')}" for right in range(5)]
    assert 0 < sum(row["accuracy"] for row in rows) < 6 and all(row["length"] == 4 for row in rows)

    output.write_text("".join(text.splitlines(keepends=True)[:2]) + '{"id": "cut')
    assert mmeureka(*command, *options) == 0
    assert output.read_text() == text
    assert mmeureka(*command, *options, "--limit", 2) == 0
    assert output.read_text() == text
    assert mmeureka(*command, *options, "--seed", 1) == 2
    assert "d.jsonl was made with other settings (seed)" in capsys.readouterr().err

    # As versions left it that did not record adapters.
    settings = output.with_name("d.jsonl.settings.json")
    recorded = json.loads(settings.read_text())
    assert recorded.pop("adapters") is None
    settings.write_text(json.dumps(recorded))
    output.write_text("".join(text.splitlines(keepends=True)[:3]))
    assert mmeureka(*command, *options) == 0
    assert output.read_text() == text


@pytest.fixture(scope="module")
def adapters(tmp_path_factory):
    """A checkpoint for contexts of 64 tokens, and adapters whose run asked in a style of its own."""
    folder = tmp_path_factory.mktemp("adapters")
    write_guessing_checkpoint(folder / "model", layers=1)
    content = json.loads((folder / "model" / "config.json").read_text())
    (folder / "model" / "config.json").write_text(json.dumps(content | {"max_position_embeddings": 64}))
    model = read_config(folder / "model")
    lora = Lora(rank=2, alpha=4.0, targets=LoraConfig.targets)
    policy = Policy(model, lora=lora)
    values = unflatten_dict(initial_adapters(policy.abstract_params(), 0), sep="/")
    asked = {"prompt_style": "plain", "max_new_tokens": 6, "max_pixels": 12544}
    files = {PROVENANCE_FILE: json.dumps(asked).encode()}
    save_adapters(values, model, lora, folder / "adapters", base=None, files=files)
    return folder


def measure(folder, output, *options):
    files = ["--model", folder / "model", "--adapters", folder / "adapters", "--output", output]
    return mmeureka("data", "difficulty", "tfds:shapes/dots@train[:12]", *files, "--n", 2, "--batch-size", 8, *options)


def test_adapters_ask_as_their_run_did_and_are_recorded(adapters, tmp_path, capsys, caplog):
    output = tmp_path / "d.jsonl"
    assert measure(adapters, output, "--max-new-tokens", 40) == 0
    assert "positions, and the checkpoint was trained on 64" in caplog.text
    settings = json.loads(output.with_name("d.jsonl.settings.json").read_text())
    assert (settings["prompt_style"], settings["max_pixels"], settings["max_new_tokens"]) == ("plain", 12544, 40)
    assert settings["adapters"] is not None
    rows = output.read_bytes()

    weights = adapters / "adapters" / "adapter_model.safetensors"
    others = {name: value + 1 for name, value in load_file(weights).items()}
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(adapters / "adapters", elsewhere / "adapters")
    save_file(others, elsewhere / "adapters" / "adapter_model.safetensors")
    (elsewhere / "model").symlink_to(adapters / "model")
    capsys.readouterr()
    assert measure(elsewhere, output, "--max-new-tokens", 40) == 2
    assert "d.jsonl was made with other settings (model, adapters)" in capsys.readouterr().err
    assert output.read_bytes() == rows


def test_whole_batches_are_kept_where_a_measurement_is_interrupted(adapters, tmp_path, monkeypatch, capsys):
    assert measure(adapters, tmp_path / "whole.jsonl") == 0
    calls = []
    sample = Sampler.sample

    def interrupted(self, params, request):
        calls.append(self.stream)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return sample(self, params, request)

    monkeypatch.setattr(Sampler, "sample", interrupted)
    output = tmp_path / "out" / "d.jsonl"
    assert measure(adapters, output) == 130
    assert "the same command continues after the last whole batch" in capsys.readouterr().err
    assert [path.name for path in output.parent.iterdir()] == ["d.jsonl.partial"]
    assert measure(adapters, output) == 0
    assert calls == ["sample"] * 3  # answers have the noise of `sample`, not that of `eval`
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in output.parent.iterdir()) == ["d.jsonl", "d.jsonl.settings.json"]


def test_rows_within_the_range_some_of_them_more_often(tmp_path):
    path = write(tmp_path / "d.jsonl", [0.0, 0.125, 0.5, 0.75, 0.875, 1.0])

    def rows(**options):
        return rows_by_difficulty(DataConfig(difficulty=path, **options), checked())

    assert rows() == [0, 1, 2, 3, 4, 5]
    assert rows(difficulty_lower=0.1, difficulty_upper=0.875) == [1, 2, 3, 4]
    assert Counter(rows(difficulty_copies=4)) == {0: 1, 1: 2, 2: 4, 3: 3, 4: 2, 5: 1}
    assert rows_by_difficulty(DataConfig(), checked()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UserError, match=r"d.jsonl: no problem has an accuracy from 0.2 to 0.3; widen"):
        rows(difficulty_lower=0.2, difficulty_upper=0.3)


def test_what_is_missing_or_broken_is_named(tmp_path):
    path = write(tmp_path / "d.jsonl", [0.5] * 4)
    with pytest.raises(
        UserError, match=r"d.jsonl has no difficulty of 2 of 6 usable problems of .*mmeureka data difficulty"
    ):
        rows_by_difficulty(DataConfig(difficulty=path), checked())
    (tmp_path / "d.jsonl").write_text('{"id": "a", "accuracy": 0.5}\n{"id": "b", "accuracy": 5}\n')
    with pytest.raises(UserError, match=r"d.jsonl:2: not a row of"):
        read_difficulty(tmp_path / "d.jsonl")
    with pytest.raises(UserError, match="nowhere.jsonl: cannot read the difficulty file"):
        read_difficulty(tmp_path / "nowhere.jsonl")


@pytest.mark.parametrize("option", [["--n", 0], ["--temperature", 0], ["--limit", -1]])
def test_bad_options(option, tmp_path, capsys):
    assert mmeureka("data", "difficulty", SPEC, "--model", tmp_path, "--output", tmp_path / "d.jsonl", *option) == 2
    assert f"{option[0]}: must be a positive" in capsys.readouterr().err
