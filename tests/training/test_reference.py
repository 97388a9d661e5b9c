"""Log-probabilities of experience: at the sampler's temperature, and under the policy that the run started from."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytest
from helpers.groups import N, make_group

from mmeureka_jax.config.load import load_config
from mmeureka_jax.rl.groups import make_group_batch
from mmeureka_jax.rl.objective import batch_log_probs
from mmeureka_jax.setup.policy import find_checkpoint, open_policy
from mmeureka_jax.training.learner import Learner
from mmeureka_jax.training.rl import recipe

LENGTH = 6
TEMPERATURE = 0.7
OVERRIDES = """
    model.random.family=qwen2 model.random.num_layers=1 rl.packing=0 rl.kl_coefficient=0.1 rl.micro_batches=1
    rl.prompts_per_rollout=2 rl.prompts_per_update=2 data.max_prompt_tokens=8
""".split()
KINDS = {"the whole model": [], "adapters": ["model.lora.rank=2", "model.lora.targets=[language/layers/.*]"]}


@pytest.fixture(scope="module", params=KINDS)
def run(request, tmp_path_factory):
    """A config, the policy that it opens, and the learner of it."""
    sizes = [f"rl.group_size={N}", f"sampler.max_new_tokens={LENGTH}", f"sampler.temperature={TEMPERATURE}"]
    config = load_config("configs/smoke.yaml", [*OVERRIDES, *sizes, *KINDS[request.param]])
    checkpoint = find_checkpoint(config.model, tmp_path_factory.mktemp("run"))
    opened = open_policy(checkpoint, config.model, config.mesh, devices=jax.devices()[:1])
    with jax.set_mesh(opened.mesh):
        made = recipe(config)
        learner = Learner(config, opened, made.objective, total_updates=1, packing=made.packing)
        learner.load_reference()
        yield config, opened, learner


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(0)
    return [make_group(rng, response=longest, windows=0) for longest in (3, LENGTH)]


@pytest.fixture(scope="module")
def state(run):
    """After much training: every trained number is another one."""
    _, _, learner = run
    start = learner.initial_state()
    return start.replace(trainable=jax.tree.map(lambda x: 1.5 * x + 0.1, start.trainable))


def expected(policy, params, groups, temperature):
    batch = make_group_batch(groups, prompt_length=8, response_length=LENGTH)
    compute = jax.jit(functools.partial(batch_log_probs, policy, temperature=temperature))
    return np.where(batch.response_mask, compute(params, batch), 0.0)


def test_log_probs_are_at_the_temperature_of_the_sampler(run, state, groups):
    config, opened, learner = run
    ours = learner.log_probs(state.params, config, groups)
    np.testing.assert_allclose(ours, expected(opened.policy, state.params, groups, TEMPERATURE), rtol=1e-4, atol=1e-4)
    assert np.abs(ours - expected(opened.policy, state.params, groups, 1.0)).max() > 0.1


def test_the_reference_is_the_policy_that_the_run_started_from(run, state, groups):
    config, opened, learner = run
    start = opened.load_params()
    ours = learner.reference_log_probs(state, config, groups)
    np.testing.assert_allclose(ours, expected(opened.policy, start, groups, TEMPERATURE), rtol=1e-4, atol=1e-4)
    assert np.abs(ours - learner.log_probs(state.params, config, groups)).max() > 0.1
