"""`mmeureka sample` and `mmeureka score`: a policy on the prompts of a file, without a run.

Both look at every row before the first token is computed: rows that cannot be used are all named in one message. The
output file gets its name when it is complete; until then rows are kept where the same command continues after them.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from mmeureka_jax.config.schema import SamplerConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.identity import ids_and_pictures, policy_identity
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.evaluation.partial_rows import partial_rows
from mmeureka_jax.hosts import gather_rows
from mmeureka_jax.mesh import to_global
from mmeureka_jax.models.batch import Prompt, length_buckets, pick_bucket
from mmeureka_jax.models.policy import Params, Policy, encode_images, token_log_probs
from mmeureka_jax.process.console import first_time, plural, progress
from mmeureka_jax.sampling.answers import PromptSizes, Response, generate, rows_per_batch
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import SamplingSettings
from mmeureka_jax.setup.policy import OpenedPolicy, check_context

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.prompts import PromptStyle
    from mmeureka_jax.data.record import Problem

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PromptOptions:
    """The input rows, and how they become prompts. None leaves a limit to the checkpoint."""

    input: Path
    image_root: str | None = None  # default: the folder of the input file
    style: PromptStyle = "plain"
    min_pixels: int | None = None
    max_pixels: int | None = None
    max_prompt_tokens: int | None = None
    batch_size: int = 16


def sample_file(
    model: ModelOptions,
    prompts: PromptOptions,
    output: Path,
    *,
    n: int = 1,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    max_new_tokens: int = 1024,
    seed: int = 0,
) -> None:
    """Samples `n` responses to each row's prompt (temperature 0: greedy) into a JSONL file, in the order of the input.

    A row is `{"id", "sample", "text", "tokens", "log_probs", "finish_reason"}`: `tokens` and `log_probs` go up to and
    including the end token, which `text` leaves out; log-probabilities are natural, float32, at the temperature (1 when
    greedy), before top-k and top-p; `finish_reason` is "stop" or "length". The noise of a response is named by the
    seed, its id and its number, so that it does not depend on the other rows.

    Raises:
        UserError: anything about the checkpoint, the rows or the output that cannot work, before anything is sampled.
    """
    if n > 1 and temperature == 0:
        logger.warning("temperature 0 is greedy: the %d answers to a prompt will all be the same", n)
    with partial_rows(output) as rows:
        loaded = model.open("sample")
        processor = _open_processor(loaded, prompts)
        problems, longest, num_windows, read = _read_prompts(prompts, processor, unique_ids=True)
        check_context(loaded.policy.config.text, longest + max_new_tokens)
        drawn = SamplerConfig(temperature, top_k, top_p, max_new_tokens)
        settings = SamplingSettings.of(processor, drawn, group_size=n)
        ids = [problem.id for problem in problems for _ in range(n)]
        made_with = {"command": "sample", **policy_identity(loaded), **read, "seed": seed, **asdict(settings)}
        done = rows.resume(made_with, ids, per_batch=n * rows_per_batch(loaded.mesh, prompts.batch_size)) // n
        if done < len(problems):
            bar = progress(len(problems), "sample", unit="row", initial=done)
            sampler = Sampler(loaded.policy, settings, "sample", seed)
            sizes = PromptSizes(prompts.batch_size, length_buckets(longest), num_windows)
            with jax.set_mesh(loaded.mesh), bar:
                params = loaded.load_params()
                answered = generate(sampler, loaded.mesh, params, processor, problems[done:], sizes)
                for problem, responses in answered:
                    rows.add(*(_sample_row(problem, number, response) for number, response in enumerate(responses)))
                    bar.update(1)
        rows.publish()


def score_file(model: ModelOptions, prompts: PromptOptions, output: Path, *, temperature: float = 1.0) -> None:
    """Scores the `response` text of every row into a JSONL file, in the order of the input.

    A row is `{"id", "tokens", "log_probs"}`: the tokens of the text, and the natural-log probability (float32) of each
    under the policy at `temperature`, over the whole vocabulary. The end token is scored only where the text itself
    ends with it (`<|im_end|>` for Qwen2.5-VL): a text alone does not say whether it was finished or cut off.

    Raises:
        UserError: as `sample_file`; also a row without a `response` text.
    """
    with partial_rows(output) as rows:
        loaded = model.open("score")
        processor = _open_processor(loaded, prompts)
        problems, longest, num_windows, read = _read_prompts(prompts, processor, unique_ids=False)
        responses = _encode_responses(problems, processor)
        prompt_buckets = length_buckets(longest)
        response_buckets = length_buckets(max(map(len, responses)))
        batch_rows = rows_per_batch(loaded.mesh, prompts.batch_size)
        filler = processor.filler()
        made_with = {"command": "score", **policy_identity(loaded), **read, "temperature": temperature}
        done = rows.resume(made_with, [problem.id for problem in problems], per_batch=batch_rows)
        problems, responses = problems[done:], responses[done:]
        params = loaded.load_params() if problems else {}

        from mmeureka_jax.data.processor import collate

        bar = progress(done + len(problems), "score", unit="row", initial=done)
        with jax.set_mesh(loaded.mesh), bar:
            for start, own in _processed(processor, problems, batch_rows):
                texts = responses[start : start + len(own)]
                length = pick_bucket(max(len(prompt.tokens) for prompt in own), prompt_buckets)
                tokens = np.zeros((batch_rows, 1, pick_bucket(max(map(len, texts)), response_buckets)), np.int32)
                for row, text in zip(tokens[:, 0], texts, strict=False):
                    row[: len(text)] = text
                batch = collate([*own, *[filler] * (batch_rows - len(own))], length, num_windows)
                arrays = to_global(loaded.mesh, (batch, tokens))
                shape = f"{plural(batch_rows, 'row')} of up to {length} + {tokens.shape[2]} tokens"
                with first_time(("score", loaded.policy, shape), f"scoring {shape}, which compiles a program"):
                    log_probs = gather_rows(_score(loaded.policy, temperature, params, *arrays))
                rows.add(
                    *(
                        {"id": problems[start + i].id, "tokens": text.tolist()}
                        | {"log_probs": _floats(log_probs[i, 0, : len(text)])}
                        for i, text in enumerate(texts)
                    )
                )
                bar.update(len(own))
        rows.publish()


@functools.partial(jax.jit, static_argnums=(0, 1))
def _score(
    policy: Policy, temperature: float, params: Params, prompts: Prompt, responses: Int[Array, "P n Lr"]
) -> Float[Array, "P n Lr"]:
    features = encode_images(policy, params, prompts.images)
    return token_log_probs(policy, params, prompts, features, responses, temperature=temperature)[0]


def _open_processor(loaded: OpenedPolicy, prompts: PromptOptions) -> Processor:
    from mmeureka_jax.data.processor import Processor

    return Processor.from_checkpoint(
        loaded.checkpoint,
        prompt_style=prompts.style,
        max_prompt_tokens=prompts.max_prompt_tokens or loaded.policy.config.text.max_position_embeddings,
        min_pixels=prompts.min_pixels,
        max_pixels=prompts.max_pixels,
    )


def _read_prompts(
    prompts: PromptOptions, processor: Processor, *, unique_ids: bool
) -> tuple[list[Problem], int, int, dict[str, Any]]:
    """The problems of the input file; the most tokens and the most image windows that a prompt of them has; and what
    says whether another reading is the same, as JSON."""
    from mmeureka_jax.data.check import check_problems
    from mmeureka_jax.data.problems import open_problems

    source = open_problems(str(prompts.input), root=prompts.image_root, require_answer=False)
    report = check_problems(source, processor, accuracy=None, unique_ids=unique_ids)
    if report.rejected:
        reasons = [_with_place(rejected.reason, source.where(rejected.row)) for rejected in report.rejected]
        raise UserError(
            f"{prompts.input}: {len(reasons)} of {len(source)} rows cannot be used, so none was:\n  "
            + "\n  ".join(reasons)
        )
    if report.notes:
        logger.warning("%s: `mmeureka data check` has the rows of these notes\n%s", prompts.input, report.summary())
    problems = [source[row] for row in report.usable]
    read = {key: value for key, value in asdict(prompts).items() if key not in ("input", "image_root")}
    read |= {"input": source.fingerprint(), "pictures": ids_and_pictures(problems)[1]}
    return problems, report.max_tokens, report.max_windows, read


def _with_place(reason: str, place: str) -> str:
    return reason if place in reason else f"{place}: {reason}"


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


def _sample_row(problem: Problem, number: int, response: Response) -> dict[str, Any]:
    return {
        "id": problem.id,
        "sample": number,
        "text": response.text,
        "tokens": response.tokens.tolist(),
        "log_probs": _floats(response.log_probs),
        "finish_reason": "stop" if response.finished else "length",
    }


def _floats(values: Float[np.ndarray, " T"]) -> list[float]:
    """float32 values as the shortest decimals that give them back. JSON has no NaN, so none is let through."""
    if not np.isfinite(values).all():
        raise UserError(
            "the policy gives log-probabilities that are not finite; are its weights those of a broken run?"
        )
    return [float(str(value)) for value in np.asarray(values, np.float32)]
