"""The run on disk, through Orbax: train state, data position, buffer of groups, and what the run was made with.

    RUN/checkpoints/<step>/state      the train state; without the base, if the policy has adapters
                           groups     groups that wait for an update
                           progress   everything else, and the name, size and checksum of every array
    RUN/metadata.json                 see `write_metadata`

A checkpoint is complete or absent: Orbax writes into a temporary folder and renames it. Saving is asynchronous. The
newest `keep` and the `keep_best` best by validation accuracy stay.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp

from mmeureka_jax.config.schema import CheckpointConfig
from mmeureka_jax.errors import UserError, brief
from mmeureka_jax.files import explain_write_errors
from mmeureka_jax.formats.checksums import ArrayDescriptions, Damaged, check_same_arrays, describe_arrays, verify_arrays
from mmeureka_jax.formats.padding import as_stored, with_padding, without_padding
from mmeureka_jax.hosts import barrier, is_main
from mmeureka_jax.models.policy import Params
from mmeureka_jax.rl.groups import Group
from mmeureka_jax.rl.train_state import TrainState
from mmeureka_jax.runs.waiting_groups import arrays_of_groups, groups_of_arrays

logger = logging.getLogger(__name__)

_OPTIONAL = ("critic", "critic_optimizer", "average")  # parts of a train state
# What errors of Orbax and TensorStore say when the disk is full; the last is sometimes all that TensorStore says.
_NO_SPACE = ("No space left on device", "File too large", "Disk quota exceeded", "RESOURCE_EXHAUSTED")


@dataclass
class RunState:
    """All that must come back for a run to continue as if it had not stopped.

    Attributes:
        step: steps of the loop done.
        data: state of the problem loader.
        groups: groups kept by the filter and not yet trained on.
        best_accuracy: best validation accuracy so far, -1 before the first.
        counters: whatever else counts over steps (updates skipped, in all and in a row).
        kl_coefficient: the present value of an adaptive `rl.kl_coefficient`; None before the first step.
    """

    train: TrainState
    step: int = 0
    data: dict[str, Any] | None = None
    groups: tuple[Group, ...] = ()
    best_accuracy: float = -1.0
    counters: dict[str, int] = field(default_factory=dict)
    kl_coefficient: float | None = None


@dataclass
class NewestAndBest:
    """Orbax preservation policy: the `newest` last steps, and the `best` by validation accuracy (of equals the later).

    The `Checkpointer` fills in `accuracies` (step -> accuracy) from the checkpoints; a resumed run knows its best ones.
    """

    newest: int
    best: int
    accuracies: dict[int, float] = field(default_factory=dict)

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        ranked = sorted((self.accuracies[step], step) for step in steps if step in self.accuracies)
        kept = {*steps[-self.newest :], *(step for _, step in ranked[::-1][: self.best])}
        return [step in kept for step in steps]


class Checkpointer:
    """Saves and restores `RunState`s in RUN/checkpoints. On many hosts, all call it together."""

    def __init__(self, run_dir: Path, config: CheckpointConfig, load_frozen: Callable[[], Params] | None = None):
        """
        Args:
            load_frozen: reads the frozen part of the state from where the run began. Checkpoints then hold only its
                checksums. None: they hold it.
        """
        self._load_frozen = load_frozen
        self.folder = (Path(run_dir) / "checkpoints").resolve()
        with explain_write_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._policy = NewestAndBest(config.keep, config.keep_best)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        self._policy.accuracies |= _accuracies(self._manager)
        self._failed = False

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, run: RunState, accuracy: float | None = None) -> None:
        """Starts writing a checkpoint of `run`; `accuracy` is this step's validation accuracy, if there was one.

        When it returns, `run.train` may be donated: Orbax has copied it to the host. (On CPU it holds a view instead;
        JAX then reuses the donated buffer for nothing.)

        Raises:
            UserError: the disk is full or the folder cannot be written; earlier checkpoints stay as they are.
        """
        groups = arrays_of_groups(run.groups)
        progress = {
            "step": run.step,
            "data": run.data,
            "best_accuracy": run.best_accuracy,
            "accuracy": accuracy,
            "counters": run.counters,
            "kl_coefficient": run.kl_coefficient,
            "arrays": describe_arrays(run.train),
            "groups": describe_arrays(groups),
        }
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(self._stored(run.train)),
            "progress": ocp.args.JsonSave(progress | {"checksum": _text_checksum(progress)}),
        }
        if groups:  # Orbax takes no empty arrays; their shapes are among the descriptions
            items["groups"] = ocp.args.StandardSave({name: x for name, x in groups.items() if x.size})
        if accuracy is not None:
            self._policy.accuracies[run.step] = accuracy
        self._guard(lambda: self._manager.save(run.step, args=ocp.args.Composite(**items)))

    def wait(self) -> None:
        """Waits for the checkpoint being written; raises what went wrong with it (see `save`)."""
        self._guard(self._manager.wait_until_finished)

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            self._failed = True
            reason = is_no_space(error)
            if isinstance(error, OSError) or reason is not None:
                self._remove_unfinished()
                raise UserError(
                    f"cannot write a checkpoint to {self.folder}: {reason or brief(error)}. Free some space (or lower "
                    "checkpoint.keep) and start the same command again: it continues from the last complete checkpoint"
                ) from error
            raise

    def _remove_unfinished(self) -> None:
        """Frees the space of unfinished checkpoints. Arrays that are still being written may create their folder again,
        so it looks several times; what is left then is removed at the next start."""
        if not is_main():
            return
        looks_without = 0
        for _ in range(50):
            unfinished = list(self.folder.glob("*.orbax-checkpoint-tmp"))
            for folder in unfinished:
                shutil.rmtree(folder, ignore_errors=True)
            looks_without = 0 if unfinished else looks_without + 1
            if looks_without == 3:
                break
            time.sleep(0.1)

    def restore_latest(self, target: TrainState) -> RunState | None:
        """The newest checkpoint that can be read, or None if there is none.

        Damaged checkpoints that are newer are named in a warning and moved aside (`<step>.damaged`); a run of several
        processes stops instead, since perhaps not all of them have seen the damage.

        Args:
            target: ShapeDtypeStructs with shardings: where every array of the state is to live.

        Raises:
            UserError: there are checkpoints but none can be read (nothing is then moved), the newest that can holds
                other arrays than `target`, or one of several processes cannot read the newest.
        """
        damaged: dict[int, str] = {}
        for step in reversed(self.steps()):
            try:
                run = self._restore_stored(step, target)
            except UserError:
                raise
            except Exception as error:  # a damaged file can make its readers raise anything
                if jax.process_count() > 1:  # the others may have read their parts, and wait for this process
                    raise UserError(
                        f"{self.folder / str(step)} cannot be read ({brief(error)}); move that folder away and start "
                        "the same command again on all hosts: it continues from the checkpoint before it"
                    ) from error
                damaged[step] = brief(error)
            else:
                self._set_aside(damaged, instead=step)
                return self._with_base(run)
        if damaged:
            raise UserError(
                f"no checkpoint in {self.folder} can be read:"
                + "".join(f"\n  {step}: {reason}" for step, reason in damaged.items())
                + "\nPut back a copy of one of them, or remove this folder to start from the beginning"
            )
        return None

    def restore_step(self, step: int, target: TrainState) -> RunState:
        """The checkpoint of one step.

        Raises:
            UserError: it holds other arrays than `target`, or was saved with another base. Any other exception: it is
                damaged.
        """
        return self._with_base(self._restore_stored(step, target))

    def _with_base(self, run: RunState) -> RunState:
        """Adds the frozen part where checkpoints leave it out. An error here is none of the checkpoint's."""
        if self._load_frozen is None:
            return run
        frozen = self._load_frozen()
        verify_base(frozen, _read_progress(self._manager, run.step)["arrays"], self.folder / str(run.step))
        return replace(run, train=replace(run.train, frozen=frozen))

    def _restore_stored(self, step: int, target: TrainState) -> RunState:
        """What the checkpoint of one step holds; see `restore_step`."""
        progress = _read_progress(self._manager, step)
        stored_state = as_stored(target, progress["arrays"])
        check_same_arrays(progress["arrays"], stored_state, self.folder / str(step))
        items = {"state": ocp.args.StandardRestore(self._stored(stored_state))}
        stored = {
            name: np.empty(shape, dtype) for name, (dtype, shape, _) in progress["groups"].items() if 0 not in shape
        }
        if stored:
            items["groups"] = ocp.args.StandardRestore(stored)
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        state = TrainState(**{"frozen": {}} | restored["state"])
        verify_arrays(state, progress["arrays"])
        state = with_padding(state, replace(target, frozen=target.frozen if state.frozen else {}))
        groups = {name: np.zeros(shape, dtype) for name, (dtype, shape, _) in progress["groups"].items()}
        if stored:
            groups |= restored["groups"]
        verify_arrays(groups, progress["groups"])
        return RunState(
            train=state,
            step=progress["step"],
            data=progress["data"],
            groups=tuple(groups_of_arrays(groups, progress, int(state.updates))),
            best_accuracy=progress["best_accuracy"],
            counters=progress["counters"],
            kl_coefficient=progress.get("kl_coefficient"),
        )

    def _stored(self, state: TrainState) -> dict[str, Any]:
        """The parts of a state that are saved. Optional parts that it does not have are left out."""
        parts = {field.name: getattr(state, field.name) for field in fields(state)}
        if self._load_frozen is not None:
            del parts["frozen"]
        return {name: part for name, part in parts.items() if name not in _OPTIONAL or jax.tree.leaves(part)}

    def _set_aside(self, damaged: Mapping[int, str], instead: int) -> None:
        for step, reason in damaged.items():
            folder = self.folder / str(step)
            logger.warning(
                "checkpoint %s is damaged (%s); continuing from %d, the one before it", folder, reason, instead
            )
            if is_main():
                number = 1
                aside = folder.with_name(f"{step}.damaged")
                while aside.exists():
                    number += 1
                    aside = folder.with_name(f"{step}.damaged{number}")
                folder.rename(aside)
            self._policy.accuracies.pop(step, None)
        if damaged:
            barrier("damaged checkpoints set aside")
            self._manager.reload()

    def close(self) -> None:
        """Waits for the checkpoint being written; raises what went wrong with it, if `save` or `wait` has not yet."""
        with contextlib.suppress(*[Exception] * self._failed):
            self.wait()
            self._manager.close()


def _read_progress(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    progress = manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
    if progress.pop("checksum") != _text_checksum(progress):
        raise Damaged("its progress is not what was saved")
    return progress


def _text_checksum(value: Any) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _accuracies(manager: ocp.CheckpointManager) -> dict[int, float]:
    """The validation accuracies stored with the checkpoints. Damaged ones are skipped, and reported when read."""
    found = {}
    for step in manager.all_steps():
        try:
            accuracy = _read_progress(manager, step)["accuracy"]
        except Exception:
            continue
        if accuracy is not None:
            found[step] = accuracy
    return found


class SavedParams:
    """The parameters in a run's checkpoints, for export: no optimiser state is read, nothing is changed.

    Raises:
        UserError: no such run, or one without a checkpoint.
    """

    def __init__(self, run_dir: Path):
        self.folder = (Path(run_dir) / "checkpoints").resolve()
        if not self.folder.is_dir():
            raise UserError(f"{run_dir}: no checkpoints in it; give the folder of a run (`run_dir` of its config)")
        self._manager = ocp.CheckpointManager(self.folder, options=ocp.CheckpointManagerOptions(read_only=True))
        if not self._manager.all_steps():
            raise UserError(f"{self.folder}: no complete checkpoint yet; let the run reach its first one")

    def step(self, which: int | Literal["latest", "best"]) -> int:
        """The step of the checkpoint that is meant.

        Raises:
            UserError: there is no such step, or (best) no checkpoint has a validation accuracy.
        """
        steps = sorted(self._manager.all_steps())
        ranked = sorted((accuracy, step) for step, accuracy in _accuracies(self._manager).items())
        named: dict[int | str, int | None] = {"latest": steps[-1], "best": ranked[-1][1] if ranked else None}
        found = named.get(which, which if isinstance(which, int) else None)
        if found is None:
            raise UserError(f"{self.folder}: no checkpoint was validated, so none is the best; there are steps {steps}")
        if found not in steps:
            raise UserError(f"{self.folder}: no checkpoint of step {found}; there are steps {steps}")
        return found

    def verify_base(self, step: int, frozen: Params) -> None:
        """See `verify_base`."""
        verify_base(frozen, _read_progress(self._manager, step)["arrays"], self.folder / str(step))

    def restore(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """The parts of the train state that `target` names, such as `trainable`.

        Args:
            target: trees of ShapeDtypeStructs with shardings: where every array is to live.

        Raises:
            UserError: the checkpoint is damaged, or is of other shapes than `target`.
        """
        path = self.folder / str(step)
        try:
            arrays = _read_progress(self._manager, step)["arrays"]
            stored = as_stored(target, arrays)
            check_same_arrays(arrays, stored, path, whole=False)
            arguments = ocp.args.PyTreeRestore(
                item=stored, restore_args=ocp.checkpoint_utils.construct_restore_args(stored), partial_restore=True
            )
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                restored = checkpointer.restore(path / "state", args=arguments)
            verify_arrays(restored, arrays)
            return with_padding(restored, target)
        except UserError:
            raise
        except Exception as error:  # a damaged file can make its readers raise anything
            others = [other for other in sorted(self._manager.all_steps()) if other != step]
            raise UserError(f"{path} is damaged ({brief(error)}); other checkpoints: {others or 'none'}") from error


def is_no_space(error: Exception) -> str | None:
    """The words of an error of Orbax or TensorStore that say that the disk is full; None if it means something else."""
    return next((sign for sign in _NO_SPACE if sign in str(error)), None)


def verify_base(frozen: Params, arrays: ArrayDescriptions, path: Path) -> None:
    """
    Raises:
        UserError: the frozen parameters are not those that the checkpoint `path` was saved with.
    """
    stored = without_padding({"frozen": frozen}, arrays)
    check_same_arrays(arrays, stored, path, whole=False)
    try:
        verify_arrays(stored, arrays)
    except Damaged as error:
        raise UserError(
            f"{path} holds adapters alone, and the checkpoint that they belong to is no longer the same ({error}); put "
            "back the one that the run started from"
        ) from None
