"""Groups as a rollout leaves them, of random numbers; and what updates on them came to."""

from __future__ import annotations

import jax
import numpy as np

from mmeureka_jax.models.batch import ImageFeatures, Images, Prompt
from mmeureka_jax.rl.groups import Group
from mmeureka_jax.rl.rows import Packing

N = 3
PLACES = 4
NUMBERS = 6
WIDTH = 8


def make_group(rng, *, prompt=5, response=4, windows=2, merged=None, padding=3):
    """A group as a rollout leaves it: `prompt` and longest `response` tokens, and `padding` more places of each."""
    lengths = rng.integers(1, response + 1, N)
    lengths[rng.integers(N)] = response

    def floats(*shape):
        return rng.normal(size=shape).astype(np.float32)

    def padded(x, axis, fill=0):
        widths = [(0, 0)] * x.ndim
        widths[axis] = (0, padding)
        return np.pad(x, widths, constant_values=fill)

    within = np.arange(response) < lengths[:, None]
    return Group(
        sampled_by=int(rng.integers(100)),
        order=int(rng.integers(10_000)),
        prompt=Prompt(
            tokens=padded(rng.integers(1, 99, prompt).astype(np.int32), 0),
            positions=padded(rng.integers(1, 99, (3, prompt)).astype(np.int32), 1),
            length=np.array(prompt, np.int32),
            next_position=np.array(rng.integers(1, 99), np.int32),
            image_index=padded(rng.integers(-1, 9 if windows or merged else 0, prompt).astype(np.int32), 0, -1),
            images=Images(
                patches=floats(windows, PLACES, NUMBERS),
                patch_positions=rng.integers(1, 9, (windows, PLACES, 2)).astype(np.int32),
                patch_mask=np.ones((windows, PLACES), bool),
                image_ids=np.arange(windows, dtype=np.int32),
            ),
        ),
        image_features=None if merged is None else ImageFeatures(floats(merged, WIDTH)),
        responses=padded(np.where(within, rng.integers(1, 99, (N, response)), 0).astype(np.int32), 1),
        log_probs=padded(np.where(within, floats(N, response), 0).astype(np.float32), 1),
        lengths=lengths.astype(np.int32),
        finished=rng.random(N) < 0.5,
        rewards=floats(N),
        accuracies=floats(N),
    )


def parts_of(objective, batch, targets, micro_batches=1, ratio=0.0, **settings):
    """A whole batch in micro-batches, with the weights of an objective; see `Packing`."""
    prompts, n, longest = batch.responses.shape
    packing = Packing(prompts, n, longest, micro_batches, ratio, **settings)
    return packing.split(batch, targets, objective.token_weights(batch.response_mask))


def assert_updates_equal(expected, result):
    """The same after some updates, to 1e-5: arrays of the state in norm, and the metrics of each update.

    Args:
        expected, result: a state on the host, and rows of metrics.
    """
    leaves, others = (jax.tree_util.tree_leaves_with_path(state) for state, _ in (expected, result))
    for (path, x), (other_path, y) in zip(leaves, others, strict=True):
        assert path == other_path
        assert np.linalg.norm(x - y) <= 1e-5 * np.linalg.norm(x), jax.tree_util.keystr(path)
    for row, other in zip(expected[1], result[1], strict=True):
        assert row.keys() == other.keys()
        for name, value in row.items():
            np.testing.assert_allclose(other[name], value, rtol=1e-5, atol=2e-7, err_msg=name)
