"""Operations and bytes of phases, at released models' sizes, against the products in the traced programs."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import pytest
from helpers.products import traced_flops

from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.models.batch import collate
from mmeureka_jax.models.lora import Lora
from mmeureka_jax.models.policy import Policy, encode_images, prefill, token_log_probs
from mmeureka_jax.planning.arithmetic import (
    Model,
    causal_pairs,
    language_parameters,
    layer_kernels,
    row_pairs,
    tower_of,
)
from mmeureka_jax.rl.optimizer import merge_params, split_frozen
from mmeureka_jax.setup.released_models import write_released_model

VISION = ("vision",)
PROMPT = 64
LENGTH = 16
GROUP = 3


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """Hub id -> configuration."""
    folder = tmp_path_factory.mktemp("shapes")
    return lambda name: read_config(write_released_model(name, folder / name.replace("/", "_")))


def model_of(policy: Policy, frozen: tuple[str, ...]) -> Model:
    trainable, _ = split_frozen(policy.abstract_params(), policy.frozen(frozen))
    return Model.of(policy, trainable)


def shapes_of_prompts(policy: Policy, windows: int):
    from mmeureka_jax.data.processor import filler

    prompts = collate([filler(policy.config)], PROMPT, windows)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), prompts)


def traced(function, policy: Policy, windows: int, *more) -> float:
    """Operations of the products of `function(params, prompts, ...)`. Blocks of a tower that differ are branches."""
    arguments = policy.abstract_params(), shapes_of_prompts(policy, windows), *more
    full = set(getattr(getattr(policy.config, "vision", None), "full_attention_blocks", ()))
    share = len(full) / policy.config.vision.depth if windows and full else 0.0
    within, across = (traced_flops(function, *arguments, branch=branch) for branch in (0, 1))
    return within * (1 - share) + across * share


def responses() -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, GROUP, LENGTH), jnp.int32)


MODELS = (
    "Qwen/Qwen2.5-VL-3B-Instruct",
    "Qwen/Qwen2-VL-2B-Instruct",
    "OpenGVLab/InternVL2_5-8B",
    "Qwen/Qwen2.5-1.5B-Instruct",
)


@pytest.mark.parametrize("name", MODELS)
def test_forward_passes_against_the_programs(configs, name):
    policy = Policy(configs(name), remat=False)
    model = model_of(policy, VISION)
    windows = 0 if model.tower is None else 4

    def until_features(params, prompts):
        return encode_images(policy, params, prompts.images)

    if windows:
        encoded = traced(until_features, policy, windows)  # which pads queries
        assert model.encode(windows).hardware == pytest.approx(encoded, rel=0.003)
    counted = traced(lambda params, prompts: prefill(policy, params, prompts, None), policy, 0)
    counted += 2 * policy.config.text.hidden_size * policy.config.text.vocab_size  # logits after the prompt
    # What the program may add is pairs that are masked.
    assert model.prefill(PROMPT).model == pytest.approx(counted, rel=0.01)
    assert model.prefill(PROMPT).model < counted
    scored = traced(
        lambda params, prompts, tokens: token_log_probs(policy, params, prompts, None, tokens), policy, 0, responses()
    )
    assert model.log_probs(PROMPT, [LENGTH] * GROUP).model == pytest.approx(scored, rel=0.01)


@pytest.mark.parametrize(
    ("name", "remat", "frozen", "lora"),
    [
        ("Qwen/Qwen2.5-VL-3B-Instruct", True, (), False),
        ("Qwen/Qwen2.5-VL-3B-Instruct", False, VISION, False),
        ("Qwen/Qwen2.5-VL-3B-Instruct", True, VISION, True),
        ("OpenGVLab/InternVL2_5-8B", True, ("vision/embeddings", "vision/blocks"), False),
        ("OpenGVLab/InternVL2_5-8B", True, (), False),
    ],
)
def test_updates_against_the_programs(configs, name, remat, frozen, lora):
    adapters = Lora(64, 128.0, ("language/layers/.*",)) if lora else None
    policy = Policy(configs(name), compute_dtype="bfloat16", remat=remat, lora=adapters)
    model = model_of(policy, frozen)
    windows = 0 if frozen == VISION else 2

    def gradients(params, prompts, tokens):
        trainable, kept = split_frozen(params, policy.frozen(frozen))

        def loss(trainable):
            merged = merge_params(trainable, kept)
            features = encode_images(policy, merged, prompts.images)
            return token_log_probs(policy, merged, prompts, features, tokens)[0].sum()

        return jax.grad(loss)(trainable)

    counted = traced(gradients, policy, windows, responses())
    if lora:  # the trace has gradients of frozen matrices, which nothing reads and the compiler leaves out
        text = policy.config.text
        counted -= 2 * GROUP * LENGTH * text.hidden_size * text.vocab_size
        counted -= 2 * (PROMPT + GROUP * LENGTH) * text.num_layers * layer_kernels(text)
    update = model.update(PROMPT, [LENGTH] * GROUP, windows)
    assert update.hardware == pytest.approx(counted, rel=0.03)
    assert update.model < update.hardware


def test_decoding_adds_up_to_the_log_probabilities(configs):
    model = model_of(Policy(configs(MODELS[0])), VISION)
    by_token = sum((model.decode_token(PROMPT, own).model for own in range(1, LENGTH)), 0.0)
    assert by_token == model.decode(PROMPT, LENGTH).model
    whole = model.log_probs(PROMPT, [LENGTH]).model
    last = model.decode_token(PROMPT, LENGTH).model  # is never fed, and has no logits
    head = model.decode_token(0, 0).model - model._layers(1, 0)
    assert model.prefill(PROMPT).model + by_token == pytest.approx(whole - last + head, rel=1e-12)


def test_an_update_is_six_operations_a_parameter_and_token(configs):
    model = model_of(Policy(configs("Qwen/Qwen2.5-VL-7B-Instruct"), remat=False), VISION)
    tokens = PROMPT + GROUP * LENGTH
    text = model.text
    inner = language_parameters(text) - 2 * text.hidden_size * text.vocab_size
    head = text.hidden_size * text.vocab_size
    rule = 6 * inner * tokens + 6 * head * GROUP * LENGTH
    assert model.update(PROMPT, [LENGTH] * GROUP).model == pytest.approx(rule, rel=0.01)
    assert model.trained == language_parameters(text)


def test_pairs_of_a_row_are_those_that_its_mask_lets_through():
    owner = [0] * 5 + [1] * 3 + [2] * 4
    pairs = sum(owner[key] in (0, owner[query]) for query in range(len(owner)) for key in range(query + 1))
    assert row_pairs(5, [3, 4]) == pairs
    assert causal_pairs(4, 5) == 4 * 5 + 10


def test_decoding_reads_weights_once_and_each_cache(configs):
    config = configs(MODELS[0])
    policy = Policy(config, compute_dtype="bfloat16")
    model = model_of(policy, VISION)
    language = policy.abstract_params()["language"]
    weights = 2 * sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(language))  # the head is the embedding
    cache = jax.eval_shape(
        lambda params, prompts: prefill(policy, params, prompts, None)[1],
        policy.abstract_params(),
        shapes_of_prompts(policy, 0),
    )
    of_prompt = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(cache))
    assert model.decode_bytes(2, PROMPT, 8, PROMPT) == weights + (2 + 8) * of_prompt


def test_adapters_and_towers_are_told_apart(configs):
    whole = model_of(Policy(configs(MODELS[0])), ())
    adapted = model_of(Policy(configs(MODELS[0]), lora=Lora(8, 16.0, ("language/layers/.*",))), ())
    assert (whole.adapters, whole.vision, adapted.vision) == (0, "all", "frozen")
    assert adapted.trained == adapted.adapters > 0
    assert tower_of(configs(MODELS[3])) is None
