"""Attention against a softmax written out, whatever number of scores it keeps at a time."""

from __future__ import annotations

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.mesh import make_mesh, sharding
from mmeureka_jax.models import attention as module
from mmeureka_jax.models.attention import PADDING, PROMPT, RowLayout, attention

H = 4
K = 2
HEAD = 8


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def brute_force(query, key, value, mask):
    """query [T, H, h], key and value [K, S, h], mask [T, S]."""
    out = np.zeros(query.shape)
    for t, head in np.ndindex(*query.shape[:2]):
        k = key[head // (H // K)]
        v = value[head // (H // K)]
        scores = k @ query[t, head] / np.sqrt(HEAD)
        weights = np.where(mask[t], np.exp(scores - scores[mask[t]].max()), 0)
        out[t, head] = weights @ v / weights.sum()
    return out


def packed_row(prompt, prompt_places, lengths, width):
    """Segments of a row: a prompt and its padding, responses one after another and the padding after them."""
    of_prompt = [PROMPT] * prompt + [PADDING] * (prompt_places - prompt)
    responses = [number + 1 for number, length in enumerate(lengths) for _ in range(length)]
    return np.asarray(of_prompt + responses + [PADDING] * (width - len(responses)))


def visible(segments, causal):
    mask = (segments == segments[:, None]) | (segments == PROMPT)
    return mask & np.tri(len(segments), dtype=bool) if causal else mask


ROWS = {
    "a prompt": (np.stack([packed_row(23, 23, (), 0), packed_row(9, 23, (), 0)]), RowLayout(23)),
    "a long prompt": (packed_row(150, 170, (), 0)[None], RowLayout(170)),
    "packed responses": (
        np.stack([packed_row(5, 7, (6, 1, 9, 3), 21), packed_row(7, 7, (9, 9), 21)]),
        RowLayout(7, longest=9),
    ),
    "padded responses": (packed_row(6, 6, (8,) * 5, 40)[None], RowLayout(6, longest=8)),
    "many short responses": (packed_row(4, 4, (3, 40, 1, 2, 50, 7) * 3, 320)[None], RowLayout(4, longest=50)),
    "one response, shorter than the longest": (packed_row(3, 3, (10,), 16)[None], RowLayout(3, longest=64)),
    "several blocks of the kernel's": (
        packed_row(300, 320, (40, 360, 5, 30, 100), 720)[None],
        RowLayout(320, longest=360),
    ),
    "pictures, in any order": (np.asarray([[1, 2, 1, 1, PADDING, 2, 2, 3, PADDING], [1] * 9]), None),
}


@pytest.fixture(params=["scores of few queries at a time", "all scores at once", "splash"])
def kernel(request, monkeypatch):
    scores = 1 if "few" in request.param else 2**20
    monkeypatch.setattr(module, "_scores_at_a_time", lambda: scores * H * 2)
    return "splash" if request.param == "splash" else "xla"


@pytest.mark.parametrize("name", ROWS)
def test_attention_equals_a_softmax_written_out(name, kernel):
    segments, layout = ROWS[name]
    rows, length = segments.shape
    query, key, value = (normal(seed, rows, heads, length, HEAD) for seed, heads in enumerate((H, K, K)))
    query = query.swapaxes(1, 2)
    compiled = jax.jit(attention, static_argnums=4, static_argnames="kernel")
    out = compiled(query, key, value, jnp.asarray(segments), layout, kernel=kernel)
    query, key, value = (np.asarray(x, np.float64) for x in (query, key, value))
    for row in range(rows):
        expected = brute_force(query[row], key[row], value[row], visible(segments[row], layout is not None))
        tokens = segments[row] != PADDING
        np.testing.assert_allclose(out[row][tokens], expected[tokens], atol=1e-5)


def with_weight(name):
    """Query, key and value; and the weight of each number of the result in a loss."""
    segments, _ = ROWS[name]
    rows, length = segments.shape
    inputs = [normal(seed, rows, heads, length, HEAD) for seed, heads in enumerate((H, K, K))]
    return inputs, normal(9, rows, length, H, HEAD) * (segments != PADDING)[..., None, None]


@functools.cache
def gradients_of_plain_softmax(name):
    segments, layout = ROWS[name]
    inputs, weight = with_weight(name)
    mask = jnp.asarray(np.stack([visible(row, layout is not None) for row in segments]))

    def plain(query, key, value):
        key = jnp.repeat(key, H // K, axis=1)
        value = jnp.repeat(value, H // K, axis=1)
        scores = jnp.where(mask[:, None], jnp.einsum("bhtd,bhsd->bhts", query, key) / HEAD**0.5, -jnp.inf)
        return jnp.sum(weight * jnp.einsum("bhts,bhsd->bthd", jax.nn.softmax(scores), value))

    return jax.jit(jax.grad(plain, argnums=(0, 1, 2)))(*inputs)


@pytest.mark.parametrize("name", ROWS)
def test_gradients_equal_those_of_plain_softmax(name, kernel):
    segments, layout = ROWS[name]
    inputs, weight = with_weight(name)

    def ours(query, key, value):
        return jnp.sum(
            weight * attention(query.swapaxes(1, 2), key, value, jnp.asarray(segments), layout, kernel=kernel)
        )

    result = jax.jit(jax.grad(ours, argnums=(0, 1, 2)))(*inputs)
    for x, y in zip(result, gradients_of_plain_softmax(name), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("sizes", "longest", "kernel"),
    [((1, 2, 2, 2), 12, "xla"), ((1, 1, 2, 4), 99, "xla"), ((1, 1, 1, 8), 12, "xla"), ((1, 2, 2, 2), 12, "splash")],
    ids=str,
)
def test_devices_that_share_a_row_give_what_one_gives(sizes, longest, kernel, monkeypatch):
    """Values and gradients, on meshes of (data, fsdp, tensor, context); with windows of keys and without."""
    monkeypatch.setattr(module, "_scores_at_a_time", lambda: 2 * H * 40 * 16)
    rows = [packed_row(17, 24, (9, 3, 12, 11), 40), packed_row(24, 24, (1, 12, 12, 5), 40)]
    segments = jnp.asarray(np.stack(rows))
    query, weight = (normal(seed, 2, 64, H, HEAD) for seed in range(2))
    weight *= (segments != PADDING)[..., None, None]
    key, value = (normal(seed, 2, K, 64, HEAD) for seed in range(2, 4))

    def total(query, key, value, kernel="xla"):
        return jnp.sum(weight * attention(query, key, value, segments, RowLayout(24, longest), kernel=kernel))

    expected = jax.jit(jax.value_and_grad(total, argnums=(0, 1, 2)))(query, key, value)
    step = jax.value_and_grad(functools.partial(total, kernel=kernel), argnums=(0, 1, 2))
    mesh = make_mesh(MeshConfig(*sizes))
    of_keys = sharding(mesh, "batch", "act_heads", "seq", None)
    with jax.set_mesh(mesh):
        shardings = (sharding(mesh, "batch", "seq", "act_heads", None), of_keys, of_keys)
        compiled = jax.jit(lambda *x: step(*x), in_shardings=shardings).lower(query, key, value).compile()
    result = compiled(*map(jax.device_put, (query, key, value), shardings))
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_masks_are_made_anew_in_every_layer(monkeypatch):
    """Not once for all layers and turns, as large as all scores: forward and backward, over four layers."""
    monkeypatch.setattr(module, "_scores_at_a_time", lambda: 2**14)
    segments = jnp.asarray(packed_row(128, 128, (128,) * 7, 896))[None]
    layout = RowLayout(128, longest=128)

    def loss(scale, x):
        def layer(x, scale):
            query = x[:, :, None] * scale * jnp.ones((H, 1))
            key = x[:, None] * scale * jnp.ones((K, 1, 1))
            return x + attention(query, key, key, segments, layout).sum(2), None

        return jnp.sum(jax.lax.scan(jax.checkpoint(layer, prevent_cse=False), x, scale)[0])

    step = jax.jit(jax.grad(loss, argnums=(0, 1)))
    text = step.lower(jnp.ones(4), normal(0, 1, 1024, HEAD)).compile().as_text()
    masks = [np.prod([int(size) for size in sizes.split(",")]) for sizes in re.findall(r"pred\[([\d,]+)\]", text)]
    assert 1000 < max(masks) <= 2**15


def test_no_more_scores_exist_at_a_time_than_asked_for(monkeypatch):
    """Forward and backward, over 2,048 places: the largest array of the compiled program."""
    monkeypatch.setattr(module, "_scores_at_a_time", lambda: 2**17)
    length = 2048
    layout = RowLayout(1024, longest=256)
    segments = jnp.asarray(packed_row(1024, 1024, (256,) * 4, 1024))[None]
    query = normal(0, 1, length, H, HEAD)
    key = normal(1, 1, K, length, HEAD)
    value = normal(2, 1, K, length, HEAD)
    step = jax.jit(jax.grad(lambda *x: attention(*x, segments, layout).sum(), argnums=(0, 1, 2)))
    memory = step.lower(query, key, value).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * (8 * 2**17 + 12 * query.size)  # the whole square: 4 * 2**24 bytes


def test_gradients_in_bfloat16_are_those_of_float32_to_rounding(monkeypatch):
    """Scores, weights and sums over queries are float32; 3 significant digits go in and come out."""
    monkeypatch.setattr(module, "_scores_at_a_time", lambda: 600 * H * 2)
    segments, layout = ROWS["packed responses"]
    rows, length = segments.shape
    query, key, value = (normal(seed, rows, heads, length, HEAD) for seed, heads in enumerate((H, K, K)))
    weight = normal(9, rows, length, H, HEAD)

    def total(dtype):
        def loss(*x):
            query, key, value = (part.astype(dtype) for part in x)
            out = attention(query.swapaxes(1, 2), key, value, jnp.asarray(segments), layout)
            assert out.dtype == dtype
            return jnp.sum(weight * out)

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(query, key, value)

    for rounded, expected in zip(total(jnp.bfloat16), total(jnp.float32), strict=True):
        assert np.linalg.norm(rounded - expected) < 0.02 * np.linalg.norm(expected)
