"""`mmeureka eval judge`: answers to a public benchmark, judged without a model."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command, add_judge_model_arguments, benchmark, judge_model, size
from mmeureka_jax.config.schema import RewardConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.process.console import progress


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "judge", run, "judge answers to public benchmarks, without a model")
    parser.add_argument("--benchmark", type=benchmark, required=True, metavar="NAME=PATH", help="its released files")
    parser.add_argument(
        "--answers", type=Path, required=True, metavar="A.jsonl", help="rows {id, response}; of one id: samples"
    )
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of results.json, NAME.jsonl, eval.html"
    )
    parser.add_argument("--partial", action="store_true", help="accept a part of the release, and mark its scores")
    add_judge_model_arguments(parser)
    parser.add_argument("--reward-workers", type=size, default=RewardConfig.workers, metavar="N", help="processes")


def run(args: argparse.Namespace) -> int:
    from mmeureka_jax.evaluation.benchmark import open_benchmark
    from mmeureka_jax.evaluation.judge_model import add_verdicts, with_judge
    from mmeureka_jax.evaluation.judging import (
        in_words,
        judge,
        judges_of,
        read_answers,
        results_of,
        write_results,
        write_rows,
    )
    from mmeureka_jax.evaluation.pages import Judged, with_problems, write_page
    from mmeureka_jax.evaluation.release import read_release
    from mmeureka_jax.rewards.workers import RewardWorkers

    name, path = args.benchmark
    model = judge_model(args)
    asked = open_benchmark(name)
    released = read_release(asked, path, partial=args.partial)
    answers = read_answers(args.answers, released)
    if not answers:
        raise UserError(f"{args.answers}: no answers in it")
    with RewardWorkers(RewardConfig(workers=args.reward_workers), (asked.official,)) as workers:
        workers.validate()
        with progress(len(answers), f"judge {name}", unit="answer") as bar:
            rows = judge(released, answers, workers, bar.update)
    if model is not None:
        rows = add_verdicts(model, released, rows, answers, args.output)
    rows = with_problems(released, rows, answers)
    write_rows(args.output, name, rows)
    results = results_of(released, rows) | {
        "settings": {
            "answers": str(args.answers),
            "release": released.benchmark.settings.title,
            "data": str(released.path),
            "judges": judges_of(released.benchmark),
        }
    }
    results = with_judge(results, model)
    file = write_results(args.output, {name: results})
    page = write_page([Judged(released, rows, results)], args.output)
    print(in_words(name, results))
    print(f"results: {file.resolve()}\npage: {page.resolve()}")
    return 0
