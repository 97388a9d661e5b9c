"""The run on disk, through Orbax: train state, data position, buffer of groups, and what the run was made with.

A checkpoint is complete or absent: Orbax writes into a temporary folder and renames it. Saving is asynchronous; the newest `keep` and the
`keep_best` best by validation accuracy stay.
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import checkpoint_managers

from mmeureka_jax.config import CheckpointConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.rl.rollout import Group, stack_groups, unstack_groups
from mmeureka_jax.rl.update import TrainState

logger = logging.getLogger(__name__)

METADATA_FILE = "metadata.json"
PACKAGES = (
    "mmeureka_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "transformers",
    "grain",
    "math-verify",
    "sympy",
)


@dataclass
class RunState:
    """All that must come back for a run to go on as if it had not stopped.

    Attributes:
        step: steps of the loop done.
        rollout: sampler calls made; names the sampling noise (more than `step` where the filter asked for more rollouts).
        data: state of the problem loader.
        groups: groups kept by the filter and not yet trained on.
        best_accuracy: best validation accuracy so far, -1 before the first.
        counters: whatever else counts over steps (empty rounds, updates skipped in a row).
    """

    train: TrainState
    step: int = 0
    rollout: int = 0
    data: dict[str, Any] | None = None
    groups: tuple[Group, ...] = ()
    best_accuracy: float = -1.0
    counters: dict[str, int] | None = None


def package_versions() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = "not installed"
    return versions


def _accuracy(metrics: Any) -> float:
    return metrics["accuracy"]


class Checkpointer:
    """Saves and restores `RunState`s in RUN/checkpoints."""

    def __init__(self, run_dir: Path, config: CheckpointConfig):
        self.folder = (Path(run_dir) / "checkpoints").resolve()
        self._config = config
        self._manager = self._open()

    def _open(self) -> ocp.CheckpointManager:
        policies: list[Any] = [checkpoint_managers.LatestN(self._config.keep)]
        if self._config.keep_best:
            policies.append(
                checkpoint_managers.BestN(
                    get_metric_fn=_accuracy, n=self._config.keep_best, keep_checkpoints_without_metrics=False
                )
            )
        options = ocp.CheckpointManagerOptions(
            preservation_policy=checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=_accuracy,  # without one, metrics are not written, and a resumed run forgets its best
            cleanup_tmp_directories=True,
            enable_async_checkpointing=True,
        )
        return ocp.CheckpointManager(self.folder, options=options)

    def steps(self) -> list[int]:
        return sorted(self._manager.all_steps())

    def save(self, run: RunState, accuracy: float | None = None) -> None:
        """Starts writing a checkpoint of `run`; `accuracy` is this step's validation accuracy, if there was one.

        Raises:
            UserError: the disk is full or the folder cannot be written; earlier checkpoints stay as they are.
        """
        progress = {
            "step": run.step,
            "rollout": run.rollout,
            "data": run.data,
            "groups": len(run.groups),
            "best_accuracy": run.best_accuracy,
            "counters": run.counters or {},
        }
        items: dict[str, Any] = {
            "state": ocp.args.StandardSave(run.train),
            "progress": ocp.args.JsonSave(progress),
        }
        if run.groups:
            items["groups"] = ocp.args.StandardSave(stack_groups(run.groups))
        metrics = None if accuracy is None else {"accuracy": float(accuracy)}
        self._guard(lambda: self._manager.save(run.step, args=ocp.args.Composite(**items), metrics=metrics))

    def wait(self) -> None:
        """Waits for the checkpoint being written; raises what went wrong with it (see `save`)."""
        self._guard(self._manager.wait_until_finished)

    def _guard(self, call: Callable[[], Any]) -> None:
        try:
            call()
        except Exception as error:
            if isinstance(error, OSError) or "No space left" in str(error) or "RESOURCE_EXHAUSTED" in str(error):
                raise UserError(
                    f"cannot write a checkpoint to {self.folder}: {error}. Free some space (or lower checkpoint.keep) and start the "
                    "same command again: it goes on from the last complete checkpoint"
                ) from error
            raise

    def restore_latest(self, target: TrainState) -> RunState | None:
        """The newest checkpoint that can be read, or None if there is none.

        A damaged checkpoint is named in a warning, moved aside (`<step>.damaged`), and the one before it is taken.

        Args:
            target: ShapeDtypeStructs with shardings: where every array of the state is to live.

        Raises:
            UserError: there are checkpoints but none can be read.
        """
        steps = self.steps()
        for step in reversed(steps):
            try:
                return self._restore(step, target)
            except Exception as error:
                logger.warning(
                    "checkpoint %s is damaged (%s); falling back to the one before it",
                    self.folder / str(step),
                    _brief(error),
                )
                self._set_aside(step)
        if steps:
            raise UserError(f"no checkpoint in {self.folder} can be read; the damaged ones were renamed to *.damaged")
        return None

    def restore_step(self, step: int, target: TrainState) -> RunState:
        return self._restore(step, target)

    def best_step(self) -> int | None:
        return self._manager.best_step()

    def _restore(self, step: int, target: TrainState) -> RunState:
        progress = self._manager.restore(step, args=ocp.args.Composite(progress=ocp.args.JsonRestore()))["progress"]
        items = {"state": ocp.args.StandardRestore(target)}
        if progress["groups"]:
            items["groups"] = ocp.args.StandardRestore()
        restored = self._manager.restore(step, args=ocp.args.Composite(**items))
        groups = unstack_groups(jax.tree.map(np.asarray, restored["groups"])) if progress["groups"] else []
        return RunState(
            train=restored["state"],
            step=progress["step"],
            rollout=progress["rollout"],
            data=progress["data"],
            groups=tuple(groups),
            best_accuracy=progress["best_accuracy"],
            counters=progress["counters"],
        )

    def _set_aside(self, step: int) -> None:
        self._manager.close()
        if jax.process_index() == 0:
            folder = self.folder / str(step)
            folder.rename(folder.with_name(f"{step}.damaged"))
        self._manager = self._open()

    def close(self) -> None:
        self.wait()
        self._manager.close()


class SavedParams:
    """The parameters alone of a run's checkpoints, for export: no optimiser state is read, nothing in the folder changes.

    Raises:
        UserError: no such run, or one without a checkpoint.
    """

    def __init__(self, run_dir: Path):
        self.folder = (Path(run_dir) / "checkpoints").resolve()
        if not self.folder.is_dir():
            raise UserError(f"{run_dir}: no checkpoints in it; give the folder of a run (`run_dir` of its config)")
        options = ocp.CheckpointManagerOptions(read_only=True, best_fn=_accuracy)
        self._manager = ocp.CheckpointManager(self.folder, options=options)
        if not self._manager.all_steps():
            raise UserError(f"{self.folder}: no complete checkpoint yet; let the run reach its first one")

    def step(self, which: int | Literal["latest", "best"]) -> int:
        """The step of the checkpoint that is meant.

        Raises:
            UserError: there is no such step, or (best) no checkpoint has a validation accuracy.
        """
        steps = sorted(self._manager.all_steps())
        found = {"latest": self._manager.latest_step(), "best": self._manager.best_step()}.get(which, which)
        if found is None:
            raise UserError(f"{self.folder}: no checkpoint was validated, so none is the best; there are steps {steps}")
        if found not in steps:
            raise UserError(f"{self.folder}: no checkpoint of step {found}; there are steps {steps}")
        return found

    def restore(self, step: int, target: dict[str, Any]) -> dict[str, Any]:
        """The parts of the train state that `target` names, such as `trainable`.

        Args:
            target: trees of ShapeDtypeStructs with shardings: where every array is to live.

        Raises:
            UserError: the checkpoint is damaged, or is of other shapes than `target`.
        """
        arguments = ocp.args.PyTreeRestore(
            item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target), partial_restore=True
        )
        try:
            with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
                return checkpointer.restore(self.folder / str(step) / "state", args=arguments)
        except Exception as error:  # whatever the damaged file made the readers stumble over
            others = [other for other in sorted(self._manager.all_steps()) if other != step]
            raise UserError(
                f"{self.folder / str(step)}: cannot be read ({_brief(error)}); other checkpoints: {others or 'none'}"
            ) from error


def _brief(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__


def write_metadata(run_dir: Path, metadata: dict[str, Any]) -> None:
    """RUN/metadata.json: config, package versions, data fingerprint, devices. Replaced as a whole."""
    path = Path(run_dir) / METADATA_FILE
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(metadata, indent=1, sort_keys=True))
    temporary.replace(path)


def read_metadata(run_dir: Path) -> dict[str, Any] | None:
    path = Path(run_dir) / METADATA_FILE
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text())
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path} is not valid JSON ({error}); restore it from a backup or start a new run folder"
        ) from error
