"""`mmeureka sample`: responses to the prompts of a file."""

from __future__ import annotations

import logging
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax

from mmeureka_jax.config.schema import SamplerConfig
from mmeureka_jax.evaluation.identity import policy_identity
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.evaluation.partial_rows import partial_rows
from mmeureka_jax.evaluation.prompt_files import PromptOptions, floats, read_prompts
from mmeureka_jax.process.console import progress
from mmeureka_jax.sampling.answers import Response, generate, rows_per_batch
from mmeureka_jax.sampling.memory import with_weights_chosen
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import MEMORY, SamplingSettings
from mmeureka_jax.setup.policy import check_context

if TYPE_CHECKING:
    from mmeureka_jax.data.record import Problem

logger = logging.getLogger(__name__)


def sample_file(
    model: ModelOptions,
    prompts: PromptOptions,
    output: Path,
    *,
    n: int = 1,
    sampler: SamplerConfig | None = None,
    seed: int = 0,
) -> None:
    """Samples `n` responses to each row's prompt (temperature 0: greedy) into a JSONL file, in the order of the input.

    A row is `{"id", "sample", "text", "tokens", "log_probs", "finish_reason"}`: `tokens` and `log_probs` go up to and
    including the end token, which `text` leaves out; log-probabilities are natural, float32, at the temperature (1 when
    greedy), before top-k and top-p; `finish_reason` is "stop" or "length". The noise of a response is named by the
    seed, its id and its number, so that it does not depend on the other rows. An interrupted call continues (see
    `partial_rows`).

    Args:
        sampler: how responses are drawn; None: as by default in a config.

    Raises:
        UserError: anything about the checkpoint, the rows or the output that cannot work, before anything is sampled.
    """
    drawn = sampler or SamplerConfig()
    if n > 1 and drawn.temperature == 0:
        logger.warning("temperature 0 is greedy: the %d answers to a prompt will all be the same", n)
    with partial_rows(output) as rows:
        opened = model.open("sample")
        file = read_prompts(opened, prompts, unique_ids=True)
        check_context(opened.policy.config.text, file.longest + drawn.max_new_tokens)
        drawn = with_weights_chosen(drawn, opened, file.sizes, n)
        settings = SamplingSettings.of(file.processor, drawn, group_size=n)
        ids = [problem.id for problem in file.problems for _ in range(n)]
        made_with = {
            "command": "sample",
            **policy_identity(opened),
            **file.identity,
            "seed": seed,
            **{name: value for name, value in asdict(settings).items() if name not in MEMORY},
        }
        batch_rows = rows_per_batch(opened.sampler_mesh, prompts.batch_size)
        done = rows.resume(made_with, ids, per_batch=n * batch_rows) // n
        left = file.problems[done:]
        if left:
            draws = Sampler(opened.policy, settings, "sample", seed)
            mesh = opened.sampler_mesh
            with jax.set_mesh(mesh), progress(len(file.problems), "sample", unit="row", initial=done) as bar:
                params = opened.load_params()
                for problem, responses in generate(draws, mesh, params, file.processor, left, file.sizes):
                    rows.add(*(_row_of(problem, number, response) for number, response in enumerate(responses)))
                    bar.update(1)
        rows.publish()


def _row_of(problem: Problem, number: int, response: Response) -> dict[str, Any]:
    """The row of a response in the output."""
    return {
        "id": problem.id,
        "sample": number,
        "text": response.text,
        "tokens": response.tokens.tolist(),
        "log_probs": floats(response.log_probs),
        "finish_reason": "stop" if response.finished else "length",
    }
