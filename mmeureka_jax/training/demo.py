"""`mmeureka demo`: on the built-in picture problems a small policy imitates, then is trained by reinforcement learning.

Its two runs are those of `configs/demo_sft.yaml` and `configs/demo_rl.yaml`. Every part continues where an earlier demo
in the same folder stopped, and what is done is not done again.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmeureka_jax.config.load import load_config
from mmeureka_jax.export.policy import export_once
from mmeureka_jax.process.console import say
from mmeureka_jax.process.cpu import split_cpu
from mmeureka_jax.report.page import write_report
from mmeureka_jax.runs.tracking import TENSORBOARD_FOLDER, read_metrics

CONFIGS = Path(__file__).parents[1] / "configs"


def demo(output: Path, overrides: Sequence[str] = (), *, started: float | None = None) -> dict[str, Any]:
    """Runs the demo into `output` and returns what it came to.

    Args:
        overrides: of both configs, such as `steps=2`.
        started: the `time.perf_counter()` that `seconds` counts from; default: now.

    Returns:
        `accuracy_before` and `accuracy_after` (greedy, on held-out problems, of the imitation policy and of the policy
        that was then trained by reinforcement learning), `seconds`, and the absolute paths `report`, `tensorboard` and
        `export`.

    Raises:
        UserError: the folder holds a demo with other settings, or cannot be written.
    """
    started = time.perf_counter() if started is None else started
    from mmeureka_jax.data.problems import open_problems
    from mmeureka_jax.training.rl import train
    from mmeureka_jax.training.sft import fine_tune

    output = output.resolve()
    imitated = output / "sft" / "export"
    trained = output / "export"
    sft = replace(load_config(CONFIGS / "demo_sft.yaml", overrides), run_dir=str(output / "sft"))
    rl = replace(load_config(CONFIGS / "demo_rl.yaml", overrides), run_dir=str(output / "rl"))
    rl = replace(rl, model=replace(rl.model, checkpoint=str(imitated), random=None))
    split_cpu(sft.mesh.cpu_devices)
    for spec in sorted({sft.data.train, rl.data.train}):
        open_problems(spec)  # draws the pictures of the built-in problems, the first time

    say(f"1 of 2: imitation of worked solutions, {sft.steps} steps of {sft.sft.problems_per_step}")
    export_once(fine_tune(sft), imitated)
    responses = f"{rl.rl.prompts_per_rollout} x {rl.rl.group_size}"
    say(f"2 of 2: reinforcement learning ({rl.rl.loss}), {rl.steps} steps of {responses} responses")
    run_dir = train(rl)
    export_once(run_dir, trained)
    report = write_report(run_dir)

    validated = [row["validation/accuracy"] for row in read_metrics(run_dir) if "validation/accuracy" in row]
    return {
        "accuracy_before": validated[0],
        "accuracy_after": validated[-1],
        "seconds": round(time.perf_counter() - started, 1),
        "report": str(report.resolve()),
        "tensorboard": str(run_dir / TENSORBOARD_FOLDER),
        "export": str(trained),
    }
