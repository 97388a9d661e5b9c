"""Scores of the steps of drawn answers, by a process reward model.

OUTPUT/NAME.scores.jsonl   a row for each answer: {"id", "sample", "scores"}, and `reason` where it cannot be scored
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmeureka_jax.data.steps import has_step, steps_of
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.identity import policy_identity
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.evaluation.partial_rows import partial_rows
from mmeureka_jax.evaluation.prompt_files import floats
from mmeureka_jax.prm.drawn_answers import DrawnAnswers
from mmeureka_jax.prm.form import MarkerTokens, process_problem, tokens_of_steps
from mmeureka_jax.prm.scorer import Processes, Scorer, Tokens
from mmeureka_jax.process.console import progress
from mmeureka_jax.runs.provenance import read_provenance

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor
    from mmeureka_jax.data.record import Problem

SCORES = "{}.scores.jsonl"
_BATCHES = 4  # that are sorted by length together
_SHOWN = 5  # answers that cannot be scored, in what is reported


@dataclass(frozen=True)
class ScoredAnswers:
    """
    Attributes:
        steps: the scores of each answer's steps, [P][N]; none where it has no steps or cannot be scored.
        without_steps: answers.
        unscored: those with steps that cannot be scored.
        examples: the first of these, with id, sample and reason.
    """

    steps: Sequence[Sequence[Sequence[float]]]
    without_steps: int
    unscored: int
    examples: Sequence[Mapping[str, Any]]


@dataclass
class AnswersToScore:
    """The answers to a problem, as the model reads them.

    Attributes:
        prompt: None where no answer has steps.
        tokens: by sample.
        reasons: why samples with steps cannot be scored.
    """

    prompt: Problem | None = None
    tokens: dict[int, Tokens] = field(default_factory=dict)
    reasons: dict[int, str] = field(default_factory=dict)


class AnswerScorer:
    """A process reward model whose weights are read when the first answer is scored."""

    def __init__(self, model: ModelOptions, batch_size: int) -> None:
        """Pictures are resized as they were in its training.

        Args:
            batch_size: problems, each with all its answers, that are computed together.

        Raises:
            UserError: the checkpoint is damaged, or is no process reward model.
        """
        from mmeureka_jax.data.processor import Processor

        self.model = model
        self._opened = model.open("process reward model")
        trained = read_provenance(self._opened.checkpoint)
        self._pixels = {key: trained.get(key) for key in ("min_pixels", "max_pixels")}
        self._context: int = self._opened.policy.config.text.max_position_embeddings
        processor = Processor.from_checkpoint(
            self._opened.checkpoint, prompt_style="plain", max_prompt_tokens=self._context, **self._pixels
        )
        self._scorer = Scorer(self._opened, processor, MarkerTokens.of(processor), {}, batch_size)

    @property
    def described(self) -> dict[str, Any]:
        """The model, for best_of_n.json."""
        return {
            "model": self.model.checkpoint,
            "compute_dtype": self._opened.policy.compute_dtype,
            "batch_size": self._scorer.batch_size,
            **self._pixels,
        }

    def score(self, drawn: DrawnAnswers, folder: Path) -> ScoredAnswers:
        """Scores all answers, and writes the file above. An interrupted call continues (see `partial_rows`).

        Raises:
            UserError: no answer has steps or none can be scored, a problem cannot be read, or scores are not finite.
        """
        if not any(has_step(response) for own in drawn.responses for response in own):
            raise UserError(
                f"{drawn.title}: none of the {drawn.count:,} answers has steps (<step>...</step>), so there is nothing "
                "to score; ask for them (--prompt-style steps), or ask a policy that writes them"
            )
        part = _BATCHES * self._scorer.rows
        with partial_rows(folder / SCORES.format(drawn.name)) as rows:
            made_with = {
                "command": "eval --prm",
                **policy_identity(self._opened),
                **self.described,
                "answers": drawn.digest(),
            }
            names = [name for name in drawn.ids for _ in range(drawn.n)]
            done = rows.resume(made_with, names, per_batch=part * drawn.n) // drawn.n
            with progress(len(drawn.ids), f"score {drawn.name}", unit="problem", initial=done) as bar:
                for start in range(done, len(drawn.ids), part):
                    own = range(start, min(start + part, len(drawn.ids)))
                    rows.add(*self._rows(drawn, own, bar.update))
            scored = _scored(drawn, list(rows))
            if not any(scores for own in scored.steps for scores in own):
                raise UserError(f"{drawn.title}: no answer can be scored; the first: {scored.examples[0]['reason']}")
            rows.publish()
        return scored

    def _rows(self, drawn: DrawnAnswers, own: range, on_scored: Callable[[int], object]) -> Iterator[dict[str, Any]]:
        """The rows of the answers to some problems."""
        problems = [read_answers(self._scorer.processor, self._context, drawn, place) for place in own]
        processes = [
            Processes(problem.prompt, list(problem.tokens.values()))
            for problem in problems
            if problem.prompt is not None and problem.tokens
        ]
        on_scored(len(problems) - len(processes))
        scored = iter(self._loaded.score_processes(processes, on_scored) if processes else ())
        for place, problem in zip(own, problems, strict=True):
            scores = dict(zip(problem.tokens, next(scored), strict=True)) if problem.tokens else {}
            for sample in range(drawn.n):
                row = {"id": drawn.ids[place], "sample": sample}
                row["scores"] = floats(scores[sample]) if sample in scores else []
                yield row | ({"reason": problem.reasons[sample]} if sample in problem.reasons else {})

    @cached_property
    def _loaded(self) -> Scorer:
        return replace(self._scorer, params=self._opened.load_params("the process reward model"))


def read_answers(processor: Processor, context: int, drawn: DrawnAnswers, place: int) -> AnswersToScore:
    """The answers to a problem.

    Args:
        context: the most tokens of a prompt with an answer's steps.
        place: of the problem.
    """
    read = AnswersToScore()
    steps = {sample: own for sample, text in enumerate(drawn.responses[place]) if (own := steps_of(text))}
    if not steps:
        return read
    read.prompt = process_problem(drawn.problem(drawn.ids[place]))
    try:
        prompt, _ = processor.measure(read.prompt)
    except UserError as error:
        read.reasons = dict.fromkeys(steps, str(error))
        return read
    for sample, own in steps.items():
        try:
            tokens = tokens_of_steps(processor, own)
        except UserError as error:
            read.reasons[sample] = str(error)
            continue
        if prompt + len(tokens) <= context:
            read.tokens[sample] = tokens
        else:
            read.reasons[sample] = (
                f"problem and steps have {prompt + len(tokens):,} tokens, over the model's context of {context:,}"
            )
    return read


def _scored(drawn: DrawnAnswers, rows: Sequence[Mapping[str, Any]]) -> ScoredAnswers:
    failed = [row for row in rows if "reason" in row]
    n = drawn.n
    return ScoredAnswers(
        steps=[[row["scores"] for row in rows[start : start + n]] for start in range(0, len(rows), n)],
        without_steps=sum(not row["scores"] for row in rows) - len(failed),
        unscored=len(failed),
        examples=[{key: row[key] for key in ("id", "sample", "reason")} for row in failed[:_SHOWN]],
    )
