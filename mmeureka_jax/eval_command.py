"""`mmeureka eval`: greedy accuracy of a checkpoint on a problem set, with a row for every problem."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from mmeureka_jax.checkpoint import package_versions
from mmeureka_jax.config import AccuracyRule, Config, DataConfig, RewardConfig, SamplerConfig
from mmeureka_jax.console import progress
from mmeureka_jax.export import read_provenance
from mmeureka_jax.files import atomic_writer, write_atomic
from mmeureka_jax.inference import ModelOptions, length_buckets
from mmeureka_jax.rl.evaluate import Evaluator, Graded
from mmeureka_jax.rl.setup import check_context, open_checked

GROUPED_BY = ("kind", "subject", "difficulty")  # metadata keys that results are broken down by
RESULTS_FILE, ROWS_FILE = "results.json", "rows.jsonl"


@dataclass(frozen=True)
class EvalOptions:
    """How the problems are asked and graded.

    None is what the run that exported the checkpoint did (see `export.read_provenance`), else the default of the config
    key of that name; for `max_prompt_tokens`, the longest context of the checkpoint.
    """

    data: str
    root: str | None = None
    allow_outside_root: bool = False
    limit: int | None = None  # the first so many usable problems
    prompt_style: Any = None
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_prompt_tokens: int | None = None
    accuracy: AccuracyRule | None = None
    max_new_tokens: int | None = None
    batch_size: int = 32
    reward_workers: int = RewardConfig.workers


def evaluate(model: ModelOptions, options: EvalOptions, output: Path) -> dict[str, Any]:
    """Answers every problem greedily, grades the answers by the accuracy rule, and writes three files into `output`.

    `rows.jsonl` has one row per problem, `data_check.json` the rows that cannot be used, and `results.json`, written
    last, the accuracy (of the problems that were asked) with its standard error, counts, mean response length, the
    same by kind, subject and difficulty where the problems have them, and every setting. Returns what `results.json`
    holds.

    Raises:
        UserError: anything about the checkpoint, the data or the output that cannot work, before the first answer.
    """
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers

    with ExitStack() as stack:
        write_row = stack.enter_context(atomic_writer(output / ROWS_FILE))
        loaded = model.open("eval")
        context = loaded.policy.config.text.max_position_embeddings
        provenance = read_provenance(loaded.adapters.folder) if loaded.adapters is not None else {}
        asked = questions(options, provenance or read_provenance(loaded.checkpoint), context)
        processor = Processor.from_checkpoint(
            loaded.checkpoint,
            **{key: asked[key] for key in ("prompt_style", "min_pixels", "max_pixels", "max_prompt_tokens")},
        )
        config = RewardConfig(accuracy=asked["accuracy"], workers=options.reward_workers)
        rewards = stack.enter_context(RewardWorkers(config))
        rewards.validate()
        problems = open_checked(
            options.data,
            Config(data=DataConfig(root=options.root, allow_outside_root=options.allow_outside_root)),
            processor,
            report_file=output / "data_check.json",
        )
        check_context(loaded.policy.config.text, problems.report.max_tokens + asked["max_new_tokens"])
        indices = problems.indices[: options.limit]
        evaluator = Evaluator(
            loaded,
            processor,
            rewards,
            problems.source,
            indices,
            max_new_tokens=asked["max_new_tokens"],
            batch_size=options.batch_size,
            buckets=length_buckets(problems.report.max_tokens),
            num_windows=problems.report.max_windows,
        )
        stack.enter_context(jax.set_mesh(loaded.mesh))
        with progress(len(indices), "eval", unit="problem") as bar:
            graded = evaluator.run(loaded.load_params(), on_batch=bar.update)
        for item in graded:
            write_row((json.dumps(_row(item), ensure_ascii=False) + "\n").encode())
    results = summarise(graded) | {
        "rejected": len(problems.report.rejected),
        "settings": {
            "model": model.checkpoint,
            "adapters": model.adapters,
            "data": options.data,
            "data_fingerprint": problems.source.fingerprint(),
            "limit": options.limit,
            "temperature": 0,
            **asked,
            "compute_dtype": loaded.policy.compute_dtype,
            "packages": package_versions(),
        },
    }
    write_atomic(output / RESULTS_FILE, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
    return results


def summarise(graded: Sequence[Graded]) -> dict[str, Any]:
    """Accuracy and counts of all problems, and of each value of the `GROUPED_BY` metadata that some of them have."""
    results: dict[str, Any] = _figures(graded)
    for key in GROUPED_BY:
        groups: dict[str, list[Graded]] = defaultdict(list)
        for item in graded:
            if (value := item.problem.metadata.get(key)) is not None:
                groups[str(value)].append(item)
        if groups:
            results[f"by_{key}"] = {value: _figures(groups[value]) for value in sorted(groups)}
    return results


def _figures(graded: Sequence[Graded]) -> dict[str, Any]:
    count = len(graded)
    correct = sum(item.score.parts["accuracy"] for item in graded)
    accuracy = correct / count
    return {
        "accuracy": accuracy,
        "accuracy_standard_error": math.sqrt(accuracy * (1 - accuracy) / count),
        "problems": count,
        "correct": int(correct),
        "truncated": sum(not item.response.finished for item in graded),
        "reward_failures": sum(item.score.failure is not None for item in graded),
        "response_length": sum(len(item.response.tokens) for item in graded) / count,
    }


def _row(item: Graded) -> dict[str, Any]:
    problem, response, score = item.problem, item.response, item.score
    return {
        "id": problem.id,
        "answer": problem.answer,
        "text": response.text,
        "accuracy": score.parts["accuracy"],
        "length": len(response.tokens),
        "finish_reason": "stop" if response.finished else "length",
        "reward_failure": score.failure,
        **{key: problem.metadata[key] for key in GROUPED_BY if key in problem.metadata},
    }


def questions(options: EvalOptions, provenance: dict[str, Any], context: int) -> dict[str, Any]:
    """How problems are asked and graded: as `options` say, else as the checkpoint's run did, else by default."""
    defaults = {
        "prompt_style": DataConfig.prompt_style,
        "min_pixels": DataConfig.min_pixels,
        "max_pixels": DataConfig.max_pixels,
        "max_prompt_tokens": context,
        "accuracy": RewardConfig.accuracy,
        "max_new_tokens": SamplerConfig.max_new_tokens,
    }
    given = {key: getattr(options, key) for key in defaults}
    return {key: given[key] if given[key] is not None else provenance.get(key, defaults[key]) for key in defaults}
