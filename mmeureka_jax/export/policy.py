"""`mmeureka export`: the policy of a run as a folder that transformers, and this project's other commands, load."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mmeureka_jax.config.reading import overlaid
from mmeureka_jax.config.schema import ModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.export.model_card import Exported, model_card
from mmeureka_jax.export.settings import settings_files
from mmeureka_jax.formats.hugging_face import load_params, read_config, save_params
from mmeureka_jax.formats.peft import save_adapters
from mmeureka_jax.formats.safetensors import check_is_new
from mmeureka_jax.models.lora import merged
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.process.console import waiting
from mmeureka_jax.rl.optimizer import merge_params, split_frozen
from mmeureka_jax.runs.checkpoint import SavedParams
from mmeureka_jax.runs.metadata import METADATA_FILE, package_versions, read_metadata
from mmeureka_jax.runs.provenance import CARD_FILE, PROVENANCE_FILE, how_asked
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.setup.policy import lora_of

logger = logging.getLogger(__name__)


def export_run(
    run_dir: Path,
    output: Path,
    *,
    step: int | Literal["latest", "best"] = "latest",
    average: bool = False,
    adapters: bool = False,
    dtype: str | None = None,
    max_shard_bytes: int = 5_000_000_000,
    source: Path | None = None,
) -> int:
    """Writes the policy of a checkpoint of a run of any kind as a Hugging Face folder. Returns the step.

    Runs on the host: the parameters, not the optimiser state, must fit in its memory, in float32 (under adapters: the
    base in its own dtype, and the result). The run may still be training. Adapters are merged into the base.

    Next to the weights are

    - the tokenizer and processor files of the checkpoint that the run started from, with the run's own sampling and
      sizes of pictures (settings.py),
    - `mmeureka_jax.json`: where the policy comes from, and the prompts and limits of its run (the defaults of
      `mmeureka eval` for it),
    - a README.md that says the same in words, with the validation's results (model_card.py).

    Args:
        step: a step, the newest checkpoint, or the one of the best validation accuracy.
        average: the parameters averaged over the updates (`optimizer.ema_decay`) instead of the last ones.
        adapters: write only the adapters, float32, in PEFT's layout.
        dtype: that of the stored tensors: float32 (what was trained; None), bfloat16 or float16. Adapters are float32.
        source: the folder of the checkpoint that the run started from, if it is no longer where it was.

    Raises:
        UserError: not a run, no such checkpoint or a damaged one, a run without averages, `source` is gone, or `output`
            is taken or cannot be written (nothing is then left there).
    """
    check_is_new(output)
    metadata = _read_run(run_dir)
    saved = SavedParams(run_dir)
    exported = Exported(saved.step(step), average, adapters)
    source = _find_source(run_dir, metadata, source)
    model = read_config(source)
    config = metadata["config"]
    policy = Policy(model, lora=lora_of(overlaid(ModelConfig(), config["model"], METADATA_FILE), config["seed"]))
    _check_asked(run_dir, config, exported, dtype)
    dtype = dtype or "float32"
    with waiting(f"reading checkpoint {exported.step} of {run_dir}"):
        params = _restore(saved, policy, source, tuple(config["optimizer"]["frozen"]), exported)
    settings, changed = ({}, []) if adapters else settings_files(source, model, metadata)
    text_only = model.image_token_id is None
    metrics = _metrics(run_dir)
    card = model_card(output.name, metadata, exported, metrics, text_only=text_only, changed_settings=changed)
    files = {PROVENANCE_FILE: _provenance(metadata, exported), CARD_FILE: card} | settings
    with waiting(f"writing {output}"):
        if adapters:
            assert policy.lora is not None
            base = config["model"]["checkpoint"]  # None for model.random, whose checkpoint is only in the run
            if metadata["kind"] == "prm":  # the one with the marker
                base = str(source)
            save_adapters(params, model, policy.lora, output, base=base, files=files)
        else:
            if policy.lora is not None:
                params = merged(params, policy.lora, dtype)
            save_params(params, model, output, source=source, dtype=dtype, max_shard_bytes=max_shard_bytes, files=files)
    return exported.step


def export_once(run_dir: Path, output: Path) -> None:
    """Exports a finished run, unless that is done; an export is there as a whole or not at all."""
    if not (output / PROVENANCE_FILE).exists():
        export_run(run_dir, output)


def _read_run(run_dir: Path) -> dict[str, Any]:
    """The metadata of a run. Raises a UserError if the folder is not that of one."""
    metadata = read_metadata(run_dir) if run_dir.is_dir() else None
    if metadata is None:
        raise UserError(f"{run_dir}: no metadata.json in it; give the folder of a run (`run_dir` of its config)")
    return metadata


def _check_asked(run_dir: Path, config: Mapping[str, Any], exported: Exported, dtype: str | None) -> None:
    """Raises a UserError for what a run of this config does not have."""
    if exported.average and config["optimizer"].get("ema_decay") is None:
        raise UserError(
            f"{run_dir}: the run kept no average of its parameters; train with optimizer.ema_decay=0.99 or so"
        )
    if exported.adapters and config["model"].get("lora") is None:
        raise UserError(f"{run_dir}: the run trained no adapters; export it without --adapters")
    if exported.adapters and dtype is not None:
        raise UserError("--dtype is of merged weights; adapters are written as they were trained, in float32")


def _metrics(run_dir: Path) -> list[dict[str, Any]]:
    """Only for the card: a run without them, or with broken ones, is exported all the same."""
    try:
        return read_metrics(run_dir)
    except UserError as error:
        logger.warning("the model card has no results: %s", error)
        return []


def _provenance(metadata: dict[str, Any], exported: Exported) -> bytes:
    """Where the policy comes from and how its run asked; `runs.provenance` reads it."""
    config = metadata["config"]
    content = {
        "kind": metadata["kind"],
        "step": exported.step,
        "average": exported.average,
        "data": config["data"]["train"],
        "data_fingerprint": metadata["data_fingerprint"],
        **how_asked(config),
        "lora_base_dtype": (config["model"].get("lora") or {}).get("base_dtype"),
        "packages": package_versions(),
    }
    return (json.dumps(content, indent=2) + "\n").encode()


def _find_source(run_dir: Path, metadata: dict[str, Any], given: Path | None) -> Path:
    """The checkpoint that the run started from; one in the run's folder (`prm train`, `model.random`) moves with it."""
    candidates = (
        [given]
        if given is not None
        else [
            Path(metadata["checkpoint"]),
            *(run_dir / name for name in ("base", "model")),
        ]
    )
    for candidate in candidates:
        if (candidate / "config.json").is_file():
            return candidate
    raise UserError(
        f"{candidates[0]}: no checkpoint there, which the run started from (its tokenizer and config are copied); "
        "say where it is now with --source DIR"
    )


def _restore(saved: SavedParams, policy: Policy, source: Path, frozen: tuple[str, ...], exported: Exported) -> Params:
    """The exported parameters; of a policy with adapters only those, or with the base of `source`."""
    sharding = jax.sharding.SingleDeviceSharding(_host_device())
    names = ("average" if exported.average else "trainable", "frozen")
    parts = dict(zip(names, split_frozen(policy.abstract_params(), policy.frozen(frozen)), strict=True))
    base = parts.pop("frozen") if policy.lora is not None else None
    target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), parts)
    restored = saved.restore(exported.step, target)
    if exported.adapters:
        return restored[names[0]]
    if base is not None:
        assert policy.lora is not None
        placed = jax.tree.map(lambda _: sharding, base)
        restored["frozen"] = load_params(source, policy.config, placed, jnp.dtype(policy.lora.base_dtype))
        saved.verify_base(exported.step, restored["frozen"])
    return merge_params(*(restored[name] for name in names))


def _host_device() -> jax.Device:
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:  # JAX_PLATFORMS leaves the CPU out
        return jax.local_devices()[0]
