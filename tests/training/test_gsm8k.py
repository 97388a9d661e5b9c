"""Problems of text alone and a text-only policy, through the whole loop and out again."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.commands import mmeureka, read_rows, write_rows
from helpers.guessing import write_guessing_checkpoint
from helpers.support import picture
from transformers import AutoTokenizer, Qwen2ForCausalLM

from mmeureka_jax.runs.tracking import read_metrics, read_rollouts

CONFIG = Path(__file__).parents[2] / "configs" / "smoke.yaml"
OVERRIDES = """
    steps=2 model.random=null sampler.max_new_tokens=6 sampler.batch_prompts=8
    rl.group_size=4 rl.prompts_per_rollout=8 rl.prompts_per_update=8 rl.micro_batches=1 rl.packing=0
    rl.filter.lower=0.1 rl.filter.upper=0.9 rl.filter.max_empty_rounds=20
    tracking.validate_every=2 tracking.progress=false tracking.tensorboard=false tracking.rollouts_every=1
    reward.workers=1 optimizer.frozen=[vision]
""".split()


@pytest.fixture
def folder(tmp_path):
    """Rows as GSM8K's, one of them with a picture; and a policy that answers with one of four digits."""
    write_guessing_checkpoint(tmp_path / "model", family="qwen2", layers=1)
    rows = [
        {"question": f"Box {box} holds {gold - 1} pens and one more. How many?", "answer": f"Add them.\n#### {gold}"}
        for box in range(2) for gold in (1, 3, 4, 8)
    ]  # fmt: skip
    write_rows(tmp_path / "test.jsonl", rows[:4])
    (tmp_path / "pens.png").write_bytes(picture(40, 40).read_bytes())
    write_rows(
        tmp_path / "train.jsonl", [*rows, {"question": "And here?", "answer": "See.\n#### 1", "image": "pens.png"}]
    )
    return tmp_path


@pytest.mark.slow
def test_a_text_only_policy_trains_and_is_written_back(folder):
    run_dir = folder / "run"
    out = folder / "out"
    data = [f"data.train={folder / 'train.jsonl'}", f"data.validation={folder / 'test.jsonl'}"]
    model = f"model.checkpoint={folder / 'model'}"
    assert mmeureka("train", CONFIG, f"run_dir={run_dir}", model, *data, *OVERRIDES) == 0
    (rejected,) = json.loads((run_dir / "data_check.json").read_text())["rejected"]
    assert rejected["row"] == 8 and rejected["kind"] == "picture for a text-only model"
    assert "problem 'train-8'" in rejected["reason"] and "the model reads text alone" in rejected["reason"]
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == [0, 1, 2]
    for row in rows[1:]:
        assert np.isfinite(row["loss/total"]) and row["optimizer/grad_norm"] > 0
        assert row["policy/sampler_gap_max"] < 1e-3
    groups = [group for _, groups in read_rollouts(run_dir) for group in groups]
    assert {group["problem_id"] for group in groups} <= {f"train-{row}" for row in range(8)}

    # What it learnt is in the folder that it writes, in the form that it came in.
    assert mmeureka("export", run_dir, "--output", out) == 0
    assert "pipeline_tag: text-generation" in (out / "README.md").read_text()
    before, after = (json.loads((path / "config.json").read_text()) for path in (folder / "model", out))
    assert before == after and after["architectures"] == ["Qwen2ForCausalLM"]
    theirs, info = Qwen2ForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    start = Qwen2ForCausalLM.from_pretrained(folder / "model").state_dict()
    moved = [name for name, x in theirs.state_dict().items() if not torch.equal(x, start[name])]
    assert any("q_proj" in name for name in moved)

    # Asked for greedy samples, it answers as transformers has it.
    asked = write_rows(folder / "asked.jsonl", [{"id": "q", "messages": [{"role": "user", "content": "1 + 2 ?"}]}])
    sampled = folder / "sampled.jsonl"
    options = ["--model", out, "--input", asked, "--output", sampled, "--temperature", 0, "--max-new-tokens", 6]
    assert mmeureka("sample", *options) == 0
    tokenizer = AutoTokenizer.from_pretrained(out)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "1 + 2 ?"}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    expected = theirs.generate(**ids, max_new_tokens=6, do_sample=False)[0, ids["input_ids"].shape[1] :]
    assert read_rows(sampled)[0]["tokens"] == expected.tolist()


def test_a_model_that_sees_nothing_is_told_of_pictures(folder, capsys):
    rows = [{"id": "a", "messages": [{"role": "user", "content": "1 ?"}]}]
    rows += [{"id": "b", "messages": [{"role": "user", "content": [{"type": "image", "image": "pens.png"}]}]}]
    asked = write_rows(folder / "asked.jsonl", rows)
    options = ["--model", folder / "model", "--input", asked, "--output", folder / "out.jsonl"]
    assert mmeureka("sample", *options) != 0
    message = capsys.readouterr().err
    assert "1 of 2 rows cannot be used" in message and "problem 'b'" in message and "reads text alone" in message
