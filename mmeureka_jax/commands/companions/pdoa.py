"""`mmeureka companions pdoa`: PDOA, preferences found from demonstrations, and costs weighed with caution."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.companions import add_companion, run_companion
from mmeureka_jax.commands.jax_setup import start_jax


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds `companions pdoa`."""
    add_companion(commands, "pdoa", run, "find preferences from demonstrations (PDOA)")


def run(args: argparse.Namespace) -> int:
    """Runs the experiment."""
    start_jax()
    from mmeureka_jax.companions.morl.pdoa_run import COMPANION

    return run_companion(COMPANION, args)
