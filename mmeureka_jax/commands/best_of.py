"""The best of N answers, for `mmeureka eval`: its arguments, and what comes of them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mmeureka_jax.commands.arguments import size
from mmeureka_jax.errors import UserError

if TYPE_CHECKING:
    from mmeureka_jax.prm.answer_scores import AnswerScorer
    from mmeureka_jax.prm.drawn_answers import DrawnAnswers

_BATCH_SIZE = 8


def add_best_of_arguments(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the best of several answers, by a process reward model")
    group.add_argument(
        "--best-of", type=size, metavar="N", help="draw N answers to each problem, in place of --n, and compare choices"
    )
    group.add_argument(
        "--prm", metavar="DIR", help="a checkpoint folder or hub id; with --judge-only for the answers that are there"
    )
    group.add_argument(
        "--prm-batch-size", type=size, metavar="P", help=f"problems that it scores together (default: {_BATCH_SIZE})"
    )


def check_best_of(args: argparse.Namespace) -> None:
    """Takes over the number of answers.

    Raises:
        UserError: arguments that do not go together.
    """
    count = args.best_of
    if args.prm is None:
        for name in ("best_of", "prm_batch_size"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name.replace('_', '-')} is for a process reward model: give --prm DIR too")
        return
    if args.coordinator is not None or os.environ.get("MMEUREKA_DISTRIBUTED") == "1":
        raise UserError(
            "--prm runs in one process; draw the answers of many processes with --n, and score them in one with "
            "--judge-only --prm DIR"
        )
    if args.judge_only:
        if count is not None:
            raise UserError("--judge-only --prm compares all answers that are there; leave out --best-of")
        return
    if count is None:
        raise UserError("--prm needs --best-of N, or --judge-only for answers that are there")
    if count == 1:
        raise UserError("--best-of 1 leaves nothing to choose; give at least 2")
    if args.n not in (1, count):
        raise UserError(f"--best-of {count} draws {count} answers to each problem; leave out --n {args.n}")
    args.n = count


def open_answer_scorer(args: argparse.Namespace) -> AnswerScorer | None:
    """The process reward model, checked before an answer is drawn; None if none is given."""
    if args.prm is None:
        return None
    from mmeureka_jax.config.schema import MeshConfig
    from mmeureka_jax.evaluation.options import ModelOptions
    from mmeureka_jax.prm.answer_scores import AnswerScorer

    model = ModelOptions(args.prm, None, args.compute_dtype, MeshConfig(*args.mesh))
    return AnswerScorer(model, args.prm_batch_size or _BATCH_SIZE)


def compare_choices(scorer: AnswerScorer, answers: Sequence[DrawnAnswers], folder: Path) -> None:
    """Scores the answers, writes the files of best_of_n_files.py, and says what is in them."""
    from mmeureka_jax.prm.best_of_n_files import FIGURES_FILE, in_words, write_best_of_n
    from mmeureka_jax.report.best_of_n_page import PAGE_FILE

    content = write_best_of_n(scorer, answers, folder)
    for name, results in content["results"].items():
        for line in in_words(name, results):
            print(line)
    print(f"best of N: {(folder / FIGURES_FILE).resolve()}\npage: {(folder / PAGE_FILE).resolve()}")
