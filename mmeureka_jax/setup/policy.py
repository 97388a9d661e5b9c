"""What every job needs before it starts: devices, the policy on the mesh, and problems that have been checked.

Nothing here is imported by the numeric core; data libraries are imported where they are used.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from mmeureka_jax.config.reading import filled
from mmeureka_jax.config.schema import (
    AccuracyRule,
    Config,
    LoraConfig,
    ModelConfig,
    RandomModelConfig,
    config_diff,
    to_dict,
)
from mmeureka_jax.errors import UserError
from mmeureka_jax.files import explain_write_errors, read_json, remove_folder, write_atomic
from mmeureka_jax.formats.hugging_face import load_params, read_config, resolve_checkpoint
from mmeureka_jax.formats.peft import StoredAdapters, open_adapters
from mmeureka_jax.mesh import barrier, is_main, make_mesh, tree_shardings
from mmeureka_jax.models.config import TextConfig
from mmeureka_jax.models.lora import Lora, initial_adapters
from mmeureka_jax.models.policy import Params, Policy
from mmeureka_jax.process.console import plural, progress, say_facts, waiting
from mmeureka_jax.rl.optimizer import merge_params

if TYPE_CHECKING:
    from mmeureka_jax.data.check import CheckReport
    from mmeureka_jax.data.problems import Problem, ProblemSource
    from mmeureka_jax.data.processor import Processor

logger = logging.getLogger(__name__)

_ROWS_SHOWN = 20  # of those that cannot be used, in messages


@dataclass(frozen=True)
class LoadedPolicy:
    """A policy's static part, the mesh it lives on, the checkpoint folder that it came from, and the adapters that it
    starts with, if it has any and they are not new ones."""

    policy: Policy
    mesh: Mesh
    checkpoint: Path
    adapters: StoredAdapters | None = None

    def load_params(self, what: str = "the policy") -> Params:
        """The parameters to start from, sharded over the mesh: the checkpoint's, and adapters if the policy has any."""
        base = self.load_base(what)
        return base if self.policy.lora is None else merge_params(base, self.load_adapters())

    def load_adapters(self) -> Params:
        """The adapters to start from, of a policy that has any: a part of the parameter tree."""
        assert self.policy.lora is not None
        shapes = self.policy.abstract_params()
        values = self.adapters.read() if self.adapters else initial_adapters(shapes, self.policy.lora.seed)
        shardings = flatten_dict(self.shardings(), sep="/")
        placed = {
            path: jax.make_array_from_callback(value.shape, shardings[path], value.__getitem__)
            for path, value in values.items()
        }
        return unflatten_dict(placed, sep="/")

    def load_base(self, what: str = "the policy") -> Params:
        """The checkpoint's parameters: float32 masters, or under adapters of `lora.base_dtype`."""
        lora = self.policy.lora
        dtype = jnp.dtype("float32" if lora is None else lora.base_dtype)
        with waiting(f"loading {what} from {self.checkpoint}"):
            return load_params(self.checkpoint, self.policy.config, self.shardings(), dtype)

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
        checkpoint = open_random_model(run_dir, config.model.random)
    elif config.model.checkpoint is not None:
        checkpoint = resolve_checkpoint(config.model.checkpoint, weights=False)
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
        logits_mb=config.model.logits_mb,
        lora=lora_of(config.model, config.seed),
    )
    loaded = LoadedPolicy(policy, mesh, checkpoint, _open_adapters(config.model.lora, policy))
    loaded.shardings()  # raises if the mesh does not divide a parameter
    return loaded


def lora_of(config: ModelConfig, seed: int) -> Lora | None:
    lora = config.lora
    if lora is None:
        return None
    return Lora(lora.rank, lora.alpha, lora.targets, lora.dropout, lora.base_dtype, seed)


def lora_of_adapters(
    adapters: str, checkpoint: str, base_dtype: Literal["bfloat16", "float32"] = "float32"
) -> LoraConfig:
    """The settings that adapters beside a checkpoint (both folders or hub ids) were trained with."""
    stored = open_adapters(resolve_checkpoint(adapters), read_config(resolve_checkpoint(checkpoint, weights=False)))
    return LoraConfig(
        rank=stored.rank,
        alpha=stored.alpha,
        dropout=stored.dropout,
        targets=stored.targets,
        base_dtype=base_dtype,
        adapters=adapters,
    )


def _open_adapters(config: LoraConfig | None, policy: Policy) -> StoredAdapters | None:
    """The adapters that a config starts from; None for new ones.

    Raises:
        UserError: they are not those that the other keys describe.
    """
    if config is None or config.adapters is None or policy.lora is None:
        return None
    stored = open_adapters(resolve_checkpoint(config.adapters), policy.config)
    problems = [
        f"model.lora.{name} is {ours:g}, theirs is {theirs:g}"
        for name, ours, theirs in (("rank", config.rank, stored.rank), ("alpha", config.alpha, stored.alpha))
        if ours != theirs
    ]
    ours, theirs = set(policy.lora.paths(policy.config)), set(stored.places)
    problems += [f"model.lora.targets gives {path} one, they have none" for path in sorted(ours - theirs)]
    problems += [f"they have one for {path}, model.lora.targets gives it none" for path in sorted(theirs - ours)]
    if problems:
        raise UserError(
            f"model.lora.adapters: {stored.folder} holds other adapters than the config says:\n  "
            + "\n  ".join(problems)
            + "\nset the keys to what they are"
        )
    return stored


def check_context(text: TextConfig, longest: int) -> None:
    """Warns of prompts and responses that together may be longer than what the checkpoint was trained on.

    Raises:
        UserError: the checkpoint asks for other rotary angles beyond that.
    """
    if longest <= text.max_position_embeddings:
        return
    message = (
        f"a prompt and its response may take {longest} positions, and the checkpoint was trained on "
        f"{text.max_position_embeddings} (max_position_embeddings)"
    )
    if text.dynamic_rope:
        raise UserError(
            f"{message}; beyond those its rotary angles change (rope_scaling dynamic), which the policy does not have: "
            "lower the limits of prompts or responses"
        )
    logger.warning("%s; responses beyond those are likely to be poor", message)


def open_random_model(run_dir: Path, config: RandomModelConfig) -> Path:
    """RUN/model: weights drawn as `config` says. The main process draws them, unless they are there.

    Raises:
        UserError: the run has checkpoints, and they started from other weights; or RUN/model is something else.
    """
    from mmeureka_jax.setup.random_models import RANDOM_MODEL_FILE, write_tiny_checkpoint

    folder = run_dir / "model"
    has_steps = any(path.name.isdigit() for path in (run_dir / "checkpoints").glob("*"))
    if has_steps or is_main():  # in a new run the others would look while the main process writes
        exists, record = (folder / "config.json").exists(), folder / RANDOM_MODEL_FILE
        if exists and not record.exists() and not has_steps:
            raise UserError(f"{folder} holds a model that model.random did not make; use another run_dir or remove it")
        differences = []
        if record.exists():
            drawn = filled(read_json(record), to_dict(RandomModelConfig()))
            differences = config_diff(drawn, to_dict(config), "model.random.")
        if differences and has_steps:
            raise UserError(
                f"{run_dir} holds a run that started from other random weights:\n  "
                + "\n  ".join(differences)
                + "\nUse another run_dir or the old settings"
            )
        if is_main() and (differences or not exists):
            if differences:
                with explain_write_errors(folder):
                    remove_folder(folder)
            write_tiny_checkpoint(folder, config)
    barrier("random checkpoint written")
    return folder


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
    spec: str,
    config: Config,
    processor: Processor,
    *,
    require_answer: bool = True,
    report_file: Path | None = None,
    also_check: Callable[[Problem, Processor], object] | None = None,
    label: str = "data",
) -> CheckedProblems:
    """Opens and checks a dataset. Unusable rows are logged, and written to `report_file`, by id and reason.

    Args:
        also_check: raises RowError for a problem that cannot be used for another reason.
        label: what the header calls it.

    Raises:
        UserError: no row can be used, or hosts see other rows.
    """
    from mmeureka_jax.data.check import check_problems
    from mmeureka_jax.data.problems import open_problems

    root, outside = config.data.root, config.data.allow_outside_root
    with waiting(f"reading {spec}"):
        source = open_problems(spec, root=root, allow_outside_root=outside, require_answer=require_answer)
    show = config.tracking.progress and is_main()
    accuracy: AccuracyRule | None = "instruct" if require_answer else None  # ungraded answers need not parse
    with nullcontext() if show else waiting(f"checking {spec}, {plural(len(source), 'row')}"):
        report = check_problems(source, processor, accuracy=accuracy, progress=show)
        if also_check is not None:
            report = _check_further(source, report, processor, also_check, show)
    _check_that_hosts_agree(spec, [report.usable, report.max_windows, source.fingerprint()])
    if is_main():
        if report.rejected or report.notes:
            left_out = "rows that cannot be used are left out" if report.rejected else "every row can be used"
            logger.warning("%s: %s\n%s", spec, left_out, _describe(report, report_file))
        if report_file is not None:
            write_atomic(report_file, json.dumps(report.to_json(), indent=1).encode())
    if not report.usable:
        raise UserError(f"{spec}: no row can be used\n{_describe(report, report_file)}")
    say_facts({label: f"{spec}, {describe_rows(report)}"})
    return CheckedProblems(source, report)


def describe_rows(report: CheckReport) -> str:
    pictures = "with pictures" if report.max_windows else "without pictures"
    return f"{len(report.usable)} of {report.num_rows} rows can be used, {pictures}"


def _check_further(
    source: ProblemSource,
    report: CheckReport,
    processor: Processor,
    check: Callable[[Problem, Processor], object],
    show: bool,
) -> CheckReport:
    """The report without the rows that `check` raises RowError for. Its sizes are still those of all rows."""
    from mmeureka_jax.data.check import Rejected
    from mmeureka_jax.data.problems import RowError

    usable, rejected = [], list(report.rejected)
    with progress(len(report.usable), f"check responses of {source.name}", unit="row", enabled=show) as bar:
        for row in report.usable:
            try:
                check(source[row], processor)
                usable.append(row)
            except RowError as error:
                rejected.append(Rejected(error.problem_id, row, error.kind, str(error)))
            bar.update()
    kept = set(usable)
    notes = [note for note in report.notes if note.row in kept]
    return dataclasses.replace(report, usable=usable, rejected=sorted(rejected, key=lambda one: one.row), notes=notes)


def _check_that_hosts_agree(spec: str, seen: Any) -> None:
    """Raises the same UserError everywhere if hosts have `seen` different data: they would draw different problems."""
    if jax.process_count() == 1:
        return
    digest = np.frombuffer(hashlib.sha256(json.dumps(seen).encode()).digest(), np.uint32)[:2]  # JAX has no 64 bits here
    digests = multihost_utils.process_allgather(digest)
    others = [host for host, other in enumerate(digests) if (other != digests[0]).any()]
    if others:
        raise UserError(
            f"{spec}: hosts {others} see other usable rows than host 0; give all hosts the same data files and pictures"
        )


def _describe(report: CheckReport, report_file: Path | None) -> str:
    """The counts of a check, its rejected rows by id and reason (the first few, where the others are), and notes."""
    lines = [
        report.summary(),
        *(f"row {rejected.row}: {rejected.reason}" for rejected in report.rejected[:_ROWS_SHOWN]),
    ]
    if len(report.rejected) > _ROWS_SHOWN:
        others = f"{report_file} has all of them" if report_file is not None else "`mmeureka data check` names them all"
        lines.append(f"... and {len(report.rejected) - _ROWS_SHOWN} more; {others}")
    lines += [f"row {note.row}: problem {note.id!r}: {note.text}" for note in report.notes[:_ROWS_SHOWN]]
    if len(report.notes) > _ROWS_SHOWN:
        lines.append(f"... and {len(report.notes) - _ROWS_SHOWN} more such notes")
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
