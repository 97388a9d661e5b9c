"""Losses and gradients that are not finite: updates are skipped, counted and saved, and too many stop the run."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import mmeureka
from helpers.small_runs import OVERRIDES, SMOKE, progress_of, state_of

from mmeureka_jax.errors import EXIT_STOPPED, UserError
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.rl.groups import Targets
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.training import rl
from mmeureka_jax.training.rl import train
from mmeureka_jax.training.watchers import NonFiniteGuard

pytestmark = pytest.mark.usefixtures("shared_reward_workers", "one_device")


@pytest.mark.slow
def test_a_run_that_only_skips_updates_stops(make_config, tmp_path, capsys):
    """A learning rate of 1e30: the first update is applied, and nothing after it is finite."""
    make_config()  # the folder and the policy
    overrides = [*OVERRIDES, f"run_dir={tmp_path / 'run'}", f"model.checkpoint={make_config().model.checkpoint}"]
    overrides += ["optimizer.learning_rate=1e30", "optimizer.max_nonfinite_updates=2", "optimizer.warmup_fraction=0"]
    overrides += ["rl.filter.enabled=false", "tracking.validate_every=0"]
    assert mmeureka("train", SMOKE, *overrides) == EXIT_STOPPED
    error = capsys.readouterr().err
    assert "updates in a row had a loss or gradient that is not finite" in error and "Traceback" not in error
    rows = read_metrics(tmp_path / "run")
    skipped = int(sum(row["optimizer/skipped"] for row in rows))
    assert skipped >= 2
    files = sorted((tmp_path / "run" / "nonfinite").iterdir())
    assert len(files) == skipped
    state = state_of(tmp_path / "run", rows[-1]["step"])
    assert state["updates"] == 2 * len(rows) - skipped
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state["trainable"]))
    assert progress_of(tmp_path / "run", rows[-1]["step"])["counters"]["skipped"] == skipped


@pytest.mark.slow
def test_single_updates_are_skipped_counted_and_saved(make_config, monkeypatch):
    """The loss is NaN for batches that hold the prompts of even sums of tokens: the others continue."""
    objective = rl.policy_objective

    def poisoned(config):
        original = objective(config)

        def token_loss(log_probs, batch, targets):
            result = original.token_loss(log_probs, batch, targets)
            bad = jnp.sum(batch.prompts.tokens) % 2 == 0
            return dataclasses.replace(result, loss=jnp.where(bad, jnp.nan, result.loss))

        return dataclasses.replace(original, token_loss=token_loss)

    monkeypatch.setattr(rl, "policy_objective", poisoned)
    config = make_config("steps=4", "optimizer.max_nonfinite_updates=100", "rl.filter.enabled=false")
    run_dir = train(config)
    skipped = [int(row["optimizer/skipped"]) for row in read_metrics(run_dir)[1:]]
    assert 0 < sum(skipped) < 8, "the test needs batches of both kinds"
    files = sorted((run_dir / "nonfinite").iterdir())
    assert len(files) == sum(skipped)
    assert {int(path.name.split("_")[1]) for path in files} == {step for step, n in enumerate(skipped, 1) if n}
    for path in files:
        batch = np.load(path)
        assert batch["prompts.tokens"].sum() % 2 == 0
        assert batch["responses"].shape == (2, 4, 6) and np.isfinite(batch["advantages"]).all()
    state = state_of(run_dir, 4)
    assert state["updates"] == 8 - sum(skipped)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state))
    assert progress_of(run_dir, 4)["counters"]["skipped"] == sum(skipped)


def skipped_part(dtype):
    batch = GroupBatch(*(np.zeros(2, dtype) for _ in range(4)))
    return batch, Targets(*(np.zeros(2, dtype) for _ in range(3)))


def test_skipped_updates_in_a_row_are_counted_over_steps(tmp_path):
    guard = NonFiniteGuard(tmp_path, limit=3, counters={})
    part = skipped_part(jnp.bfloat16)

    def step(number: int, *skipped: float) -> None:
        rows = [{"optimizer/skipped": x, "loss/total": np.nan, "optimizer/grad_norm": 1.0} for x in skipped]
        guard.check(rows, lambda number: part, number)

    step(1, 0, 1)
    step(2, 1, 0)
    step(3, 0, 1)
    step(4, 1)
    guard.stop_if_too_many()
    assert guard.counters == {"skipped_in_row": 2, "skipped": 4}
    restarted = NonFiniteGuard(tmp_path, limit=3, counters=guard.counters)
    guard = restarted
    step(5, 1)
    with pytest.raises(UserError, match="3 updates in a row"):
        guard.stop_if_too_many()
    files = {path.name for path in (tmp_path / "nonfinite").iterdir()}
    assert "step_000005_update_0.npz" in files and len(files) == 5
    assert np.load(tmp_path / "nonfinite" / "step_000005_update_0.npz")["responses"].dtype == np.float32


def test_too_many_skipped_updates_within_one_step_stop_the_run(tmp_path):
    guard = NonFiniteGuard(tmp_path, limit=3, counters={})
    part = skipped_part(np.float32)
    rows = [{"optimizer/skipped": x, "loss/total": np.nan, "optimizer/grad_norm": 1.0} for x in (1, 1, 1, 0)]
    guard.check(rows, lambda number: part, 1)
    with pytest.raises(UserError, match="3 updates in a row"):
        guard.stop_if_too_many()
