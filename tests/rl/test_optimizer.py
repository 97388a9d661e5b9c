"""The optimiser against PyTorch's, and which parameters it is given."""

from __future__ import annotations

import math

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings

from mmeureka_jax.config.schema import OptimizerConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rl.optimizer import clip_by_global_norm, make_optimizer, make_schedule, merge_params, split_frozen


def policy_like_params(seed: int = 0) -> dict:
    """The shapes that make weight decay hard to decide by rank: stacked biases and norm scales have two axes."""
    rng = np.random.default_rng(seed)

    def array(*shape: int) -> jax.Array:
        return jnp.asarray(rng.normal(size=shape), jnp.float32)

    return {
        "vision": {"patch_embed": {"kernel": array(3, 4)}, "merger": {"ln_q": {"scale": array(4)}}},
        "language": {
            "embed_tokens": {"embedding": array(6, 4)},
            "layers": {
                "input_layernorm": {"scale": array(2, 4)},
                "q_proj": {
                    "kernel": array(2, 4, 4),
                    "bias": array(2, 4),
                    "lora_a": array(2, 4, 3),
                    "lora_b": array(2, 3, 4),
                },
            },
            "norm": {"scale": array(4)},
        },
    }


def paths(tree: dict) -> dict[str, object]:
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): leaf
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


# --- learning rate


def test_cosine_schedule_by_hand():
    config = OptimizerConfig(learning_rate=2.0, schedule="cosine", warmup_fraction=0.2, final_fraction=0.1)
    rates = [float(make_schedule(config, 15)(i)) for i in range(17)]
    expected = [2 / 3, 4 / 3, 2.0]
    for k in range(12):  # from the peak at update 3 to the floor at update 14
        expected.append(2.0 * (0.1 + 0.9 * (1 + math.cos(math.pi * k / 11)) / 2))
    np.testing.assert_allclose(rates, [*expected, 0.2, 0.2], rtol=1e-6)
    assert rates[2] == rates[3] == 2.0 and rates[14] == pytest.approx(0.2)


def test_constant_schedule_warms_up_and_stays():
    config = OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_fraction=0.5)
    rates = [float(make_schedule(config, 8)(i)) for i in range(12)]
    np.testing.assert_allclose(rates, [2.5e-4, 5e-4, 7.5e-4] + [1e-3] * 9, rtol=1e-6)


@settings(deadline=None)
@given(
    total=st.integers(1, 400),
    warmup=st.sampled_from([0.0, 0.03, 0.07, 0.1, 1.0]),
    kind=st.sampled_from(["constant", "cosine"]),
    final=st.sampled_from([0.0, 0.1, 1.0]),
)
def test_schedule_rises_then_falls(total, warmup, kind, final):
    config = OptimizerConfig(learning_rate=1.0, schedule=kind, warmup_fraction=warmup, final_fraction=final)
    rates = np.asarray(make_schedule(config, total)(jnp.arange(403)), np.float64)[: total + 3]  # one shape to compile
    rising = math.ceil(round(warmup * total, 6))
    assert np.all(np.diff(rates[:rising]) > 0) and np.all(np.diff(rates[max(rising - 1, 0) :]) <= 1e-7)
    assert rates[0] > 0 and rates.max() == pytest.approx(1.0)
    if rising + 1 < total:
        assert rates[total - 1] == pytest.approx(final if kind == "cosine" else 1.0, abs=1e-6)
        assert rates[-1] == rates[total - 1]


# --- AdamW


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_equals_torch_adamw(weight_decay):
    config = OptimizerConfig(
        learning_rate=1e-2, schedule="cosine", warmup_fraction=0.25, b1=0.8, b2=0.9, eps=1e-6, weight_decay=weight_decay
    )
    total = 8
    params = policy_like_params()
    optimizer = make_optimizer(config, total)
    schedule = make_schedule(config, total)
    state = optimizer.init(params)

    twins = {name: torch.nn.Parameter(torch.tensor(np.asarray(leaf))) for name, leaf in paths(params).items()}
    decayed = [p for name, p in twins.items() if name.endswith(("kernel", "embedding", "lora_a", "lora_b"))]
    others = [p for name, p in twins.items() if name.endswith(("bias", "scale"))]
    assert len(decayed) == 5 and len(others) == 4
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, betas=(config.b1, config.b2), eps=config.eps)

    for i in range(total):
        grads = policy_like_params(seed=1 + i)
        deltas, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, deltas)
        for name, grad in paths(grads).items():
            twins[name].grad = torch.tensor(np.asarray(grad))
        for group in oracle.param_groups:
            group["lr"] = float(schedule(i))
        oracle.step()
    for name, leaf in paths(params).items():
        np.testing.assert_allclose(leaf, twins[name].detach().numpy(), rtol=2e-5, atol=2e-6, err_msg=name)


def test_moments_can_be_told_from_scalars():
    """The update gives each moment the sharding of its parameter, and finds them through optax."""
    params = policy_like_params()
    optimizer = make_optimizer(OptimizerConfig(), 10)
    shapes = jax.tree.map(lambda leaf: str(leaf.shape), params)
    marked = optax.tree_utils.tree_map_params(
        optimizer, lambda _, shape: shape, optimizer.init(params), shapes, transform_non_params=lambda _: None
    )
    moments = next(part for part in marked if hasattr(part, "mu"))
    assert moments.mu == moments.nu == shapes
    assert moments.count is None


# --- clipping


@pytest.mark.parametrize("max_norm", [0.5, 1.0, 1e3, math.inf])
def test_clipping_equals_torch(max_norm):
    grads = policy_like_params(seed=3)
    norm = optax.tree.norm(grads)
    clipped = jax.jit(clip_by_global_norm, static_argnums=2)(grads, norm, max_norm)
    twins = {name: torch.nn.Parameter(torch.zeros(leaf.shape)) for name, leaf in paths(grads).items()}
    for name, leaf in paths(grads).items():
        twins[name].grad = torch.tensor(np.asarray(leaf))
    expected = torch.nn.utils.clip_grad_norm_(twins.values(), max_norm)
    assert float(norm) == pytest.approx(float(expected), rel=1e-6)
    for name, leaf in paths(clipped).items():
        np.testing.assert_allclose(leaf, twins[name].grad.numpy(), rtol=5e-6, err_msg=name)
    if max_norm > float(norm):  # exactly untouched, not multiplied by something near one
        jax.tree.map(np.testing.assert_array_equal, clipped, grads)


def test_zero_gradients_stay_zero():
    clipped = clip_by_global_norm({"a": jnp.zeros(3)}, jnp.zeros(()), 1.0)
    assert np.array_equal(clipped["a"], np.zeros(3))


# --- frozen parameters


def test_split_by_path_prefix():
    params = policy_like_params()
    trainable, frozen = split_frozen(params, ("vision", "language/embed_tokens", "language/layers/q_proj/bias"))
    assert set(paths(frozen)) == {
        "vision/patch_embed/kernel",
        "vision/merger/ln_q/scale",
        "language/embed_tokens/embedding",
        "language/layers/q_proj/bias",
    }
    assert set(paths(trainable)) == set(paths(params)) - set(paths(frozen))
    assert "vision" not in trainable  # no empty branches
    merged = merge_params(trainable, frozen)
    assert all(paths(merged)[name] is leaf for name, leaf in paths(params).items())
    assert set(params) == {"vision", "language"} and "embed_tokens" in params["language"]  # the argument is untouched


@settings(deadline=None)
@given(st.sets(st.sampled_from(["vision/merger", "vision", "language/norm", "language/layers/q_proj/kernel"])))
def test_split_and_merge_are_inverse(prefixes):
    params = policy_like_params()
    trainable, frozen = split_frozen(params, tuple(prefixes))
    assert jax.tree.structure(merge_params(trainable, frozen)) == jax.tree.structure(params)
    assert not set(paths(trainable)) & set(paths(frozen))
    for name in paths(params):
        is_frozen = any(name == prefix or name.startswith(prefix + "/") for prefix in prefixes)
        assert (name in paths(frozen)) == is_frozen


def test_split_walks_dicts_alone():
    axes = {"a": {"kernel": ("embed", "mlp")}, "b": {"kernel": ("mlp", None)}}
    assert split_frozen(axes, ("b",)) == ({"a": {"kernel": ("embed", "mlp")}}, {"b": {"kernel": ("mlp", None)}})


@pytest.mark.parametrize(
    ("prefix", "listed"),
    [
        ("visoin", ["language", "vision"]),
        ("language/embd", ["language", "vision", "embed_tokens", "layers"]),
        ("vis", ["language", "vision"]),  # components are compared whole
        ("language/embed_tokens/embedding/0", ["language", "vision"]),
        ("", ["language", "vision"]),
        ("vision/", ["language", "vision", "patch_embed", "merger"]),
    ],
)
def test_a_prefix_that_matches_nothing_is_refused(prefix, listed):
    with pytest.raises(UserError) as error:
        split_frozen(policy_like_params(), (prefix,))
    message = str(error.value)
    assert "optimizer.frozen" in message and repr(prefix) in message
    assert all(name in message for name in listed)


def test_a_policy_without_a_tower_has_none_to_freeze():
    params = {"language": policy_like_params()["language"]}
    assert split_frozen(params, ("vision",)) == (params, {})
    with pytest.raises(UserError, match=r"no parameter path starts with 'vision/merger'; .* \['language'\]"):
        split_frozen(params, ("vision/merger",))


def test_nothing_left_to_train_is_refused():
    with pytest.raises(UserError, match="nothing to train.*language.*vision"):
        split_frozen(policy_like_params(), ("vision", "language"))


def test_a_parameter_in_both_parts_is_refused():
    with pytest.raises(ValueError, match="kernel"):
        merge_params({"a": {"kernel": 1}}, {"a": {"kernel": 2}})
