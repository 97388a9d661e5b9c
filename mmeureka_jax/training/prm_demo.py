"""`mmeureka prm demo`: MM-PRM in miniature, on the built-in picture problems.

A small policy learns to write solutions in steps, trees of its solutions are searched, a process reward model learns
their labels, and chooses among eight answers to each of some problems that neither has seen. The parts are those of
`configs/mm_prm/small/`. Every part continues where an earlier demo in the same folder stopped.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import Config
from mmeureka_jax.evaluation.options import EvalOptions, ModelOptions
from mmeureka_jax.export.policy import export_once
from mmeureka_jax.prm.labels import LabelRules
from mmeureka_jax.process.console import say
from mmeureka_jax.process.cpu import split_cpu
from mmeureka_jax.report.page import write_report

CONFIGS = Path(__file__).parents[1] / "configs" / "mm_prm" / "small"
ASKED = "tfds:shapes/steps-dice@test[:256]"  # what neither the policy nor the model was trained on
N = 8
_HELD_OUT = 0.1  # of the searched problems
_BATCH_SIZE = 64


def prm_demo(output: Path, overrides: Sequence[str] = (), *, started: float | None = None) -> dict[str, Any]:
    """Runs the demo into `output` and returns what it came to.

    Args:
        overrides: of its three configs, such as `seed=1`.
        started: the `time.perf_counter()` that `seconds` counts from; default: now.

    Returns:
        `random`, `majority`, `pass_at_n` and `best_of_n` (by aggregator): the share of problems whose chosen answer is
        right; `n`, `seconds`, and the absolute paths `trees` and `prm`.

    Raises:
        UserError: the folder holds a demo with other settings, or cannot be written.
    """
    started = time.perf_counter() if started is None else started
    from mmeureka_jax.data.problems import open_problems
    from mmeureka_jax.prm.search_files import TREES_FILE
    from mmeureka_jax.prm.search_job import search_trees
    from mmeureka_jax.training.prm import train_prm
    from mmeureka_jax.training.sft import fine_tune

    output = output.resolve()
    policy = output / "mm_policy"
    model = output / "mm_prm"
    trees = output / "trees" / TREES_FILE
    labels = output / "labels.jsonl"
    held_out = output / "held_out.jsonl"
    imitation = _config("policy", output / "policy", overrides)
    search = _config("search", trees.parent, overrides, {"model.checkpoint": policy})
    given = {"model.checkpoint": policy, "prm.labels": labels, "prm.validation": held_out}
    prm = _config("prm", output / "prm", overrides, given)
    split_cpu(imitation.mesh.cpu_devices)
    for spec in (imitation.data.train, ASKED):
        open_problems(spec)  # draws the pictures of the built-in problems, the first time

    steps = f"{imitation.steps} steps of {imitation.sft.problems_per_step}"
    say(f"1 of 5: a policy imitates solutions in steps, most of them with a careless one, {steps}")
    export_once(fine_tune(imitation), policy)
    say(f"2 of 5: a tree search over its solutions, {search.prm.trees} trees at a time")
    search_trees(search)
    say("3 of 5: labels of their steps")
    _label(trees, labels, held_out)
    say(f"4 of 5: a process reward model, {prm.steps} steps of {prm.prm.paths_per_step}")
    export_once(train_prm(prm), model)
    write_report(prm.run_dir)
    say(f"5 of 5: the best of {N} answers to each problem of {ASKED}")
    figures = _choose(policy, model, output / f"best_of_{N}", imitation.seed)
    return {
        "random": figures["random"]["mean"],
        "majority": figures["majority"]["mean"],
        "pass_at_n": figures["pass_at_k"][str(N)]["mean"],
        "best_of_n": {name: by_k[str(N)]["mean"] for name, by_k in figures["best_of_k"].items()},
        "n": N,
        "seconds": round(time.perf_counter() - started, 1),
        "trees": str(trees),
        "prm": str(model),
    }


def _config(name: str, run_dir: Path, overrides: Sequence[str], given: dict[str, Path] | None = None) -> Config:
    paths = [f"{key}={path}" for key, path in (given or {}).items()]
    return replace(load_config(CONFIGS / f"{name}.yaml", [*paths, *overrides]), run_dir=str(run_dir))


def _label(trees: Path, labels: Path, held_out: Path) -> None:
    """Makes the training set, and a page of some trees."""
    from mmeureka_jax.prm.label_files import Validation, write_labels
    from mmeureka_jax.prm.pages import Data, write_page

    rules = LabelRules(min_words=0)  # the solutions are short
    if not (labels.exists() and held_out.exists()):
        say(write_labels([trees], labels, rules, Validation(held_out, _HELD_OUT)).counts.table())
        write_page([trees], trees.with_suffix(".html"), rules, Data(None, None, False), only=None, limit=64)


def _choose(policy: Path, prm: Path, folder: Path, seed: int) -> dict[str, Any]:
    """Asks the policy, scores its answers, and returns what each choice gives."""
    from mmeureka_jax.evaluation.accuracy import RESULTS_FILE, measure_accuracy
    from mmeureka_jax.prm.answer_scores import AnswerScorer
    from mmeureka_jax.prm.best_of_n_files import write_best_of_n
    from mmeureka_jax.prm.drawn_answers import answers_to_data

    options = EvalOptions(ASKED, n=N, temperature=1.0, seed=seed, batch_size=_BATCH_SIZE)
    scorer = AnswerScorer(ModelOptions(str(prm)), _BATCH_SIZE)
    if not (folder / RESULTS_FILE).exists():
        measure_accuracy(ModelOptions(str(policy)), options, folder)
    drawn = answers_to_data(ASKED, folder)
    (results,) = write_best_of_n(scorer, [drawn], folder)["results"].values()
    return results["judges"]["accuracy"]
