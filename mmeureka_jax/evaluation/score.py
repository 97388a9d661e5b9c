"""`mmeureka score`: the log-probability of each token of given responses."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.identity import policy_identity
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.evaluation.partial_rows import partial_rows
from mmeureka_jax.evaluation.prompt_files import PromptFile, PromptOptions, floats, read_prompts
from mmeureka_jax.hosts import gather_rows
from mmeureka_jax.mesh import to_global
from mmeureka_jax.models.batch import Prompt, collate, length_buckets, pick_bucket
from mmeureka_jax.models.policy import Params, Policy, encode_images, token_log_probs
from mmeureka_jax.process.console import first_time, plural, progress
from mmeureka_jax.sampling.answers import rows_per_batch

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem


def score_file(model: ModelOptions, prompts: PromptOptions, output: Path, *, temperature: float = 1.0) -> None:
    """Scores the `response` text of every row into a JSONL file, in the order of the input.

    A row is `{"id", "tokens", "log_probs"}`: the tokens of the text, and the natural-log probability (float32) of each
    under the policy at `temperature`, over the whole vocabulary. The end token is scored only where the text itself
    ends with it (`<|im_end|>` for Qwen2.5-VL): a text by itself does not say whether it was finished or cut off. An
    interrupted call continues (see `partial_rows`).

    Raises:
        UserError: as `sample_file`; also a row without a `response` text.
    """
    with partial_rows(output) as rows:
        opened = model.open("score")
        file = read_prompts(opened, prompts, unique_ids=False)
        responses = _encode_responses(file.problems, file.processor)
        batch_rows = rows_per_batch(opened.mesh, prompts.batch_size)
        made_with = {"command": "score", **policy_identity(opened), **file.identity, "temperature": temperature}
        done = rows.resume(made_with, [problem.id for problem in file.problems], per_batch=batch_rows)
        left = file.problems[done:]
        params = opened.load_params() if left else {}
        buckets = length_buckets(max(map(len, responses)))
        with (
            jax.set_mesh(opened.mesh),
            progress(len(file.problems), "score", unit="row", initial=done) as bar,
        ):
            for start, own in _processed(file.processor, left, batch_rows):
                texts = responses[done + start : done + start + len(own)]
                batch, tokens = _padded(file, own, texts, batch_rows, buckets)
                arrays = to_global(opened.mesh, (batch, tokens))
                shape = f"{plural(batch_rows, 'row')} of up to {batch.tokens.shape[1]} + {tokens.shape[2]} tokens"
                with first_time(("score", opened.policy, shape), f"scoring {shape}, which compiles a program"):
                    log_probs = gather_rows(_score(opened.policy, temperature, params, *arrays))
                rows.add(
                    *(
                        {"id": problem.id, "tokens": text.tolist(), "log_probs": floats(scores[0, : len(text)])}
                        for problem, text, scores in zip(left[start:], texts, log_probs, strict=False)
                    )
                )
                bar.update(len(own))
        rows.publish()


def _padded(
    file: PromptFile,
    prompts: Sequence[Prompt],
    texts: Sequence[Int[np.ndarray, " T"]],
    rows: int,
    buckets: tuple[int, ...],
) -> tuple[Prompt, Int[np.ndarray, "P 1 Lr"]]:
    """A batch of `rows` prompts, filled up with prompts of no problem, and the tokens of their responses.

    Args:
        buckets: padded lengths of responses.
    """
    length = pick_bucket(max(len(prompt.tokens) for prompt in prompts), file.sizes.buckets)
    tokens = np.zeros((rows, 1, pick_bucket(max(map(len, texts)), buckets)), np.int32)
    for row, text in zip(tokens[:, 0], texts, strict=False):
        row[: len(text)] = text
    padded = [*prompts, *[file.processor.filler()] * (rows - len(prompts))]
    return collate(padded, length, file.sizes.image_windows), tokens


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    policy: Policy, temperature: float, params: Params, prompts: Prompt, responses: Int[Array, "P n Lr"]
) -> Float[Array, "P n Lr"]:
    """The log-probability of each token of the responses."""
    features = encode_images(policy, params, prompts.images)
    return token_log_probs(policy, params, prompts, features, responses, temperature=temperature)[0]


def _encode_responses(problems: Sequence[Problem], processor: Processor) -> list[np.ndarray]:
    """The tokens of every row's `response`, without an end token of our own; all rows without one in one error."""
    encoded: list[np.ndarray] = []
    faults: list[str] = []
    for problem in problems:
        text = problem.metadata.get("response")
        if not isinstance(text, str):
            faults.append(f"problem {problem.id!r}: no `response` text to score")
            continue
        try:
            encoded.append(processor.encode_response(text, finished=False))
        except UserError as error:
            faults.append(f"problem {problem.id!r}: its response: {error}")
    if faults:
        raise UserError(f"{len(faults)} of {len(problems)} rows cannot be scored:\n  " + "\n  ".join(faults))
    return encoded


def _processed(processor: Processor, problems: Sequence[Problem], rows: int) -> Iterator[tuple[int, list[Prompt]]]:
    """(number of its first problem, prompts) of batch after batch; the next one is processed while one is used."""
    with ThreadPoolExecutor(max_workers=4) as pool:
        pending = [pool.submit(processor, problem) for problem in problems[:rows]]
        for start in range(0, len(problems), rows):
            own = [future.result() for future in pending]
            pending = [pool.submit(processor, problem) for problem in problems[start + rows : start + 2 * rows]]
            yield start, own
