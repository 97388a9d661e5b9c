"""Where decoding's weights lie, and how many prompts run at a time: neither changes what is drawn."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.support import PROBLEMS, Lively

from mmeureka_jax.config.schema import MeshConfig, SamplerConfig
from mmeureka_jax.mesh import abstract, bytes_of_device, make_mesh, tree_shardings
from mmeureka_jax.models import policy
from mmeureka_jax.models.lora import Lora, initial_adapters
from mmeureka_jax.sampling import memory
from mmeureka_jax.sampling.answers import PromptSizes
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.chips import CHIPS
from mmeureka_jax.setup.policy import OpenedPolicy

PROMPTS = 16
GROUP = 2


def mesh_of(data, fsdp, tensor):
    return make_mesh(MeshConfig(data=data, fsdp=fsdp, tensor=tensor), jax.devices()[: data * fsdp * tensor])


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """With adapters of every linear map of the decoder, neither of whose matrices is zero."""
    lively = Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=False, layers=2, depth=2)
    lora = Lora(rank=3, alpha=6.0, targets=("language/layers/.*",), base_dtype="float32")
    lively.policy = replace(lively.policy, lora=lora)
    rng = np.random.default_rng(0)
    shapes = initial_adapters(lively.policy.abstract_params(), 0)
    adapters = {path: rng.normal(0, 0.2, x.shape).astype(np.float32) for path, x in shapes.items()}
    lively.params = unflatten_dict(flatten_dict(jax.device_get(lively.params), sep="/") | adapters, sep="/")
    return lively


@pytest.fixture(scope="module")
def sampled(model):
    """Samples and image features on a mesh, with these changes of the settings."""
    names = ("text only", "one window", "several pictures", "odd sizes")
    batch = model.batch([replace(PROBLEMS[names[i % 4]], id=str(i)) for i in range(PROMPTS)])

    @functools.cache
    def sample(sizes, **changes):
        mesh = mesh_of(*sizes)
        settings = SamplingSettings(
            group_size=GROUP, max_new_tokens=14, temperature=1.2, eos_token_ids=model.config.eos_token_ids,
            pad_token_id=model.config.pad_token_id, **{"shrink": 0.0} | changes,
        )  # fmt: skip
        with jax.set_mesh(mesh):
            shardings = tree_shardings(mesh, model.policy.abstract_params(), model.policy.param_axes())
            params = jax.device_put(model.params, shardings)
            request = Request.of([str(i) for i in range(PROMPTS)], batch, mesh)
            samples, features = Sampler(model.policy, settings, "rollout").sample(params, request)
        return samples, jax.device_get(features)

    return sample


@pytest.mark.parametrize(
    ("sizes", "changes"),
    [
        ((1, 4, 2), {"split_weights": True, "prefill_prompts": 1}),
        pytest.param((1, 1, 2), {"in_place": True}, marks=pytest.mark.slow),
        pytest.param((2, 2, 2), {"split_weights": True, "shrink": 0.75, "prefill_prompts": 2}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_samples_are_those_of_one_device(sampled, monkeypatch, sizes, changes):
    expected, pictures = sampled((1, 1, 1))
    if changes.pop("in_place", False):  # as on a TPU
        monkeypatch.setattr(policy, "_reads_parameters", lambda: True)
    samples, features = sampled(sizes, **changes)
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    np.testing.assert_allclose(samples.log_probs, expected.log_probs, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(features.tokens, pictures.tokens, rtol=1e-4, atol=1e-5)
    assert len(np.unique(samples.tokens)) > 20 and len(np.unique(samples.log_probs)) > 200


def bytes_per_device(subject, mesh, *, split):
    with jax.set_mesh(mesh):
        shapes = subject.abstract_params()
        weights = jax.eval_shape(lambda params: policy.decoder_weights(subject, params, split=split), shapes)
        return bytes_of_device(weights.with_axes(subject.param_axes(), lambda leaf, names: abstract(leaf, *names)))


def test_split_weights_take_their_part_of_a_device(model):
    """But for norms and biases, which are small. Where the MLP does not divide, its hidden size does."""
    mesh = mesh_of(1, 4, 2)
    dense = replace(model.policy, lora=None)
    whole = bytes_per_device(dense, mesh_of(1, 1, 1), split=False)
    assert whole / 2 < bytes_per_device(dense, mesh, split=False) < 0.52 * whole
    assert whole / 8 < bytes_per_device(dense, mesh, split=True) < 0.14 * whole
    text = replace(dense.config.text, intermediate_size=132)
    odd = replace(dense, config=replace(dense.config, text=text))
    assert bytes_per_device(odd, mesh, split=True) < 0.14 * bytes_per_device(odd, mesh_of(1, 1, 1), split=False)


def test_parameters_that_decoding_reads_in_place_are_not_copied(model, monkeypatch):
    """Those in the compute dtype: not the adapters, which are float32."""
    monkeypatch.setattr(policy, "platform", lambda: "tpu")
    half = replace(model.policy, compute_dtype="bfloat16", lora=replace(model.policy.lora, base_dtype="bfloat16"))
    adapters = initial_adapters(half.abstract_params(), 0).values()
    assert bytes_per_device(half, mesh_of(2, 1, 1), split=False) == 2 * sum(x.size for x in adapters)
    assert bytes_per_device(half, mesh_of(1, 2, 1), split=False) > 20 * sum(x.size for x in adapters)


def test_weights_are_split_where_gathered_ones_do_not_fit(model, monkeypatch, capsys):
    opened = OpenedPolicy(model.policy, mesh_of(1, 4, 2), model.folder)
    sizes = PromptSizes(prompts=PROMPTS, buckets=(64, 128), image_windows=0)
    auto = SamplerConfig(max_new_tokens=96)

    def chosen(memory_bytes, sampler=auto, **options):
        chip = replace(CHIPS[0], memory_bytes=memory_bytes)
        monkeypatch.setattr(memory, "chip_of_kind", lambda kind: chip if memory_bytes else None)
        return memory.with_weights_chosen(sampler, opened, sizes, GROUP, **options).decode_weights

    needed = memory.rollout_bytes(auto, opened, sizes, GROUP)
    text = model.config.text
    caches = PROMPTS * (128 + GROUP * 96) // 4 * 2 * text.num_layers * text.num_kv_heads // 2 * text.head_dim * 4
    assert needed > caches + bytes_per_device(model.policy, opened.mesh, split=False)
    assert needed - caches == memory.rollout_bytes(replace(auto, max_new_tokens=1), opened, sizes, GROUP) - (
        caches * (128 + GROUP) // (128 + GROUP * 96)
    )
    assert chosen(None) == "gathered" and chosen(2 * needed) == "gathered"
    assert "decoding" not in capsys.readouterr().err
    assert chosen(needed) == "split" and chosen(2 * needed, resident_bytes=needed) == "split"
    assert "decoding" in capsys.readouterr().err
    assert chosen(needed, replace(auto, decode_weights="gathered")) == "gathered"
