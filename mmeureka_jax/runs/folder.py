"""The folder of a run: what it was made with, and whether the same command may continue it.

RUN/config.yaml       the resolved config            RUN/checkpoints/   Orbax
RUN/metadata.json     config, versions, data         RUN/metrics.jsonl  one row per step
RUN/nonfinite/        batches whose update was skipped
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from mmeureka_jax.config.load import save_config
from mmeureka_jax.config.reading import config_diff, filled, to_dict
from mmeureka_jax.config.schema import Config, LoraConfig, RandomModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.hosts import is_main
from mmeureka_jax.mesh import in_words
from mmeureka_jax.process.console import say
from mmeureka_jax.runs.metadata import METADATA_FILE, package_versions, read_metadata, write_metadata

# Keys that a resumed run may change freely: they change none of its results, except the mesh, which changes roundings.
_MAY_DIFFER = """
    run_dir data.workers data.prefetch reward.workers reward.custom_trial reward.custom_import_limit
    reward.max_failed_steps sampler.compile_ahead sampler.decode_weights sampler.prefill_prompts mesh checkpoint
    tracking
""".split()
_OF_THOSE_MAY_NOT = (
    "tracking.validation_problems",
    "tracking.benchmarks.problems",
)  # accuracies over other problems would not compare


def may_differ(key: str) -> bool:
    """Whether a resumed run may change this key freely."""
    return key not in _OF_THOSE_MAY_NOT and (key in _MAY_DIFFER or key.partition(".")[0] in _MAY_DIFFER)


def config_changes(metadata: dict[str, Any], config: Config) -> list[str]:
    """The differences between `config` and the one that a run was made with, in keys that may not change freely.

    Keys that the run's version did not have yet count as their defaults, which change nothing.
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
    process_model: str | None = None,
) -> None:
    """Compares the run's metadata with what is about to run, says if the run continues on another mesh, and writes the
    metadata.

    Args:
        fingerprint: that of the data.
        adapters: fingerprint of the adapters that the run starts from (`model.lora.adapters`).
        process_model: fingerprint of the model of `reward.process`.

    Raises:
        UserError: the run folder was made by another kind of job, another config or other data, and
            `checkpoint.allow_config_change` is not set; the message lists the differences. Or, whatever is set: it was
            made with another alpha, or from other adapters.
    """
    run_dir = Path(config.run_dir)
    if resuming:
        _check_adapters(run_dir, config, adapters)
    if resuming and not config.checkpoint.allow_config_change:
        _check_settings(config, kind, fingerprint, process_model)
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
            "process_model_fingerprint": process_model,
            "checkpoint": str(Path(checkpoint).resolve()),
            "devices": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
            "processes": jax.process_count(),
            "mesh": layout,
        }
        write_metadata(run_dir, metadata)
        save_config(config, run_dir / "config.yaml")


def _check_settings(config: Config, kind: str, fingerprint: str, process_model: str | None) -> None:
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
        data = config.prm.labels if kind == "prm" else config.data.train
        differences.append(f"contents of {data}: {old['data_fingerprint']} -> {fingerprint}")
    if config.reward.process is not None and old["process_model_fingerprint"] != process_model:
        before = old["process_model_fingerprint"] or "none"
        differences.append(f"contents of {config.reward.process.model}: {before} -> {process_model}")
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
    return in_words(mesh) + f" ({len(devices)} x {devices[0].device_kind}, {processes} process{'es' * (processes > 1)})"


def _check_adapters(run_dir: Path, config: Config, fingerprint: str | None) -> None:
    """Raises a UserError if the adapters in the run's checkpoints would no longer mean what they did when they were
    saved, or the reference would be another policy."""
    old = read_metadata(run_dir) or {}
    before = (old.get("config") or {}).get("model", {}).get("lora")
    now = config.model.lora
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
