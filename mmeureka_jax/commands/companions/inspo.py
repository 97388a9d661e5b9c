"""`mmeureka companions inspo`: offline multi-agent learning by in-sample sequential policy optimisation."""

from __future__ import annotations

import argparse

from mmeureka_jax.commands.companions import add_companion, run_companion
from mmeureka_jax.commands.jax_setup import start_jax


def add_parser(commands: argparse._SubParsersAction) -> None:
    add_companion(commands, "inspo", run, "offline learning of two agents in turns, from the data of a game")


def run(args: argparse.Namespace) -> int:
    start_jax()
    from mmeureka_jax.companions.inspo.run import INSPO

    return run_companion(INSPO, args)
