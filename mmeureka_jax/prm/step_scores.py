"""`mmeureka prm score`: a score for each step of given solutions, by a process reward model."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from mmeureka_jax.evaluation.identity import policy_identity
from mmeureka_jax.evaluation.options import ModelOptions
from mmeureka_jax.evaluation.partial_rows import partial_rows
from mmeureka_jax.evaluation.prompt_files import PromptOptions, floats, read_prompts
from mmeureka_jax.prm.form import MarkerTokens, tokens_of_steps
from mmeureka_jax.prm.scorer import Processes, Scorer
from mmeureka_jax.process.console import progress

_BATCHES = 8  # that are sorted by length together


def score_steps_of_file(model: ModelOptions, prompts: PromptOptions, output: Path) -> None:
    """Scores the `steps` of every row into a JSONL file, in the order of the input.

    A row is `{"id", "scores"}`: for each step the probability (float32) that it is right. An interrupted call continues
    (see `partial_rows`).

    Raises:
        UserError: the model is no process reward model, or a row cannot be used; all such rows are named.
    """
    from mmeureka_jax.prm.examples import StepsToScore

    with partial_rows(output) as rows:
        opened = model.open("prm score")
        file = read_prompts(opened, prompts, unique_ids=False, prepare=StepsToScore)
        scorer = Scorer(opened, file.processor, MarkerTokens.of(file.processor), {}, prompts.batch_size)
        part = _BATCHES * scorer.rows
        made_with = {"command": "prm score", **policy_identity(opened), **file.identity}
        done = rows.resume(made_with, [problem.id for problem in file.problems], per_batch=part)
        left = file.problems[done:]
        if left:
            scorer = dataclasses.replace(scorer, params=opened.load_params())
        with progress(len(file.problems), "score", unit="row", initial=done) as bar:
            for start in range(0, len(left), part):
                own = left[start : start + part]
                processes = [
                    Processes(problem, [tokens_of_steps(file.processor, problem.metadata["steps"])]) for problem in own
                ]
                scores = scorer.score_processes(processes, bar.update)
                rows.add(
                    *(
                        {"id": problem.id, "scores": floats(of_row, "scores")}
                        for problem, (of_row,) in zip(own, scores, strict=True)
                    )
                )
        rows.publish()
