"""The loop as a whole: what it trains on, what it logs and keeps, when it stops, and how it continues."""

from __future__ import annotations

import dataclasses
import functools
import gc
import logging
import shutil
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from helpers.small_runs import OVERRIDES, SMOKE, progress_of, state_of, use_devices, without_times

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.reading import to_dict
from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import make_mesh
from mmeureka_jax.runs.folder import begin_run, config_changes
from mmeureka_jax.runs.metadata import read_metadata
from mmeureka_jax.runs.metrics import metric_of
from mmeureka_jax.runs.tracking import read_metrics, read_rollouts
from mmeureka_jax.training import rl
from mmeureka_jax.training.job import restore_position
from mmeureka_jax.training.rl import train
from mmeureka_jax.training.sft import fine_tune

pytestmark = pytest.mark.usefixtures("shared_reward_workers", "one_device")


@pytest.fixture(scope="module")
def finished(policy, tmp_path_factory):
    """A run of three steps: to look at, or to copy and continue from."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    with pytest.MonkeyPatch.context() as monkeypatch:
        use_devices(monkeypatch, 1)
        train(load_config(SMOKE, [f"run_dir={folder}", f"model.checkpoint={policy}", *OVERRIDES]))
    return folder


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it where `make_config` looks."""
    shutil.copytree(finished, tmp_path / "run")
    return tmp_path / "run"


# ---------------------------------------------------------------------------------------------------------------------
# A step.


@pytest.mark.slow
def test_groups_are_kept_trained_on_and_counted(finished):
    rows = read_metrics(finished)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    waiting = before = 0.0
    for row in rows[1:]:
        assert row["filter/kept"] + row["filter/too_easy"] + row["filter/too_hard"] == pytest.approx(1)
        assert 0 < row["filter/kept"] < 1
        waiting += row["filter/kept"] * row["filter/rounds"] * 8 - 4  # 8 prompts a sampler call, 4 groups trained on
        assert row["filter/buffer"] == pytest.approx(waiting)
        assert row["filter/staleness"] <= (1 if before else 0)
        before = row["filter/buffer"]
        assert 0 < row["reward/accuracy"] < 1 and row["reward/format"] == 0  # no thought, so never the right form
        assert row["reward/total"] == pytest.approx(row["reward/accuracy"] + row["reward/repetition"])
        assert row["response/length"] == 4 and row["response/truncated"] == 0
        assert row["policy/sampler_gap_max"] < 1e-4
    progress = progress_of(finished, 3)
    assert progress["data"]["next_position"] == 8 * sum(row["filter/rounds"] for row in rows[1:])
    assert state_of(finished, 3)["updates"] == 3 * 2


@pytest.mark.slow
def test_each_metric_that_a_run_logs_is_described(finished):
    logged = {name for row in read_metrics(finished) for name in row} - {"step"}
    assert sorted(name for name in logged if metric_of(name) is None) == []


def test_a_run_is_validated_before_it_begins_on_schedule_and_at_the_end(finished):
    rows = read_metrics(finished)
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [0, 2, 3]
    assert rows[0].keys() == {
        "step", "validation/accuracy", "validation/response_length", "validation/problems", "time/validation",
    }  # fmt: skip
    assert [step for step, _ in read_rollouts(finished)] == [1, 3]
    assert read_metadata(finished)["kind"] == "rl"
    assert (finished / "config.yaml").is_file() and (finished / "data_check.json").is_file()


@pytest.mark.slow
def test_a_step_may_train_on_what_waits_alone(make_config):
    many = "rl.filter.lower=0.0", "rl.filter.upper=1.0", "tracking.validate_every=0"  # all 8 of a call are kept
    rows = read_metrics(train(make_config(*many)))
    assert [row["filter/rounds"] for row in rows] == [1, 0, 1]
    assert [row["filter/buffer"] for row in rows] == [4, 0, 4]
    assert [row["filter/staleness"] for row in rows] == [0, 1, 0]
    # Nothing was sampled in step 2, and none of its groups by the parameters that it starts from.
    assert "reward/accuracy" not in rows[1] and "policy/sampler_gap_mean" not in rows[1]


@pytest.mark.slow
def test_the_filter_can_start_late_and_leftovers_be_thrown_away(make_config):
    config = make_config("rl.filter.freeze_steps=1", "rl.filter.keep_leftovers=false", "tracking.validate_every=0")
    rows = read_metrics(train(config))
    assert [row["filter/kept"] for row in rows[:2]] == [1, 1] and rows[2]["filter/kept"] < 1
    assert all(row["filter/buffer"] == 0 and row["filter/rounds"] >= 1 for row in rows)


@pytest.mark.slow
def test_a_filter_that_turns_everything_away_stops_the_run(make_config):
    config = make_config("rl.filter.lower=1.0", "rl.filter.upper=1.0", "rl.filter.max_empty_rounds=2")
    with pytest.raises(
        UserError, match=r"step 1: 2 rollouts in a row left no group .* \(0 groups too easy, 16 too hard\)"
    ):
        train(config)


@pytest.mark.slow
def test_log_probs_of_the_reference_and_of_the_step_s_own_policy(make_config, tmp_path):
    """KL in the reward with a coefficient that adapts, importance weights of groups that waited, an entropy bonus; and
    all of it again after a resume."""
    config = make_config(
        "rl.advantage=reinforce_pp", "rl.loss=cispo", "rl.kl_coefficient=0.1", "rl.kl_place=reward",
        "rl.kl_target=0.01", "rl.kl_horizon=100", "rl.importance_cap=1.5", "rl.entropy_coefficient=0.01",
        "rl.packing=0.8", "rl.filter.if_none_kept=keep_all", "reward.overlong_buffer=4", "optimizer.learning_rate=1e-3",
        "checkpoint.every_steps=1", "tracking.validate_every=0",
    )  # fmt: skip
    rows = read_metrics(train(config))
    for row in rows:
        assert row["policy/sampler_gap_max"] < 1e-4
        assert {"loss/entropy", "policy/kl_reference", "policy/ratio_p99"} <= row.keys() and "loss/kl" not in row
        assert row["optimizer/grad_norm/language/layers"] <= row["optimizer/grad_norm"]
        assert row["reward/overlong"] == -0.5  # all answers have 4 tokens, two of the 4 before the limit of 6
        assert row["reward/total"] == pytest.approx(row["reward/accuracy"] + row["reward/repetition"] - 0.5)
    assert rows[0]["policy/importance"] == pytest.approx(1, abs=1e-4) and rows[0]["filter/staleness"] == 0
    stale = [row for row in rows if row["filter/staleness"] > 0]
    assert stale and all(abs(row["policy/importance"] - 1) > 1e-4 for row in stale)
    assert rows[0]["policy/kl_coefficient"] == 0.1
    for before, after in zip(rows, rows[1:], strict=False):
        error = np.clip(before["policy/kl_reference"] / 0.01 - 1, -0.2, 0.2)
        assert after["policy/kl_coefficient"] == pytest.approx(before["policy/kl_coefficient"] * (1 + error * 16 / 100))

    whole = without_times(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "3")
    train(config)
    assert without_times(tmp_path / "run") == whole


@pytest.mark.slow
def test_imitation(make_config, caplog):
    """Resuming is exact; 20 problems in batches of 8: no epoch ends with a step."""
    settings = "sft.problems_per_step=8", "sft.max_response_tokens=96", "optimizer.learning_rate=1e-3"
    run_dir = train_run = fine_tune(make_config(*settings))
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["step"] for row in rows if "validation/accuracy" in row] == [2, 3]
    assert rows[0]["sft/loss"] > rows[2]["sft/loss"] > 0
    whole = without_times(run_dir)
    state = state_of(run_dir, 3)
    shutil.rmtree(run_dir / "checkpoints" / "3")
    assert without_times(fine_tune(make_config(*settings))) == whole
    jax.tree.map(np.testing.assert_array_equal, state_of(run_dir, 3), state)
    with pytest.raises(UserError, match="kind of run: sft -> rl"):
        train(make_config(*settings))
    assert read_metadata(train_run)["kind"] == "sft"


# ---------------------------------------------------------------------------------------------------------------------
# Going on.


@pytest.mark.slow
def test_a_finished_run_is_left_as_it_is(make_config, copied):
    before = without_times(copied)
    train(make_config())
    assert without_times(copied) == before
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {"1", "2", "3"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # of what Orbax leaves behind
def test_a_damaged_newest_checkpoint_costs_a_step_and_nothing_else(make_config, copied, caplog):
    before = without_times(copied)
    state = state_of(copied, 3)
    progress = progress_of(copied, 3)
    largest = max((copied / "checkpoints" / "3" / "state").rglob("*"), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[: largest.stat().st_size // 2])
    with caplog.at_level(logging.WARNING):
        train(make_config())
    assert "checkpoints/3 is damaged" in caplog.text and "continuing from 2" in caplog.text
    assert without_times(copied) == before
    assert progress_of(copied, 3) == progress
    jax.tree.map(np.testing.assert_array_equal, state_of(copied, 3), state)
    gc.collect()


@pytest.mark.slow
def test_another_config_is_refused_with_the_difference_shown(make_config, copied, capsys):
    changed = make_config("optimizer.learning_rate=2e-4", "rl.loss=ppo_clip", "tracking.progress=true")
    with pytest.raises(UserError) as failure:
        train(changed)
    lines = str(failure.value).splitlines()
    assert "holds a run with other settings" in lines[0]
    assert [line.strip() for line in lines[1:-1]] == [
        "optimizer.learning_rate: 0.0001 -> 0.0002",
        "rl.loss: cpgd -> ppo_clip",
    ]
    assert "checkpoint.allow_config_change=true" in lines[-1]
    assert read_metadata(copied)["config"]["rl"]["loss"] == "cpgd"  # nothing was written


@pytest.mark.slow
def test_another_config_and_other_data_are_taken_when_told(make_config, copied, caplog):
    more = "steps=4", "data.train=tfds:shapes/dots@train[:24]", "checkpoint.allow_config_change=true"
    with caplog.at_level(logging.WARNING):
        train(make_config(*more))
    assert "the new data are read from their beginning" in caplog.text
    assert [row["step"] for row in read_metrics(copied)] == [0, 1, 2, 3, 4]
    assert read_metadata(copied)["config"]["steps"] == 4
    assert progress_of(copied, 4)["data"]["num_problems"] == 24


def test_waiting_groups_that_no_longer_fit_are_left_out(make_config, caplog):
    def group(responses=4, prompt=20, longest=6):
        return SimpleNamespace(lengths=np.asarray([1] * (responses - 1) + [longest]), prompt_length=prompt)

    config = make_config()
    fits = [group(), group(prompt=config.data.max_prompt_tokens)]
    assert rl.fitting_groups(fits, config) == fits and not caplog.records
    others = [group(responses=8), group(longest=7), group(prompt=config.data.max_prompt_tokens + 1)]
    assert rl.fitting_groups([*others, *fits], config) == fits
    assert "3 of 5 groups that waited for an update are left out" in caplog.text


@pytest.mark.slow
def test_other_parameters_are_refused_also_when_told(make_config, copied):
    with pytest.raises(UserError, match="holds other arrays(?s:.)*frozen/vision/.*: stored nothing, wanted float32"):
        train(make_config("optimizer.frozen=[vision]", "checkpoint.allow_config_change=true"))
    assert {path.name for path in (copied / "checkpoints").iterdir()} == {"1", "2", "3"}


@pytest.mark.slow
def test_a_run_continues_on_another_mesh(make_config, monkeypatch, tmp_path, capsys):
    """From one device to eight, with no flag: the step after it agrees with that of one device to rounding."""
    sizes = (
        "rl.prompts_per_rollout=8",
        "rl.prompts_per_update=8",
        "rl.filter.enabled=false",
        "tracking.validate_every=0",
    )
    train(make_config(*sizes))
    run = tmp_path / "run"
    expected = without_times(tmp_path / "run")
    start = state_of(run, 2)
    one = state_of(run, 3)
    shutil.rmtree(run / "checkpoints" / "3")
    use_devices(monkeypatch, 8)
    train(make_config(*sizes, "mesh.data=2", "mesh.slices=2", "mesh.context=2", "mesh.tensor=2"))
    said = capsys.readouterr().err
    assert "made on data 1 x fsdp 1 x tensor 1 (1 x cpu, 1 process); it continues on data 2 x fsdp 1 x" in said
    assert read_metadata(run)["mesh"] == "data 2 x fsdp 1 x context 2 x tensor 2 (8 x cpu, 1 process)"
    rows = without_times(run)
    assert rows[:2] == expected[:2] and rows[2].keys() == expected[2].keys()
    exact = [name for name in rows[2] if name.startswith(("response/", "reward/", "filter/"))]
    assert len(exact) > 8 and {name: rows[2][name] for name in exact} == {name: expected[2][name] for name in exact}
    eight = state_of(run, 3)
    assert eight["updates"] == one["updates"] == 3

    def compare(before, expected, found):
        change = np.linalg.norm(expected - before)
        assert np.linalg.norm(found - expected) <= 1e-2 * change + 1e-6

    jax.tree.map(compare, start["trainable"], one["trainable"], eight["trainable"])


@pytest.mark.parametrize(
    "change",
    ["mesh.data=2", "mesh.heartbeat_seconds=60", "data.workers=1", "data.prefetch=0", "reward.workers=3",
     "sampler.compile_ahead=false", "checkpoint.every_steps=7", "checkpoint.keep=9", "checkpoint.keep_best=0",
     "tracking.rollouts_every=0", "tracking.validate_every=5", "tracking.validation_batch=4"],
)  # fmt: skip
def test_what_changes_no_result_may_change(make_config, change):
    assert config_changes({"config": to_dict(make_config())}, make_config(change)) == []


@pytest.mark.parametrize("change", ["tracking.validation_problems=2", "steps=4", "data.shuffle=false", "seed=1"])
def test_what_changes_results_may_not(make_config, change):
    (line,) = config_changes({"config": to_dict(make_config())}, make_config(change))
    assert line.startswith(change.partition("=")[0] + ": ")


@pytest.mark.slow
def test_stages_go_on_from_wherever_they_stopped(make_config, tmp_path):
    """At the boundary, inside the second stage: the same to the bit."""
    config = make_config(
        "tracking.validate_every=0", "checkpoint.every_steps=1", "optimizer.learning_rate=1e-3",
        "stages=[{steps: 2}, {steps: 2, data: {train: 'tfds:shapes/dots@train[20:40]'}, "
        "rl: {kl_coefficient: 0.1}, optimizer: {learning_rate: 1.0e-4}}]",
    )  # fmt: skip
    first = tmp_path / "run" / "stage1"
    second = tmp_path / "run" / "stage2"
    assert train(config) == second
    assert [row["step"] for row in read_metrics(first)] == [1, 2] == [row["step"] for row in read_metrics(second)]
    assert "policy/kl_reference" not in read_metrics(first)[0]
    assert read_metrics(second)[0]["policy/kl_reference"] == pytest.approx(0, abs=1e-3)  # to its own start
    metrics = [without_times(folder) for folder in (first, second)]
    state = state_of(second, 2)
    for lost in (
        ["stage1/export", "stage2"],
        ["stage2/checkpoints/2"],
    ):
        for folder in lost:
            shutil.rmtree(tmp_path / "run" / folder)
        train(config)
        assert [without_times(folder) for folder in (first, second)] == metrics
        jax.tree.map(np.testing.assert_array_equal, state_of(second, 2), state)


@pytest.mark.slow
def test_a_critic_learns_beside_the_policy_and_comes_back(make_config):
    """With an average of the parameters; one response to a prompt will do. Resuming is exact."""
    config = make_config(
        "rl.advantage=gae", "rl.critic.kind=model", "rl.critic.learning_rate=1e-2", "rl.critic.value_clip=null",
        "rl.critic.gae_lambda=0.9", "rl.group_size=1", "rl.filter.enabled=false", "rl.epochs_per_rollout=2",
        "rl.prompts_per_rollout=8", "rl.prompts_per_update=4", "rl.micro_batches=2",
        "optimizer.ema_decay=0.9", "sampler.compile_ahead=false", "tracking.validate_every=0",
        "checkpoint.every_steps=2",
    )  # fmt: skip
    run = train(config)
    rows = without_times(run)
    state = state_of(run, 3)
    assert rows[0]["critic/value_mean"] == 0 and rows[-1]["critic/value_mean"] != 0
    assert rows[0]["critic/return_mean"] == pytest.approx(rows[0]["reward/total"], rel=0.2)
    assert all({"loss/value", "critic/grad_norm", "critic/clip_fraction"} <= row.keys() for row in rows)
    assert "trunk" in state["critic"]
    start = state_of(run, 2)
    moved = jax.tree.map(lambda old, new: bool((old != new).any()), start["critic"]["head"], state["critic"]["head"])
    assert all(moved.values())
    shutil.rmtree(run / "checkpoints" / "3")
    assert without_times(train(config)) == rows
    jax.tree.map(np.testing.assert_array_equal, state_of(run, 3), state)


def test_what_begins_a_run_is_compared(make_config, tmp_path):
    config = make_config()
    mesh = make_mesh(config.mesh, jax.devices()[:1])
    begin = functools.partial(begin_run, kind="rl", checkpoint=tmp_path, mesh=mesh)
    begin(config, fingerprint="a", resuming=False)
    begin(dataclasses.replace(config, run_dir=config.run_dir), fingerprint="a", resuming=True)
    with pytest.raises(UserError, match=r"contents of tfds:shapes/dots@train\[:20\]: a -> b"):
        begin(config, fingerprint="b", resuming=True)
    begin(config, fingerprint="b", resuming=False)  # nothing has been saved yet: it may begin anew
    (tmp_path / "run" / "metadata.json").unlink()
    with pytest.raises(UserError, match="has checkpoints but no metadata.json"):
        begin(config, fingerprint="b", resuming=True)
    assert load_config(tmp_path / "run" / "config.yaml") == config
    assert to_dict(config)["steps"] == 3


def test_a_key_that_a_run_did_not_have_yet_stands_for_its_default(make_config):
    config = make_config()
    old = to_dict(config)
    del old["optimizer"]["ema_decay"], old["rl"]["critic"]
    assert config_changes({"config": old}, config) == []
    changed = make_config("optimizer.ema_decay=0.9", "rl.critic.gamma=0.5")
    assert config_changes({"config": old}, changed) == [
        "rl.critic.gamma: 1.0 -> 0.5",
        "optimizer.ema_decay: null -> 0.9",
    ]
    assert config_changes({"config": old | {"gone": 1}}, config) == ["gone: 1 -> (absent)"]


def test_a_position_in_other_data_is_refused(make_config, caplog):
    class Loader:
        def set_state(self, state):
            raise UserError("other rows")

    with pytest.raises(UserError, match="other rows"):
        restore_position(Loader(), {"next_position": 3}, make_config())
    restore_position(Loader(), {"next_position": 3}, make_config("checkpoint.allow_config_change=true"))
    assert "other rows" in caplog.text
    restore_position(Loader(), None, make_config())
