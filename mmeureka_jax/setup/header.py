"""The header of a command: what it runs on, which policy, and where a run starts. Data speak for themselves
(`CheckedProblems.describe`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import jax

from mmeureka_jax import __version__
from mmeureka_jax.mesh import in_words
from mmeureka_jax.process.console import plural, say, say_facts
from mmeureka_jax.rl.optimizer import split_frozen
from mmeureka_jax.setup.policy import OpenedPolicy


def say_header(
    command: str,
    opened: OpenedPolicy,
    name: str | None,
    *,
    frozen: Sequence[str] | None = None,
    run_dir: str | None = None,
) -> None:
    """The part that is known before any data or weights are read.

    Args:
        name: the checkpoint, as the user calls it.
        frozen: in a run: the parameters that are not trained (`optimizer.frozen`).
        run_dir: in a run: its folder.
    """
    say(f"mmeureka_jax {__version__}: {command}")
    devices = opened.mesh.devices.ravel()
    processes = jax.process_count()
    of_processes = f" in {processes} processes" if processes > 1 else ""
    shapes = opened.policy.abstract_params()
    total = _count(shapes)
    facts = {
        "devices": f"{len(devices)} x {devices[0].device_kind}{of_processes}",
        "mesh": in_words(opened.mesh),
        "model": f"{opened.policy.config.to_hf('float32')['model_type']}, {name or opened.checkpoint}",
        "parameters": _millions(total),
    }
    if frozen is not None:
        trained = _count(split_frozen(shapes, opened.policy.frozen(tuple(frozen)))[0])
        kind = " in adapters" if opened.policy.lora is not None else ""
        share = "all are trained" if trained == total else f"{_millions(trained)}{kind} are trained"
        facts["parameters"] = f"{_millions(total)}, {share}"
    if run_dir is not None:
        facts["run folder"] = run_dir
    say_facts(facts)


def say_start(step: int, steps: int, run_dir: str) -> None:
    """Where a run starts: at its beginning, at a checkpoint, or not at all."""
    all_steps = plural(steps, "step")
    if step == 0:
        where = f"a new run of {all_steps}"
    elif step < steps:
        where = f"from step {step} of {steps}, the newest checkpoint"
    else:
        where = f"already finished, {step} of {all_steps}: nothing is left to train; see {Path(run_dir)}/report.html"
    say_facts({"start": where})


def _count(tree: object) -> int:
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def _millions(count: int) -> str:
    return f"{count / 1e9:.2f} B" if count >= 1e9 else f"{count / 1e6:.2f} M" if count >= 1e4 else str(count)
