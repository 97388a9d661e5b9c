"""The benchmarks run and print what they promise. How fast anything is, is no test."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest
from commands import environment

from mmeureka_jax.config import RandomModelConfig
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.models.tiny import write_tiny_checkpoint
from mmeureka_jax.models.weights import read_config

ROOT = Path(__file__).parents[1]
SMALL = RandomModelConfig(
    hidden_size=32, intermediate_size=32, num_layers=1, num_heads=2, num_kv_heads=1, vision_hidden_size=16,
    vision_intermediate_size=16, vision_depth=1, vision_num_heads=2, vision_full_attention_blocks=(0,),
)  # fmt: skip

# Command lines that scripts rely on, as they are documented.
FIXED_FORMS = {
    "step": "--model DIR --prompts 8 --group 8 --new 64 --side 112 --train all --steps 5",
    "generate": "--model DIR --batch 64 --prompt 40 --new 96 --group 1",
    "update": "--model DIR --prompts 8 --group 8 --prompt 104 --new 64 --train language",
}
COMMON_KEYS = {"peak_memory_mb", "compiles", "all", "options", "device", "jax"}
PROMISED_KEYS = {
    "step": COMMON_KEYS
    | {"s_per_step", "rollout_s", "reward_s", "update_s", "rollout_tok_per_s", "update_logical_tok_per_s"},
    "generate": COMMON_KEYS | {"tok_per_s"},
    "update": COMMON_KEYS | {"logical_tok_per_s"},
}


@pytest.fixture
def benchmark(monkeypatch):
    """Imports a script; `benchmarks` is a folder of the repository, not of the installed package."""
    monkeypatch.syspath_prepend(ROOT)
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "model"
    write_tiny_checkpoint(folder, SMALL)
    return folder


def run_script(name: str, *options: object) -> dict:
    """Runs `python -m benchmarks.NAME` on one device and reads the one JSON line, which is all of stdout."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, options)]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (line,) = done.stdout.splitlines()
    return json.loads(line)


@pytest.mark.parametrize("name", FIXED_FORMS)
def test_fixed_command_forms_parse(benchmark, name):
    given = FIXED_FORMS[name].split()
    args = vars(benchmark(name).build_parser().parse_args(given))
    for option, value in zip(given[::2], given[1::2], strict=True):
        assert str(args[option.removeprefix("--")]) == value


@pytest.mark.parametrize("what", ["step", "generate", "update", "tunix"])
def test_compare_gives_both_sides_the_same_work(benchmark, what):
    """The command lines of the project's side are ones that its scripts take."""
    compare = benchmark("compare")
    args = compare.build_parser().parse_args([what, "--peers-python", "P", "--peer-scripts", "D", "--new", "48"])
    work = compare.contest(args, Path("DIR"))
    module, *ours = work.ours
    parsed = benchmark(module.removeprefix("benchmarks.")).build_parser().parse_args(ours)
    assert parsed.new == 48 and "48" in work.peer
    rows = parsed.batch if what in ("generate", "tunix") else parsed.prompts * parsed.group
    assert rows == args.prompts * args.group
    assert work.our_figure in PROMISED_KEYS[module.removeprefix("benchmarks.")]
    assert work.ratio(2.0, 1.0) == (2.0 if what == "step" else 0.5)


@pytest.mark.parametrize(("name", "count"), [("3b", 3_754_622_976), ("7b", 8_292_166_656)])
def test_released_sizes_are_those_of_the_hub(benchmark, checkpoint, name, count):
    """Numbers of parameters from `total_size` in the hub's safetensors indexes (two bytes each)."""
    config = benchmark("common").released_config(name, read_config(checkpoint))
    config.check_sizes(name)
    leaves = jax.tree.leaves(Policy(config).abstract_params())
    assert sum(math.prod(leaf.shape) for leaf in leaves) == count


def test_random_prompts_have_the_asked_shape(benchmark, checkpoint):
    config = read_config(checkpoint)
    common = benchmark("common")
    prompts = common.random_prompts(config, 3, 90, 224)
    assert prompts.tokens.shape == (3, 90) and (prompts.lengths == 90).all()
    assert ((prompts.tokens == config.image_token_id).sum(axis=1) == 64).all()
    assert prompts.images.patches.shape[1] == 4 and prompts.images.patch_mask.all()
    assert common.random_prompts(config, 1, 5, 0).images.patches.shape[1] == 0
    with pytest.raises(common.UserError, match="--side 100"):
        common.random_prompts(config, 1, 90, 100)
    with pytest.raises(common.UserError, match="66 tokens"):
        common.random_prompts(config, 1, 66, 224)


def test_a_mistake_is_told_in_one_line(benchmark, capsys):
    assert benchmark("update").main(["--model", "no/such/folder"]) == 2
    assert benchmark("generate").main(["--model", "tiny", "--batch", "6", "--group", "4"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "--group 4 does not divide --batch 6" in output.err


@pytest.mark.slow
@pytest.mark.parametrize("train", ["all", "language"])
def test_step(checkpoint, train):
    sizes = ["--prompts", 2, "--group", 2, "--new", 4, "--side", 56, "--train", train, "--steps", 2]
    result = run_script("step", "--model", checkpoint, *sizes)
    assert result.keys() >= PROMISED_KEYS["step"]
    assert result["compiles"] == 0 and result["skipped_updates"] == 0 and len(result["all"]) == 2
    parts = result["rollout_s"] + result["reward_s"] + result["update_s"]
    assert 0 < parts <= 2 * max(result["all"])  # medians of parts and of steps, in one unit


@pytest.mark.slow
@pytest.mark.parametrize("group", [1, 2])
def test_generate(checkpoint, group):
    sizes = ["--batch", 2, "--prompt", 12, "--side", 56, "--new", 4, "--group", group, "--repeats", 1]
    result = run_script("generate", "--model", checkpoint, *sizes)
    assert result.keys() >= PROMISED_KEYS["generate"]
    assert result["compiles"] == 0 and result["tok_per_s"] == pytest.approx(8 / result["all"][0], rel=0.05)


@pytest.mark.slow
def test_update(checkpoint):
    sizes = ["--prompts", 2, "--group", 3, "--prompt", 12, "--side", 56, "--new", 4, "--train", "all", "--repeats", 1]
    result = run_script("update", "--model", checkpoint, *sizes)
    assert result.keys() >= PROMISED_KEYS["update"]
    assert result["logical_tokens"] == 2 * 3 * (12 + 4)
    assert result["compiles"] == 0 and result["skipped_updates"] == 0


@pytest.mark.slow
def test_memory_sees_the_vocabulary(checkpoint):
    sizes = ["--prompts", 1, "--group", 2, "--prompt", 12, "--side", 56, "--new", 4, "--vocab", 1024, 65536]
    small, large = run_script("memory", "--model", checkpoint, *sizes)["rows"]
    grown = 4 * 32 * (65536 - 1024) / 2**20  # of one table of float32
    assert large["vocab_gradients_mb"] - small["vocab_gradients_mb"] == pytest.approx(grown, abs=0.1)
    assert large["temporary_mb"] - small["temporary_mb"] > grown
    assert large["state_mb"] - small["state_mb"] == pytest.approx(3 * grown, abs=0.1)  # parameters, two moments


@pytest.mark.slow
def test_random_weights_of_a_released_model(benchmark, monkeypatch, capsys):
    """`--config`, with sizes that fit here, on a mesh of eight devices."""
    common, update = benchmark("common"), benchmark("update")
    small = {"hidden_size": 32, "intermediate_size": 32, "num_layers": 1, "num_heads": 2, "num_kv_heads": 1}
    monkeypatch.setitem(common._RELEASED, "3b", {**small, "vocab_size": 2048, "tie_word_embeddings": False})
    monkeypatch.setattr(common, "_RELEASED_TEXT", {"head_dim": 16, "mrope_section": (2, 3, 3)})
    monkeypatch.setattr(common, "_RELEASED_VISION", {"depth": 1, "full_attention_blocks": (0,)})
    seen = []
    load_params = common.RandomPolicy.load_params
    monkeypatch.setattr(common.RandomPolicy, "load_params", lambda self: seen.append(load_params(self)) or seen[-1])
    sizes = ["--prompts", "8", "--group", "2", "--prompt", "12", "--side", "56", "--new", "4", "--repeats", "1"]
    assert update.main(["--config", "3b", "--compute-dtype", "bfloat16", "--remat", "full", *sizes]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["skipped_updates"] == 0 and result["logical_tokens"] == 8 * 2 * 16
    assert {leaf.dtype.name for params in seen for leaf in jax.tree.leaves(params)} == {"bfloat16"}
