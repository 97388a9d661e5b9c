"""Qwen2.5-VL's siblings against transformers (torch), float32; and checkpoints that are refused."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
import torch
from helpers.support import (
    PROBLEMS,
    Lively,
    assert_gradients_equal,
    assert_greedy_equals_transformers,
    encode_and_score,
    enlivened,
    problem,
    responses_for,
    start_folder,
)
from safetensors.torch import load_file, save_file
from transformers import Qwen3Config, Qwen3ForCausalLM

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.formats.hugging_face import load_params, read_config, save_params
from mmeureka_jax.mesh import make_mesh, to_global, tree_shardings
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.models.text_only import TextOnlyConfig
from mmeureka_jax.setup.random_models import build_tokenizer_files

# Family, and whether the output head is the embedding.
FORMS = {
    "qwen2_vl": ("qwen2_vl", False),
    "qwen2_vl, tied": ("qwen2_vl", True),
    "qwen2": ("qwen2", False),
    "qwen2, tied": ("qwen2", True),
    "qwen3": ("qwen3", False),
}
TEXTS = [problem("a", "what is 1 + 1 ?"), problem("b", "Natalia sold clips to 48 of her friends. How many are left?")]


class LivelyQwen3(Lively):
    """There is no tiny builder for it; see `Lively`."""

    def __init__(self, folder, *, tied):
        vocab = build_tokenizer_files(folder).get_vocab()
        config = Qwen3Config(
            vocab_size=768, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, head_dim=24, tie_word_embeddings=tied, eos_token_id=vocab["<|im_end|>"],
            rope_parameters={"rope_type": "default", "rope_theta": 1e5}, pad_token_id=vocab["<|endoftext|>"],
        )  # fmt: skip
        config._attn_implementation = "eager"
        self.folder = folder
        self.torch = enlivened(Qwen3ForCausalLM(config))
        self.torch.save_pretrained(folder)
        self.config = read_config(folder)
        self.policy = Policy(self.config, compute_dtype="float32", remat=True, logits_mb=0.05)
        self.params = load_params(folder, self.config)
        self.processor = Processor.from_checkpoint(folder, prompt_style="plain", max_prompt_tokens=4096)


@pytest.fixture(scope="module", params=FORMS)
def model(request, tmp_path_factory):
    family, tied = FORMS[request.param]
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    if family == "qwen3":
        return LivelyQwen3(folder, tied=tied)
    return Lively(folder, family=family, tied=tied, layers=2, depth=2)


def problems(model):
    return TEXTS if isinstance(model.config, TextOnlyConfig) else list(PROBLEMS.values())


def test_log_probs_equal_transformers(model):
    items = problems(model)
    batch = model.batch(items)
    responses = responses_for(len(items), 2, 9)
    ours, entropy = encode_and_score(model.policy, model.params, batch, responses)
    for i, item in enumerate(items):
        for j in range(2):
            with torch.no_grad():
                theirs, table = model.torch_log_probs(item, responses[i, j])
            np.testing.assert_allclose(ours[i, j], theirs.numpy(), atol=2e-4, err_msg=item.id)
            np.testing.assert_allclose(entropy[i, j], -(table.exp() * table).sum(-1).numpy(), atol=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2, tied", "qwen3"], indirect=True)
def test_gradients_of_the_summed_log_prob_equal_transformers(model):
    item = problems(model)[-1]
    batch = model.batch([item])
    responses = responses_for(1, 2, 7)

    def total(params):
        return encode_and_score(model.policy, params, batch, responses)[0].sum()

    ours = jax.jit(jax.grad(total))(model.params)
    model.torch.zero_grad()
    sum(model.torch_log_probs(item, responses[0, j])[0].sum() for j in range(2)).backward()
    theirs = model.torch_gradients()
    assert_gradients_equal(ours, theirs)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2, tied", "qwen3"], indirect=True)
def test_greedy_equals_transformers_token_for_token(model):
    assert_greedy_equals_transformers(model, problems(model), 32)


def test_round_trip_is_bitwise(model, tmp_path):
    """And transformers loads every tensor of what is written."""
    out = tmp_path / "out"
    save_params(model.params, model.config, out, source=model.folder)
    ours = load_file(out / "model.safetensors")
    theirs = load_file(model.folder / "model.safetensors")
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert read_config(out).text == model.config.text
    assert json.loads((out / "config.json").read_text())["architectures"] == [type(model.torch).__name__]
    again, info = type(model.torch).from_pretrained(out, output_loading_info=True)
    assert not any(info.values()), info
    expected = model.torch.state_dict()
    assert all(torch.equal(x, expected[name]) for name, x in again.state_dict().items())


@pytest.mark.parametrize("model", ["qwen2_vl"], indirect=True)
def test_tensor_names_of_newer_saves_are_read(model, tmp_path):
    stored = load_file(model.folder / "model.safetensors")
    renamed = {
        f"model.{name}" if name.startswith("visual.") else name.replace("model.", "model.language_model.", 1): tensor
        for name, tensor in stored.items()
    }
    save_file(renamed, tmp_path / "model.safetensors", {"format": "pt"})
    jax.tree.map(np.testing.assert_array_equal, load_params(tmp_path, model.config), model.params)


@pytest.mark.parametrize("model", ["qwen2_vl", "qwen2", "qwen2, tied"], indirect=True)
def test_transformers_finds_every_tensor_in_a_random_checkpoint(model):
    _, info = type(model.torch).from_pretrained(start_folder(model.folder), output_loading_info=True)
    assert not any(info.values()), info


@pytest.mark.slow
@pytest.mark.parametrize("model", ["qwen2_vl"], indirect=True)
def test_a_mesh_changes_nothing(model):
    """Log-probabilities on one device and on 2 x 2 x 2."""
    items = (problems(model) * 2)[:4]
    batch = model.batch(items)
    responses = responses_for(len(items), 2, 9)
    alone = encode_and_score(model.policy, model.params, batch, responses)[0]
    mesh = make_mesh(MeshConfig(2, 2, 2), jax.devices())
    with jax.set_mesh(mesh):
        shardings = tree_shardings(mesh, model.policy.abstract_params(), model.policy.param_axes())
        params = load_params(model.folder, model.config, shardings)
        together = encode_and_score(model.policy, params, *to_global(mesh, (batch, responses)))[0]
        np.testing.assert_allclose(jax.device_get(together), alone, atol=1e-4)
