"""The policy against transformers (torch) on random tiny checkpoints, float32."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.support import PROBLEMS, Lively, assert_gradients_equal, responses_for

from mmeureka_jax.models.log_probs import OutputHead, log_probs_of
from mmeureka_jax.models.policy import Policy, encode_images, group_hidden, log_probs_of_hidden, token_log_probs


@functools.partial(jax.jit, static_argnums=0)
def _encode_and_score(policy, params, batch, responses):
    return token_log_probs(policy, params, batch, encode_images(policy, params, batch.images), responses)


def log_probs(model, batch, responses):
    return _encode_and_score(model.policy, model.params, batch, responses)


@functools.cache
def lively(folder, tied):
    return Lively(folder / str(tied), tied=tied)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("checkpoint")


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def both(request, folder):
    return lively(folder, request.param)


@pytest.fixture(scope="module")
def tied(folder):
    return lively(folder, True)


@pytest.mark.parametrize("names", [["text only"], list(PROBLEMS)], ids=["text only", "mixed rows"])
def test_log_probs_of_padded_rows_equal_transformers(both, names):
    items = [PROBLEMS[name] for name in names]
    batch = both.batch(items)
    responses = responses_for(len(items), 2, 9)
    ours, entropy = log_probs(both, batch, responses)
    for i, item in enumerate(items):
        for j in range(2):
            with torch.no_grad():
                theirs, table = both.torch_log_probs(item, responses[i, j])
            np.testing.assert_allclose(ours[i, j], theirs.numpy(), atol=2e-4, err_msg=item.id)
            np.testing.assert_allclose(entropy[i, j], -(table.exp() * table).sum(-1).numpy(), atol=1e-3)


def test_gradients_of_the_summed_log_prob_equal_transformers(tied):
    """Those of a head of its own: test_siblings.py."""
    item = PROBLEMS["several pictures"]
    batch = tied.batch([item])
    responses = responses_for(1, 2, 7)

    def total(params):
        embeds = encode_images(tied.policy, params, batch.images)
        return token_log_probs(tied.policy, params, batch, embeds, responses)[0].sum()

    ours = jax.jit(jax.grad(total))(tied.params)
    tied.torch.zero_grad()
    sum(tied.torch_log_probs(item, responses[0, j])[0].sum() for j in range(2)).backward()
    theirs = tied.torch_gradients()
    assert_gradients_equal(ours, theirs)


@pytest.mark.parametrize("packed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_shared_prompt_equals_the_repeated_layout(tied, packed):
    """Loss and gradients with one prompt for n responses, padded or packed, = those with the prompt repeated n times
    (1e-5 relative)."""
    items = [PROBLEMS["one window"], PROBLEMS["several pictures"], PROBLEMS["text only"]]
    batch = tied.batch(items)
    n = 4
    length = 8
    responses = responses_for(len(items), n, length)
    lengths = np.array([[8, 1, 3, 0], [2, 2, 2, 8], [0, 5, 8, 8]]) if packed else np.full((3, n), length)
    mask = np.arange(length) < lengths[..., None]
    weights = jnp.asarray(np.random.default_rng(1).normal(size=responses.shape) * mask, jnp.float32)
    layout = {"lengths": jnp.asarray(lengths), "width": int(lengths.sum(1).max())} if packed else {}

    def shared(params):
        embeds = encode_images(tied.policy, params, batch.images)
        log_probs, entropy = log_probs_of_hidden(
            tied.policy, params, group_hidden(tied.policy, params, batch, embeds, responses, **layout)
        )
        return (weights * log_probs).sum(), jnp.where(mask, entropy, 0.0)

    repeated_batch = jax.tree.map(lambda x: np.repeat(x, n, axis=0), batch)
    flat = responses.reshape(-1, 1, length)

    def repeated(params):
        embeds = encode_images(tied.policy, params, repeated_batch.images)
        log_probs, entropy = token_log_probs(tied.policy, params, repeated_batch, embeds, flat)
        return (weights.reshape(flat.shape) * log_probs).sum(), entropy.reshape(responses.shape)

    (loss, entropy), gradient = jax.jit(jax.value_and_grad(shared, has_aux=True))(tied.params)
    (other_loss, other_entropy), other_gradient = jax.jit(jax.value_and_grad(repeated, has_aux=True))(tied.params)
    np.testing.assert_allclose(loss, other_loss, rtol=1e-5)
    np.testing.assert_allclose(entropy, np.where(mask, other_entropy, 0.0), atol=1e-4)
    for (path, mine), expected in zip(
        jax.tree_util.tree_leaves_with_path(gradient), jax.tree.leaves(other_gradient), strict=True
    ):
        scale = np.linalg.norm(expected)
        assert np.linalg.norm(mine - expected) <= 1e-5 * scale, path


@pytest.mark.parametrize(
    ("block", "padding", "transposed"),
    [(1, 0, False), (7, 0, False), (25, 0, True), (7, 6, True), (28, 6, False), (1000, 0, False), (1000, 14, True)],
)  # of 50
def test_log_probs_by_any_block_equal_the_full_softmax(block, padding, transposed):
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(2, 23, 8)), jnp.float32)
    head = jnp.asarray(rng.normal(size=(8, 50)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 50, (2, 23)))

    def plain(hidden, head):
        table = jax.nn.log_softmax(hidden @ head / 0.7, axis=-1)
        return jnp.take_along_axis(table, targets[..., None], -1)[..., 0], -(jnp.exp(table) * table).sum(-1)

    def ours(hidden, head, entropy_gradient=False):
        head = jnp.concatenate([head, jnp.full((8, padding), 9.0)], axis=1)  # whatever it is, it counts for nothing
        head = head.T if transposed else head
        return log_probs_of(
            hidden,
            OutputHead(head, transposed, vocab=50),
            targets,
            temperature=0.7,
            block=block,
            entropy_gradient=entropy_gradient,
        )

    for mine, expected in zip(ours(hidden, head), plain(hidden, head), strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-5)
    weight = jnp.asarray(rng.normal(size=(2, 23)), jnp.float32)
    gradients = [
        jax.grad(lambda *a, f=f: (weight * f(*a)[0]).sum(), argnums=(0, 1))(hidden, head) for f in (ours, plain)
    ]
    for mine, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(mine, expected, atol=1e-4)

    def of_both(function, *arguments):
        log_probs, entropy = function(*arguments)
        return (weight * (log_probs + weight * entropy)).sum()

    expected = jax.grad(lambda *a: of_both(plain, *a), argnums=(0, 1))(hidden, head)
    mine = jax.grad(lambda *a: of_both(ours, *a, True), argnums=(0, 1))(hidden, head)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), mine, expected)


def test_gradients_of_bfloat16_add_up_in_float32_over_blocks():
    rng = np.random.default_rng(0)
    hidden = jnp.asarray(rng.normal(size=(1, 64, 16)), jnp.bfloat16)
    head = jnp.asarray(rng.normal(size=(16, 256)), jnp.float32)
    targets = jnp.asarray(rng.integers(0, 256, (1, 64)))

    def gradients(block):
        def total(*inputs):
            hidden, weights = inputs
            return log_probs_of(hidden, OutputHead(weights), targets, temperature=1.0, block=block)[0].sum()

        return jax.grad(total, argnums=(0, 1))(hidden, head)

    for mine, whole in zip(gradients(4), gradients(256), strict=True):
        mine = np.asarray(mine, np.float32)
        whole = np.asarray(whole, np.float32)
        assert np.linalg.norm(mine - whole) < 2e-3 * np.linalg.norm(whole)


def test_no_array_has_a_vocabulary_per_token(tied):
    """The loss and its gradient hold no [tokens, V] array: `logits_mb` of them at most."""
    batch = tied.batch([PROBLEMS["text only"]] * 2)
    responses = responses_for(2, 4, 40)  # 160 positions a row
    policy = replace(tied.policy, logits_mb=0.16)

    def total(params):
        embeds = encode_images(tied.policy, params, batch.images)
        return token_log_probs(policy, params, batch, embeds, responses)[0].sum()

    text = jax.jit(jax.grad(total)).lower(tied.params).as_text()
    vocab = tied.config.text.vocab_size
    block = policy.vocab_block(320)
    block = -(-vocab // -(-vocab // block))
    assert 100 < block < vocab / 2 and f"2x160x1x{block}xf32" in text
    assert f"x{vocab}xf32" not in text.replace(f"<{vocab}x", "")


def test_remat_changes_nothing(tied):
    batch = tied.batch([PROBLEMS["one window"]])
    responses = responses_for(1, 2, 5)
    plain = Policy(tied.config, compute_dtype="float32", remat=False, logits_mb=0.05)
    expected, _ = _encode_and_score(plain, tied.params, batch, responses)
    np.testing.assert_allclose(log_probs(tied, batch, responses)[0], expected, atol=1e-5)
