"""Long rows chunk by chunk: the same MLP, with the memory of one chunk."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.mesh import constrain, make_mesh
from mmeureka_jax.models import chunks
from mmeureka_jax.models.layers import GatedMLP

SIZE = 8
WIDTH = 16


def random_mlp():
    definition, state = nnx.split(GatedMLP(SIZE, WIDTH, ("embed", "mlp")))
    leaves, tree = jax.tree.flatten(state)
    rng = np.random.default_rng(0)
    state = jax.tree.unflatten(tree, [jnp.asarray(rng.normal(size=leaf.shape), jnp.float32) for leaf in leaves])

    def of_places(parameters, x):
        return nnx.merge(definition, parameters)(x)

    return of_places, state


def values_and_gradients(function, state, x):
    weight = np.random.default_rng(1).normal(size=x.shape).astype(np.float32)
    return jax.jit(jax.value_and_grad(lambda *of: jnp.sum(function(*of) * weight), argnums=(0, 1)))(state, x)


@pytest.mark.parametrize(("mesh", "places"), [((1, 1, 1, 1), 50), ((1, 2, 2, 2), 48), ((2, 1, 1, 4), 40)], ids=str)
def test_chunks_give_the_values_and_gradients_of_the_whole(mesh, places):
    """Also where a last chunk is not full, on meshes of (data, fsdp, tensor, context)."""
    of_places, state = random_mlp()
    x = np.random.default_rng(2).normal(size=(2, places, SIZE)).astype(np.float32)
    expected = values_and_gradients(of_places, state, x)
    with jax.set_mesh(make_mesh(MeshConfig(*mesh), jax.devices()[: int(np.prod(mesh))])):

        def in_chunks(state, x):
            return chunks.in_chunks(of_places, state, constrain(x, "batch", "residual_seq", None), 3)

        result = values_and_gradients(in_chunks, state, x)
    for one, other in zip(jax.tree.leaves(result), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_a_long_row_takes_the_memory_of_a_chunk(monkeypatch):
    """Of the backward pass over 2**14 places: the hidden layer is never there whole."""
    monkeypatch.setattr(chunks, "_NUMBERS_AT_A_TIME", 2**14)
    of_places, state = random_mlp()
    x = jax.ShapeDtypeStruct((1, 2**14, SIZE), jnp.float32)
    count = chunks.chunk_count(1, 2**14, WIDTH)
    assert count == 16 and chunks.chunk_count(1, 2**10, WIDTH) == 1

    def temporary(function):
        gradient = jax.grad(lambda *of: jnp.sum(jnp.square(function(*of))), argnums=(0, 1))
        return jax.jit(gradient).lower(state, x).compile().memory_analysis().temp_size_in_bytes

    with jax.set_mesh(make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])):
        row = 4 * 2**14 * SIZE
        chunked = temporary(lambda state, x: chunks.in_chunks(of_places, state, x, count))
        assert chunked < 4 * row < temporary(of_places)
