"""Updates of two prompts on eight devices, in rows of part of a group, against whole groups on one device."""

from __future__ import annotations

import functools
from dataclasses import replace
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest
from helpers.groups import assert_updates_equal, parts_of
from helpers.support import PROBLEMS, Lively

from mmeureka_jax.config.schema import Config, MeshConfig, OptimizerConfig, RLConfig, SamplerConfig
from mmeureka_jax.mesh import make_mesh, to_global
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.rl.critic import make_critic
from mmeureka_jax.rl.groups import Targets
from mmeureka_jax.rl.metrics import computed
from mmeureka_jax.rl.objective import policy_objective
from mmeureka_jax.rl.train_state import make_training
from mmeureka_jax.rl.update import CompiledUpdate

AVERAGINGS = get_args(get_type_hints(RLConfig)["token_averaging"])
GROUP = 4
LENGTH = 12
CASES = {
    "ppo, with a reference and importance": {
        "loss": "ppo_clip", "kl_coefficient": 0.1, "kl_estimator": "k3", "entropy_coefficient": 0.01,
    },
    "cpgd": {"loss": "cpgd", "drift_coefficient": 0.1},
    "critic": {"loss": "ppo_clip", "advantage": "gae", "critic.kind": "head"},
}  # fmt: skip
WAYS = {
    "whole groups": {},
    "rows of some tokens": {"row_tokens": LENGTH},
    "the same with splash attention": {"row_tokens": LENGTH},
    "equal shares": {"ratio": 0.8},
}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lively = Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=True, layers=1, depth=1)
    lively.policy = replace(lively.policy, remat=False, logits_mb=1000.0)
    lively.start_params = jax.device_get(lively.start_params)
    return lively


def make_part(model, case, *, longest=False):
    rng = np.random.default_rng(0)
    shape = (2, GROUP, LENGTH)

    def tokens(mean, scale):
        return rng.normal(mean, scale, shape).astype(np.float32)

    lengths = np.full(shape[:2], LENGTH) if longest else rng.integers(1, LENGTH + 1, shape[:2])
    batch = GroupBatch(
        prompts=model.batch([PROBLEMS["text only"], PROBLEMS["one window"]]),
        image_features=None,
        responses=rng.integers(5, 250, shape).astype(np.int32),
        response_mask=np.arange(LENGTH) < lengths[..., None],
    )
    return batch, Targets(
        old_log_probs=tokens(-5.5, 0.3),
        advantages=tokens(0, 1),
        fresh=np.array([True, False]),
        reference_log_probs=tokens(-5.5, 0.3) if "kl_coefficient" in CASES[case] else None,
        importance=np.abs(tokens(1, 0.3)) if "kl_coefficient" in CASES[case] else None,
        values=tokens(0, 1) if case == "critic" else None,
        returns=tokens(0, 1) if case == "critic" else None,
    )


@functools.cache
def update_of(model, case, way):
    """Three steps of an update that is compiled once: (batch, averaging) -> parameters, moments, metrics of each."""
    settings = dict(CASES[case])
    critic = replace(RLConfig().critic, kind=settings.pop("critic.kind", "none"))
    config = Config(
        rl=RLConfig(critic=critic, **settings),
        sampler=SamplerConfig(max_new_tokens=LENGTH),
        optimizer=OptimizerConfig(learning_rate=1e-3, schedule="constant", warmup_fraction=0.0, eps=1e-3),
    )
    devices = 1 if way == "whole groups" else 8
    mesh = make_mesh(MeshConfig(data=2 if devices > 1 else 1), jax.devices()[:devices])
    training = make_training(config, 3, make_critic(config, 3))
    objective = policy_objective(config)
    shardings = training.shardings(model.policy, mesh)
    most = 2 if "row_tokens" in WAYS[way] else 1
    policy = replace(model.policy, attention="splash" if "splash" in way else "xla")
    step = CompiledUpdate(policy, objective, training, shardings, most_parts=most)

    def run(part, averaging):
        with jax.set_mesh(mesh):
            state = jax.device_put(training.init(model.policy, model.start_params), shardings)
            parts = parts_of(replace(objective, averaging=averaging), *part, shards=devices, **WAYS[way])
            assert all(len(one.batch.responses) == (2 if devices == 1 else 8) for one in parts)
            rows = []
            for _ in range(3):
                state, metrics = step(state, to_global(mesh, parts), config.rl.kl_coefficient)
                rows.append(computed(jax.device_get(metrics)))
            return jax.device_get((state.trainable, state.critic, state.optimizer)), rows

    return run


@pytest.mark.slow
@pytest.mark.parametrize(
    ("case", "way"),
    [
        *(("ppo, with a reference and importance", way) for way in list(WAYS)[1:]),
        ("cpgd", "equal shares"),
        ("critic", "rows of some tokens"),
    ],
)
def test_parts_of_groups_on_eight_devices_equal_one(model, case, way):
    """Parameters and moments after three steps, and every metric of each, to 1e-5, for every averaging."""
    part = make_part(model, case)
    for averaging in AVERAGINGS:
        assert_updates_equal(*(update_of(model, case, name)(part, averaging) for name in ("whole groups", way)))
    full = make_part(model, case, longest=True)
    assert_updates_equal(*(update_of(model, case, name)(full, AVERAGINGS[0]) for name in ("whole groups", way)))
