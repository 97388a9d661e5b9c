"""Runs that train a process reward model: they learn, continue exactly, use a mesh, and export what others load."""

from __future__ import annotations

import json
import shutil

import jax
import numpy as np
import pytest
import torch
from helpers.commands import mmeureka
from helpers.guessing import write_guessing_checkpoint
from helpers.small_runs import SMOKE, state_of, use_devices, without_times
from transformers import AutoModelForImageTextToText, AutoTokenizer

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.training.prm import train_prm
from mmeureka_jax.training.sweep import load_sweep, state

OVERRIDES = """
    steps=20 model.random=null prm.paths_per_step=4 prm.micro_batches=2 prm.packing=0 prm.max_process_tokens=40
    data.train=tfds:shapes/dots@train[:8] data.validation=tfds:shapes/dots@test[:4]
    data.prompt_style=instruct checkpoint.keep=5 checkpoint.every_steps=10 tracking.validate_every=10
    tracking.progress=false tracking.tensorboard=false optimizer.learning_rate=3e-3
    optimizer.schedule=constant optimizer.warmup_fraction=0
""".split()
GOOD = "we count the dots"
BAD = "we guess that there are many"


def write_labels(path, split, problems):
    """Of each problem a solution that begins well and ends badly, and one that is good throughout."""
    rows = []
    for number in range(problems):
        level = ("easy", "hard")[number % 2]
        name = f"dots-{level}-{split}-{number:06d}"
        rows.append({"id": name, "text": f"{GOOD}<prm>\n\n{BAD}<prm>", "labels": [0.75, 0.0]})
        rows.append({"id": name, "text": f"{GOOD} one by one<prm>", "labels": [1.0]})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("files")
    write_guessing_checkpoint(folder / "model", layers=1)
    write_labels(folder / "train.jsonl", "train", 8)
    write_labels(folder / "validation.jsonl", "test", 4)
    return folder


def overrides_of(files):
    paths = {"model.checkpoint": "model", "prm.labels": "train.jsonl", "prm.validation": "validation.jsonl"}
    return [*(f"{key}={files / name}" for key, name in paths.items()), *OVERRIDES]


def config_of(files, run_dir, *overrides):
    return load_config(SMOKE, [f"run_dir={run_dir}", *overrides_of(files), *overrides])


@pytest.fixture(scope="module")
def finished(files, tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "all" / "seed0"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_devices(monkeypatch, 1)
        train_prm(config_of(files, folder))
    return folder


@pytest.mark.slow
def test_a_sweep_knows_its_runs(finished, files, tmp_path):
    sweep = {"command": "prm train", "config": str(SMOKE), "folder": str(finished.parents[1]), "variants": {"all": {}}}
    (tmp_path / "sweep.yaml").write_text(json.dumps(sweep))
    (member,) = load_sweep(tmp_path / "sweep.yaml", overrides_of(files)).members
    assert member.folder == finished and state(member) == "done"


@pytest.mark.slow
def test_a_run_learns_its_labels_and_measures_that(finished):
    rows = read_metrics(finished)
    assert [row["step"] for row in rows if "validation/auroc" in row] == [0, 10, 20]
    first = rows[0]
    last = rows[-1]
    assert last["validation/cross_entropy"] < 0.9 * first["validation/cross_entropy"]
    assert last["validation/steps"] == 12 and last["validation/processes"] == 8
    assert rows[1]["prm/labels"] == pytest.approx(1.5, abs=0.5) and 0 < rows[1]["prm/label"] < 1
    assert json.loads((finished / "metadata.json").read_text())["kind"] == "prm"


@pytest.mark.slow
def test_a_run_continues_bit_for_bit(finished, files, tmp_path, one_device):
    copy = shutil.copytree(finished, tmp_path / "run")
    shutil.rmtree(copy / "checkpoints" / "20")
    train_prm(config_of(files, copy))
    assert without_times(copy) == without_times(finished)
    jax.tree.map(np.testing.assert_array_equal, state_of(copy, 20), state_of(finished, 20))
    changed = files / "changed.jsonl"
    changed.write_text((files / "train.jsonl").read_text().replace("0.75", "0.5"))
    with pytest.raises(UserError, match="contents of .*changed.jsonl"):
        train_prm(config_of(files, copy, f"prm.labels={changed}"))


@pytest.mark.slow
def test_four_devices_and_other_parts_learn_the_same(finished, files, tmp_path, monkeypatch):
    use_devices(monkeypatch, 4)
    others = "mesh.tensor=2", "prm.micro_batches=1", "prm.validation_batch=3", "sampler.compile_ahead=true", "steps=10"
    train_prm(config_of(files, tmp_path / "run", *others))
    rows = read_metrics(tmp_path / "run")
    assert [row["time/compiles"] for row in rows[2:-1]] == [0] * 8
    for mine, theirs in zip(rows, read_metrics(finished), strict=False):
        for name in ("prm/loss", "prm/accuracy", "optimizer/grad_norm", "validation/cross_entropy"):
            if name in theirs:
                assert mine[name] == pytest.approx(theirs[name], rel=2e-3), (theirs["step"], name)


def score(folder, name, *, steps):
    rows = [
        {"id": f"r{i}", "messages": [{"role": "user", "content": "how many?"}], "steps": s} for i, s in enumerate(steps)
    ]
    (folder / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert mmeureka("prm", "score", "--model", name, "--input", folder / "s.jsonl", "--output", folder / "o.jsonl") == 0
    scored = [json.loads(line) for line in (folder / "o.jsonl").read_text().splitlines()]
    assert [row["id"] for row in scored] == [row["id"] for row in rows]
    return [row["scores"] for row in scored]


@pytest.mark.slow
def test_the_export_scores_the_same_in_transformers(finished, tmp_path, one_device):
    assert mmeureka("export", finished, "--output", tmp_path / "prm") == 0
    assert "process reward model" in (tmp_path / "prm" / "README.md").read_text()
    steps = [[GOOD, BAD], [], [f"{BAD} {BAD}"], [GOOD, f"{GOOD} Yes", "No"]]
    mine = score(tmp_path, tmp_path / "prm", steps=steps)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "prm", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "prm")
    marker, yes, no = tokenizer.convert_tokens_to_ids(["<prm>", "Yes", "No"])
    turns = tokenizer.apply_chat_template([{"role": "user", "content": []}], add_generation_prompt=True, tokenize=False)
    for own, scores in zip(steps, mine, strict=True):
        process = "\n\n".join(f"{step}<prm>" for step in own)
        ids = tokenizer(f"{turns}Question: how many?\nProcess: {process}", add_special_tokens=False).input_ids
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([ids])).logits[0]
        expected = torch.softmax(logits[np.flatnonzero(np.asarray(ids) == marker)][:, [yes, no]], -1)[:, 0]
        np.testing.assert_allclose(scores, expected, atol=2e-4)
    assert mine[0][0] > mine[0][1] + 0.05


@pytest.mark.slow
def test_adapters_learn_too_and_their_export_is_whole(files, tmp_path, one_device):
    config = config_of(
        files, tmp_path / "run", "model.lora.rank=4", "model.lora.base_dtype=float32", "prm.micro_batches=1",
        "prm.hard_labels=true", "optimizer.learning_rate=5e-3",
    )  # fmt: skip
    train_prm(config)
    rows = read_metrics(tmp_path / "run")
    assert rows[-1]["validation/cross_entropy"] < rows[0]["validation/cross_entropy"]
    moved = shutil.move(tmp_path / "run", tmp_path / "moved")
    assert mmeureka("export", moved, "--output", tmp_path / "merged") == 0
    assert mmeureka("export", moved, "--output", tmp_path / "adapters", "--adapters") == 0
    assert str(moved) in (tmp_path / "adapters" / "adapter_config.json").read_text()
    assert all(0 < x < 1 for x in score(tmp_path, tmp_path / "merged", steps=[[GOOD, BAD]])[0])


def test_rows_and_models_that_cannot_be_scored_are_named(files, tmp_path, capsys):
    rows = [{"id": "a", "messages": [{"role": "user", "content": "?"}], "steps": ["x"]}]
    (tmp_path / "s.jsonl").write_text(json.dumps(rows[0]) + "\n")
    command = ["prm", "score", "--input", tmp_path / "s.jsonl", "--output", tmp_path / "o.jsonl", "--model"]
    assert mmeureka(*command, files / "model") == 2
    error = capsys.readouterr().err
    assert f"{files / 'model'}: its tokenizer has no token <prm>, so it is no process reward model" in error
    assert not (tmp_path / "o.jsonl").exists()


@pytest.mark.slow
def test_bad_rows_of_steps_are_named_with_their_line(finished, tmp_path, capsys):
    user = {"messages": [{"role": "user", "content": "?"}]}
    rows = [
        {"id": "a", **user, "steps": ["x"]}, {"id": "b", **user}, {"id": "c", **user, "steps": ["x", " "]},
        {"id": "d", **user, "steps": ["x<prm>y"]}, {"id": "e", **user, "steps": ["<|im_end|>"]},
    ]  # fmt: skip
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    files = ["--input", tmp_path / "s.jsonl", "--output", tmp_path / "o.jsonl"]
    assert mmeureka("prm", "score", "--model", finished / "base", *files) == 2
    error = capsys.readouterr().err
    assert "4 of 5 rows cannot be used" in error
    for line, message in (
        (2, "'b': no `steps`"), (3, "'c': step 2 is empty"), (4, "'d': step 1 contains the marker <prm>"),
        (5, "'e': its text contains the literal token <|im_end|>"),
    ):  # fmt: skip
        assert f"s.jsonl:{line}: problem {message}" in error
