"""`mmeureka eval`: accuracy on a problem set, or on public benchmarks; `mmeureka eval judge` without a model."""

from __future__ import annotations

import argparse
import pkgutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmeureka_jax.commands.arguments import (
    add_command,
    add_commands,
    add_judge_model_arguments,
    add_model_arguments,
    add_pixel_arguments,
    add_process_arguments,
    add_root_arguments,
    add_sampling_arguments,
    benchmark,
    eval_options,
    judge_model,
    model_options,
    positive_int,
    refuse_missing,
    refuse_too_many,
    size,
)
from mmeureka_jax.commands.best_of import (
    add_best_of_arguments,
    check_best_of,
    compare_choices,
    open_answer_scorer,
)
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.config.schema import ACCURACY_RULES, PROMPT_STYLES, MeshConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.process.console import plural

if TYPE_CHECKING:
    from mmeureka_jax.evaluation.options import EvalOptions
    from mmeureka_jax.evaluation.suite import Entry
    from mmeureka_jax.prm.answer_scores import AnswerScorer

_PROCESSES = ("coordinator", "num_processes", "process_id")


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "eval",
        run,
        "accuracy on a problem set, pass@k with several answers",
        resumes="continues after the last whole batch",
    )
    names = "|".join(info.name for info in pkgutil.iter_modules(__path__))
    add_commands(__name__, parser.add_subparsers(title="commands on answers that are there", metavar=names))
    add_model_arguments(parser, required=False)
    parser.add_argument(
        "--benchmark",
        type=benchmark,
        action="append",
        metavar="NAME=PATH",
        help="a public benchmark and its released files; may be given several times",
    )
    parser.add_argument("--suite", metavar="FILE.yaml", help="several benchmarks; papers: those of the papers")
    parser.add_argument("--files", type=Path, default=Path(), metavar="DIR", help="where the paths of a suite start")
    parser.add_argument("--partial", action="store_true", help="accept a part of a release, and mark its scores")
    parser.add_argument(
        "--judge-only",
        action="store_true",
        help="judge the answers that are in DIR again, without a model; with --prm, score them",
    )
    parser.add_argument(
        "--data",
        metavar="SPEC",
        help="a .jsonl, .json or .parquet file, a folder or glob, tfds:NAME@SPLIT",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder of results.json, rows.jsonl")
    add_judge_model_arguments(parser)
    add_root_arguments(parser)
    parser.add_argument("--limit", type=positive_int, metavar="N", help="ask only the first N usable problems")
    parser.add_argument("--batch-size", type=size, default=32, metavar="N", help="default: %(default)s")
    add_sampling_arguments(parser, temperature=0.0)
    parser.add_argument(
        "--samples", dest="n", type=size, default=argparse.SUPPRESS, metavar="N", help="another name of --n"
    )
    add_best_of_arguments(parser)
    group = parser.add_argument_group("default: as the run that exported the checkpoint asked, else as in a config")
    group.add_argument("--prompt-style", choices=PROMPT_STYLES, help="instructions around each question")
    group.add_argument(
        "--accuracy", choices=ACCURACY_RULES, help="reward.accuracy: the rule that answers are graded by"
    )
    group.add_argument("--max-new-tokens", type=size, metavar="N")
    add_pixel_arguments(group)
    group.add_argument("--max-prompt-tokens", type=size, metavar="N", help="default: the model's context")
    add_process_arguments(parser, "benchmarks over many processes")


def run(args: argparse.Namespace) -> int:
    check_best_of(args)
    if args.benchmark is not None or args.suite is not None:
        return _run_benchmarks(args)
    again = args.judge_only and args.prm is not None
    if args.judge_only and not again:
        raise UserError("--judge-only is for --benchmark and --suite, or with --prm DIR for --data")
    refuse_missing(args, *(() if again else ("model",)), "data", "output")
    for name in ("partial", "judge_model", "judge_model_name", *_PROCESSES):
        if getattr(args, name) not in (None, False):
            raise UserError(f"--{name.replace('_', '-')} is for --benchmark and --suite")
    refuse_too_many(args)
    start_jax()
    scorer = open_answer_scorer(args)
    if not again:
        from mmeureka_jax.evaluation.accuracy import measured_accuracy

        with measured_accuracy(model_options(args), eval_options(args, args.data), args.output) as results:
            _say_accuracy(results, args.output)
            _compare_answers_to_data(scorer, args)
    else:
        _compare_answers_to_data(scorer, args)
    return 0


def _say_accuracy(results: Mapping[str, Any], output: Path) -> None:
    from mmeureka_jax.evaluation.accuracy import RESULTS_FILE

    counted = f"{results['answers']} answers to " if "answers" in results else ""
    problems = plural(results["problems"], "problem")
    print(f"accuracy {results['accuracy']:.4f} ({results['correct']} of {counted}{problems})")
    for k, rate in results.get("pass_at_k", {}).items():
        print(f"pass@{k} {rate:.4f}")
    print(f"results: {(output / RESULTS_FILE).resolve()}")


def _compare_answers_to_data(scorer: AnswerScorer | None, args: argparse.Namespace) -> None:
    if scorer is None:
        return
    from mmeureka_jax.prm.drawn_answers import answers_to_data

    drawn = answers_to_data(args.data, args.output, root=args.root, allow_outside_root=args.allow_outside_root)
    compare_choices(scorer, [drawn], args.output)


def _run_benchmarks(args: argparse.Namespace) -> int:
    """Public benchmarks, one after another."""
    if args.data is not None:
        raise UserError("give --data or benchmarks, not both")
    for name in ("accuracy", "root", "allow_outside_root"):
        if getattr(args, name):
            raise UserError(f"--{name.replace('_', '-')} is for --data: a benchmark has its own judges and folders")
    if args.limit is not None and not args.partial:
        raise UserError("--limit asks a part of a release: give --partial too, which marks its scores as partial")
    if args.judge_only and any(getattr(args, name) is not None for name in _PROCESSES):
        raise UserError("--judge-only needs no model and runs in one process; leave out --coordinator and the others")
    refuse_missing(args, "output", *(() if args.judge_only else ("model",)))
    refuse_too_many(args)
    model_that_judges = judge_model(args)
    if not args.judge_only or args.prm is not None:
        start_jax(args, MeshConfig(), args.output)
    from mmeureka_jax.evaluation.ask import asked_and_judged, judge_again
    from mmeureka_jax.evaluation.benchmark import open_benchmark
    from mmeureka_jax.evaluation.draw import Exam
    from mmeureka_jax.evaluation.judging import RESULTS_FILE, in_words
    from mmeureka_jax.evaluation.release import read_release
    from mmeureka_jax.evaluation.suite import Entry, read_suite

    entries = [Entry(name, path, {}) for name, path in args.benchmark or ()]
    entries += read_suite(args.suite, args.files) if args.suite is not None else []
    names = [entry.name for entry in entries]
    if len(set(names)) < len(names):
        raise UserError("a benchmark is given twice; its answers would have the same file")
    releases = [read_release(open_benchmark(entry.name), entry.path, partial=args.partial) for entry in entries]
    options = eval_options(args, "")
    scorer = open_answer_scorer(args)

    def report(results: Mapping[str, Any]) -> None:
        for name, figures in results.items():
            print(in_words(name, figures))
        if results:
            print(f"results: {(args.output / RESULTS_FILE).resolve()}")
        if scorer is not None:
            from mmeureka_jax.prm.drawn_answers import answers_to_benchmark

            compare_choices(scorer, [answers_to_benchmark(one, args.output) for one in releases], args.output)

    if args.judge_only:
        report(judge_again(releases, args.output, options.reward_workers, model_that_judges))
        return 0
    exams = [
        Exam(released, _asked(entry, replace(options, data=str(released.path)), args.best_of))
        for released, entry in zip(releases, entries, strict=True)
    ]
    with asked_and_judged(model_options(args), exams, args.output, model_that_judges) as results:
        report(results)
    return 0


def _asked(entry: Entry, options: EvalOptions, best_of: int | None) -> EvalOptions:
    """How a benchmark is asked; --best-of is the number of answers whatever a suite says."""
    asked = entry.options(options)
    return asked if best_of is None else replace(asked, n=best_of)
