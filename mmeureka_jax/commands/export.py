"""`mmeureka export`: a run's policy as a folder that transformers loads."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmeureka_jax.commands.arguments import DTYPES, add_command, positive, step


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(commands, "export", run, "write a run's policy as a folder that transformers loads")
    parser.add_argument("run_dir", type=Path, metavar="RUN", help="the folder of a run, finished or not")
    parser.add_argument("--output", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--step", type=step, default="latest", metavar="N|best|latest", help="default: %(default)s")
    parser.add_argument("--average", action="store_true", help="the average that optimizer.ema_decay kept")
    parser.add_argument("--adapters", action="store_true", help="only what model.lora trained, in PEFT's layout")
    parser.add_argument("--dtype", choices=DTYPES, help="of the weights (default: float32)")
    parser.add_argument("--max-shard-gb", type=positive, default=5.0, metavar="GB", help="default: %(default)s")
    parser.add_argument("--source", type=Path, metavar="DIR", help="checkpoint that the run started from, if it moved")


def run(args: argparse.Namespace) -> int:
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
