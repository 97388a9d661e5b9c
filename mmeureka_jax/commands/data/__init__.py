"""`mmeureka data build|check|difficulty|show`: look at problems, find the rows that cannot be used, prepare a TFDS
dataset, measure how hard problems are for a model."""

from __future__ import annotations

import argparse
import pkgutil

from mmeureka_jax.commands.arguments import add_commands


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds `data` with its own commands: the modules of this folder."""
    parser = commands.add_parser("data", help="build, check and show data sets", description=__doc__)
    names = "|".join(info.name for info in pkgutil.iter_modules(__path__))
    add_commands(__name__, parser.add_subparsers(title="commands", required=True, metavar=names))
