"""The run's folder and the small watchers of a run: what it was made with, updates that are not finite, compilations.

RUN/config.yaml       the resolved config            RUN/checkpoints/   Orbax
RUN/metadata.json     config, versions, data         RUN/metrics.jsonl  one row per step
RUN/nonfinite/        batches whose update was skipped
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmeureka_jax.config.reading import filled
from mmeureka_jax.config.schema import Config, LoraConfig, RandomModelConfig, config_diff, save_config, to_dict
from mmeureka_jax.errors import RunStopped, UserError
from mmeureka_jax.files import explain_write_errors
from mmeureka_jax.mesh import is_main
from mmeureka_jax.process.console import say
from mmeureka_jax.rl.groups import UpdateBatch
from mmeureka_jax.runs.checkpoint import METADATA_FILE, package_versions, read_metadata, write_metadata

if TYPE_CHECKING:
    from mmeureka_jax.data.loader import ProblemLoader

logger = logging.getLogger(__name__)

# What a resumed run may change freely: keys that change none of its results, and the mesh, which changes roundings.
_MAY_DIFFER = """
    run_dir data.workers data.prefetch reward.workers reward.custom_trial reward.custom_import_limit
    reward.max_failed_steps sampler.compile_ahead mesh checkpoint tracking
""".split()
_OF_THOSE_MAY_NOT = ("tracking.validation_problems",)  # accuracies over other problems would not compare


def may_differ(key: str) -> bool:
    """Whether a resumed run may change this key freely."""
    return key not in _OF_THOSE_MAY_NOT and (key in _MAY_DIFFER or key.partition(".")[0] in _MAY_DIFFER)


def config_changes(metadata: dict[str, Any], config: Config) -> list[str]:
    """In what `config` differs from the one that a run was made with, of the keys that may not change freely.

    Keys that the run's version did not have yet stand for their defaults, which change nothing.
    """
    defaults = to_dict(Config())
    defaults["model"]["random"] = to_dict(RandomModelConfig())
    if metadata["config"].get("model", {}).get("lora") is not None:
        defaults["model"]["lora"] = to_dict(LoraConfig())
    lines = config_diff(filled(metadata["config"], defaults), to_dict(config))
    return [line for line in lines if not may_differ(line.partition(":")[0])]


def begin_run(
    config: Config,
    *,
    kind: str,
    fingerprint: str,
    checkpoint: Path,
    resuming: bool,
    mesh: Mesh,
    adapters: str | None = None,
) -> None:
    """Compares the run's metadata with what is about to run, says where a run continues on another mesh, and writes
    the metadata.

    Args:
        fingerprint: of the data.
        adapters: fingerprint of those that the run starts from (`model.lora.adapters`).

    Raises:
        UserError: the run folder was made by another kind of job, another config or other data, and
            `checkpoint.allow_config_change` is not set. The message lists the differences. Or, whatever is set, with
            another alpha, or from other adapters.
    """
    run_dir = Path(config.run_dir)
    if resuming:
        _check_adapters(run_dir, config, adapters)
    if resuming and not config.checkpoint.allow_config_change:
        _check_settings(config, kind, fingerprint)
    layout = _layout(mesh)
    if is_main():
        before = (read_metadata(run_dir) or {}).get("mesh", layout) if resuming else layout
        if before != layout:
            say(
                f"the run was made on {before}; it continues on {layout}. Sums are then taken in another order: "
                "results agree to rounding, not bit for bit"
            )
        metadata = {
            "kind": kind,
            "config": to_dict(config),
            "packages": package_versions(),
            "data_fingerprint": fingerprint,
            "adapters_fingerprint": adapters,
            "checkpoint": str(Path(checkpoint).resolve()),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "mesh": layout,
        }
        write_metadata(run_dir, metadata)
        save_config(config, run_dir / "config.yaml")


def _check_settings(config: Config, kind: str, fingerprint: str) -> None:
    """Raises a UserError if the run in the folder was made in another way; the message lists the differences."""
    run_dir = Path(config.run_dir)
    old = read_metadata(run_dir)
    if old is None:
        raise UserError(
            f"{run_dir} has checkpoints but no {METADATA_FILE}, so nothing says what they were made with; put it "
            "back, or set checkpoint.allow_config_change=true to continue all the same"
        )
    differences = config_changes(old, config)
    if old["kind"] != kind:
        differences.append(f"kind of run: {old['kind']} -> {kind}")
    if old["data_fingerprint"] != fingerprint:
        differences.append(f"contents of {config.data.train}: {old['data_fingerprint']} -> {fingerprint}")
    if differences:
        raise UserError(
            f"{run_dir} holds a run with other settings:\n  "
            + "\n  ".join(differences)
            + "\nUse another run_dir, the old settings, or checkpoint.allow_config_change=true to continue with the "
            "new ones"
        )


def _layout(mesh: Mesh) -> str:
    """The mesh in words: data 2 x fsdp 4 x tensor 1 (8 x TPU v5e, 2 processes)."""
    devices = mesh.devices.ravel()
    processes = len({device.process_index for device in devices})
    return (
        " x ".join(f"{axis} {size}" for axis, size in mesh.shape.items())
        + f" ({len(devices)} x {devices[0].device_kind}, {processes} process{'es' * (processes > 1)})"
    )


def _check_adapters(run_dir: Path, config: Config, fingerprint: str | None) -> None:
    """Raises a UserError if the adapters in the run's checkpoints would mean something else than when they were saved,
    or the policy that its reference is would be another one."""
    old = read_metadata(run_dir) or {}
    before, now = (old.get("config") or {}).get("model", {}).get("lora"), config.model.lora
    if before is not None and now is not None and before["alpha"] != now.alpha:
        raise UserError(
            f"{run_dir} holds adapters that were trained with model.lora.alpha {before['alpha']:g}, and with "
            f"{now.alpha:g} they would be another policy; set it back, or use another run_dir"
        )
    if before is not None and old.get("adapters_fingerprint") != fingerprint:
        raise UserError(
            f"{run_dir} holds a run that started from other adapters than model.lora.adapters "
            f"({now and now.adapters}) holds now; put them back, or use another run_dir"
        )


def restore_position(loader: ProblemLoader, position: dict[str, Any] | None, config: Config) -> None:
    """Puts the loader where the checkpoint left it; with changed data that are allowed, at their beginning.

    Raises:
        UserError: the data are not those of the checkpoint.
    """
    if position is None:
        return
    try:
        loader.set_state(position)
    except UserError as error:
        if not config.checkpoint.allow_config_change:
            raise
        logger.warning("%s; checkpoint.allow_config_change is set: the new data are read from their beginning", error)


class NonFiniteGuard:
    """Counts skipped updates, keeps their batches, and stops a run that keeps skipping."""

    def __init__(self, run_dir: Path, limit: int, counters: dict[str, int] | None, of_share: bool = False):
        """`of_share`: a batch is this host's share, and each host keeps its own; else all have the whole batch."""
        self._folder = Path(run_dir) / "nonfinite"
        self._suffix = f"_host{jax.process_index()}" if of_share and jax.process_count() > 1 else ""
        self._limit = limit
        self._stop = False
        self.counters = {"skipped_in_row": 0, "skipped": 0} | (counters or {})

    def check(self, metrics: Sequence[dict[str, Any]], batch_of: Callable[[int], UpdateBatch], step: int) -> None:
        """Looks at the updates of one step, in order; `batch_of(i)` makes update i's batch again (host arrays)."""
        for number, row in enumerate(metrics):
            if not row["optimizer/skipped"]:
                self.counters["skipped_in_row"] = 0
                continue
            self.counters["skipped_in_row"] += 1
            self.counters["skipped"] += 1
            self._stop |= self.counters["skipped_in_row"] >= self._limit
            path = self._folder / f"step_{step:06d}_update_{number}{self._suffix}.npz"
            of_critic = ""
            if "critic/grad_norm" in row:
                of_critic = f", of the critic {row['loss/value']}, {row['critic/grad_norm']}"
            logger.warning(
                "step %d, update %d: loss %s, gradient norm %s%s; update skipped, batch saved to %s",
                step, number, row["loss/total"], row["optimizer/grad_norm"], of_critic, path,
            )  # fmt: skip
            if is_main() or self._suffix:
                with explain_write_errors(path):
                    self._folder.mkdir(parents=True, exist_ok=True)
                    np.savez_compressed(path, **_flat(batch_of(number)))

    def stop_if_too_many(self) -> None:
        """Raises RunStopped once `optimizer.max_nonfinite_updates` updates in a row were skipped."""
        if self._stop:
            raise RunStopped(
                f"{self._limit} updates in a row had a loss or gradient that is not finite; the "
                f"parameters are those before them, and their batches are in {self._folder}. Lower "
                "optimizer.learning_rate (or rl.critic.learning_rate, if it is the critic's) or look at those batches; "
                "the same command continues from the last checkpoint"
            )


def _flat(batch: UpdateBatch) -> dict[str, Any]:
    """The arrays of a batch by dotted name, in types that NumPy alone reads."""
    arrays = {}
    for path, value in jax.tree_util.tree_leaves_with_path(batch):
        array = np.asarray(value)
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        arrays[name] = array.astype(np.float32) if array.dtype == jnp.bfloat16 else array
    return arrays


class CompileCounter:
    """Counts XLA compilations of this process within a `with` block, to show that a steady state compiles nothing, and
    their seconds, tracing included."""

    _EVENT = "/jax/core/compile/backend_compile_duration"
    _TIMED = ("/jax/core/compile/jaxpr_trace_duration", "/jax/core/compile/jaxpr_to_mlir_module_duration", _EVENT)

    def __init__(self) -> None:
        self.total = 0
        self._seen = 0
        self._intervals: list[tuple[float, float]] = []  # (begin, end), apart from one another

    def __enter__(self) -> CompileCounter:
        jax.monitoring.register_event_duration_secs_listener(self._listen)
        return self

    def __exit__(self, *_: object) -> None:
        jax.monitoring.unregister_event_duration_listener(self._listen)

    def _listen(self, event: str, duration_secs: float, **_: Any) -> None:
        self.total += event == self._EVENT
        if event in self._TIMED:
            end = time.monotonic()
            while self._intervals and self._intervals[-1][0] >= end - duration_secs:
                self._intervals.pop()  # within this one: functions are traced while others are
            self._intervals.append((end - duration_secs, end))

    def since_last(self) -> int:
        new, self._seen = self.total - self._seen, self.total
        return new

    def seconds_since_last(self) -> float:
        seconds = sum(end - begin for begin, end in self._intervals)
        self._intervals.clear()
        return seconds
