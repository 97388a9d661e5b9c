"""`mmeureka demo`: a small policy imitates, then is trained by reinforcement learning."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command
from mmeureka_jax.commands.jax_setup import start_jax


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands,
        "demo",
        run,
        "imitate, then train, a small policy on the built-in problems",
        resumes="continues from the last checkpoint",
    )
    parser.add_argument("--output", type=Path, metavar="DIR", default=Path("runs/demo"), help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of both configs of the demo")


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    start_jax()
    from mmeureka_jax.training.demo import demo

    print(json.dumps(demo(args.output, args.overrides, started=started)))
    return 0
