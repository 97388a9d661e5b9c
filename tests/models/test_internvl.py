"""InternVL in each form against transformers (torch), float32; and checkpoints that are refused."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from internvl_models import FORMS, TILE, Form, LivelyInternVL, write_checkpoint
from support import problem

from mmeureka_jax.errors import UserError
from mmeureka_jax.models.internvl import cubic_weights, raster_places
from mmeureka_jax.models.policy import encode_images, token_log_probs
from mmeureka_jax.models.weights import load_params, read_config, save_params
from mmeureka_jax.rl.drawing import SamplingSettings, prompt_seeds
from mmeureka_jax.rl.sampler import sample

PROBLEMS = {
    "no picture": problem("a", "what is 1 + 1 ?"),
    "one tile": problem("b", "how many dots ?", (90, 100)),
    "several tiles": problem("c", "what is this ?", (300, 100)),
    "several pictures": problem("e", "compare the two", (150, 90), (64, 64), (100, 310)),
}


@pytest.fixture(scope="module", params=FORMS)
def model(request, tmp_path_factory):
    return LivelyInternVL(tmp_path_factory.mktemp("checkpoint") / "model", FORMS[request.param])


@functools.partial(jax.jit, static_argnums=0)
def encode_and_score(policy, params, batch, responses):
    return token_log_probs(policy, params, batch, encode_images(policy, params, batch.images), responses)


def responses_for(count, n, length):
    return np.random.default_rng(0).integers(5, 250, (count, n, length)).astype(np.int32)


def test_log_probs_equal_transformers(model):
    items = list(PROBLEMS.values())
    batch, responses = model.batch(items), responses_for(len(items), 2, 9)
    ours, entropy = encode_and_score(model.policy, model.params, batch, responses)
    assert [int((row.image_ids >= 0).sum()) for row in map(model.processor, items)] == [0, 1, 4, 3 + 1 + 4]
    for i, item in enumerate(items):
        for j in range(2):
            with torch.no_grad():
                theirs, table = model.torch_log_probs(item, responses[i, j])
            np.testing.assert_allclose(ours[i, j], theirs.numpy(), atol=2e-4, err_msg=item.id)
            np.testing.assert_allclose(entropy[i, j], -(table.exp() * table).sum(-1).numpy(), atol=1e-3)


@pytest.mark.slow
def test_gradients_of_the_summed_log_prob_equal_transformers(model):
    item = PROBLEMS["several pictures"]
    batch, responses = model.batch([item]), responses_for(1, 1, 7)

    def total(params):
        return encode_and_score(model.policy, params, batch, responses)[0].sum()

    ours = jax.jit(jax.grad(total))(model.params)
    model.torch.zero_grad()
    model.torch_log_probs(item, responses[0, 0])[0].sum().backward()
    theirs = model.torch_gradients()
    for (path, mine), expected in zip(jax.tree_util.tree_leaves_with_path(ours), jax.tree.leaves(theirs), strict=True):
        name = jax.tree_util.keystr(path)
        if "vision" in name and "k_proj" in name and "bias" in name:  # shifts all scores of a row: 0 but for rounding
            assert max(np.abs(mine).max(), np.abs(expected).max()) < 1e-4
            continue
        stacked = "blocks" in name or "layers" in name  # each layer is a tensor of its own
        for one, of_torch in zip(mine, expected, strict=True) if stacked else [(mine, expected)]:
            assert np.linalg.norm(one - of_torch) <= 1e-3 * np.linalg.norm(of_torch), name


@pytest.mark.slow
def test_greedy_equals_transformers_token_for_token(model):
    items, length = list(PROBLEMS.values()), 64
    config = model.config
    settings = SamplingSettings(
        temperature=0.0, group_size=1, max_new_tokens=length, eos_token_ids=config.eos_token_ids,
        pad_token_id=config.pad_token_id,
    )  # fmt: skip
    seeds = prompt_seeds([item.id for item in items])
    active = np.ones(len(items), bool)
    samples, _ = sample(model.policy, settings, "rollout", model.params, model.batch(items), seeds, 0, 0, active)
    for i, item in enumerate(items):
        inputs, start = model.torch_inputs(item, np.zeros(0, np.int32))
        with torch.no_grad():
            out = model.torch.generate(
                **inputs, max_new_tokens=length, do_sample=False, eos_token_id=list(config.eos_token_ids),
                pad_token_id=config.pad_token_id, suppress_tokens=list(model.policy.forbidden_tokens),
            )  # fmt: skip
        expected = out[0, start:].numpy()
        assert samples.lengths[i, 0] == len(expected)
        np.testing.assert_array_equal(samples.tokens[i, 0, : len(expected)], expected, err_msg=item.id)
    assert len(np.unique(samples.tokens)) > 10  # not a test of stuck answers


def test_round_trip_is_bitwise_and_keeps_the_layout(model, tmp_path):
    out = tmp_path / "out"
    save_params(model.params, model.config, out, source=model.folder)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model.folder, out))
    for config in (before, after):
        config.pop("torch_dtype", None)
        config.pop("dtype", None)
    assert before == after
    assert read_config(out).layout == model.config.layout
    from safetensors.torch import load_file

    ours, theirs = load_file(out / "model.safetensors"), load_file(model.folder / "model.safetensors")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    if model.form.original:
        assert (out / "modeling_internvl_chat.py").read_text() == "# the original's code\n"


# Parts.


@pytest.mark.parametrize(("size", "wanted"), [(5, 8), (16, 32), (10, 8), (7, 7)])
def test_positions_are_interpolated_as_torch_does(size, wanted):
    x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = torch.nn.functional.interpolate(x, size=(wanted, wanted), mode="bicubic", align_corners=False)
    weights = cubic_weights(size, wanted)
    np.testing.assert_allclose(weights @ x.numpy() @ weights.T, expected.numpy(), atol=2e-6)


def test_places_are_in_runs_of_merged_patches():
    np.testing.assert_array_equal(raster_places(4, 2), [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15])


# What is refused.


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folders = {}
    for name, form in {"original": Form(True, "internlm2"), "native": Form(False, "qwen2")}.items():
        folders[name] = tmp_path_factory.mktemp(name)
        write_checkpoint(folders[name], form)
    return folders


@pytest.mark.parametrize(
    ("layout", "change", "message"),
    [
        ("original", {"ps_version": "v1"}, "ps_version is 'v1'; the policy has only 'v2'"),
        ("original", {"select_layer": -2}, "select_layer is -2"),
        ("original", {"downsample_ratio": 0.3}, "downsample_ratio is 0.3, expected 1 over a whole number"),
        ("original", {"force_image_size": 100}, "tiles of 100 pixels are no multiple of 28"),
        ("original", {"llm_config.model_type": "phi3"}, "llm_config.model_type is 'phi3', expected one of qwen2"),
        ("original", {"llm_config.bias": True}, "llm_config.bias is True"),
        ("original", {"llm_config": None}, "key 'llm_config' is missing"),
        ("original", {"vision_config.norm_type": "batch"}, "vision_config.norm_type is 'batch'"),
        ("native", {"vision_feature_layer": [1, 2]}, "vision_feature_layer is"),
        ("native", {"vision_config.use_mean_pooling": False}, "use_mean_pooling is False"),
        ("native", {"image_token_id": 5000}, "<IMG_CONTEXT> is token 5000, outside the vocabulary of 768"),
        ("native", {"text_config.rope_parameters": {"rope_type": "yarn"}}, "'yarn'.* is not supported"),
        ("native", {"text_config.num_attention_heads": 3}, "3 heads over 2 key/value heads"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(written, tmp_path, layout, change, message):
    folder = shutil.copytree(written[layout], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        *sections, last = key.split(".")
        functools.reduce(lambda node, section: node[section], sections, config)[last] = value
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_config(folder)


def test_picture_tokens_must_be_in_the_tokenizer(written, tmp_path):
    folder = shutil.copytree(written["original"], tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["added_tokens"] = [token for token in tokenizer["added_tokens"] if token["content"] != "</img>"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(UserError, match="the tokenizer beside it lacks </img>, which mark a picture"):
        read_config(folder)


def test_tensors_of_another_layout_are_all_listed(written, tmp_path):
    folder = shutil.copytree(written["native"], tmp_path / "model")
    shutil.copy(written["original"] / "model.safetensors", folder)
    with pytest.raises(UserError) as error:
        load_params(folder, read_config(folder))
    text = str(error.value)
    assert "vision_tower.encoder.layer.0.attention.q_proj.weight: missing" in text
    assert "vision_model.encoder.layers.0.attn.qkv.weight: unexpected" in text
    assert f"tile_size={TILE}" not in text  # names and shapes, not the whole config
