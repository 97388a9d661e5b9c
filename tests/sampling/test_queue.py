"""A queue draws what the sampler draws, whatever row a response is in and whoever was there before it."""

from __future__ import annotations

import itertools
from dataclasses import replace

import jax
import numpy as np
import pytest
from helpers.support import PROBLEMS, Lively

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.mesh import make_mesh, tree_shardings
from mmeureka_jax.sampling.queue import QueueSampler
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings

NAMES = ("text only", "one window", "odd sizes", "several pictures")
LONGEST = 20  # more than two turns of the ring go by in a queue of 24 prompts
LENGTHS = np.random.default_rng(5).integers(1, LONGEST + 1, 24).astype(np.int32)[:, None]
LENGTHS[:3, 0] = 1, LONGEST, LONGEST


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=False)


@pytest.fixture(scope="module")
def batch(model):
    """24 prompts of four kinds, padded to one length."""
    return model.batch([PROBLEMS[name] for name, _ in zip(itertools.cycle(NAMES), LENGTHS)])


def settings_of(model, **changes) -> SamplingSettings:
    return replace(
        SamplingSettings(
            group_size=1, max_new_tokens=LONGEST, eos_token_ids=model.config.eos_token_ids,
            pad_token_id=model.config.pad_token_id, temperature=0.8, shrink=0.5,
        ), **changes,
    )  # fmt: skip


def queued(model, batch, settings, rows, *, params=None, mesh=None, limits=LENGTHS, count=24):
    """(tokens, log-probabilities, whether it finished) of each prompt, and the order in which they came."""

    def request_of(numbers):
        index = np.maximum(numbers, 0)
        names = [str(number) if number >= 0 else None for number in numbers]
        given = None if limits is None else limits[index]
        return Request.of(names, jax.tree.map(lambda x: x[index], batch), mesh, limits=given)

    sampler = QueueSampler(model.policy, settings, "validation", rows, batch.tokens.shape[1], seed=3)
    drawn = list(sampler.run(model.params if params is None else params, count, request_of))
    assert sorted(one.number for one in drawn) == list(range(count))
    return {one.number: one for one in drawn}, [one.number for one in drawn]


def in_one_batch(model, batch, settings, limits=LENGTHS):
    ids = [str(number) for number in range(len(LENGTHS))]
    return Sampler(model.policy, settings, "validation", 3).sample(model.params, Request.of(ids, batch, limits=limits))[
        0
    ]


def assert_same(drawn, samples):
    for number, one in drawn.items():
        length = int(samples.lengths[number, 0])
        np.testing.assert_array_equal(one.tokens, samples.tokens[number, 0, :length])
        np.testing.assert_allclose(one.log_probs, samples.log_probs[number, 0, :length], rtol=1e-5, atol=1e-5)
        assert one.finished == samples.finished[number, 0]


@pytest.mark.parametrize(
    "temperature, rows",
    [(0.8, 8), pytest.param(0.0, 8, marks=pytest.mark.slow), pytest.param(0.8, 32, marks=pytest.mark.slow)],
)
def test_a_queue_draws_what_a_batch_draws(model, batch, temperature, rows):
    settings = settings_of(model, temperature=temperature)
    drawn, order = queued(model, batch, settings, rows)
    assert_same(drawn, in_one_batch(model, batch, settings))
    assert rows > len(LENGTHS) or order != sorted(order)  # some are done before others that began earlier


@pytest.mark.slow
def test_ends_and_limits_are_those_of_a_batch(model, batch):
    """Common tokens end responses, so that most end early, some with their first token."""
    plain = in_one_batch(model, batch, settings_of(model, eos_token_ids=()), limits=None)
    common = np.bincount(plain.tokens.ravel()).argsort()[-12:]
    settings = settings_of(model, eos_token_ids=tuple(int(token) for token in common))
    samples = in_one_batch(model, batch, settings, limits=None)
    assert samples.finished.any() and len(set(samples.lengths.ravel().tolist())) > 3
    drawn, _ = queued(model, batch, settings, 8, limits=None)
    assert_same(drawn, samples)


def test_a_queue_of_fewer_prompts_than_are_admitted_together(model, batch):
    drawn, _ = queued(model, batch, settings_of(model), 32, count=3)
    samples = in_one_batch(model, batch, settings_of(model))
    assert_same(drawn, samples)


@pytest.mark.slow
def test_devices_that_share_a_queue_draw_the_same(model, batch):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2), jax.devices()[:8])
    shardings = tree_shardings(mesh, model.params, model.policy.param_axes())
    with jax.set_mesh(mesh):
        params = jax.device_put(model.params, shardings)
        drawn, _ = queued(model, batch, settings_of(model), 16, params=params, mesh=mesh)
    assert_same(drawn, in_one_batch(model, batch, settings_of(model)))
