"""What `mmeureka export` writes: the parameters of the checkpoint asked for, as transformers reads them."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml
from helpers.commands import mmeureka, write_rows
from helpers.support import PIXELS, PROBLEMS, Lively, make_checkpoint
from safetensors import safe_open
from transformers import AutoTokenizer, GenerationConfig, Qwen2_5_VLForConditionalGeneration

from mmeureka_jax.config.schema import (
    CheckpointConfig,
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RandomModelConfig,
    RewardConfig,
)
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.evaluation.options import EvalOptions, questions
from mmeureka_jax.export.model_card import Exported, model_card
from mmeureka_jax.export.policy import export_run
from mmeureka_jax.formats.hugging_face import load_params, read_config
from mmeureka_jax.mesh import make_mesh
from mmeureka_jax.models.batch import collate
from mmeureka_jax.models.policy import Policy, encode_images, token_log_probs
from mmeureka_jax.rl.train_state import make_training
from mmeureka_jax.runs.checkpoint import Checkpointer, RunState
from mmeureka_jax.runs.folder import begin_run
from mmeureka_jax.runs.provenance import read_provenance
from mmeureka_jax.setup.policy import open_policy

ACCURACIES = {1: 0.25, 2: 0.75, 3: 0.5}  # of the validation at each checkpoint


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A run with three checkpoints, whose parameters are those of a tiny model, times 1 + step / 100 where trained."""
    run_dir = tmp_path_factory.mktemp("runs") / "run"
    make_checkpoint(run_dir / "model")
    config = Config(
        run_dir=str(run_dir),
        model=ModelConfig(random=RandomModelConfig()),
        data=DataConfig(prompt_style="cpgd", max_pixels=50_000),
        reward=RewardConfig(accuracy="boxed"),
        optimizer=OptimizerConfig(frozen=("vision", "language/embed_tokens"), ema_decay=0.9),
    )
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    begin_run(config, kind="rl", fingerprint="of the data", checkpoint=run_dir / "model", resuming=False, mesh=mesh)
    start = load_params(run_dir / "model", read_config(run_dir / "model"))
    checkpointer = Checkpointer(run_dir, CheckpointConfig(keep=3))
    for step, accuracy in ACCURACIES.items():
        state = make_training(config, 10).init(Policy(read_config(run_dir / "model")), start)
        state = state.replace(trainable=jax.tree.map(lambda leaf, by=1 + step / 100: leaf * by, state.trainable))
        checkpointer.save(RunState(state, step=step), accuracy)
    checkpointer.close()
    return run_dir


def expected(run: Path, step: int) -> dict:
    params = load_params(run / "model", read_config(run / "model"))
    embedding = params["language"]["embed_tokens"]
    scaled = jax.tree.map(lambda leaf: leaf * (1 + step / 100), params["language"]) | {"embed_tokens": embedding}
    return params | {"language": scaled}


def assert_equal_params(actual: dict, wanted: dict, **tolerance: float) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **{"rtol": 0, "atol": 0} | tolerance), actual, wanted)


@pytest.mark.parametrize(("arguments", "step"), [((), 3), (("--step", "best"), 2), (("--step", "1"), 1)])
def test_the_checkpoint_asked_for_is_exported(run, tmp_path, capsys, arguments, step):
    before = sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*"))
    assert mmeureka("export", run, "--output", tmp_path / "out", *arguments) == 0
    assert capsys.readouterr().out == f"step {step}: {tmp_path / 'out'}\n"
    assert_equal_params(load_params(tmp_path / "out", read_config(run / "model")), expected(run, step))
    assert sorted((path, path.stat().st_mtime_ns) for path in run.rglob("*")) == before  # the run may be under way


def test_the_average_is_exported_where_there_is_one(run, tmp_path, capsys):
    assert mmeureka("export", run, "--output", tmp_path / "out", "--average") == 0
    start = load_params(run / "model", read_config(run / "model"))  # which the average of these checkpoints still is
    assert_equal_params(load_params(tmp_path / "out", read_config(run / "model")), start)
    assert read_provenance(tmp_path / "out")["average"] and not read_provenance(run / "model")

    plain = shutil.copytree(run, tmp_path / "plain")
    metadata = json.loads((plain / "metadata.json").read_text())
    del metadata["config"]["optimizer"]["ema_decay"]  # as a version without the key wrote it
    (plain / "metadata.json").write_text(json.dumps(metadata))
    assert mmeureka("export", plain, "--output", tmp_path / "other", "--average") == 2
    assert "kept no average" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_the_model_card_says_what_was_trained_and_how_well(run, tmp_path):
    metrics = run / "metrics.jsonl"
    rows = [{"step": step, "validation/accuracy": share, "validation/response_length": 30.0 + step}
            for step, share in ({0: 0.125} | ACCURACIES).items()]  # fmt: skip
    with_metrics = shutil.copytree(run, tmp_path / "run")
    write_rows(with_metrics / metrics.name, rows)
    export_run(with_metrics, tmp_path / "my_policy", step=3)
    card = (tmp_path / "my_policy" / "README.md").read_text()
    front, body = card.removeprefix("---\n").split("\n---\n", 1)
    assert yaml.safe_load(front)["tags"] == ["reinforcement-learning", "mmeureka_jax"] and "base_model" not in front
    assert "# my_policy" in body and "after step 3." in body and "advantage `grpo`" in body
    for line in (
        "| 0 | the start | 12.5% | 30 |",
        "| 2 | the best | 75.0% | 32 |",
        "| 3 | these parameters | 50.0% | 33 |",
    ):
        assert line in body
    settings = yaml.safe_load(body.split("```yaml")[1].split("```")[0])
    assert settings["data"] == {"prompt_style": "cpgd", "max_pixels": 50_000} and "run_dir" not in settings
    assert settings["optimizer"] == {"frozen": ["vision", "language/embed_tokens"], "ema_decay": 0.9}
    # Before step 3, without metrics, and with a hub id.
    export_run(run, tmp_path / "plain", average=True)
    assert "Results" not in (tmp_path / "plain" / "README.md").read_text()
    metadata = json.loads((run / "metadata.json").read_text())
    metadata["config"]["model"]["checkpoint"] = "Qwen/Qwen2.5-VL-3B-Instruct"
    assert b"base_model" not in model_card("x", metadata, Exported(3), [])  # a folder of that name
    metadata["checkpoint"] = "/cache/hub/models--Qwen--Qwen2.5-VL-3B-Instruct/snapshots/0123"
    card = model_card("x", metadata | {"kind": "sft"}, Exported(3, average=True), rows[:2]).decode()
    assert "base_model: Qwen/Qwen2.5-VL-3B-Instruct" in card and "by imitation" in card and "averaged" in card
    assert "| 1 | the last before, the best | 25.0% | 31 |" in card


def test_shards_and_dtype(run, tmp_path):
    assert mmeureka("export", run, "--output", tmp_path, "--dtype", "bfloat16", "--max-shard-gb", 2e-5) == 0
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 2
    with safe_open(shards[0], "pt") as file:
        assert {file.get_tensor(name).dtype for name in file.keys()} == {torch.bfloat16}  # noqa: SIM118
    wanted = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16).astype(jnp.float32), expected(run, 3))
    assert_equal_params(load_params(tmp_path, read_config(run / "model")), wanted)


@pytest.mark.slow
def test_transformers_loads_it_and_gives_the_same_log_probs(run, tmp_path):
    export_run(run, tmp_path / "out")
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    assert model.dtype == torch.float32
    processor = Processor.from_checkpoint(tmp_path / "out", prompt_style="plain", max_prompt_tokens=4096, **PIXELS)
    problem = PROBLEMS["several pictures"]
    response = np.array([5, 9, 300, 12])
    here = SimpleNamespace(processor=processor, config=processor.config)
    inputs, start = Lively.torch_inputs(here, problem, response)
    with torch.no_grad():
        table = torch.log_softmax(model(**inputs).logits[0, start - 1 : -1], -1).numpy()

    prompt = processor(problem)
    batch = collate([prompt], len(prompt.tokens), prompt.images.num_windows)
    ours = log_probs(Policy(processor.config), expected(run, 3), batch, response[None, None])
    assert table.std() > 1  # weights that matter
    np.testing.assert_allclose(ours[0, 0], table[np.arange(4), response], rtol=1e-5, atol=2e-4)
    text = "how many dots ? <answer>3</answer>"
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", run / "model")]
    assert tokenizers[0](text)["input_ids"] == tokenizers[1](text)["input_ids"]


@functools.partial(jax.jit, static_argnums=0)
def log_probs(policy, params, batch, responses):
    return token_log_probs(policy, params, batch, encode_images(policy, params, batch.images), responses)[0]


def test_an_export_says_how_its_run_asked_and_eval_asks_so_too(run, tmp_path):
    export_run(run, tmp_path / "out", step="best")
    provenance = read_provenance(tmp_path / "out")
    assert (provenance["kind"], provenance["step"], provenance["data_fingerprint"]) == ("rl", 2, "of the data")
    mesh = MeshConfig(data=-1, fsdp=1)
    exported = open_policy(tmp_path / "out", ModelConfig(), mesh)
    asked = questions(EvalOptions("p.jsonl", max_new_tokens=7), exported)
    assert (asked["prompt_style"], asked["accuracy"], asked["max_pixels"]) == ("cpgd", "boxed", 50_000)
    context = exported.policy.config.text.max_position_embeddings
    assert (asked["max_new_tokens"], asked["max_prompt_tokens"]) == (7, context)
    released = questions(EvalOptions("p.jsonl"), open_policy(run / "model", ModelConfig(), mesh))
    assert (released["prompt_style"], released["accuracy"], released["max_new_tokens"]) == (
        "instruct",
        "instruct",
        1024,
    )


def test_the_settings_files_are_those_of_the_run(run, tmp_path):
    of_another = {"repetition_penalty": 1.05, "temperature": 1e-6, "top_k": 50, "mask_token_id": 1, "eos_token_id": 2}
    source = shutil.copytree(run / "model", tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps(of_another))
    pictures = json.loads((source / "preprocessor_config.json").read_text())
    size = {"shortest_edge": 1, "longest_edge": 2}
    (source / "preprocessor_config.json").write_text(json.dumps(pictures | {"size": size}))
    (source / "processor_config.json").write_text(json.dumps({"image_processor": pictures, "other": 1}))
    export_run(run, tmp_path / "out", source=source)
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert "repetition_penalty" not in generation
    assert {key: generation[key] for key in ("do_sample", "temperature", "top_k", "top_p", "mask_token_id")} == {
        "do_sample": True, "temperature": 1.0, "top_k": 0, "top_p": 1.0, "mask_token_id": 1,
    }  # fmt: skip
    assert 2 in generation["eos_token_id"]  # beside the end of a turn
    flat = json.loads((tmp_path / "out" / "preprocessor_config.json").read_text())
    nested = json.loads((tmp_path / "out" / "processor_config.json").read_text())
    assert flat["size"] == {"shortest_edge": 4 * 28 * 28, "longest_edge": 50_000}
    for settings in (flat, nested["image_processor"]):
        assert (settings["min_pixels"], settings["max_pixels"]) == (4 * 28 * 28, 50_000)
    assert nested["other"] == 1
    processor = Processor.from_checkpoint(tmp_path / "out", max_prompt_tokens=100)
    assert (processor.pictures.min_pixels, processor.pictures.max_pixels) == (4 * 28 * 28, 50_000)
    loaded = GenerationConfig.from_pretrained(tmp_path / "out")
    assert loaded.do_sample and loaded.temperature == 1 and not loaded.top_k and loaded.repetition_penalty in (None, 1)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "as the run had it or not at all: `repetition_penalty`, `temperature`, `top_k`" in card


def test_a_policy_that_was_taught_by_imitation_is_greedy(run, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    metadata = json.loads((copy / "metadata.json").read_text())
    (copy / "metadata.json").write_text(json.dumps(metadata | {"kind": "sft"}))
    export_run(copy, tmp_path / "out")
    generation = json.loads((tmp_path / "out" / "generation_config.json").read_text())
    assert generation["do_sample"] is False and "temperature" not in generation


def test_the_random_checkpoint_moves_with_its_run(run, tmp_path, capsys):
    moved = shutil.copytree(run, tmp_path / "moved")
    metadata = json.loads((moved / "metadata.json").read_text()) | {"checkpoint": str(tmp_path / "gone")}
    (moved / "metadata.json").write_text(json.dumps(metadata))
    assert mmeureka("export", moved, "--output", tmp_path / "a") == 0
    (moved / "model").rename(tmp_path / "elsewhere")
    assert mmeureka("export", moved, "--output", tmp_path / "b") == 2
    assert str(tmp_path / "gone") in (message := capsys.readouterr().err) and "--source" in message
    assert mmeureka("export", moved, "--output", tmp_path / "b", "--source", tmp_path / "elsewhere") == 0
    assert (tmp_path / "b" / "model.safetensors").read_bytes() == (tmp_path / "a" / "model.safetensors").read_bytes()


def test_what_cannot_be_exported_leaves_nothing(run, tmp_path, capsys):
    def refused(*arguments: object) -> str:
        assert mmeureka("export", *arguments, "--output", tmp_path / "out") == 2
        assert not (tmp_path / "out").exists()
        return capsys.readouterr().err

    assert "no checkpoint of step 7; there are steps [1, 2, 3]" in refused(run, "--step", 7)
    assert "nowhere: no metadata.json" in refused(tmp_path / "nowhere")
    assert "must be a step, best or latest; got 'last'" in refused(run, "--step", "last")

    damaged = shutil.copytree(run, tmp_path / "damaged")
    for file in (damaged / "checkpoints" / "3" / "state").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:-500])
    message = refused(damaged)
    assert str(damaged / "checkpoints" / "3") in message and "damaged" in message and "[1, 2]" in message

    shutil.rmtree(damaged / "checkpoints")
    assert "no checkpoints in it" in refused(damaged)


def test_an_output_folder_that_is_taken_stays_as_it_is(run, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    assert mmeureka("export", run, "--output", tmp_path) == 2
    assert "exists already" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
