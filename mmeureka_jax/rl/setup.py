"""What every job needs before it starts: devices, the policy on the mesh, and problems that have been checked.

Nothing here is imported by the numeric core; data libraries are imported where they are used.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mmeureka_jax.config import Config, ModelConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import write_atomic
from mmeureka_jax.mesh import barrier, is_main, make_mesh, tree_shardings
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.models.weights import load_params, read_config, resolve_checkpoint

if TYPE_CHECKING:
    from mmeureka_jax.data.check import CheckReport
    from mmeureka_jax.data.problems import ProblemSource
    from mmeureka_jax.data.processor import Processor

logger = logging.getLogger(__name__)

_ROWS_SHOWN = 20  # of those that cannot be used, in messages


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy's static part, the mesh it lives on, and the checkpoint folder that it came from."""

    policy: Policy
    mesh: Mesh
    checkpoint: Path

    def load_params(self) -> Params:
        """The checkpoint's parameters, float32 masters, sharded over the mesh."""
        return load_params(self.checkpoint, self.policy.config, self.shardings())

    def shardings(self) -> Params:
        return tree_shardings(self.mesh, self.policy.abstract_params(), self.policy.param_axes())


def compute_dtype(config: ModelConfig) -> str:
    """`auto` is bfloat16 on accelerators and float32 on CPU."""
    if config.compute_dtype != "auto":
        return config.compute_dtype
    return "float32" if jax.default_backend() == "cpu" else "bfloat16"


def open_policy(config: Config, run_dir: Path, devices: list[jax.Device] | None = None) -> LoadedPolicy:
    """Finds (or, for `model.random`, makes) the checkpoint and checks that it fits the mesh. Reads no weights.

    Args:
        devices: what the mesh is made of; all of JAX's by default. Those of a described topology serve to compile only.

    Raises:
        UserError: no such checkpoint, a family that is not supported, or a mesh that does not divide the devices or the
            model.
    """
    if config.model.random is not None:
        from mmeureka_jax.models.tiny import write_tiny_checkpoint

        checkpoint = run_dir / "model"
        if is_main() and not (checkpoint / "config.json").exists():
            write_tiny_checkpoint(checkpoint, config.model.random)
        barrier("random checkpoint written")
    elif config.model.checkpoint is not None:
        checkpoint = resolve_checkpoint(config.model.checkpoint)
    else:
        raise UserError(
            "no model: set model.checkpoint to a checkpoint folder or hub id (or model.random for a random one)"
        )
    model = read_config(checkpoint)
    mesh = make_mesh(config.mesh, devices)
    tensor = mesh.shape["tensor"]
    for name, count in (("query heads", model.text.num_heads), ("key/value heads", model.text.num_kv_heads)):
        if count % tensor:
            raise UserError(
                f"mesh.tensor = {tensor} does not divide the model's {count} {name}; choose a divisor of {count}"
            )
    policy = Policy(
        config=model,
        compute_dtype=compute_dtype(config.model),
        remat=config.model.remat == "full",
        vocab_chunk=config.model.vocab_chunk,
    )
    loaded = LoadedPolicy(policy, mesh, checkpoint)
    loaded.shardings()  # raises if the mesh does not divide a parameter
    return loaded


def open_processor(config: Config, checkpoint: Path) -> Processor:
    from mmeureka_jax.data.processor import Processor

    return Processor.from_checkpoint(
        checkpoint,
        prompt_style=config.data.prompt_style,
        max_prompt_tokens=config.data.max_prompt_tokens,
        min_pixels=config.data.min_pixels,
        max_pixels=config.data.max_pixels,
    )


@dataclass(frozen=True)
class CheckedProblems:
    """A problem source and the rows of it that can be used."""

    source: ProblemSource
    report: CheckReport

    @property
    def indices(self) -> list[int]:
        return self.report.usable


def open_checked(
    spec: str, config: Config, processor: Processor, *, require_answer: bool = True, report_file: Path | None = None
) -> CheckedProblems:
    """Opens and checks a dataset. Unusable rows are logged, and written to `report_file`, by id and reason.

    Raises:
        UserError: no row can be used.
    """
    from mmeureka_jax.data.check import check_problems
    from mmeureka_jax.data.problems import open_problems

    source = open_problems(
        spec, root=config.data.root, allow_outside_root=config.data.allow_outside_root, require_answer=require_answer
    )
    report = check_problems(source, processor, progress=config.tracking.progress and is_main())
    if is_main():
        if report.rejected:
            logger.warning("%s: rows that cannot be used are left out\n%s", spec, _describe(report, report_file))
        if report_file is not None:
            write_atomic(report_file, json.dumps(report.to_json(), indent=1).encode())
    if not report.usable:
        raise UserError(f"{spec}: no row can be used\n{_describe(report, report_file)}")
    return CheckedProblems(source, report)


def _describe(report: CheckReport, report_file: Path | None) -> str:
    """The counts of a check, and its rejected rows by id and reason (the first few, and where the others are)."""
    lines = [
        report.summary(),
        *(f"row {rejected.row}: {rejected.reason}" for rejected in report.rejected[:_ROWS_SHOWN]),
    ]
    if len(report.rejected) > _ROWS_SHOWN:
        others = f"{report_file} has all of them" if report_file is not None else "`mmeureka data check` names them all"
        lines.append(f"... and {len(report.rejected) - _ROWS_SHOWN} more; {others}")
    return "\n".join(lines)


def same_on_all_hosts(value: Any) -> Any:
    """The largest of every host's integer(s); used where hosts must agree on a padded size."""
    if jax.process_count() == 1:
        return value
    return np.max(multihost_utils.process_allgather(np.asarray(value)), axis=0)


def sum_over_hosts(values: Sequence[float]) -> list[float]:
    """The sums of every host's numbers."""
    own = np.asarray(values, np.float64)
    if jax.process_count() == 1:
        return own.tolist()
    return np.sum(multihost_utils.process_allgather(own), axis=0).tolist()
