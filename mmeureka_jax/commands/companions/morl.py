"""`mmeureka companions morl`: PRMORL, offline RL for several objectives with a policy kept near its data."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.companions import add_companion, run_companion
from mmeureka_jax.commands.jax_setup import start_jax


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds `companions morl`."""
    add_companion(commands, "morl", run, "learn policies for all preferences offline (PRMORL)")


def run(args: argparse.Namespace) -> int:
    """Runs the experiment."""
    start_jax()
    from mmeureka_jax.companions.morl.run import COMPANION

    return run_companion(COMPANION, args)
