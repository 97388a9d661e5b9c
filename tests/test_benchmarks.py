"""The benchmarks run and print what they promise. How fast anything is, is no test."""

from __future__ import annotations

import functools
import gc
import importlib
import json
import math
from dataclasses import replace
from pathlib import Path

import jax
import numpy as np
import pytest
from helpers.commands import ROOT, SMALL, run_script
from jax.sharding import NamedSharding, PartitionSpec
from safetensors.numpy import load_file
from transformers import AutoTokenizer

from mmeureka_jax.config.load import load_config
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

# Command lines that scripts rely on, as they are documented.
FIXED_FORMS = {
    "step": "--model DIR --prompts 8 --group 8 --new 64 --side 112 --train all --steps 5",
    "generate": "--model DIR --batch 64 --prompt 40 --new 96 --group 1",
    "update": "--model DIR --prompts 8 --group 8 --prompt 104 --new 64 --train language",
    "rewards": "--answers 1000 --hanging 0.1 --workers 2 --time-limit 5.0",
    "vs_trl": "--prompts 8 --group 8 --new 64 --side 112 --repeats 3 --steps 5",
    "vs_transformers": "--what generate --batch 64 --prompt 40 --new 96 --group 1",
    "vs_tunix": "--batch 64 --prompt 40 --new 96 --group 1",
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


@pytest.fixture
def run_here(benchmark, monkeypatch, capsys):
    """run_here(name, options): the one JSON line, which is all of stdout, of a script in this process on one device."""
    one = functools.partial(open_policy, devices=jax.devices()[:1])
    monkeypatch.setattr(benchmark("common"), "open_policy", one)

    def run(name: str, *options: object) -> dict:
        assert benchmark(name).main([str(option) for option in options]) == 0
        (line,) = capsys.readouterr().out.splitlines()
        return json.loads(line)

    return run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("benchmarks") / "model"
    write_tiny_checkpoint(folder, SMALL)
    return folder


@pytest.mark.parametrize("name", FIXED_FORMS)
def test_fixed_command_forms_parse(benchmark, name):
    given = FIXED_FORMS[name].split()
    args = vars(benchmark(name).build_parser().parse_args(given))
    for option, value in zip(given[::2], given[1::2], strict=True):
        assert str(args[option.removeprefix("--").replace("-", "_")]) == value


# Each contest, the script of ours that takes part, and how many responses there are.
CONTESTS = [
    ("vs_trl", "--prompts 4 --group 2", "step", 8),
    ("vs_transformers", "--batch 6 --group 2", "generate", 6),
    ("vs_transformers", "--what update --batch 16", "update", 16),
    ("vs_tunix", "--batch 6", "generate", 6),
]


def side_options(side) -> dict[str, str]:
    return dict(zip(side.options[::2], side.options[1::2], strict=True))


@pytest.mark.parametrize(("name", "given", "script", "rows"), CONTESTS)
def test_contests_give_both_sides_the_same_work(benchmark, name, given, script, rows):
    """The command line of the project's side is one that its script takes, and what both are told is the same."""
    module = benchmark(name)
    args = module.build_parser().parse_args([*given.split(), "--new", "48", "--steps", "4"])
    contest = module.contest(args, Path("DIR"))
    assert contest.ours.module == f"benchmarks.{script}" and contest.ours.figure in PROMISED_KEYS[script]
    parsed = benchmark(script).build_parser().parse_args(contest.ours.options)
    peer = side_options(contest.peer)
    ours = side_options(contest.ours)
    assert {"--model", "--new", "--group"} <= peer.keys() & ours.keys()
    assert all(peer[option] == ours[option] for option in peer.keys() & ours.keys())
    assert peer["--steps"] == "4" == str(parsed.steps if script == "step" else parsed.repeats)
    assert rows == (parsed.batch if script == "generate" else parsed.prompts * parsed.group)
    assert rows == (int(peer["--batch"]) if "--batch" in peer else int(peer["--prompts"]) * int(peer["--group"]))
    assert contest.ratio(2.0, 1.0) == (2.0 if script == "step" else 0.5)


def test_contests_default_to_the_documented_sizes(benchmark):
    module = benchmark("vs_transformers")
    for what, sizes in (("generate", "1 40 96 112"), ("update", "8 104 64 224")):
        args = module.build_parser().parse_args(["--what", what])
        options = side_options(module.contest(args, Path("DIR")).peer)
        assert options["--batch"] == "64"
        assert [options[name] for name in ("--group", "--prompt", "--new", "--side")] == sizes.split()


@pytest.mark.parametrize("name", ["vs_trl", "vs_transformers", "vs_tunix"])
def test_contests_ask_for_the_documented_packages(benchmark, name):
    module = benchmark(name)
    contest = module.contest(module.build_parser().parse_args([]), Path("DIR"))
    assert (ROOT / contest.peer.module.replace(".", "/")).with_suffix(".py").is_file()
    documented = (ROOT / "benchmarks" / "peers" / "requirements.txt").read_text().split()
    assert {word for line in contest.needs for word in line.split()} <= set(documented)


def fake_peer(folder: Path, result: dict, error: str = "") -> Path:
    """An interpreter for which every import works and every program prints `result`, or nothing works."""
    line = json.dumps({"versions": {"peer": "0"}} | result)
    script = f"echo '{error}' >&2; exit 1" if error else f"""[ "$1" = -c ] || echo 'chatter\n{line}'"""
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


def test_contest_takes_medians_of_runs_in_turn(benchmark, tmp_path, monkeypatch, capsys):
    contest = benchmark("contest")
    seconds = iter([2.0, 1.0, 3.0])
    run_side = contest.run_side

    def run(python: str, side) -> dict:
        if side.module.startswith("benchmarks.peers."):
            return run_side(python, side)
        return {"s_per_step": next(seconds), "prompt_tokens": 76, "jax": "0"}

    monkeypatch.setattr(contest, "run_side", run)
    monkeypatch.setattr(contest, "busy_cores", lambda: 0.5)
    peer = fake_peer(tmp_path, {"s_per_step": 3.0, "prompt_tokens": 76})
    assert benchmark("vs_trl").main(["--peers-python", str(peer), "--new", "8"]) == 0
    output = capsys.readouterr()
    result = json.loads(output.out)
    assert result["ratio"] == 1.5 and result["ratios"] == [1.5, 3.0, 1.0]
    assert result["peer"]["s_per_step"] == 3.0 and result["ours"]["s_per_step"] == 2.0
    assert result["peer"]["all"] == [3.0] * 3 and result["ours"]["all"] == [2.0, 1.0, 3.0]
    assert result["same"] == {"prompt_tokens": 76} and result["options"]["new"] == 8
    *turns, warning = output.err.splitlines()
    assert [line.split()[1] for line in turns] == ["peer:", "ours:"] * 3
    assert result["busy_cores"] == [0.5] * 6 and "0.5 cores busy" in warning

    seconds = iter([2.0])
    other = fake_peer(tmp_path, {"s_per_step": 3.0, "prompt_tokens": 77})
    with pytest.raises(SystemExit, match=r"not do the same work: prompt_tokens \[76, 77\]"):
        benchmark("vs_trl").main(["--peers-python", str(other), "--repeats", "1"])


@pytest.mark.parametrize("name", ["vs_trl", "vs_transformers", "vs_tunix"])
def test_contest_without_its_peer_says_what_to_install(benchmark, tmp_path, capsys, name):
    python = fake_peer(tmp_path, {}, error="ModuleNotFoundError: No module named that")
    assert benchmark(name).main(["--peers-python", str(python)]) == 2
    output = capsys.readouterr()
    package = {"vs_trl": "trl", "vs_transformers": "transformers", "vs_tunix": "google-tunix"}[name]
    assert output.out == "" and "No module named that" in output.err
    assert f"{python} -m pip install" in output.err and f"{package}==" in output.err
    assert benchmark(name).main(["--peers-python", str(tmp_path / "none")]) == 2
    assert "no such program" in capsys.readouterr().err


def test_contests_tell_a_mistake_in_one_line(benchmark, tmp_path, capsys):
    peer = str(fake_peer(tmp_path, {}))
    assert benchmark("vs_tunix").main(["--peers-python", peer, "--batch", "6", "--group", "4"]) == 2
    assert benchmark("vs_transformers").main(["--peers-python", peer, "--prompt", "12"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "--group 4 does not divide --batch 6" in output.err and "18 tokens" in output.err


def test_byte_checkpoint(benchmark, tmp_path):
    """The checkpoint of the contests: ids of the tokenizer, a table of the asked length, a token a byte."""
    benchmark("contest").write_byte_checkpoint(tmp_path / "model", 512)
    config = read_config(tmp_path / "model")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert load_file(tmp_path / "model" / "model.safetensors")["model.embed_tokens.weight"].shape == (512, 256)
    assert config.text.vocab_size == 512
    assert tokenizer.convert_tokens_to_ids("<|image_pad|>") == config.image_token_id
    assert (tokenizer.eos_token_id,) == config.eos_token_ids and tokenizer.pad_token_id == config.pad_token_id
    text = "Wie viele Kreise? \u2014 7\n"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert len(tokenizer(text)["input_ids"]) == len(text.encode())


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
    assert prompts.tokens.shape == (3, 90) and (prompts.length == 90).all()
    assert ((prompts.tokens == config.image_token_id).sum(axis=1) == 64).all()
    assert prompts.images.patches.shape[1] == 4 and prompts.images.patch_mask.all()
    assert common.random_prompts(config, 1, 5, 0).images.patches.shape[1] == 0
    with pytest.raises(common.UserError, match="--side 100"):
        common.random_prompts(config, 1, 90, 100)
    with pytest.raises(common.UserError, match="66 tokens"):
        common.random_prompts(config, 1, 66, 224)


def test_a_mistake_is_told_in_one_line(benchmark, capsys, tmp_path):
    assert benchmark("update").main(["--model", "no/such/folder"]) == 2
    assert benchmark("generate").main(["--model", "tiny", "--batch", "6", "--group", "4"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and "--group 4 does not divide --batch 6" in output.err
    write_tiny_checkpoint(tmp_path / "model", replace(SMALL, family="qwen2"))
    assert benchmark("update").main(["--model", str(tmp_path / "model")]) == 2
    assert "the benchmarks count the work of Qwen2.5-VL" in capsys.readouterr().err


@pytest.mark.slow
def test_step(run_here, checkpoint):
    sizes = ["--prompts", 2, "--group", 2, "--new", 4, "--side", 56, "--train", "language", "--steps", 2]
    result = run_here("step", "--model", checkpoint, *sizes)
    assert result.keys() >= PROMISED_KEYS["step"]
    assert result["compiles"] == 0 and result["skipped_updates"] == 0 and len(result["all"]) == 2
    parts = result["rollout_s"] + result["reward_s"] + result["update_s"]
    assert 0 < parts <= 2 * max(result["all"])  # medians of parts and of steps, in one unit


@pytest.mark.slow
def test_generate(run_here, checkpoint):
    sizes = ["--batch", 2, "--prompt", 12, "--side", 56, "--new", 4, "--group", 2, "--repeats", 1]
    result = run_here("generate", "--model", checkpoint, *sizes)
    assert result.keys() >= PROMISED_KEYS["generate"]
    assert result["compiles"] == 0 and result["tok_per_s"] == pytest.approx(8 / result["all"][0], rel=0.05)


@pytest.mark.slow
def test_update(run_here, checkpoint):
    sizes = ["--prompts", 2, "--group", 3, "--prompt", 12, "--side", 56, "--new", 4, "--train", "all", "--repeats", 1]
    result = run_here("update", "--model", checkpoint, *sizes)
    assert result.keys() >= PROMISED_KEYS["update"]
    assert result["logical_tokens"] == 2 * 3 * (12 + 4)
    assert result["compiles"] == 0 and result["skipped_updates"] == 0


@pytest.mark.slow
def test_memory_sees_the_vocabulary(run_here, checkpoint):
    sizes = ["--prompts", 1, "--group", 2, "--prompt", 12, "--side", 56, "--new", 4, "--vocab", 1024, 65536]
    small, large = run_here("memory", "--model", checkpoint, *sizes)["rows"]
    grown = 4 * 32 * (65536 - 1024) / 2**20  # of one table of float32
    assert large["vocab_gradients_mb"] - small["vocab_gradients_mb"] == pytest.approx(grown, abs=0.1)
    # One gradient for embedding and head, logits of eight positions with what is made of them, and nothing else.
    logits = 4 * 2 * 4 * (65536 - 1024) / 2**20
    assert grown < large["temporary_mb"] - small["temporary_mb"] < grown + 4 * logits
    assert large["state_mb"] - small["state_mb"] == pytest.approx(3 * grown, abs=0.1)  # parameters, two moments


@pytest.mark.slow
def test_stragglers(run_here, checkpoint):
    sizes = ["--prompts", 4, "--group", 3, "--median", 4, "--prompt", 12, "--side", 56, "--repeats", 2]
    result = run_here("stragglers", "--model", checkpoint, *sizes)
    assert result["ratio"] == pytest.approx(result["ragged_tok_per_s"] / result["equal_tok_per_s"], abs=1e-3)
    assert result["compiles"] == 0 and 4 < result["mean_length"] < result["longest"] <= 32
    assert [len(seconds) for seconds in result["all"].values()] == [2, 2]


@pytest.mark.slow
def test_eval_stragglers(run_here, checkpoint):
    sizes = ["--problems", 12, "--rows", 4, "--median", 4, "--prompt", 12, "--side", 56, "--repeats", 2]
    result = run_here("eval_stragglers", "--model", checkpoint, *sizes)
    assert result["ratio"] == pytest.approx(result["ragged_tok_per_s"] / result["equal_tok_per_s"], abs=1e-3)
    assert result["compiles"] == 0 and 4 < result["mean_length"] < result["longest"] <= 32
    assert [len(seconds) for seconds in result["all"].values()] == [2, 2]


@pytest.mark.slow
def test_tree_search(run_here, monkeypatch, benchmark):
    module = benchmark("tree_search")
    monkeypatch.setattr(module, "open_policy", benchmark("common").open_policy)
    monkeypatch.setattr(
        module, "TINY", replace(module.TINY, num_layers=1, vision_depth=1, vision_full_attention_blocks=(0,))
    )
    sizes = {"problems": 3, "trees": 2, "alone": 1, "group": 3, "searches": 1, "new": 16, "steps": 1, "digits": 1}
    result = run_here("tree_search", *(x for name, size in sizes.items() for x in (f"--{name}", size)), "--shrink", 0)
    assert result["of_plain"] == pytest.approx(result["search_tok_per_s"] / result["plain_tok_per_s"], abs=2e-3)
    assert result["rollouts"] >= 9 and result["calls"] >= 2 and 0 < result["full_calls"] < 1
    assert 3 <= result["mean_length"] <= 16


@pytest.mark.slow
def test_rewards():
    result = run_script("rewards", "--accuracy", "upstream", "--answers", 20, "--hanging", 0.1, "--time-limit", 2)
    assert result["ratio"] == pytest.approx((result["hanging_s"] - 2) / result["plain_s"], abs=0.05)
    assert result["hanging"] == result["timeouts"] == result["failures"] == 2 and result["honest_failures"] == 0
    assert 0 < result["one_median_ms"] <= result["one_p99_ms"] <= result["one_max_ms"]
    assert 0 < result["reader_growth"] < 10 and result["reader_slowest_s"] > 0  # 4: linear, 16: quadratic


def test_rewards_asks_for_distinct_answers(benchmark):
    module = benchmark("rewards")
    requests, places = module.mixed_requests(500, 50, 1_000)
    assert len({(request.response, request.answer) for request in requests}) == 500
    assert len(places) == 50 and set(places.values()) == set(module.HANGING)
    assert len({requests[place].response for place in places}) == 50


def test_straggling_lengths_are_log_normal_and_cut_off(benchmark):
    lengths = benchmark("common").log_normal_lengths(500, 8, 64)
    assert lengths.shape == (500, 8) and lengths.min() >= 1 and lengths.max() == 8 * 64
    assert np.median(lengths) == pytest.approx(64, rel=0.05)
    assert np.std(np.log(lengths)) == pytest.approx(1, abs=0.05)


def test_benchmarks_use_a_device_for_each_core_that_has_prompts(benchmark, monkeypatch):
    common = benchmark("common")
    monkeypatch.setattr(common, "cores", lambda: 6)
    for script, options, expected in [
        ("step", "--prompts 8", 4), ("step", "--prompts 9 --micro-batches 3", 3), ("generate", "--batch 5", 5),
        ("generate", "--batch 64 --group 8", 4), ("stragglers", "--prompts 18", 6),
    ]:  # fmt: skip
        args = benchmark(script).build_parser().parse_args(["--model", "tiny", *options.split()])
        assert args.cpu_devices is None and common.cpu_devices(args) == expected, options


@pytest.mark.slow
def test_random_weights_of_a_released_model(benchmark, monkeypatch, capsys):
    """`--config`, with sizes that fit here, on a mesh of eight devices."""
    common = benchmark("common")
    update = benchmark("update")
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


@pytest.mark.parametrize("what", ["generate", "update"])
def test_the_peer_of_the_contest_with_transformers(benchmark, checkpoint, monkeypatch, capsys, what):
    """torch and transformers are in the tests' environment; our side is `generate` or `update`, which run above."""
    module = benchmark("vs_transformers")
    sizes = "--batch 4 --group 2 --prompt 12 --side 56 --new 4 --repeats 1 --steps 1".split()
    contest = module.contest(module.build_parser().parse_args(["--what", what, *sizes]), checkpoint)
    monkeypatch.setattr("sys.argv", [contest.peer.module, *contest.peer.options])
    importlib.import_module(contest.peer.module).main()
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result[contest.peer.figure] > 0
    assert {size: result[size] for size in contest.same} == (
        {} if what == "generate" else {"logical_tokens": 4 * (12 + 4)}
    )


@pytest.mark.slow
def test_contest_with_a_fake_peer(tmp_path):
    """The project's side runs on the checkpoint of the contest, here beside a peer that does nothing."""
    peer = fake_peer(tmp_path, {"s_per_step": 1.0, "prompt_tokens": 64, "tok_per_s": 1.0})
    sizes = ["--batch", 2, "--prompt", 12, "--group", 2, "--new", 4, "--repeats", 1, "--steps", 1]
    result = run_script("vs_tunix", "--peers-python", peer, *sizes)
    assert result["ratio"] > 0 and result["peer"]["all"] == [1.0]


@pytest.mark.slow
def test_load_measures_each_way_in_a_process_of_its_own():
    result = run_script("load", "--model", "tiny", "--layers", 1, "--cpu-devices", 1, "--dtype", "float32")
    assert result["files"] >= 3 and result["rows"].keys() == {"load", "load orbax", "save"}
    for row in result["rows"].values():
        assert row["params_mb"] == pytest.approx(2 * result["stored_mb"], rel=0.02)  # float32 of bfloat16
        assert row["beside_mb"] > 0 and row["ratio"] == pytest.approx(
            row["beside_mb"] / result["largest_tensor_mb"], 0.02
        )
    assert result["ratio"] == result["rows"]["load"]["ratio"]


def test_bytes_held_count_a_buffer_once(benchmark):
    """Also while its shards are arrays of their own, and after the whole was donated."""
    held_bytes = benchmark("plan_on_cpu").held_bytes
    gc.collect()
    before = held_bytes()
    sharding = NamedSharding(jax.make_mesh((4,), ("x",)), PartitionSpec("x"))
    whole = jax.device_put(np.ones((4, 1000), np.float32), sharding)
    everywhere = jax.device_put(np.ones(10, np.float32), NamedSharding(sharding.mesh, PartitionSpec()))
    elsewhere = jax.device_put(np.ones(500, np.float32), jax.devices()[1])
    shards = [shard.data for shard in (*whole.addressable_shards, *everywhere.addressable_shards)]
    assert len(jax.live_arrays()) >= 11 and held_bytes() - before == 4000 + 40
    after = jax.jit(lambda x: x + 1, donate_argnums=0)(whole)
    assert whole.is_deleted() and held_bytes() - before == 4000 + 40
    del after
    assert held_bytes() - before == 40 and len(shards) == 8 and not elsewhere.is_deleted()


def test_the_table_of_scale_is_that_of_its_results():
    """docs/scale.md shows what benchmarks/scale.json holds; `python -m benchmarks.scale --table` writes it."""
    scale = importlib.import_module("benchmarks.scale")
    results = json.loads(scale.RESULTS.read_text()) if scale.RESULTS.is_file() else {}
    page = scale.PAGE.read_text()
    assert "\n".join(scale.table(results)) in page
    assert "\n".join(scale.more_chips(results)) in page
    for row in scale.ROWS:
        assert load_config(ROOT / row.recipe, row.overrides.split()).run_dir
        assert row.overrides in (ROOT / row.recipe).read_text(), f"{row.recipe} does not name what {row.name} adds"


def test_predicted_mfu_is_near_what_is_published(benchmark):
    """Three rows of MaxText's tables, of which the first one gave the attainable fraction of a chip's operations."""
    predictions = benchmark("predictions")
    rates = predictions.Assumptions()
    for row in predictions.TABLE:
        assert predictions.predicted_mfu(row, rates) == pytest.approx(row.mfu, rel=0.1)
