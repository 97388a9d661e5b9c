"""How hard problems are for a model: its accuracy over several answers to each (`mmeureka data difficulty`), and
training on those of a range (`data.difficulty`).

Source: the offline filter of MM-EUREKA's first paper (arXiv 2503.07365v1), which keeps problems that the model neither
always nor never solves.
"""

from __future__ import annotations

import json
import logging
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from mmeureka_jax.config.schema import DataConfig, RewardConfig, SamplerConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.evaluate import EvalOptions, questions
from mmeureka_jax.evaluation.prompt_files import ModelOptions, length_buckets
from mmeureka_jax.files import explain_write_errors, read_json, write_atomic
from mmeureka_jax.process.console import progress, say_facts
from mmeureka_jax.runs.provenance import read_provenance
from mmeureka_jax.sampling.answers import PromptSizes, Response, generate
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.difficulty import read_difficulty
from mmeureka_jax.setup.problems import open_checked

if TYPE_CHECKING:
    from mmeureka_jax.data.record import Problem

logger = logging.getLogger(__name__)


def measure_difficulty(
    model: ModelOptions, options: EvalOptions, output: Path, *, n: int, temperature: float = 1.0, seed: int = 0
) -> list[dict[str, Any]]:
    """Samples n answers to every problem and writes `{"id", "accuracy", "n", "length"}` for each, as a JSONL file in
    the order of the problems: the share of right answers, and their mean length in tokens.

    Rows are written as they come. Where the file has some already, made with the same settings, they stay and the rest
    is added: an answer's noise is named by the seed, its problem and its number, not by the others of a batch.

    Returns:
        The rows of the problems that were asked for; the file keeps those of others.

    Raises:
        UserError: anything about the checkpoint, the data or the output that cannot work, before the first answer; a
            file of other settings.
    """
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.rewards.base import RewardRequest
    from mmeureka_jax.rewards.workers import RewardWorkers

    with ExitStack() as stack:
        loaded = model.open("data difficulty")
        asked = questions(
            options, read_provenance(loaded.checkpoint), loaded.policy.config.text.max_position_embeddings
        )
        processor = Processor.from_checkpoint(
            loaded.checkpoint,
            **{key: asked[key] for key in ("prompt_style", "min_pixels", "max_pixels", "max_prompt_tokens")},
        )
        rewards = stack.enter_context(
            RewardWorkers(RewardConfig(accuracy=asked["accuracy"], workers=options.reward_workers))
        )
        rewards.validate()
        data = DataConfig(root=options.root, allow_outside_root=options.allow_outside_root)
        checked = open_checked(options.data, data, processor)
        say_facts({"data": checked.describe()})
        made_with = {
            "model": model.checkpoint, "data": options.data, "data_fingerprint": checked.source.fingerprint(), "n": n,
            "temperature": temperature, "seed": seed, **asked,
        }  # fmt: skip
        done = _rows_so_far(output, made_with)
        problems = [checked.source[row] for row in checked.indices[: options.limit]]
        left = [problem for problem in problems if problem.id not in done]
        drawn = SamplerConfig(temperature=temperature, max_new_tokens=asked["max_new_tokens"])
        sampler = Sampler(loaded.policy, SamplingSettings.of(processor, drawn, group_size=n), "sample", seed)
        sizes = PromptSizes(options.batch_size, length_buckets(checked.report.max_tokens), checked.report.max_windows)

        def row_of(problem: Problem, responses: list[Response]) -> dict[str, Any]:
            texts = [processor.response_prefix + response.text for response in responses]
            requests = [RewardRequest(text, problem.answer or "", problem.question, problem.metadata) for text in texts]
            accuracy = float(np.mean([score.parts["accuracy"] for score in rewards.score(requests)]))
            length = float(np.mean([len(response.tokens) for response in responses]))
            return {"id": problem.id, "accuracy": accuracy, "n": n, "length": length}

        stack.enter_context(jax.set_mesh(loaded.mesh))
        bar = stack.enter_context(
            progress(len(problems), "difficulty", unit="problem", initial=len(problems) - len(left))
        )
        answered = generate(sampler, loaded.mesh, loaded.load_params(), processor, left, sizes)
        with explain_write_errors(output), output.open("a", encoding="utf-8") as file:
            for problem, responses in answered:
                done[problem.id] = row_of(problem, responses)
                file.write(json.dumps(done[problem.id], ensure_ascii=False) + "\n")
                file.flush()
                bar.update(1)
    everything = [done[one] for row in checked.indices if (one := checked.source[row].id) in done]
    write_atomic(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in everything).encode())
    return [done[problem.id] for problem in problems]


def _rows_so_far(output: Path, made_with: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The rows of an earlier start, by id; the file then ends with a whole row, and its settings are next to it."""
    record = output.with_name(output.name + ".settings.json")
    if output.exists():
        if not record.exists():
            raise UserError(f"{record} is missing, so nothing says what {output} was made with; give another file")
        old = read_json(record)
        if old != made_with:
            differences = [key for key in made_with if old.get(key) != made_with[key]]
            raise UserError(
                f"{output} was made with other settings ({', '.join(differences)}); give another file or remove it"
            )
    rows = read_difficulty(output, allow_cut=True) if output.exists() else {}
    write_atomic(record, (json.dumps(made_with, indent=1) + "\n").encode())
    write_atomic(output, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows.values()).encode())
    return rows
