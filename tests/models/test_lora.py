"""Adapters against a dense policy, and their files against PEFT."""

from __future__ import annotations

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.internvl_models import FORMS, LivelyInternVL
from helpers.support import PROBLEMS, Lively
from safetensors.numpy import load_file, save_file

from mmeureka_jax.config.schema import Config, OptimizerConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import load_params, save_params
from mmeureka_jax.formats.peft import CONFIG_FILE, open_adapters, save_adapters
from mmeureka_jax.models.layers import Linear
from mmeureka_jax.models.lora import (
    Lora,
    base_paths,
    initial_adapters,
    linear_maps,
    merged,
    without_adapters,
)
from mmeureka_jax.models.policy import encode_images, token_log_probs
from mmeureka_jax.rl.optimizer import split_frozen
from mmeureka_jax.rl.train_state import make_training

LORA = Lora(rank=3, alpha=6.0, targets=(r"language/layers/.*", r"vision/merger/(mlp_0|linear_1)"), base_dtype="float32")
BOTH = ["text only", "several pictures"]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=False, layers=2, depth=2)


@pytest.fixture(scope="module")
def policy(model):
    return dataclasses.replace(model.policy, lora=LORA)


@pytest.fixture(scope="module")
def params(model, policy):
    return with_adapters(model.params, policy, lively(policy))


@pytest.fixture(scope="module")
def batch(model):
    return model.batch([PROBLEMS[name] for name in BOTH])


RESPONSES = np.random.default_rng(0).integers(5, 250, (2, 2, 7)).astype(np.int32)


def lively(policy, seed=0):
    """Random adapters, neither matrix zero."""
    rng = np.random.default_rng(seed)
    shapes = initial_adapters(policy.abstract_params(), 0)
    return {path: rng.normal(0, 0.2, value.shape).astype(np.float32) for path, value in shapes.items()}


def with_adapters(params, policy, adapters):
    flat = flatten_dict(params, sep="/") | {path: jnp.asarray(value) for path, value in adapters.items()}
    assert jax.tree.structure(tree := unflatten_dict(flat, sep="/")) == jax.tree.structure(policy.abstract_params())
    return tree


@functools.partial(jax.jit, static_argnums=0)
def score(policy, params, batch, responses=RESPONSES):
    return token_log_probs(policy, params, batch, encode_images(policy, params, batch.images), responses)[0]


# --- the policy


def test_new_adapters_change_nothing_and_the_reference_is_the_base(model, policy, params, batch):
    base = score(model.policy, model.params, batch)
    new = with_adapters(model.params, policy, initial_adapters(policy.abstract_params(), 7))
    np.testing.assert_allclose(score(policy, new, batch), base, atol=1e-6)
    assert np.abs(score(policy, params, batch) - base).max() > 0.1
    np.testing.assert_array_equal(score(policy.base, without_adapters(params), batch), base)


def test_merged_adapters_are_the_same_policy(model, policy, params, batch):
    whole = merged(params, LORA)
    assert jax.tree.structure(whole) == jax.tree.structure(model.params)
    np.testing.assert_allclose(score(model.policy, whole, batch), score(policy, params, batch), atol=2e-4)
    changed = {
        path
        for path, value in flatten_dict(whole, sep="/").items()
        if not np.array_equal(value, flatten_dict(model.params, sep="/")[path])
    }
    assert changed == {f"{path}/kernel" for path in LORA.paths(model.config)}


@pytest.mark.slow
def test_gradients_are_those_of_a_dense_run_projected(model, policy, params, batch):
    """d/dA = s G B^T and d/dB = s A^T G, where G is the dense gradient of the kernel at W + s A B."""
    ours = flatten_dict(jax.grad(lambda p: score(policy, p, batch).sum())(params), sep="/")
    dense = jax.grad(lambda p: score(model.policy, p, batch).sum())(merged(params, LORA))
    dense = flatten_dict(dense, sep="/")
    values = flatten_dict(params, sep="/")
    for path in LORA.paths(model.config):
        of_kernel = np.asarray(dense[f"{path}/kernel"])
        expected = {
            "lora_a": LORA.scale * of_kernel @ np.swapaxes(values[f"{path}/lora_b"], -1, -2),
            "lora_b": LORA.scale * np.swapaxes(values[f"{path}/lora_a"], -1, -2) @ of_kernel,
        }
        for leaf, value in expected.items():
            error = np.linalg.norm(ours[f"{path}/{leaf}"] - value)
            assert error <= 1e-3 * np.linalg.norm(value) and np.linalg.norm(value) > 0, (path, leaf)


def test_first_values_are_those_of_the_formula_by_path_and_seed(policy):
    shapes = policy.abstract_params()
    first, again, other = (initial_adapters(shapes, seed) for seed in (1, 1, 2))
    for path, value in first.items():
        np.testing.assert_array_equal(value, again[path])
        if path.endswith("lora_b"):
            assert not value.any()
        else:
            bound = value.shape[-2] ** -0.5
            assert bound * 0.9 < np.abs(value).max() <= bound
            assert abs(value.std() / (bound / 3**0.5) - 1) < 0.2
            assert not np.array_equal(value, other[path])
    smaller = dataclasses.replace(policy, lora=dataclasses.replace(LORA, targets=("language/layers/mlp/up_proj",)))
    for path, value in initial_adapters(smaller.abstract_params(), 1).items():
        np.testing.assert_array_equal(value, first[path])


def test_dropout_drops_inputs_of_adapters_alone():
    linear = Linear(40, 30, ("embed", "mlp"))
    x, kernel, lora_a, lora_b = (
        jnp.asarray(np.random.default_rng(i).normal(size=shape), jnp.float32)
        for i, shape in enumerate([(50, 40), (40, 30), (40, 4), (4, 30)])
    )
    key = jax.random.key(3)
    linear.kernel = kernel
    linear.lora_a = lora_a
    linear.lora_b = lora_b
    linear.lora_scale = 0.5
    linear.dropout = 0.25
    linear.dropout_key = jax.random.key_data(key)
    kept = np.asarray(jax.random.bernoulli(key, 0.75, x.shape))
    expected = x @ kernel + 0.5 * (np.where(kept, x, 0) / 0.75) @ lora_a @ lora_b
    np.testing.assert_allclose(linear(x), expected, rtol=1e-4, atol=1e-4)
    assert 0.7 < kept.mean() < 0.8


def test_each_draw_layer_and_map_drops_out_anew(model, policy, params, batch):
    dropping = dataclasses.replace(policy, lora=dataclasses.replace(LORA, dropout=0.5))
    same = dropping.with_dropout(params, 4, 2)
    assert same[0] == dropping.with_dropout(params, 5, 2)[0]
    one, again, other = (
        np.asarray(score(*dropping.with_dropout(params, *draw), batch)) for draw in ((4, 2), (4, 2), (5, 2))
    )
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.01
    assert np.abs(one - score(*dropping.with_dropout(params, 4, 3), batch)).max() > 0.01
    keys = [value for path, value in flatten_dict(same[1], sep="/").items() if path.endswith("dropout_key")]
    rows = np.concatenate([np.asarray(key).reshape(-1, 2) for key in keys])
    assert len(np.unique(rows, axis=0)) == len(rows) == 7 * 2 + 1
    np.testing.assert_array_equal(score(dropping, params, batch), score(policy, params, batch))  # not while sampling
    assert policy.with_dropout(params, 4) == (policy, params)


@pytest.mark.parametrize("rank", [1, 4])
def test_adapters_alone_are_trained_and_have_an_optimiser_s_state(model, policy, rank):
    lora = dataclasses.replace(LORA, rank=rank, base_dtype="bfloat16")
    shapes = dataclasses.replace(policy, lora=lora)
    state = make_training(Config(optimizer=OptimizerConfig(frozen=())), 10).abstract_state(shapes)

    def size(tree):
        return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))

    leaves = flatten_dict(model.params, sep="/")
    kernels = [leaves[f"{path}/kernel"] for path in LORA.paths(model.config)]
    numbers = sum((k.shape[0] if k.ndim == 3 else 1) * rank * sum(k.shape[-2:]) for k in kernels)
    assert size(state.trainable) == 4 * numbers
    counters = 4 * 2  # AdamW's, and the schedule's
    assert size(state.optimizer) == 2 * size(state.trainable) + counters
    assert size(state.frozen) == 2 * sum(leaf.size for leaf in jax.tree.leaves(model.params))
    assert {leaf.dtype.name for leaf in jax.tree.leaves(state.frozen)} == {"bfloat16"}
    assert set(flatten_dict(state.frozen, sep="/")) == set(base_paths(shapes.abstract_params()))


def test_a_target_that_matches_nothing_names_what_there_is(model):
    with pytest.raises(UserError, match=r"'language/lm_head' matches no linear map.*\n(?s:.*)layers/self_attn/q_proj"):
        dataclasses.replace(LORA, targets=("language/lm_head",)).paths(model.config)
    assert "language/lm_head" in linear_maps(model.config)  # the output projection is one, but has no adapter


def test_adapters_under_a_frozen_prefix_are_refused(policy):
    assert "vision/merger/mlp_0/kernel" in policy.frozen(())
    for prefix in ("vision", "vision/merger/mlp_0", "vision/merger/mlp_0/lora_a"):
        with pytest.raises(UserError, match=f"vision/merger/mlp_0 an adapter, and optimizer.frozen leaves '{prefix}'"):
            policy.frozen((prefix,))
    with pytest.raises(UserError, match="no parameter path starts with 'visoin'"):
        split_frozen(policy.abstract_params(), policy.frozen(("visoin",)))


# --- files


def torch_score(model, names):
    """[P, n, Lr] under the torch model as it is."""
    with torch.no_grad():
        return np.asarray(
            [
                [model.torch_log_probs(PROBLEMS[name], response)[0].numpy() for response in responses]
                for name, responses in zip(names, RESPONSES, strict=True)
            ]
        )


def with_torch(model, torch_model):
    """`model` that computes with another torch module."""
    changed = object.__new__(type(model))
    changed.__dict__ |= model.__dict__ | {"torch": torch_model.eval()}
    return changed


def make(family, folder):
    if family == "internvl":
        return LivelyInternVL(folder, FORMS["native qwen2"])
    return Lively(folder, family=family, tied=True, layers=2, depth=2)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl", "internvl", "qwen2"])
def test_adapters_go_to_peft_and_come_back(family, tmp_path):
    model = make(family, tmp_path / "model")
    lora = LORA if family != "qwen2" else dataclasses.replace(LORA, targets=LORA.targets[:1])
    names = BOTH if family != "qwen2" else ["text only"] * 2
    policy = dataclasses.replace(model.policy, lora=lora)
    params = with_adapters(model.params, policy, lively(policy))
    batch = model.batch([PROBLEMS[name] for name in names])
    ours = np.asarray(score(policy, params, batch))
    save_adapters(params, model.config, lora, tmp_path / "ours", base="somebody/model")

    theirs = peft.PeftModel.from_pretrained(model.torch, tmp_path / "ours")
    in_peft = torch_score(with_torch(model, theirs), names)
    np.testing.assert_allclose(in_peft, ours, atol=2e-4)
    assert json.loads((tmp_path / "ours" / CONFIG_FILE).read_text())["base_model_name_or_path"] == "somebody/model"

    theirs.save_pretrained(tmp_path / "theirs")
    stored = open_adapters(tmp_path / "theirs", model.config)
    assert (stored.rank, stored.alpha) == (3, 6.0)
    assert set(stored.places) == set(lora.paths(model.config))
    for path, value in stored.read().items():
        np.testing.assert_array_equal(value, flatten_dict(params, sep="/")[path])


@pytest.mark.slow
def test_adapters_of_some_layers_that_peft_made_are_read(tmp_path):
    model = make("qwen2_5_vl", tmp_path / "model")
    settings = peft.LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=r"model\.(language_model\.layers\.1\..*(q_proj|down_proj)|visual\.blocks\.\d\.attn\.qkv)",
        init_lora_weights=False,
    )
    theirs = peft.get_peft_model(model.torch, settings)
    theirs.save_pretrained(tmp_path / "theirs")
    stored = open_adapters(tmp_path / "theirs", model.config)
    lora = Lora(stored.rank, stored.alpha, stored.targets, base_dtype="float32")
    assert lora.paths(model.config) == tuple(
        f"{path}"
        for path in ("vision/blocks/attn/qkv", "language/layers/self_attn/q_proj", "language/layers/mlp/down_proj")
    )
    policy = dataclasses.replace(model.policy, lora=lora)
    params = with_adapters(model.params, policy, stored.read())
    assert not params["language"]["layers"]["self_attn"]["q_proj"]["lora_b"][0].any()
    batch = model.batch([PROBLEMS[name] for name in BOTH])
    in_peft = torch_score(with_torch(model, theirs), BOTH)
    np.testing.assert_allclose(in_peft, score(policy, params, batch), atol=2e-4)

    # Merged, saved and loaded again, here and there.
    save_params(merged(params, lora), model.config, tmp_path / "merged", source=tmp_path / "model")
    again = load_params(tmp_path / "merged", model.config)
    np.testing.assert_allclose(score(model.policy, again, batch), in_peft, atol=2e-4)
    whole = type(model.torch).from_pretrained(tmp_path / "merged", dtype=torch.float32, attn_implementation="eager")
    np.testing.assert_allclose(torch_score(with_torch(model, whole), BOTH), in_peft, atol=2e-4)


def rename_tensors(folder, old, new):
    file = folder / "adapter_model.safetensors"
    save_file({name.replace(old, new): x for name, x in load_file(file).items()}, file)


def damaged(folder, **changes):
    content = json.loads((folder / CONFIG_FILE).read_text())
    (folder / CONFIG_FILE).write_text(json.dumps(content | changes))


@pytest.mark.parametrize(
    "harm, messages",
    [
        (lambda folder: damaged(folder, use_dora=True, bias="all"), ["use_dora is True", "bias is 'all'"]),
        (lambda folder: damaged(folder, peft_type="LOHA"), ["peft_type is 'LOHA'"]),
        (lambda folder: damaged(folder, r=5), ["lora_A.weight: shape [3, 64], expected [5, 64]", "lora_B.weight"]),
        (lambda folder: damaged(folder, r="many"), ["r is 'many'"]),
        (lambda folder: damaged(folder, r=True, lora_alpha=float("nan")), ["r is True, lora_alpha nan"]),
        (lambda folder: damaged(folder, lora_alpha=0, lora_dropout="x"), ["lora_alpha 0", "lora_dropout is 'x'"]),
        (lambda folder: damaged(folder, init_lora_weights="pissa_niter_4"), ["init_lora_weights is 'pissa_niter_4'"]),
        (
            lambda folder: rename_tensors(folder, "model.language_model.layers.0.mlp.up_proj", "lm_head"),
            ["lm_head.lora_A.weight: adapters of the output projection are not supported"],
        ),
        (lambda folder: (folder / CONFIG_FILE).unlink(), ["adapter_config.json: no such file"]),
        (
            lambda folder: (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin"),
            ["only pickled weights (adapter_model.bin)"],
        ),
        (lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"x" * 30), ["not a valid safetensors"]),
    ],
    ids="kinds|type|rank|no number|odd numbers|alpha and dropout|start|head|no config|pickle|damaged".split("|"),
)
def test_adapters_that_do_not_fit_are_refused(model, params, tmp_path, harm, messages):
    save_adapters(params, model.config, LORA, tmp_path / "adapters", base=None)
    harm(tmp_path / "adapters")
    with pytest.raises(UserError) as caught:
        open_adapters(tmp_path / "adapters", model.config)
    for message in messages:
        assert message in str(caught.value)


def test_adapters_of_another_model_are_refused_with_all_their_names(model, params, tmp_path):
    save_adapters(params, model.config, LORA, tmp_path / "adapters", base=None)
    text = dataclasses.replace(model.config.text, num_layers=1)
    with pytest.raises(UserError) as caught:
        open_adapters(tmp_path / "adapters", dataclasses.replace(model.config, text=text))
    assert str(caught.value).count("layers.1.") == 7 * 2
