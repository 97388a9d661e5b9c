"""`mmeureka sample` and `mmeureka score` against transformers, and against themselves in other batches."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import mmeureka, prompt_row, read_rows, write_rows
from helpers.support import PIXELS, PROBLEMS, Lively
from hypothesis import given
from hypothesis import strategies as st

from mmeureka_jax.data.record import Problem
from mmeureka_jax.evaluation import score
from mmeureka_jax.models.batch import length_buckets
from mmeureka_jax.sampling.sampler import Sampler

PIXEL_ARGUMENTS = [f"--{key.replace('_', '-')}={value}" for key, value in PIXELS.items()]
RESPONSES = {
    "a": "<think>one and one</think><answer>2</answer>",
    "b": "3",
    "c": "a long bar",
    "d": "<answer>7</answer>",
    "e": "the second",
}


@pytest.fixture(scope="module")
def lively(tmp_path_factory) -> Lively:
    return Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=True)


@pytest.fixture(scope="module")
def folder(lively) -> Path:
    return lively.processor.path


def row_of(problem: Problem, folder: Path, **more) -> dict:
    """The problem as an input row, its pictures as files beside the input."""
    pictures = iter(range(len(problem.images)))
    content = []
    for part in problem.messages[0]["content"]:
        if part["type"] == "image":
            number = next(pictures)
            name = f"{problem.id}{number}.png"
            (folder / name).write_bytes(problem.images[number].read_bytes())
            part = {"type": "image", "image": name}
        content.append(part)
    return {"id": problem.id, "messages": [{"role": "user", "content": content}]} | more


@pytest.mark.slow
def test_scores_are_those_of_transformers(lively, folder, tmp_path):
    """Text alone, one picture, odd sizes and several pictures, in one padded batch."""
    rows = [row_of(problem, tmp_path, response=RESPONSES[problem.id]) for problem in PROBLEMS.values()]
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    output = tmp_path / "scores" / "o.jsonl"
    assert mmeureka("score", "--model", folder, "--input", prompts, "--output", output, *PIXEL_ARGUMENTS) == 0
    scored = read_rows(output)
    assert [row["id"] for row in scored] == [row["id"] for row in rows]
    for problem, row in zip(PROBLEMS.values(), scored, strict=True):
        assert row.keys() == {"id", "tokens", "log_probs"}
        tokens = lively.processor.tokenizer(RESPONSES[problem.id])["input_ids"]
        assert row["tokens"] == tokens
        with torch.no_grad():
            expected, _ = lively.torch_log_probs(problem, np.array(tokens))
        np.testing.assert_allclose(row["log_probs"], expected.numpy(), atol=2e-4)
        assert all(float(str(np.float32(value))) == value for value in row["log_probs"])


def test_score_takes_ids_that_repeat_an_empty_text_and_an_end_token(lively, folder, tmp_path):
    end = lively.processor.tokenizer.eos_token
    texts = ["", "3", f"3{end}", "3"]
    rows = [prompt_row("same", "what is 1 + 2 ?", response=text) for text in texts]
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    output = tmp_path / "o.jsonl"
    assert mmeureka("score", "--model", folder, "--input", prompts, "--output", output, "--temperature", 0.7) == 0
    empty, three, ended, again = read_rows(output)
    assert empty["tokens"] == [] and empty["log_probs"] == []
    assert three == again
    assert ended["tokens"] == [*three["tokens"], lively.processor.end_token_id]
    problem = Problem("same", ({"role": "user", "content": [{"type": "text", "text": "what is 1 + 2 ?"}]},))
    with torch.no_grad():
        inputs, start = lively.torch_inputs(problem, np.array(ended["tokens"]))
        logits = lively.torch(**inputs).logits[0, start - 1 : -1]
    table = torch.log_softmax(logits / 0.7, -1).numpy()
    np.testing.assert_allclose(ended["log_probs"], table[[0, 1], ended["tokens"]], atol=2e-4)


def test_greedy_samples_are_what_transformers_finds_likeliest(lively, folder, tmp_path, caplog):
    problems = [PROBLEMS["text only"], PROBLEMS["several pictures"]]
    prompts = write_rows(tmp_path / "p.jsonl", [row_of(problem, tmp_path) for problem in problems])
    output = tmp_path / "o.jsonl"
    fixed_form = "--n 2 --temperature 0 --max-new-tokens 12 --seed 0".split()
    assert (
        mmeureka("sample", "--model", folder, "--input", prompts, "--output", output, *fixed_form, *PIXEL_ARGUMENTS)
        == 0
    )
    assert "temperature 0 is greedy: the 2 answers to a prompt will all be the same" in caplog.text
    rows = read_rows(output)
    assert [(row["id"], row["sample"]) for row in rows] == [("a", 0), ("a", 1), ("e", 0), ("e", 1)]
    for problem, row, twin in zip(problems, rows[::2], rows[1::2], strict=True):
        assert row.keys() == {"id", "sample", "text", "tokens", "log_probs", "finish_reason"}
        assert twin == row | {"sample": 1}
        with torch.no_grad():
            log_probs, table = lively.torch_log_probs(problem, np.array(row["tokens"]))
        table[:, [lively.config.image_token_id, lively.config.video_token_id]] = -torch.inf
        assert row["tokens"] == table.argmax(-1).tolist()
        np.testing.assert_allclose(row["log_probs"], log_probs.numpy(), atol=2e-4)
        stopped = row["tokens"][-1] in lively.processor.eos_token_ids
        assert row["finish_reason"] == ("stop" if stopped else "length") and (stopped or len(row["tokens"]) == 12)
        assert row["text"] == lively.processor.decode(row["tokens"])


@pytest.mark.slow
def test_a_sample_does_not_depend_on_the_other_rows(folder, tmp_path):
    rows = [prompt_row(name, f"what is {name} + 1 ?") for name in "12345"]

    def sample(rows: list[dict], name: str, seed: int = 0) -> list[dict]:
        prompts = write_rows(tmp_path / f"{name}.jsonl", rows)
        output = tmp_path / f"{name}_samples.jsonl"
        settings = f"--n 3 --temperature 1.0 --top-k 50 --top-p 0.9 --max-new-tokens 6 --batch-size 8 --seed {seed}"
        assert mmeureka("sample", "--model", folder, "--input", prompts, "--output", output, *settings.split()) == 0
        return [{key: row[key] for key in ("id", "sample", "tokens")} for row in read_rows(output)]

    together = sample(rows, "together")
    assert len({tuple(row["tokens"]) for row in together}) > 10  # of 15
    apart = [row for part in (rows[3:], rows[:3]) for row in sample(part, "apart")]
    assert sorted(apart, key=json.dumps) == sorted(together, key=json.dumps)
    assert sample(rows, "other_seed", seed=1) != together


@pytest.mark.parametrize(
    ("command", "options", "owner", "name"),
    [
        ("sample", ["--n", 2, "--max-new-tokens", 4], Sampler, "sample"),
        ("score", [], score, "_score"),
    ],
)
def test_an_interrupted_command_continues_with_the_same_rows(
    folder, tmp_path, monkeypatch, capsys, command, options, owner, name
):
    rows = [prompt_row(f"p{i}", f"what is {'1 + ' * i} 1 ?", response="<answer>2</answer>") for i in range(20)]
    prompts = write_rows(tmp_path / "p.jsonl", rows)
    arguments = [command, "--model", folder, "--input", prompts, "--batch-size", 8, *options]
    assert mmeureka(*arguments, "--output", tmp_path / "whole.jsonl") == 0
    calls = []
    function = getattr(owner, name)

    def interrupted(*args, **kwargs):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return function(*args, **kwargs)

    monkeypatch.setattr(owner, name, interrupted)
    output = tmp_path / "out" / "o.jsonl"
    assert mmeureka(*arguments, "--output", output) == 130
    assert "the same command continues after the last whole batch" in capsys.readouterr().err
    assert [path.name for path in output.parent.iterdir()] == ["o.jsonl.partial"]
    assert mmeureka(*arguments, "--output", output) == 0
    assert len(calls) == 4
    assert output.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert list(output.parent.iterdir()) == [output]


@given(st.integers(0, 100_000))
def test_buckets_hold_the_longest_and_are_few(longest: int):
    buckets = length_buckets(longest)
    assert longest <= buckets[-1] < longest + 32 or buckets == (32,)
    assert list(buckets) == sorted(set(buckets)) and len(buckets) <= 13
    assert all(large <= 2 * small for small, large in zip(buckets, buckets[1:], strict=False))
