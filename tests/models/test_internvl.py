"""InternVL in each form against transformers (torch), float32; and checkpoints that are refused."""

from __future__ import annotations

import functools
import json
import shutil

import jax
import numpy as np
import pytest
import torch
from helpers.internvl_models import FORMS, Form, LivelyInternVL, write_checkpoint
from helpers.support import (
    assert_gradients_equal,
    assert_greedy_equals_transformers,
    encode_and_score,
    problem,
    responses_for,
)
from safetensors.torch import load_file, save_file

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import load_params, read_config, save_params
from mmeureka_jax.mesh import make_mesh, to_global, tree_shardings
from mmeureka_jax.models.checkpoint_config import OtherFiles
from mmeureka_jax.models.families import weight_mappings
from mmeureka_jax.models.internvl import cubic_weights, raster_places
from mmeureka_jax.models.internvl_config import SYSTEM_MESSAGE, InternVLConfig, Tiling
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings

PROBLEMS = {
    "no picture": problem("a", "what is 1 + 1 ?"),
    "one tile": problem("b", "how many dots ?", (90, 100)),
    "several tiles": problem("c", "what is this ?", (300, 100)),
    "several pictures": problem("e", "compare the two", (150, 90), (64, 64), (100, 310)),
}


@pytest.fixture(scope="module", params=FORMS)
def model(request, tmp_path_factory):
    return LivelyInternVL(tmp_path_factory.mktemp("checkpoint") / "model", FORMS[request.param])


def test_log_probs_equal_transformers(model):
    items = list(PROBLEMS.values())
    batch = model.batch(items)
    responses = responses_for(len(items), 2, 9)
    ours, entropy = encode_and_score(model.policy, model.params, batch, responses)
    assert [int((row.images.image_ids >= 0).sum()) for row in map(model.processor, items)] == [0, 1, 4, 3 + 1 + 4]
    for i, item in enumerate(items):
        for j in range(2):
            with torch.no_grad():
                theirs, table = model.torch_log_probs(item, responses[i, j])
            np.testing.assert_allclose(ours[i, j], theirs.numpy(), atol=2e-4, err_msg=item.id)
            np.testing.assert_allclose(entropy[i, j], -(table.exp() * table).sum(-1).numpy(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["native qwen3, 6B tower", "original qwen2"], indirect=True)
def test_gradients_of_the_summed_log_prob_equal_transformers(model):
    item = PROBLEMS["several pictures"]
    batch = model.batch([item])
    responses = responses_for(1, 1, 7)

    def total(params):
        return encode_and_score(model.policy, params, batch, responses)[0].sum()

    ours = jax.jit(jax.grad(total))(model.params)
    model.torch.zero_grad()
    model.torch_log_probs(item, responses[0, 0])[0].sum().backward()
    theirs = model.torch_gradients()

    def vanishing(name):  # a bias of the tower's keys shifts all scores of a row
        return "vision" in name and "k_proj" in name and "bias" in name

    assert_gradients_equal(ours, theirs, vanishing=vanishing)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["native qwen2", "native qwen3, 6B tower"], indirect=True)
def test_greedy_equals_transformers_token_for_token(model):
    assert_greedy_equals_transformers(model, list(PROBLEMS.values()), 64)


def test_round_trip_is_bitwise_and_keeps_the_layout(model, tmp_path):
    out = tmp_path / "out"
    save_params(model.params, model.config, out, source=model.folder)
    before, after = (json.loads((folder / "config.json").read_text()) for folder in (model.folder, out))
    for config in (before, after):
        config.pop("torch_dtype", None)
        config.pop("dtype", None)
    assert before == after
    assert read_config(out).layout == model.config.layout
    ours = load_file(out / "model.safetensors")
    theirs = load_file(model.folder / "model.safetensors")
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
        ("original", {"ps_version": None}, "ps_version is 'v1'"),
        ("original", {"template": "Hermes-2"}, "template is 'Hermes-2'"),
        ("original", {"vision_config.num_channels": 4}, "pictures of 4 channels"),
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
        ("native", {"text_config.use_sliding_window": True, "text_config.sliding_window": 8,
                    "text_config.layer_types": None, "text_config.max_window_layers": 1}, "sliding-window attention"),
        ("native", {"text_config.num_attention_heads": 3}, "3 heads over 2 key/value heads"),
    ],
)  # fmt: skip
def test_configs_that_are_refused(written, tmp_path, layout, change, message):
    folder = shutil.copytree(written[layout], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        *sections, last = key.split(".")
        functools.reduce(lambda node, section: node[section], sections, config)[last] = value
    config = {key: value for key, value in config.items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=message):
        read_config(folder)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["original internlm2, 6B tower"], indirect=True)
def test_a_mesh_changes_nothing(model):
    """Log-probabilities of the update and greedy tokens of the sampler, on one device and on 2 x 2 x 2."""
    items = list(PROBLEMS.values())
    batch = model.batch(items)
    responses = responses_for(len(items), 2, 9)
    alone = encode_and_score(model.policy, model.params, batch, responses)[0]
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
    with jax.set_mesh(mesh):
        shardings = tree_shardings(mesh, model.policy.abstract_params(), model.policy.param_axes())
        params = load_params(model.folder, model.config, shardings)
        spread = jax.tree.map(lambda leaf: len(leaf.sharding.device_set), params)
        assert set(jax.tree.leaves(spread)) == {8}
        sharded, answers = to_global(mesh, (batch, responses))
        together = encode_and_score(model.policy, params, sharded, answers)[0]
        np.testing.assert_allclose(jax.device_get(together), alone, atol=1e-4)
        settings = SamplingSettings(
            temperature=0.0, group_size=2, max_new_tokens=8, eos_token_ids=(), pad_token_id=model.config.pad_token_id
        )
        sampler = Sampler(model.policy, settings, "rollout")
        ids = [item.id for item in items]
        samples, _ = sampler.sample(params, Request.of(ids, batch, mesh))
    expected, _ = sampler.sample(model.params, Request.of(ids, batch))
    np.testing.assert_array_equal(samples.tokens, expected.tokens)


# InternVL2.5-8B as it is on the hub, but for keys that say nothing (its llm_config has a hundred).
INTERNVL2_5_8B = {
    "architectures": ["InternVLChatModel"], "downsample_ratio": 0.5, "dynamic_image_size": True,
    "force_image_size": 448, "max_dynamic_patch": 12, "min_dynamic_patch": 1, "model_type": "internvl_chat",
    "pad2square": False, "ps_version": "v2", "select_layer": -1, "template": "internvl2_5", "torch_dtype": "bfloat16",
    "use_backbone_lora": 0, "use_llm_lora": 0, "use_thumbnail": True,
    "llm_config": {
        "architectures": ["InternLM2ForCausalLM"], "attn_implementation": "flash_attention_2", "bias": False,
        "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 4096, "intermediate_size": 14336,
        "max_position_embeddings": 32768, "model_type": "internlm2", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "pad_token_id": 2, "rms_norm_eps": 1e-05,
        "rope_scaling": {"factor": 2.0, "type": "dynamic"}, "rope_theta": 1000000, "tie_word_embeddings": False,
        "use_bfloat16": True, "use_cache": True, "vocab_size": 92553, "sep_token_id": None,
    },
    "vision_config": {
        "architectures": ["InternVisionModel"], "attention_dropout": 0.0, "drop_path_rate": 0.0, "dropout": 0.0,
        "hidden_act": "gelu", "hidden_size": 1024, "image_size": 448, "initializer_factor": 1.0,
        "intermediate_size": 4096, "layer_norm_eps": 1e-06, "model_type": "intern_vit_6b", "norm_type": "layer_norm",
        "num_attention_heads": 16, "num_channels": 3, "num_hidden_layers": 24, "patch_size": 14,
        "qk_normalization": False, "qkv_bias": True, "use_bfloat16": True, "use_flash_attn": True,
    },
}  # fmt: skip
PICTURE_TOKENS = {"<|im_end|>": 92542, "<img>": 92544, "</img>": 92545, "<IMG_CONTEXT>": 92546}


def test_a_released_config():
    beside = OtherFiles(lambda: PICTURE_TOKENS)
    config = InternVLConfig.from_hf(INTERNVL2_5_8B, {"eos_token_id": [92542, 92543]}, "c", beside)
    assert (config.eos_token_ids, config.pad_token_id, config.bos_token_id) == ((92542, 92543), 2, 1)
    assert (config.image_token_id, config.start_token_id, config.end_token_id) == (92546, 92544, 92545)
    assert config.text.fused_qkv and not config.text.attention_bias and config.text.head_dim == 128
    assert (
        config.text.rope_theta == 1e6
        and not config.text.tie_word_embeddings
        and config.head_name.endswith("output.weight")
    )
    assert config.vision.patches_per_window == 1024 and config.vision.attention_bias and not config.vision.qk_norm
    assert config.tiling == Tiling(1, 12, True) and config.system == SYSTEM_MESSAGE
    shapes = {name: mapping.shape for mapping in weight_mappings(config) for name, _ in mapping.tensors()}
    assert shapes["language_model.model.layers.31.attention.wqkv.weight"] == (4096 + 2 * 1024, 4096)
    assert shapes["mlp1.1.weight"] == (4096, 4096) and shapes["vision_model.embeddings.position_embedding"] == (
        1,
        1025,
        1024,
    )
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == 8_075_365_376  # of the hub's page: 8.08 B
    assert config.to_hf("bfloat16") == INTERNVL2_5_8B
    # Without generation_config.json the end of a turn is an end all the same.
    assert InternVLConfig.from_hf(INTERNVL2_5_8B, None, "c", beside).eos_token_ids == (92542, 2)
    own = INTERNVL2_5_8B | {"system_message": "Be brief.", "pad_token_id": 7}
    own["llm_config"] = own["llm_config"] | {"pad_token_id": None, "eos_token_id": None}
    config = InternVLConfig.from_hf(own | {"eos_token_id": 3}, None, "c", beside)
    assert (config.system, config.pad_token_id, config.eos_token_ids) == ("Be brief.", 7, (92542, 3))


@pytest.mark.parametrize("stored", [True, False])
def test_a_stored_head_decides_where_the_config_contradicts_itself(written, tmp_path, stored):
    """transformers 5 writes tie_word_embeddings twice, and a model made with its defaults says true and false."""
    folder = shutil.copytree(written["native"], tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    config["tie_word_embeddings"] = True
    config["text_config"]["tie_word_embeddings"] = False
    (folder / "config.json").write_text(json.dumps(config))
    if not stored:
        tensors = load_file(folder / "model.safetensors")
        del tensors["language_model.lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    assert read_config(folder).text.tie_word_embeddings == (not stored)
    load_params(folder, read_config(folder))


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
