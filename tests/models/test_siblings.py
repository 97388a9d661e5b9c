"""Qwen2.5-VL's siblings against transformers (torch), float32; and checkpoints that are refused."""

from __future__ import annotations

import functools
import json

import jax
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from support import PROBLEMS, Lively, start_folder

from mmeureka_jax.models.policy import encode_images, token_log_probs
from mmeureka_jax.models.weights import load_params, read_config, save_params
from mmeureka_jax.rl.drawing import SamplingSettings, prompt_seeds
from mmeureka_jax.rl.sampler import sample

# Family, and whether the output head is the embedding.
FORMS = {"qwen2_vl": ("qwen2_vl", False), "qwen2_vl, tied": ("qwen2_vl", True)}


@pytest.fixture(scope="module", params=FORMS)
def model(request, tmp_path_factory):
    family, tied = FORMS[request.param]
    return Lively(tmp_path_factory.mktemp("checkpoint") / "model", family=family, tied=tied, layers=2, depth=2)


def problems(model):
    return list(PROBLEMS.values())


@functools.partial(jax.jit, static_argnums=0)
def encode_and_score(policy, params, batch, responses):
    return token_log_probs(policy, params, batch, encode_images(policy, params, batch.images), responses)


def responses_for(count, n, length):
    return np.random.default_rng(0).integers(5, 250, (count, n, length)).astype(np.int32)


def test_log_probs_equal_transformers(model):
    items = problems(model)
    batch, responses = model.batch(items), responses_for(len(items), 2, 9)
    ours, entropy = encode_and_score(model.policy, model.params, batch, responses)
    for i, item in enumerate(items):
        for j in range(2):
            with torch.no_grad():
                theirs, table = model.torch_log_probs(item, responses[i, j])
            np.testing.assert_allclose(ours[i, j], theirs.numpy(), atol=2e-4, err_msg=item.id)
            np.testing.assert_allclose(entropy[i, j], -(table.exp() * table).sum(-1).numpy(), atol=1e-3)


@pytest.mark.slow
def test_gradients_of_the_summed_log_prob_equal_transformers(model):
    item = problems(model)[-1]
    batch, responses = model.batch([item]), responses_for(1, 2, 7)

    def total(params):
        return encode_and_score(model.policy, params, batch, responses)[0].sum()

    ours = jax.jit(jax.grad(total))(model.params)
    model.torch.zero_grad()
    sum(model.torch_log_probs(item, responses[0, j])[0].sum() for j in range(2)).backward()
    theirs = model.torch_gradients()
    for (path, mine), expected in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = jax.tree_util.keystr(path)
        stacked = "blocks" in name or "layers" in name  # each layer is a tensor of its own
        for one, of_torch in zip(mine, expected, strict=True) if stacked else [(mine, expected)]:
            assert np.linalg.norm(one - of_torch) <= 1e-3 * np.linalg.norm(of_torch), name


@pytest.mark.slow
def test_greedy_equals_transformers_token_for_token(model):
    items, length, config = problems(model), 64, model.config
    settings = SamplingSettings(
        temperature=0.0, group_size=1, max_new_tokens=length, eos_token_ids=config.eos_token_ids,
        pad_token_id=config.pad_token_id,
    )  # fmt: skip
    seeds, active = prompt_seeds([item.id for item in items]), np.ones(len(items), bool)
    samples, _ = sample(model.policy, settings, "rollout", model.params, model.batch(items), seeds, 0, 0, active)
    for i, item in enumerate(items):
        inputs, start = model.torch_inputs(item, np.zeros(0, np.int32))
        with torch.no_grad():
            out = model.torch.generate(
                **inputs, max_new_tokens=length, do_sample=False, eos_token_id=list(config.eos_token_ids),
                pad_token_id=config.pad_token_id, suppress_tokens=list(model.policy.forbidden_tokens) or None,
            )  # fmt: skip
        expected = out[0, start:].numpy()
        assert samples.lengths[i, 0] == len(expected)
        np.testing.assert_array_equal(samples.tokens[i, 0, : len(expected)], expected, err_msg=item.id)
    assert len(np.unique(samples.tokens)) > 10  # not a test of stuck answers


@pytest.mark.parametrize("newer", [False, True])
def test_round_trip_is_bitwise(model, tmp_path, newer):
    """From the hub's names, and from those of newer saves, to the hub's; transformers loads every tensor of it."""
    source, out = model.folder, tmp_path / "out"
    stored = load_file(source / "model.safetensors")
    if newer:
        source = tmp_path / "newer"
        source.mkdir()
        (source / "config.json").write_bytes((model.folder / "config.json").read_bytes())
        renamed = {
            f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): x
            for name, x in stored.items()
        }
        save_file(renamed, source / "model.safetensors", {"format": "pt"})
    save_params(load_params(source, model.config), model.config, out, source=model.folder)
    ours = load_file(out / "model.safetensors")
    assert ours.keys() == stored.keys() and all(torch.equal(ours[name], stored[name]) for name in ours)
    assert read_config(out) == model.config
    again, info = type(model.torch).from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    expected = model.torch.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in again.state_dict().items())
    assert json.loads((out / "config.json").read_text())["architectures"] == [type(model.torch).__name__]


def test_random_checkpoints_hold_what_transformers_expects(model):
    _, info = type(model.torch).from_pretrained(start_folder(model.folder), output_loading_info=True)
    assert not any(info.values()), info
