"""Checkpoints: what comes back is what was saved, or an error says that it is not."""

from __future__ import annotations

import dataclasses
import json
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.commands import file_size_limit
from jax.sharding import NamedSharding, PartitionSpec

from mmeureka_jax.config.schema import CheckpointConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.checksums import Damaged, describe_arrays, verify_arrays
from mmeureka_jax.models.batch import ImageFeatures, Images, Prompt
from mmeureka_jax.rl.groups import Group
from mmeureka_jax.rl.train_state import TrainState
from mmeureka_jax.runs.checkpoint import Checkpointer, RunState, SavedParams


def make_state(seed: int, rows: int = 16, mesh: jax.sharding.Mesh | None = None) -> TrainState:
    noise = np.random.default_rng(seed)

    def array(*shape: int) -> jax.Array:
        spec = PartitionSpec("x") if len(shape) == 2 else PartitionSpec()
        where = None if mesh is None else NamedSharding(mesh, spec)
        return jax.device_put(noise.standard_normal(shape, np.float32), where)

    return TrainState(
        updates=jax.device_put(jnp.int32(seed), None if mesh is None else NamedSharding(mesh, PartitionSpec())),
        trainable={"layers": {"kernel": array(rows, 8), "bias": array(8)}},
        frozen={"vision": array(rows, 4)},
        optimizer=({"mu": array(rows, 8)}, {"nu": array(rows, 8)}),
    )


def abstract(state: TrainState) -> TrainState:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)


def make_group(order: int, patches: int = 0, dtype: str = "float32") -> Group:
    noise = np.random.default_rng(order)
    return Group(
        sampled_by=3, order=order,
        prompt=Prompt(
            tokens=noise.integers(0, 9, 7).astype(np.int32), positions=np.ones((3, 7), np.int32),
            length=np.array(5, np.int32), next_position=np.array(6, np.int32), image_index=np.full(7, -1, np.int32),
            images=Images(
                patches=np.ones((patches, 4, 6), np.float32), patch_positions=np.ones((patches, 4, 2), np.int32),
                patch_mask=np.ones((patches, 4), bool), image_ids=np.zeros(patches, np.int32),
            ),
        ),
        image_features=None if patches else ImageFeatures(noise.standard_normal((4, 8)).astype(jnp.dtype(dtype))),
        responses=noise.integers(0, 9, (2, 5)).astype(np.int32), log_probs=noise.standard_normal((2, 5), np.float32),
        lengths=np.array([5, 2], np.int32), finished=np.array([False, True]), rewards=np.array([1.5, 0], np.float32),
        accuracies=np.array([1, 0], np.float32),
    )  # fmt: skip


def make_run(step: int, **fields) -> RunState:
    data = {"next_position": 10 * step, "seed": 0}
    return RunState(make_state(step), step=step, data=data, counters={"skipped": 1}, **fields)


def assert_same_run(run: RunState, expected: RunState) -> None:
    for field in dataclasses.fields(RunState):
        if field.name == "train":
            same_arrays(run.train, expected.train)
        elif field.name != "groups":
            assert getattr(run, field.name) == getattr(expected, field.name), field.name
    assert len(run.groups) == len(expected.groups)
    for group, other in zip(run.groups, expected.groups, strict=True):
        names, others = (jax.tree_util.tree_leaves_with_path(record) for record in (group, other))
        assert [path for path, _ in names] == [path for path, _ in others]
        for (path, x), (_, y) in zip(names, others, strict=True):
            assert type(x) is type(y), path
            if isinstance(x, np.ndarray):
                assert x.dtype == y.dtype and x.shape == y.shape, path
            assert np.array_equal(x, y), path


def same_arrays(tree, expected) -> None:
    def compare(x, y):
        assert x.dtype == y.dtype and np.array_equal(np.asarray(x), np.asarray(y))

    jax.tree.map(compare, tree, expected)


@contextmanager
def opened(folder: Path, **config) -> Iterator[Checkpointer]:
    checkpointer = Checkpointer(folder, CheckpointConfig(**config))
    try:
        yield checkpointer
    finally:
        checkpointer.close()


@pytest.mark.parametrize(
    "groups",
    [(), (make_group(4), make_group(9)), (make_group(1, patches=2),), (make_group(2, dtype="bfloat16"),)],
    ids=["no groups", "empty pictures", "pictures", "bfloat16"],
)
def test_what_is_saved_comes_back(tmp_path, groups):
    run = make_run(3, groups=groups, best_accuracy=0.25)
    with opened(tmp_path) as checkpointer:
        assert checkpointer.restore_latest(abstract(run.train)) is None
        checkpointer.save(run)
    with opened(tmp_path) as checkpointer:
        restored = checkpointer.restore_latest(abstract(run.train))
    assert_same_run(restored, run)


def test_what_goes_wrong_with_the_frozen_part_is_no_damage(tmp_path):
    """It is read from elsewhere, and the checkpoint that it belongs to stays where it is."""
    state = make_state(0)

    def unreadable():
        raise OSError("stale file handle")

    for load_frozen in (lambda: state.frozen, unreadable):
        checkpointer = Checkpointer(tmp_path, CheckpointConfig(), load_frozen)
        if not checkpointer.steps():
            checkpointer.save(RunState(state, step=1))
            checkpointer.wait()
            assert_same_run(checkpointer.restore_latest(abstract(state)), RunState(state, step=1))
        else:
            with pytest.raises(OSError, match="stale file handle"):
                checkpointer.restore_latest(abstract(state))
        checkpointer.close()
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["1"]
    assert not list((tmp_path / "checkpoints" / "1" / "state").rglob("*frozen*"))


@pytest.mark.parametrize("devices", [1, 8])
def test_donating_what_is_being_saved_does_not_change_it(tmp_path, devices):
    mesh = jax.make_mesh((devices,), ("x",), devices=jax.devices()[:devices])
    state = make_state(0, rows=1 << 14, mesh=mesh)
    update = jax.jit(lambda tree: jax.tree.map(lambda x: x * 2 + 1, tree), donate_argnums=0)
    expected = []
    with opened(tmp_path, keep=100) as checkpointer:
        for step in range(5):
            state = update(state)
            expected.append(jax.tree.map(lambda x: np.array(x, copy=True), state))
            checkpointer.save(RunState(state, step=step))
            for _ in range(3):  # while it is being written
                state = jax.block_until_ready(update(state))
    with opened(tmp_path, keep=100) as checkpointer:
        for step in range(5):
            same_arrays(checkpointer.restore_step(step, abstract(state)).train, expected[step])


def test_the_newest_and_the_best_are_kept_also_across_restarts(tmp_path):
    accuracies = {1: 0.5, 2: 0.75, 3: None, 4: 0.75, 5: 0.25, 6: None, 7: 0.5, 8: 0.0}
    for steps in ((1, 2, 3), (4, 5), (6, 7, 8)):
        with opened(tmp_path, keep=2, keep_best=1) as checkpointer:
            for step in steps:
                checkpointer.save(make_run(step), accuracies[step])
    with opened(tmp_path, keep=2, keep_best=1) as checkpointer:
        assert checkpointer.steps() == [4, 7, 8]  # of the two best, the later
    saved = SavedParams(tmp_path)
    assert (saved.step("best"), saved.step("latest"), saved.step(7)) == (4, 8, 7)
    with pytest.raises(UserError, match=r"no checkpoint of step 5; there are steps \[4, 7, 8\]"):
        saved.step(5)


def test_without_keep_best_only_the_newest_stay(tmp_path):
    with opened(tmp_path, keep=1, keep_best=0) as checkpointer:
        for step in (1, 2, 3):
            checkpointer.save(make_run(step), accuracy=1.0 / step)
    with opened(tmp_path, keep=1, keep_best=0) as checkpointer:
        assert checkpointer.steps() == [3]


def test_parameters_alone_come_back_and_are_verified(tmp_path):
    run = RunState(make_state(1, rows=4096), step=1)
    with opened(tmp_path) as checkpointer:
        checkpointer.save(run)
    target = {"trainable": abstract(run.train).trainable, "frozen": abstract(run.train).frozen}
    restored = SavedParams(tmp_path).restore(1, target)
    same_arrays(restored, {"trainable": run.train.trainable, "frozen": run.train.frozen})
    for path in (tmp_path / "checkpoints" / "1" / "state").rglob("d/*"):  # the parameters may be in any of them
        flip_bits(path)
    with pytest.raises(UserError, match="is damaged .*; other checkpoints: none"):
        SavedParams(tmp_path).restore(1, target)


def test_another_mesh_reads_the_same_numbers(tmp_path):
    one = jax.make_mesh((1,), ("x",), devices=jax.devices()[:1])
    eight = jax.make_mesh((8,), ("x",))
    states = {mesh: make_state(5, mesh=mesh) for mesh in (one, eight)}
    assert describe_arrays(states[one]) == describe_arrays(states[eight])
    for number, (here, there) in enumerate(((one, eight), (eight, one))):
        with opened(tmp_path / str(number)) as checkpointer:
            checkpointer.save(RunState(states[here], step=1))
            checkpointer.wait()
            restored = checkpointer.restore_latest(abstract(states[there]))
        same_arrays(restored.train, states[here])
        assert restored.train.trainable["layers"]["kernel"].sharding.mesh == there


def test_checksums_see_any_change(tmp_path):
    state = make_state(0)
    saved = json.loads(json.dumps(describe_arrays(state)))
    verify_arrays(state, saved)
    kernel = np.array(state.trainable["layers"]["kernel"])
    flipped = kernel.copy()
    flipped.view(np.uint8).reshape(-1)[77] ^= 1
    swapped = kernel.copy()
    swapped[[2, 3]] = kernel[[3, 2]]
    for damaged in (flipped, swapped):
        trainable = {"layers": state.trainable["layers"] | {"kernel": jnp.asarray(damaged)}}
        with pytest.raises(Damaged, match="trainable/layers/kernel"):
            verify_arrays(state.replace(trainable=trainable), saved)


# ---------------------------------------------------------------------------------------------------------------------
# Damage.


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_bits(path: Path) -> None:
    content = bytearray(path.read_bytes())
    for i in range(len(content) // 3, len(content), 997):
        content[i] ^= 0x55
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


def largest_file(folder: Path) -> Path:
    return max((path for path in folder.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)


@pytest.mark.slow
@pytest.mark.parametrize("damage", [truncate, flip_bits, remove], ids=lambda damage: damage.__name__)
def test_whatever_file_is_damaged_nothing_wrong_is_read(tmp_path, caplog, damage):
    """For each file of the newest checkpoint: the run that comes back is exactly that, or exactly the one before."""
    runs = {step: make_run(step, groups=(make_group(step),)) for step in (1, 2)}
    with opened(tmp_path / "whole") as checkpointer:
        for run in runs.values():
            checkpointer.save(run, accuracy=0.5)
    newest = tmp_path / "whole" / "checkpoints" / "2"
    files = [path.relative_to(tmp_path / "whole") for path in newest.rglob("*") if path.is_file()]
    fallen_back = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        shutil.copytree(tmp_path / "whole", folder)
        if (folder / file).stat().st_size < 2:
            continue
        damage(folder / file)
        caplog.clear()
        with opened(folder) as checkpointer:
            restored = checkpointer.restore_latest(abstract(runs[1].train))
            assert_same_run(restored, runs[restored.step])
            if restored.step == 1:
                fallen_back += 1
                assert "checkpoints/2 is damaged" in caplog.text and "continuing from 1" in caplog.text
                assert checkpointer.steps() == [1] and (folder / "checkpoints" / "2.damaged").is_dir()
                checkpointer.save(runs[2])  # the run comes to this step again
                checkpointer.wait()
                assert_same_run(checkpointer.restore_latest(abstract(runs[1].train)), runs[2])
        shutil.rmtree(folder)
    assert fallen_back >= 5


def test_when_none_can_be_read_nothing_is_touched(tmp_path):
    with opened(tmp_path, keep=2) as checkpointer:
        for step in (1, 2):
            checkpointer.save(make_run(step))
        checkpointer.wait()
        for step in (1, 2):
            shutil.rmtree(tmp_path / "checkpoints" / str(step) / "state")
    for _ in range(2):  # a second try does not take it for a new run
        with (
            opened(tmp_path) as checkpointer,
            pytest.raises(UserError, match="(?s)no checkpoint in .* can be read:.*2:.*1:"),
        ):
            checkpointer.restore_latest(abstract(make_state(0)))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_a_second_damaged_checkpoint_of_a_step_gets_a_name_of_its_own(tmp_path):
    state = make_state(0, rows=4096)
    target = abstract(state)
    for _ in range(2):
        with opened(tmp_path) as checkpointer:
            for step in (1, 2):
                if step not in checkpointer.steps():
                    checkpointer.save(RunState(state, step=step))
            checkpointer.wait()
            flip_bits(largest_file(tmp_path / "checkpoints" / "2" / "state"))
            assert checkpointer.restore_latest(target).step == 1
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"1", "2.damaged", "2.damaged2"}


def test_unfinished_checkpoints_do_not_count(tmp_path):
    with opened(tmp_path) as checkpointer:
        checkpointer.save(make_run(1))
    shutil.copytree(tmp_path / "checkpoints" / "1", tmp_path / "checkpoints" / "3.orbax-checkpoint-tmp")
    with opened(tmp_path) as checkpointer:
        assert checkpointer.steps() == [1]
        checkpointer.save(make_run(2))
    assert {path.name for path in (tmp_path / "checkpoints").iterdir()} == {"1", "2"}


def test_other_arrays_are_listed_and_not_taken_for_damage(tmp_path):
    with opened(tmp_path) as checkpointer:
        checkpointer.save(make_run(1))
        checkpointer.wait()
        state = make_state(0, rows=32)
        other = state.replace(trainable={"layers": state.trainable["layers"] | {"lora": jnp.zeros(3)}})
        with pytest.raises(UserError) as failure:
            checkpointer.restore_latest(abstract(other))
    message = str(failure.value)
    assert "trainable/layers/kernel: stored float32[16, 8], wanted float32[32, 8]" in message
    assert "trainable/layers/lora: stored nothing, wanted float32[3]" in message
    assert "trainable/layers/bias" not in message
    assert (tmp_path / "checkpoints" / "1").is_dir()


def test_a_part_that_comes_or_goes_is_another_state_and_no_damage(tmp_path):
    """A critic, or an average, that a run's settings no longer have, or have only now."""
    plain = make_run(1)
    averaged = dataclasses.replace(plain, train=dataclasses.replace(plain.train, average=plain.train.trainable))
    for name, saved, wanted, text in (
        ("gone", averaged, plain, r"average/layers/bias: stored float32\[8\], wanted nothing"),
        ("new", plain, averaged, r"average/layers/bias: stored nothing, wanted float32\[8\]"),
    ):
        with opened(tmp_path / name) as checkpointer:
            checkpointer.save(saved)
            checkpointer.wait()
            with pytest.raises(UserError, match=text):
                checkpointer.restore_latest(abstract(wanted.train))
            assert_same_run(checkpointer.restore_latest(abstract(saved.train)), saved)


@pytest.mark.parametrize("limit", [0, 5_000], ids=["nothing fits", "the arrays do not fit"])
def test_a_full_disk_is_reported_and_leaves_what_was_there(tmp_path, limit):
    first = RunState(make_state(1, rows=4096), step=1)
    with opened(tmp_path, keep=1) as checkpointer:
        checkpointer.save(first)
    checkpointer = Checkpointer(tmp_path, CheckpointConfig(keep=1))
    threads = set(threading.enumerate())
    with file_size_limit(limit):
        with pytest.raises(UserError, match="cannot write a checkpoint to .*Free some space"):
            checkpointer.save(RunState(make_state(2, rows=4096), step=2))
            checkpointer.wait()
        checkpointer.close()  # what went wrong has been said
        for writer in set(threading.enumerate()) - threads:
            writer.join(timeout=1)  # in life they end with the process
    assert [folder.name for folder in (tmp_path / "checkpoints").iterdir()] == ["1"]
    with opened(tmp_path, keep=1) as checkpointer:
        assert checkpointer.steps() == [1]
        assert_same_run(checkpointer.restore_latest(abstract(first.train)), first)
        checkpointer.save(RunState(make_state(2, rows=4096), step=2))
        checkpointer.wait()
        assert checkpointer.steps() == [2]


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path):
    (tmp_path / "run").write_text("in the way")
    with pytest.raises(UserError, match="cannot write"):
        Checkpointer(tmp_path / "run", CheckpointConfig())
