"""The `mmeureka` command: subcommands and nothing else.

A mistake of the user's ends with one message on stderr and exit code 2, without a traceback.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from mmeureka_jax import __version__
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    for noisy in ("absl", "orbax", "jax", "tensorboardX", "httpx"):
        logging.getLogger(noisy).setLevel(logging.ERROR)
    try:
        return args.run(args) or 0
    except UserError as error:
        print(f"mmeureka: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        print("mmeureka: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130


def build_parser() -> argparse.ArgumentParser:
    from mmeureka_jax.data.cli import add_data_parser

    parser = argparse.ArgumentParser(prog="mmeureka", description=__doc__.splitlines()[0])
    parser.add_argument("--version", action="version", version=f"mmeureka_jax {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    for name, run, summary in (
        ("sft", run_sft, "supervised fine-tuning on worked solutions"),
        ("train", run_train, "reinforcement learning; on an existing run folder it goes on"),
    ):
        command = commands.add_parser(name, help=summary)
        command.add_argument("config", type=Path, help="a YAML file (see configs/)")
        command.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of config keys")
        command.add_argument(
            "--coordinator", metavar="HOST:PORT", help="run over many processes: where process 0 listens"
        )
        command.add_argument("--num-processes", type=int, metavar="N")
        command.add_argument("--process-id", type=int, metavar="I")
        command.set_defaults(run=run)

    command = commands.add_parser("report", help="write RUN/report.html")
    command.add_argument("run_dir", type=Path, metavar="RUN")
    command.set_defaults(run=run_report)

    command = commands.add_parser("demo", help="imitate, then train, a small policy on the built-in problems")
    command.add_argument("--output", type=Path, default=Path("runs/demo"))
    command.set_defaults(run=run_demo)

    add_data_parser(commands)
    return parser


def start_jax(args: argparse.Namespace | None = None) -> None:
    """Sets JAX up before its first use: many processes if asked for, and the persistent compilation cache."""
    import jax

    coordinator = getattr(args, "coordinator", None)
    if coordinator or os.environ.get("MMEUREKA_DISTRIBUTED") == "1":
        jax.distributed.initialize(coordinator, getattr(args, "num_processes", None), getattr(args, "process_id", None))
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mmeureka_jax" / "xla"
        jax.config.update("jax_compilation_cache_dir", str(cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)


def run_train(args: argparse.Namespace) -> int:
    from mmeureka_jax.config import load_config

    config = load_config(args.config, args.overrides)
    start_jax(args)
    from mmeureka_jax.mesh import is_main
    from mmeureka_jax.report import write_report
    from mmeureka_jax.rl.trainer import train

    run_dir = train(config)
    if is_main():
        print(f"report: {write_report(run_dir).resolve()}")
    return 0


def run_sft(args: argparse.Namespace) -> int:
    from mmeureka_jax.config import load_config

    config = load_config(args.config, args.overrides)
    start_jax(args)
    from mmeureka_jax.mesh import is_main
    from mmeureka_jax.report import write_report
    from mmeureka_jax.rl.sft import fine_tune

    run_dir = fine_tune(config)
    if is_main():
        print(f"report: {write_report(run_dir).resolve()}")
    return 0


def run_report(args: argparse.Namespace) -> int:
    from mmeureka_jax.report import write_report

    print(write_report(args.run_dir).resolve())
    return 0


def run_demo(args: argparse.Namespace) -> int:
    start_jax()
    from mmeureka_jax.demo import demo

    demo(args.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
