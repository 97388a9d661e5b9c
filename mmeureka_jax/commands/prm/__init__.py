"""`mmeureka prm search|label|train|score|tree`: step labels from tree search, a model of them, its scores."""

from __future__ import annotations

import argparse
import pkgutil

from mmeureka_jax.commands.arguments import add_commands


def add_parser(commands: argparse._SubParsersAction) -> None:
    """Adds `prm` with its own commands: the modules of this folder."""
    parser = commands.add_parser(
        "prm", help="process rewards: tree search, labels, training, scores", description=__doc__
    )
    names = "|".join(info.name for info in pkgutil.iter_modules(__path__))
    add_commands(__name__, parser.add_subparsers(title="commands", required=True, metavar=names))
