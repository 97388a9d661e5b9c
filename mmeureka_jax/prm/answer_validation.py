"""What choosing among drawn answers gives, measured while a process reward model is trained (`prm.answers`)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.evaluation.accuracy import RESULTS_FILE
from mmeureka_jax.files import read_json
from mmeureka_jax.models.policy import Params
from mmeureka_jax.prm.answer_scores import AnswersToScore, read_answers
from mmeureka_jax.prm.best_of_n import best_of_n
from mmeureka_jax.prm.drawn_answers import DrawnAnswers, answers_to_data
from mmeureka_jax.prm.scorer import Processes, Scorer
from mmeureka_jax.process.console import say_facts
from mmeureka_jax.setup.policy import OpenedPolicy

if TYPE_CHECKING:
    from mmeureka_jax.data.processor import Processor


@dataclass(frozen=True)
class AnswerValidation:
    """N answers to each of some problems, and what scores them. All hosts call `run` together.

    Attributes:
        read: the answers as the model reads them, by problem.
    """

    scorer: Scorer
    drawn: DrawnAnswers
    read: Sequence[AnswersToScore]

    @property
    def count(self) -> int:
        """Problems."""
        return len(self.read)

    def run(self, params: Params, on_scored: Callable[[int], object]) -> dict[str, float]:
        """The share of problems whose chosen answer is right, by each way to choose, under these parameters."""
        scored = [one for one in self.read if one.prompt is not None and one.tokens]
        on_scored(self.count - len(scored))
        processes = [Processes(one.prompt, list(one.tokens.values())) for one in scored if one.prompt is not None]
        scores = iter(dataclasses.replace(self.scorer, params=params).score_processes(processes, on_scored))
        steps: list[list[Sequence[float]]] = []
        for one in self.read:
            own = dict(zip(one.tokens, next(scores), strict=True)) if one.prompt is not None and one.tokens else {}
            steps.append([own[sample].tolist() if sample in own else [] for sample in range(self.drawn.n)])
        (right,) = self.drawn.verdicts.values()
        found = best_of_n(steps, right, self.drawn.stated)
        row = {
            "validation/random_choice": float(found.random.mean()),
            "validation/pass_at_n": float(found.pass_at_k[found.n].mean()),
        }
        if found.majority is not None:
            row["validation/majority_vote"] = float(found.majority.mean())
        best = {name: float(by_k[found.n].mean()) for name, by_k in found.best_of_k.items()}
        return row | {f"validation/best_of_n/{name}": share for name, share in best.items()}


def open_answer_validation(
    config: Config, opened: OpenedPolicy, processor: Processor, scorer: Scorer
) -> AnswerValidation | None:
    """The answers of `prm.answers`; None without any.

    Raises:
        UserError: it is no folder of `mmeureka eval --data` with several answers to each problem, or none has steps.
    """
    if config.prm.answers is None:
        return None
    folder = Path(config.prm.answers)
    settings = read_json(folder / RESULTS_FILE).get("settings")
    spec = settings.get("data") if isinstance(settings, dict) else None
    if not isinstance(spec, str):
        raise UserError(f"prm.answers: {folder}: not the folder of `mmeureka eval --data SPEC --n N`")
    data = config.data
    drawn = answers_to_data(spec, folder, root=data.root, allow_outside_root=data.allow_outside_root)
    context = opened.policy.config.text.max_position_embeddings
    read = [read_answers(processor, context, drawn, place) for place in range(len(drawn.ids))]
    if not any(one.tokens for one in read):
        raise UserError(f"prm.answers: {folder}: none of the {drawn.count:,} answers has steps that can be scored")
    say_facts({"answers": f"{folder}, {drawn.n} to each of {len(drawn.ids):,} problems"})
    return AnswerValidation(scorer, drawn, read)
