"""`mmeureka eval`: accuracy of a checkpoint on a problem set, with a row for every answer."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mmeureka_jax.config.schema import AccuracyRule, DataConfig, RewardConfig, SamplerConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.partial_rows import partial_rows
from mmeureka_jax.evaluation.pass_at_k import pass_at_k
from mmeureka_jax.evaluation.prompt_files import ModelOptions, identity, ids_and_pictures, length_buckets
from mmeureka_jax.evaluation.validation import Evaluator, Graded
from mmeureka_jax.files import write_atomic
from mmeureka_jax.process.console import progress, say_facts
from mmeureka_jax.runs.metadata import package_versions
from mmeureka_jax.runs.provenance import read_provenance
from mmeureka_jax.sampling.answers import PromptSizes, rows_per_batch
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import OpenedPolicy, check_context
from mmeureka_jax.setup.problems import open_checked

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor

GROUPED_BY = ("kind", "subject", "difficulty")  # metadata keys that results are broken down by
RESULTS_FILE, ROWS_FILE = "results.json", "rows.jsonl"


@dataclass(frozen=True)
class EvalOptions:
    """How the problems are asked and graded.

    None is what the run that exported the checkpoint did (see `runs.provenance`), else the default of the config
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
    n: int = 1  # answers to each problem
    temperature: float = 0.0  # 0: greedy
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    reward_workers: int = RewardConfig.workers

    def check(self) -> None:
        """Raises a UserError for answers that would all be the same."""
        if self.n > 1 and self.temperature == 0:
            raise UserError(
                f"n is {self.n} and the temperature 0, which is greedy: the answers to a problem would all be the "
                "same; give a temperature above 0 (--temperature 1)"
            )

    def sampling(self, processor: Processor, max_new_tokens: int) -> SamplingSettings:
        drawn = SamplerConfig(self.temperature, self.top_k, self.top_p, max_new_tokens)
        return SamplingSettings.of(processor, drawn, group_size=self.n)


def evaluate(model: ModelOptions, options: EvalOptions, output: Path) -> dict[str, Any]:
    """Answers every problem, grades the answers by the accuracy rule, and writes three files into `output`.

    `rows.jsonl` has one row per answer, `data_check.json` the rows that cannot be used, and `results.json`, written
    last, the accuracy (of all answers to the problems that were asked) with its standard error, pass@k where there are
    several answers to a problem, counts, mean response length, the same by kind, subject and difficulty where the
    problems have them, and every setting. Returns what `results.json` holds.

    Rows are kept as they are graded: after an interruption the same call continues after them, with the same result.

    Raises:
        UserError: anything about the checkpoint, the data or the output that cannot work, before the first answer.
    """
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.workers import RewardWorkers

    options.check()
    with ExitStack() as stack:
        rows = stack.enter_context(partial_rows(output / ROWS_FILE))
        loaded = model.open("eval")
        context = loaded.policy.config.text.max_position_embeddings
        provenance = read_provenance(loaded.adapters.folder) if loaded.adapters is not None else {}
        asked = questions(options, provenance or read_provenance(loaded.checkpoint), context)
        processor = Processor.from_checkpoint(
            loaded.checkpoint,
            **{key: asked[key] for key in ("prompt_style", "min_pixels", "max_pixels", "max_prompt_tokens")},
        )
        graded = RewardConfig(accuracy=asked["accuracy"], workers=options.reward_workers)
        rewards = stack.enter_context(RewardWorkers(graded))
        rewards.validate()
        data = DataConfig(root=options.root, allow_outside_root=options.allow_outside_root)
        problems = open_checked(options.data, data, processor, report_file=output / "data_check.json")
        say_facts({"data": problems.describe()})
        check_context(loaded.policy.config.text, problems.report.max_tokens + asked["max_new_tokens"])
        indices = problems.indices[: options.limit]
        settings = {
            "data_fingerprint": problems.source.fingerprint(),
            "limit": options.limit,
            "batch_size": options.batch_size,
            **{key: getattr(options, key) for key in ("n", "temperature", "top_k", "top_p", "seed")},
            **asked,
        }
        ids, pictures = ids_and_pictures(problems.source[i] for i in indices)
        made_with = {"command": "eval", **identity(loaded), "pictures": pictures, **settings}
        per_batch = options.n * rows_per_batch(loaded.mesh, options.batch_size)
        done = rows.resume(made_with, [name for name in ids for _ in range(options.n)], per_batch) // options.n
        stack.enter_context(jax.set_mesh(loaded.mesh))
        if done < len(indices):
            evaluator = Evaluator(
                loaded,
                processor,
                rewards,
                problems.source,
                indices,
                options.sampling(processor, asked["max_new_tokens"]),
                PromptSizes(
                    options.batch_size, length_buckets(problems.report.max_tokens), problems.report.max_windows
                ),
                options.seed,
            )
            with progress(len(indices), "eval", unit="problem", initial=done) as bar:
                for batch in evaluator.batches(loaded.load_params(), start=done):
                    rows.add(*map(row_of, batch))
                    bar.update(len(batch) // options.n)
        results = summarise(list(rows), options.n) | {
            "rejected": len(problems.report.rejected),
            "settings": _all_settings(model, loaded, options.data, settings),
        }
        rows.publish()
        write_atomic(output / RESULTS_FILE, (json.dumps(results, indent=2, ensure_ascii=False) + "\n").encode())
    return results


def _all_settings(model: ModelOptions, loaded: OpenedPolicy, data: str, settings: dict[str, Any]) -> dict[str, Any]:
    return {
        "model": model.checkpoint,
        "adapters": model.adapters,
        "data": data,
        **settings,
        "compute_dtype": loaded.policy.compute_dtype,
        "packages": package_versions(),
    }


def summarise(rows: Sequence[Mapping[str, Any]], n: int = 1) -> dict[str, Any]:
    """Accuracy and counts of all rows, and of each value of the `GROUPED_BY` keys that some of them have.

    Args:
        rows: see `row_of`; the n answers to a problem follow one another.
    """
    results: dict[str, Any] = _figures(rows, n)
    for key in GROUPED_BY:
        groups: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in rows:
            if (value := row.get(key)) is not None:
                groups[str(value)].append(row)
        if groups:
            results[f"by_{key}"] = {value: _figures(groups[value], n) for value in sorted(groups)}
    return results


def _figures(rows: Sequence[Mapping[str, Any]], n: int) -> dict[str, Any]:
    scores = np.asarray([row["accuracy"] for row in rows], np.float64).reshape(-1, n)
    figures = {
        "accuracy": float(scores.mean()),
        # Over problems: answers to the same one are alike.
        "accuracy_standard_error": math.sqrt(scores.mean(axis=1).var() / len(scores)),
        "problems": len(scores),
        "correct": int(scores.sum()),
        "truncated": sum(row["finish_reason"] == "length" for row in rows),
        "reward_failures": sum(row["reward_failure"] is not None for row in rows),
        "response_length": sum(row["length"] for row in rows) / len(rows),
    }
    if n > 1:
        figures["answers"] = len(rows)
        figures["pass_at_k"] = {str(k): float(rates.mean()) for k, rates in pass_at_k(scores > 0.5).items()}
    return figures


def row_of(item: Graded) -> dict[str, Any]:
    problem, response, score = item.problem, item.response, item.score
    return {
        "id": problem.id,
        "sample": item.sample,
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
