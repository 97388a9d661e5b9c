"""The arithmetic of benchmarks/floors.py against counts of other kinds; roofline and scaling run and print their line.

The oracles: a loop over the shapes of every product and every pair that a mask lets through, the products in the traced
programs of the policy, XLA's own cost analysis, and the real trees of parameters and optimiser state.
"""

from __future__ import annotations

import importlib
import math
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import ROOT, SMALL, run_script
from helpers.products import traced_flops

from mmeureka_jax.config.schema import Config, OptimizerConfig
from mmeureka_jax.models.batch import Images, Prompt
from mmeureka_jax.models.decoder_config import TextConfig
from mmeureka_jax.models.policy import Policy, encode_images, prefill, token_log_probs
from mmeureka_jax.models.qwen_vl_config import Qwen2_5VLConfig, VisionConfig
from mmeureka_jax.rl.train_state import make_training
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

TEXT = TextConfig(
    vocab_size=96, hidden_size=24, intermediate_size=40, num_layers=3, num_heads=4, num_kv_heads=2, head_dim=8,
    rms_norm_eps=1e-6, rope_theta=1e6, mrope_section=(2, 1, 1), tie_word_embeddings=True,
)  # fmt: skip
VISION = VisionConfig(
    hidden_size=16, intermediate_size=20, depth=3, num_heads=2, patch_size=14, temporal_patch_size=2,
    spatial_merge_size=2, window_size=56, full_attention_blocks=(1,), in_channels=3, out_hidden_size=24,
)  # fmt: skip
CONFIG = Qwen2_5VLConfig(
    text=TEXT, vision=VISION, image_token_id=0, video_token_id=1, vision_start_token_id=2, vision_end_token_id=3,
    eos_token_ids=(4,), pad_token_id=5,
)  # fmt: skip
UNTIED = replace(CONFIG, text=replace(TEXT, tie_word_embeddings=False, head_dim=16, mrope_section=(2, 3, 3)))


@pytest.fixture(scope="module")
def benchmark():
    """Imports a script; `benchmarks` is a folder of the repository, not of the installed package."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT)
        yield lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture(scope="module")
def floors(benchmark):
    return benchmark("floors")


# Oracles.


def layer_products(text: TextConfig, tokens: int) -> int:
    """Operations of one decoder layer's products with its kernels, shape by shape."""
    size = text.hidden_size
    query = text.num_heads * text.head_dim
    key = text.num_kv_heads * text.head_dim
    shapes = [(size, query), (size, key), (size, key), (query, size)]
    shapes += [(size, text.intermediate_size)] * 2 + [(text.intermediate_size, size)]
    return sum(2 * tokens * rows * columns for rows, columns in shapes)


def attention_products(heads: int, head_dim: int, mask: np.ndarray) -> int:
    """Scores and weighted values, pair by pair."""
    return sum(2 * 2 * heads * head_dim for _ in range(int(mask.sum())))


def group_mask(prompt: int, group: int, new: int) -> np.ndarray:
    """What a row [prompt, response 1, ..., response n] may see of itself."""
    owner = np.concatenate([np.zeros(prompt, int), np.repeat(np.arange(1, group + 1), new)])
    return np.tril(np.ones((len(owner),) * 2, bool)) & ((owner[:, None] == owner) | (owner == 0))


def struct(shape: tuple[int, ...], dtype) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, dtype)


def abstract_images(config: Qwen2_5VLConfig, prompts: int, windows: int) -> Images:
    places = (prompts, windows, (config.vision.window_size // config.vision.patch_size) ** 2)
    return Images(
        patches=struct((*places, 3 * config.vision.patch_size**2), jnp.float32),
        patch_positions=struct((*places, 2), jnp.int32),
        patch_mask=struct(places, jnp.bool_),
        image_ids=struct(places[:2], jnp.int32),
    )


def abstract_prompts(config: Qwen2_5VLConfig, prompts: int, length: int, windows: int = 0) -> Prompt:
    return Prompt(
        tokens=struct((prompts, length), jnp.int32),
        positions=struct((prompts, 3, length), jnp.int32),
        length=struct((prompts,), jnp.int32),
        next_position=struct((prompts,), jnp.int32),
        image_index=struct((prompts, length), jnp.int32),
        images=abstract_images(config, prompts, windows),
    )


def tree_bytes(tree) -> int:
    """Of everything but scalars (counters)."""
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree) if leaf.ndim)


# Parameters.


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
def test_parameters_are_those_of_the_tree(floors, config):
    tree = Policy(config).abstract_params()
    count = {name: tree_bytes(part) // 4 for name, part in tree.items()}
    assert floors.language_parameters(config.text) == count["language"]
    assert floors.vision_parameters(config.vision) == count["vision"]
    assert floors.parameters(config) == sum(count.values())
    embedding = math.prod(tree["language"]["embed_tokens"]["embedding"].shape)
    unread = 0 if config.text.tie_word_embeddings else embedding
    assert floors.language_read(config.text) == count["language"] - unread


@pytest.mark.parametrize("frozen", [(), ("vision",)])
def test_optimiser_traffic_is_that_of_the_state(floors, frozen):
    state = make_training(Config(optimizer=OptimizerConfig(frozen=frozen)), 1).abstract_state(Policy(CONFIG))
    written = tree_bytes(state.trainable) + tree_bytes(state.optimizer)
    read = written + tree_bytes(state.trainable)  # and the gradients
    work = floors.update(CONFIG, floors.Batch(1, 1, 1, 1), train_vision=not frozen)["adamw"]
    assert work == floors.Work(0, read + written)


# Operations.


@pytest.mark.parametrize("config", [CONFIG, UNTIED])
@pytest.mark.parametrize(("prompts", "group", "prompt", "new"), [(1, 1, 1, 1), (2, 3, 7, 5)])
def test_passes_against_a_loop_over_products(floors, config, prompts, group, prompt, new):
    text = config.text
    heads = (text.num_heads, text.head_dim)
    layers = text.num_layers
    vocab = text.vocab_size
    causal = np.tril(np.ones((prompt, prompt), bool))
    expected = prompts * layers * (layer_products(text, prompt) + attention_products(*heads, causal))
    assert floors.prefill(config, prompts, prompt, 4).flops == expected

    batch = floors.Batch(prompts, group, prompt, new)
    seen = group_mask(prompt, group, new)
    forward = prompts * layers * (layer_products(text, prompt + group * new) + attention_products(*heads, seen))
    head = 2 * prompts * group * new * text.hidden_size * vocab
    assert floors.update(config, batch)["gradients"].flops == 3 * (forward + head)

    # Token by token the responses take what they take at once (the last one of each is never fed).
    steps = sum((floors.decode_step(config, batch.rows, group, prompt, own, 4) for own in range(1, new + 1)),
                floors.Work())  # fmt: skip
    assert steps.flops + floors.prefill(config, prompts, prompt, 4).flops == forward + head
    assert floors.decode(config, replace(batch, new=new + 1), 4) == steps

    # Of three windows each: two blocks see one of them, one block sees all.

    per_pair = attention_products(*heads, np.ones((1, 1), bool))
    both = steps + floors.prefill(config, prompts, prompt, 4)
    update = floors.update(config, batch)["gradients"]
    pairs = prompts * layers * int(seen.sum())
    assert both.exponentials == update.exponentials == pairs * text.num_heads
    assert both.attention + both.cached_flops == update.attention / 3 == pairs * per_pair
    of_responses = group_mask(0, group, new).sum()  # each token and its own response
    assert steps.cached_flops == prompts * layers * of_responses * per_pair
    assert steps.cached == prompts * layers * of_responses * 2 * text.num_kv_heads * text.head_dim * 4


@pytest.mark.parametrize(("prompts", "length"), [(1, 1), (2, 16)])
def test_prefill_against_the_program(floors, prompts, length):
    policy = Policy(UNTIED)
    given = abstract_prompts(UNTIED, prompts, length), None
    counted = traced_flops(lambda *a: prefill(policy, *a), policy.abstract_params(), *given)
    text = UNTIED.text
    masked = length**2 - floors.causal_pairs(length)
    most = floors.layers_operations(text, 0, prompts * masked)  # all that the program may add: pairs that are masked
    floor = floors.prefill(UNTIED, prompts, length, 4).flops
    assert floor <= counted <= floor + most


@pytest.mark.parametrize(
    ("remat", "windows", "group", "prompt", "new"),
    [(False, 2, 3, 7, 5), (True, 2, 3, 7, 5), (False, 0, 3, 7, 5), (True, 0, 1, 1, 1)],
)
def test_update_against_the_program(floors, remat, windows, group, prompt, new):
    """Gradients of the real policy: no product is forgotten and none is counted that is not there."""
    policy = Policy(CONFIG, remat=remat)
    batch = floors.Batch(2, group, prompt, new, windows)
    prompts = abstract_prompts(CONFIG, 2, prompt, windows)
    responses = struct((2, group, new), jnp.int32)

    def loss(params, prompts, responses):
        embeds = encode_images(policy, params, prompts.images)
        return token_log_probs(policy, params, prompts, embeds, responses)[0].sum()

    arguments = policy.abstract_params(), prompts, responses
    # Blocks of window attention and of full attention stand in two branches of one loop.
    window, full = (traced_flops(jax.grad(loss), *arguments, branch=branch) for branch in (0, 1))
    depth = VISION.depth
    number = len(VISION.full_attention_blocks)
    counted = (window * (depth - number) + full * number) / depth
    floor = floors.update(CONFIG, batch, remat=remat, train_vision=True)["gradients"].flops
    # What the program may add: pairs of a query and a key that are masked, and scores and logits computed again.
    visible = floors.causal_pairs(prompt) + group * floors.causal_pairs(new, before=prompt)
    met = prompt**2 + group * new * (prompt + group * new)
    most = (4 if remat else 3) * floors.layers_operations(TEXT, 0, 2 * (met - visible))
    most += floors.layers_operations(TEXT, 0, 2 * met) // 2  # of the two products of attention one
    patches = 2 * windows * VISION.patches_per_window
    products = floors.blocks_flops(VISION, 2, windows) - 2 * patches * VISION.depth * floors.block_kernels(VISION)
    most += products // 2
    most += 0 if remat else 2 * batch.rows * new * floors.head_parameters(TEXT)  # logits are always computed again
    assert floor <= counted <= floor + most


@pytest.mark.parametrize("windows", [1, 3])
@pytest.mark.parametrize("blocks", [(), (0, 1, 2)])
def test_vision_against_the_program(floors, windows, blocks):
    config = replace(CONFIG, vision=replace(VISION, full_attention_blocks=blocks))
    policy = Policy(config)
    arguments = policy.abstract_params(), abstract_images(config, 2, windows)
    counted = traced_flops(lambda *a: encode_images(policy, *a), *arguments, branch=int(bool(blocks)))
    assert floors.encode(config, 2, windows, 4).flops == counted


def test_decode_step_against_xla(floors):
    """The compiler's own count for responses of one token: prompts and a decode step. It adds what is no product."""
    text = replace(
        TEXT, num_layers=1, hidden_size=128, intermediate_size=256, vocab_size=512, head_dim=32, mrope_section=(6, 5, 5)
    )  # one layer: a loop's body is counted once
    config = replace(CONFIG, text=text, vision=replace(VISION, out_hidden_size=128))
    policy = Policy(config, remat=False)
    prompts = 2
    group = 24
    length = 8
    arguments = policy.abstract_params(), abstract_prompts(config, prompts, length)
    responses = struct((prompts, group, 1), jnp.int32)
    program = jax.jit(lambda *a: token_log_probs(policy, *a)).lower(*arguments, None, responses).compile()
    floor = floors.prefill(config, prompts, length, 4) + floors.decode_step(
        config, prompts * group, group, length, 1, 4
    )
    masked = floors.layers_operations(text, 0, prompts * (length**2 - floors.causal_pairs(length)))
    assert floor.flops <= program.cost_analysis()["flops"] <= 1.1 * (floor.flops + masked)


def test_decode_step_reads_every_parameter_and_both_caches(floors):
    policy = Policy(CONFIG)
    prompts = 2
    group = 4
    length = 16
    own = 7

    def cache(rows: int, length: int):
        arguments = policy.abstract_params(), abstract_prompts(CONFIG, rows, length)
        return jax.eval_shape(lambda *a: prefill(policy, *a)[1], *arguments, None)

    read = policy.abstract_params()["language"], cache(prompts, length), cache(prompts * group, own)
    assert floors.decode_step(CONFIG, prompts * group, group, length, own, 4).bytes == tree_bytes(read)


# Bytes, and time.


def test_sharing_saves_the_prompts_keys_and_values_and_nothing_else(floors):
    alone, shared = (floors.decode_step(CONFIG, 64, group, 40, 7, 2) for group in (1, 8))
    assert alone.flops == shared.flops
    layer_token = 2 * TEXT.num_kv_heads * TEXT.head_dim * 2  # keys and values, two bytes a number
    assert alone.bytes - shared.bytes == TEXT.num_layers * layer_token * 40 * (64 - 8)


def test_micro_batches_move_bytes_and_compute_nothing(floors):
    batch = floors.Batch(4, 2, 8, 4)
    whole, parts = (floors.update(CONFIG, batch, micro_batches=count) for count in (1, 2))
    assert parts["gradients"].flops == whole["gradients"].flops and parts["adamw"] == whole["adamw"]
    # Once more: the parameters read twice, the sum of gradients read and written.
    assert parts["gradients"].bytes - whole["gradients"].bytes == 4 * 4 * floors.language_parameters(TEXT)


def test_a_frozen_tower_costs_an_update_nothing(floors):
    batch = floors.Batch(4, 2, 8, 4, windows=3)
    assert floors.update(CONFIG, batch) == floors.update(CONFIG, replace(batch, windows=0))
    assert floors.generation(CONFIG, batch, 4)["vision"] == floors.encode(CONFIG, 4, 3, 4)
    assert floors.encode(CONFIG, 4, 0, 4) == floors.Work()


def test_seconds_are_of_the_slower_of_the_two(floors):
    work = floors.Work(100.0, 30.0)
    assert floors.seconds(work, 10.0, 10.0) == 10.0
    assert floors.seconds(work, 100.0, 10.0) == 3.0
    assert floors.total_seconds([work, floors.Work(0, 50)], 10.0, 10.0) == 15.0
    assert work + floors.Work(1, 2) == floors.Work(101.0, 32.0)


def test_kernels_of_each_kind_have_their_own_rate(floors):
    rates = floors.KernelRates(matmul=10, copy=10, attention=5, exponential=2, cache=1)
    assert floors.kernel_seconds([floors.Work(100, 30)], rates) == 10
    assert floors.kernel_seconds([floors.Work(100, 30, attention=50)], rates) == 5 + 10
    assert floors.kernel_seconds([floors.Work(100, 30, exponentials=4), floors.Work(0, 50)], rates) == 10 + 2 + 5
    assert floors.kernel_seconds([floors.Work(100, 230, cached=30, cached_flops=90)], rates) == 20 + 30


def test_vision_counts_a_number_of_the_softmax_for_every_pair(floors):
    patches = VISION.patches_per_window
    pairs = 2 * (2 * 3 * patches**2 + (3 * patches) ** 2)  # three windows each; two blocks see one, one block all
    work = floors.encode(CONFIG, 2, 3, 4)
    assert work.exponentials == pairs * VISION.num_heads and work.attention == pairs * 4 * VISION.hidden_size
    batch = floors.Batch(2, 1, 8, 4, windows=3)
    frozen, trained, again = (
        floors.update(CONFIG, batch, **options)["gradients"]
        for options in ({}, {"train_vision": True}, {"train_vision": True, "remat": True})
    )
    assert trained.exponentials - frozen.exponentials == work.exponentials
    assert trained.attention - frozen.attention == 3 * work.attention
    assert again.exponentials == 2 * trained.exponentials and again.attention == trained.attention * 4 / 3


# The scripts.


@pytest.mark.parametrize("on_gpu", [False, True])
def test_costliest_operations_of_a_trace(benchmark, on_gpu):
    """A loop is not charged with its body, layers are added up, and what is no operation is left out."""
    process, line = ("/device:GPU:0", "XLA Ops") if on_gpu else ("/host:CPU", "tf_XLAPjRtCpuClient/1")
    events = [
        {"ph": "M", "pid": 1, "name": "process_name", "args": {"name": process}},
        {"ph": "M", "pid": 1, "tid": 7, "name": "thread_name", "args": {"name": line}},
        {"ph": "M", "pid": 1, "tid": 8, "name": "thread_name", "args": {"name": "XLA Modules"}},
    ]

    def event(name, start, duration, thread=7, **args):
        events.append({"ph": "X", "pid": 1, "tid": thread, "ts": start, "dur": duration, "name": name, "args": args})

    event("dot.12", 10, 30, hlo_op="dot.12")
    event("while.5", 0, 100, hlo_op="while.5")
    event("dot.3", 50, 40, hlo_op="dot.3")
    event("copy.1", 100, 20, hlo_op="copy.1")
    event("jit_step", 0, 500, thread=8)  # around everything
    shown = benchmark("traces").costliest(events, 2)
    assert shown == [
        {"name": "dot", "s": 7e-5, "share": 0.583, "calls": 2},
        {"name": "while", "s": 3e-5, "share": 0.25, "calls": 1},
    ]
    assert benchmark("traces").costliest(events[:3]) == []


def test_growth_is_judged_by_that_of_the_floor(benchmark):
    scaling = benchmark("scaling")
    rows = [
        {"axis": axis, "group": n, "rollout_s": 3.0 * n**2, "rollout_floor_s": 1.0 * n, "update_s": 5.0 + n,
         "update_floor_s": 1.0 * n, "rollout_kernel_floor_s": n**2.0, "update_kernel_floor_s": 2.0 * n}
        for n in (2, 4, 8) for axis in ("group", "another")
    ]  # fmt: skip
    curve = scaling.Curve.of("group", rows)
    assert curve.values == [2, 4, 8]
    growth = curve.growth()
    assert growth["rollout"] == {
        "growth": 16, "floor_growth": 4, "growth_over_floor": 4, "exceeds_floor": True,
        "kernel_floor_growth": 16, "growth_over_kernel_floor": 1, "exceeds_kernel_floor": False,
    }  # fmt: skip
    assert not growth["update"]["exceeds_floor"]
    assert curve.measured["step"] == [3 * n**2 + 5 + n for n in (2, 4, 8)]
    middles, steepness = scaling.slopes(curve.values, curve.measured["rollout"])
    np.testing.assert_allclose(middles, [8**0.5, 32**0.5])
    np.testing.assert_allclose(steepness, [2, 2])


def test_a_mistake_is_told_in_one_line(benchmark, capsys):
    """The tests have eight devices, and floors are of one."""
    assert benchmark("roofline").main(["--model", "tiny"]) == 2
    assert benchmark("scaling").main(["--model", "tiny", "--out", "nowhere"]) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("8 devices") == 2 and not Path("nowhere").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("floors") / "model"
    write_tiny_checkpoint(folder, SMALL)
    return folder


@pytest.mark.slow
def test_roofline(checkpoint, tmp_path):
    sizes = ["--rows", 4, "--group", 2, "--prompt", 12, "--side", 56, "--new", 64, "--vocab", 512]
    result = run_script("roofline", "--model", checkpoint, *sizes, "--repeats", 2, "--profile", tmp_path)
    assert list(result["parts"]) == ["vision", "prefill", "decode", "update"] and result["compiles"] == 0
    for part in result["parts"].values():
        assert part["times_floor"] == pytest.approx(part["s"] / part["floor_s"], rel=0.01)
        larger = max(part["matmul_fraction"], part["copy_fraction"])
        assert 0 < larger <= 1.01 / part["times_floor"]  # of the update the floor is a sum of two
        assert part["times_kernel_floor"] == pytest.approx(part["s"] / part["kernel_floor_s"], rel=0.01)
    assert min(result[rate] for rate in ("attention_tflops", "exponentials_g_per_s", "cache_gb_per_s")) > 0
    assert result["decode_step_s"] == pytest.approx(result["parts"]["decode"]["s"] / 63, rel=0.01)
    for name in ("decode", "update"):
        shares = [operation["share"] for operation in result["costliest"][name]]
        assert len(shares) == 3 and shares == sorted(shares, reverse=True) and sum(shares) <= 1.001
    assert len(list(tmp_path.glob("*/plugins/profile/*/perfetto_trace.json.gz"))) == 2


@pytest.mark.slow
def test_scaling(checkpoint, tmp_path):
    axes = ["vocab"]
    result = run_script("scaling", "--model", checkpoint, "--quick", "--axes", *axes, "--out", tmp_path)
    assert [(row["axis"], row[row["axis"]]) for row in result["rows"]] == [
        ("vocab", 512), ("vocab", 1024),
    ]  # fmt: skip
    assert result["compiles"] == 0 and list(result["growth"]) == axes
    for row in result["rows"]:
        assert row["rollout_s"] > 0 and row["update_s"] > 0
    first, last = result["rows"][:2]
    expected = last["update_s"] / first["update_s"] / (last["update_floor_s"] / first["update_floor_s"])
    assert result["growth"]["vocab"]["update"]["growth_over_floor"] == pytest.approx(expected, rel=0.01)
    table = (tmp_path / "scaling.md").read_text()
    assert "## Vocabulary" in table and "| 1,024 |" in table
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
