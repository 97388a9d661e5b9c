"""`mmeureka prm demo`: policy, tree search, process reward model and best-of-8 on the built-in problems."""

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
        "a small policy, its trees, a model of their labels, and the best of 8 answers, on the built-in problems",
        resumes="continues where it stopped",
    )
    default = Path("runs/mm_prm")
    parser.add_argument("--output", type=Path, metavar="DIR", default=default, help="default: %(default)s")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of the demo's three configs")


def run(args: argparse.Namespace) -> int:
    started = time.perf_counter()
    start_jax()
    from mmeureka_jax.training.prm_demo import prm_demo

    print(json.dumps(prm_demo(args.output, args.overrides, started=started)))
    return 0
