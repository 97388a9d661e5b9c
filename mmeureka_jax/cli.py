"""The `mmeureka` command: subcommands and nothing else.

A mistake of the user's ends with one message on stderr and exit code 2, without a traceback.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, during which Ctrl-C may come too
    import sys

    from mmeureka_jax.__main__ import main as start

    sys.exit(start())

import argparse
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from mmeureka_jax import __version__
from mmeureka_jax.commands.arguments import (
    add_command,
    add_model_arguments,
    add_pixel_arguments,
    add_prompt_file_arguments,
    add_root_arguments,
    add_sampling_arguments,
    count,
    model_options,
    positive,
    positive_int,
    prompt_options,
    refuse_too_many,
    size,
    step,
)
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.config.schema import ACCURACY_RULES, PROMPT_STYLES
from mmeureka_jax.errors import (
    EXIT_BAD_INPUT,
    EXIT_STOPPED,
    EXIT_TERMINATED,
    RunStopped,
    Terminated,
    UserError,
)
from mmeureka_jax.files import refuse_address
from mmeureka_jax.process import cluster, interrupts
from mmeureka_jax.process.console import plural, speak_in_lines, waiting

DTYPES = ("float32", "bfloat16", "float16")
PATH_VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "TFDS_DATA_DIR", "HF_HOME", "HF_HUB_CACHE")
RESUMABLE = dict.fromkeys(("sft", "train", "demo", "sweep"), "continues from the last checkpoint")
RESUMABLE |= dict.fromkeys(("sample", "score", "eval"), "continues after the last whole batch")


def main(arguments: Sequence[str] | None = None) -> int:
    args = argparse.Namespace(command=None)
    try:
        build_parser().parse_args(arguments, args)
        keep_quiet()
        refuse_addresses(sys.argv[1:] if arguments is None else arguments)
        code = args.run(args) or 0
        sys.stdout.flush()  # a closed pipe shows here and not when Python ends
        cluster.leave()
        return code
    except BaseException as error:
        code = report(error, args.command)
        if code is None:
            raise
        return code


def report(error: BaseException, command: str | None) -> int | None:
    """Says why a command has ended, to the other processes of its run too. The exit code; None for what is no mistake
    of the user's."""
    cluster.look_for_cause(error)
    if isinstance(error, KeyboardInterrupt) or interrupts.came():
        code = interrupts.say(f"; the same command {RESUMABLE[command]}" if command in RESUMABLE else "")
        message = "interrupted"
    elif isinstance(error, UserError):
        message = str(error)
        print(f"mmeureka: error: {message}", file=sys.stderr)
        code = EXIT_STOPPED if isinstance(error, RunStopped) else EXIT_BAD_INPUT
    elif isinstance(error, Terminated):
        print(f"mmeureka: {error}", file=sys.stderr)
        cluster.leave()
        return EXIT_TERMINATED
    elif isinstance(error, BrokenPipeError):  # the reader of our output has ended, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code, message = 141, "nobody reads its output any more"
    elif isinstance(error, OSError) and error.filename is not None:
        # A name that is too long or a folder that may not be looked into, wherever it was met.
        message = f"{error.filename}: {error.strerror}"
        print(f"mmeureka: error: {message}", file=sys.stderr)
        code = EXIT_BAD_INPUT
    else:
        cluster.end_after(error)
        return None
    cluster.end(code, message)
    return code


def refuse_addresses(arguments: Sequence[str]) -> None:
    """Raises a UserError if an argument, or a variable that names a folder, is the address of something elsewhere."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        match = re.fullmatch(r"(?:([\w.-]+)=)?(.*)", argument, re.DOTALL)
        assert match is not None
        refuse_address(match[1] or (before if before.startswith("--") else "arguments"), match[2])
    for name in PATH_VARIABLES:
        refuse_address(f"${name}", os.environ.get(name, ""))


def keep_quiet() -> None:
    """Leaves stderr to this package: what the libraries print of an error, with tracebacks, they also raise."""
    speak_in_lines()
    for noisy in ("absl", "asyncio", "orbax", "jax", "tensorboardX", "httpx", "matplotlib"):
        logging.getLogger(noisy).setLevel(logging.CRITICAL)

    # When a checkpoint cannot be written, TensorStore's threads report so to an event loop that Orbax has closed, for
    # every array, and Python finds coroutines of Orbax that nobody waits for any more.
    def is_late(error: BaseException | None) -> bool:
        return isinstance(error, RuntimeError) and str(error) == "Event loop is closed"

    def print_exception(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not is_late(error):
            sys.__excepthook__(kind, error, trace)

    def print_unraisable(unraisable: sys.UnraisableHookArgs) -> None:
        if isinstance(unraisable.exc_value, KeyboardInterrupt) and interrupts.came():
            interrupts.end_at_once()  # Python has swallowed it, in a destructor or a callback
        if not is_late(unraisable.exc_value):
            sys.__unraisablehook__(unraisable)

    sys.excepthook, sys.unraisablehook = print_exception, print_unraisable
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize.* was never awaited", RuntimeWarning)


def build_parser() -> argparse.ArgumentParser:
    from mmeureka_jax.commands.data import add_data_parser

    parser = argparse.ArgumentParser(prog="mmeureka", description="Rule-based RL for vision-language models in JAX.")
    parser.add_argument("--version", action="version", version=f"mmeureka_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_run_parsers(commands)
    add_sample_parser(commands)
    add_score_parser(commands)
    add_eval_parser(commands)
    add_export_parser(commands)
    add_convert_parser(commands)

    report = add_command(commands, "report", run_report, "write RUN/report.html")
    report.add_argument("run_dir", type=Path, metavar="RUN", help="the folder of a run, finished or not")
    add_sweep_parsers(commands)
    demo = add_command(commands, "demo", run_demo, "imitate, then train, a small policy on the built-in problems")
    demo.add_argument("--output", type=Path, metavar="DIR", default=Path("runs/demo"), help="default: %(default)s")
    demo.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of both configs of the demo")

    add_data_parser(commands)
    return parser


def add_run_parsers(commands: argparse._SubParsersAction) -> None:
    for name, run, summary in (
        ("sft", run_sft, "supervised fine-tuning on worked solutions; on an existing run folder it continues"),
        ("train", run_train, "reinforcement learning; on an existing run folder it continues"),
    ):
        parser = add_command(commands, name, run, summary)
        parser.add_argument("config", type=Path, help="a YAML file (see configs/)")
        parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of config keys")
        group = parser.add_argument_group("a run over many processes")
        group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
        group.add_argument("--num-processes", type=positive_int, metavar="N")
        group.add_argument("--process-id", type=count, metavar="I")


def add_sample_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "sample", run_sample, "sample responses to the prompts of a file")
    add_model_arguments(parser)
    add_prompt_file_arguments(
        parser, "rows {id, messages}; content: text, or {type: image, image: PATH} and text parts"
    )
    add_sampling_arguments(parser, temperature=1.0)
    parser.add_argument("--max-new-tokens", type=size, default=1024, metavar="N", help="default: %(default)s")


def add_score_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "score", run_score, "log-probability of each token of given responses")
    add_model_arguments(parser)
    add_prompt_file_arguments(parser, "rows as for `sample`, with a `response` text; ids may repeat")
    parser.add_argument("--temperature", type=positive, default=1.0, metavar="T", help="of the policy (default: 1)")


def add_eval_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "eval", run_eval, "accuracy on a problem set, pass@k with several answers")
    add_model_arguments(parser)
    parser.add_argument(
        "--data",
        required=True,
        metavar="SPEC",
        help="a .jsonl, .json or .parquet file, a folder or glob, tfds:NAME@SPLIT",
    )
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="folder of results.json, rows.jsonl")
    add_root_arguments(parser)
    parser.add_argument("--limit", type=positive_int, metavar="N", help="ask only the first N usable problems")
    parser.add_argument("--batch-size", type=size, default=32, metavar="N", help="default: %(default)s")
    add_sampling_arguments(parser, temperature=0.0)
    group = parser.add_argument_group("default: as the run that exported the checkpoint asked, else as in a config")
    group.add_argument("--prompt-style", choices=PROMPT_STYLES, help="instructions around each question")
    group.add_argument(
        "--accuracy", choices=ACCURACY_RULES, help="reward.accuracy: the rule that answers are graded by"
    )
    group.add_argument("--max-new-tokens", type=size, metavar="N")
    add_pixel_arguments(group)
    group.add_argument("--max-prompt-tokens", type=size, metavar="N", help="default: the model's context")


def add_export_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "export", run_export, "write a run's policy as a folder that transformers loads")
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the folder of a run, finished or not")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--step", type=step, default="latest", metavar="N|best|latest", help="default: %(default)s")
    parser.add_argument("--average", action="store_true", help="the average that optimizer.ema_decay kept")
    parser.add_argument("--adapters", action="store_true", help="only what model.lora trained, in PEFT's layout")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: float32)")
    parser.add_argument("--max-shard-gb", type=positive, default=5.0, metavar="GB", help="default: %(default)s")
    parser.add_argument("--source", type=Path, metavar="DIR", help="checkpoint that the run started from, if it moved")


def add_convert_parser(commands: argparse._SubParsersAction) -> None:
    summary = "a checkpoint in Orbax's format or in Hugging Face's, there and back bit for bit"
    parser = add_command(commands, "convert", run_convert, summary)
    parser.add_argument("source", metavar="DIR", help="a checkpoint folder of either format, or a hub id")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--to", choices=("orbax", "hf"), help="default: the format that the source is not in")
    parser.add_argument("--dtype", choices=DTYPES, help="default: each tensor keeps its own")
    parser.add_argument("--max-shard-gb", type=positive, default=5.0, metavar="GB", help="default: %(default)s")


def add_sweep_parsers(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "sweep", run_sweep, "runs with other settings and seeds, and a comparison of them")
    parser.add_argument("file", type=Path, help="a YAML file (see configs/ablations/)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="of every run; folder=DIR: of the sweep")
    parser.add_argument("--index", type=count, metavar="I", help="only this run, for arrays of jobs")
    parser.add_argument("--list", action="store_true", help="print index, run and state of each, and run nothing")
    parser.add_argument("--table", action="store_true", help="write page and tables of what is there, and run nothing")
    parser.add_argument("--retry", action="store_true", help="continue runs that stopped too")
    parser = add_command(commands, "compare", run_compare, "draw runs over one another")
    parser.add_argument("runs", nargs="+", metavar="[KIND=]RUN", help="run folders; those of one KIND are averaged")
    parser.add_argument(
        "--output", type=Path, required=True, metavar="DIR", help="folder of comparison.html and tables"
    )
    parser.add_argument("--metrics", nargs="+", metavar="NAME", help="what to draw (default: the usual ones)")


def run_train(args: argparse.Namespace) -> int:
    from mmeureka_jax.config.checks import validate_config
    from mmeureka_jax.config.schema import load_config, stage_configs

    config = load_config(args.config, args.overrides)
    validate_config(config)
    start_jax(args, config)
    from mmeureka_jax.mesh import is_main
    from mmeureka_jax.report.page import write_report
    from mmeureka_jax.train.rl import train

    train(config)
    if is_main():
        for stage in stage_configs(config):
            with waiting("writing the report"):
                path = write_report(stage.run_dir)
            print(f"report: {path.resolve()}")
    return 0


def run_sft(args: argparse.Namespace) -> int:
    from mmeureka_jax.config.checks import validate_config
    from mmeureka_jax.config.schema import load_config

    config = load_config(args.config, args.overrides)
    validate_config(config, command="sft")
    start_jax(args, config)
    from mmeureka_jax.mesh import is_main
    from mmeureka_jax.report.page import write_report
    from mmeureka_jax.train.sft import fine_tune

    run_dir = fine_tune(config)
    if is_main():
        with waiting("writing the report"):
            path = write_report(run_dir)
        print(f"report: {path.resolve()}")
    return 0


def run_sample(args: argparse.Namespace) -> int:
    refuse_too_many(args)
    start_jax()
    from mmeureka_jax.evaluation.prompt_files import sample_file

    sample_file(
        model_options(args),
        prompt_options(args),
        args.output,
        n=args.n,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
    )
    return 0


def run_score(args: argparse.Namespace) -> int:
    start_jax()
    from mmeureka_jax.evaluation.prompt_files import score_file

    score_file(model_options(args), prompt_options(args), args.output, temperature=args.temperature)
    return 0


def run_eval(args: argparse.Namespace) -> int:
    refuse_too_many(args)
    start_jax()
    from mmeureka_jax.evaluation.evaluate import RESULTS_FILE, EvalOptions, evaluate

    options = EvalOptions(
        data=args.data,
        root=args.root,
        allow_outside_root=args.allow_outside_root,
        limit=args.limit,
        prompt_style=args.prompt_style,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        max_prompt_tokens=args.max_prompt_tokens,
        accuracy=args.accuracy,
        max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
        n=args.n,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
    )
    results = evaluate(model_options(args), options, args.output)
    counted = f"{results['answers']} answers to " if args.n > 1 else ""
    problems = plural(results["problems"], "problem")
    print(f"accuracy {results['accuracy']:.4f} ({results['correct']} of {counted}{problems})")
    for k, rate in results.get("pass_at_k", {}).items():
        print(f"pass@{k} {rate:.4f}")
    print(f"results: {(args.output / RESULTS_FILE).resolve()}")
    return 0


def run_export(args: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # export is work for the host; a run may be using the accelerator
    from mmeureka_jax.export.policy import export_run

    shard_bytes = int(args.max_shard_gb * 1e9)
    step = export_run(
        args.run_dir,
        args.output,
        step=args.step,
        average=args.average,
        adapters=args.adapters,
        dtype=args.dtype,
        max_shard_bytes=shard_bytes,
        source=args.source,
    )
    print(f"step {step}: {args.output.resolve()}")
    return 0


def run_convert(args: argparse.Namespace) -> int:
    import jax

    jax.config.update("jax_platforms", "cpu")  # as export
    from mmeureka_jax.export.convert import convert

    shard_bytes = int(args.max_shard_gb * 1e9)
    form = convert(args.source, args.output, to=args.to, dtype=args.dtype, max_shard_bytes=shard_bytes)
    print(f"{form}: {args.output.resolve()}")
    return 0


def run_report(args: argparse.Namespace) -> int:
    from mmeureka_jax.report.page import write_report

    print(write_report(args.run_dir).resolve())
    return 0


def run_sweep(args: argparse.Namespace) -> int:
    from mmeureka_jax.train import sweep

    chosen = sweep.load_sweep(args.file, args.overrides)
    if args.list:
        for index, member in enumerate(chosen.members):
            print(f"{index}\t{member.kind}\tseed {member.seed}\t{sweep.state(member)}")
        return 0
    if args.table:
        page: Path | None = sweep.write_comparison(chosen)
    else:
        page = sweep.run_sweep(chosen, only=args.index, retry=args.retry)
    if page is not None:
        print(f"comparison: {page.resolve()}")
    return 0


def run_compare(args: argparse.Namespace) -> int:
    from mmeureka_jax.report import comparison as compare
    from mmeureka_jax.runs.tracking import read_metrics

    runs = []
    for text in args.runs:
        kind, separator, folder = text.partition("=")
        if not separator or Path(text).exists():  # folders of sweeps have = in their names
            kind = folder = text
        rows = read_metrics(Path(folder))
        runs.append(compare.Run(kind, folder, rows, compare.state_of(Path(folder), rows)))
    page = compare.write_comparison(runs, args.output, title="Comparison", metrics=args.metrics or compare.METRICS)
    print(f"comparison: {page.resolve()}")
    return 0


def run_demo(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    start_jax()
    from mmeureka_jax.commands.demo import demo

    print(json.dumps(demo(args.output, args.overrides, started=started)))
    return 0
