"""A vocabulary that no mesh divides: padded on the devices, and nowhere else."""

from __future__ import annotations

import json
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mmeureka_jax.config.schema import MeshConfig, ModelConfig, OptimizerConfig, RandomModelConfig
from mmeureka_jax.export.convert import convert
from mmeureka_jax.formats.hugging_face import load_params, read_config, save_params
from mmeureka_jax.models import decoder_config
from mmeureka_jax.models import policy as policy_module
from mmeureka_jax.models.batch import Prompt
from mmeureka_jax.models.decoder_config import padded_vocabulary
from mmeureka_jax.models.policy import token_log_probs
from mmeureka_jax.rl.optimizer import make_optimizer
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.setup.random_models import write_tiny_checkpoint

VOCABULARY = 1021  # a prime


@pytest.mark.parametrize(
    ("size", "padded"), [(92553, 92672), (151674, 151680), (151936, 151936), (152064, 152064), (1021, 1024), (8, 8)]
)
def test_only_a_vocabulary_that_8_does_not_divide_is_padded(size, padded):
    assert padded_vocabulary(size) == padded


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "with a head"])
def checkpoint(request, tmp_path_factory):
    """A tiny text-only policy whose table ends at `VOCABULARY`."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    sizes = RandomModelConfig(
        family="qwen2", hidden_size=32, intermediate_size=64, num_layers=1, num_heads=4, num_kv_heads=4,
        tie_word_embeddings=request.param,
    )  # fmt: skip
    write_tiny_checkpoint(folder, sizes)
    tensors = load_file(folder / "model.safetensors")
    whole = len(tensors["model.embed_tokens.weight"])
    cut = {name: np.ascontiguousarray(x[:VOCABULARY]) if len(x) == whole else x for name, x in tensors.items()}
    save_file(cut, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": VOCABULARY}))
    return folder


@pytest.fixture
def unpadded(monkeypatch):
    """The policy as it is without padding: the oracle, on one device."""
    policy_module._module.cache_clear()
    with monkeypatch.context() as patch:
        patch.setattr(decoder_config, "padded_vocabulary", lambda size: size)
        yield
        jax.clear_caches()
    policy_module._module.cache_clear()


def prompts():
    tokens = np.random.default_rng(0).integers(100, 900, (4, 6)).astype(np.int32)
    lengths = np.full(4, 6, np.int32)
    return Prompt(
        tokens=tokens, positions=np.tile(np.arange(6, dtype=np.int32), (4, 3, 1)), length=lengths,
        next_position=lengths, image_index=np.full((4, 6), -1, np.int32), images=None,
    )  # fmt: skip
