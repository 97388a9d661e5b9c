"""The `mmeureka` command: subcommands and nothing else.

A mistake of the user's ends with one message on stderr and exit code 2, without a traceback.
"""

from __future__ import annotations

if __name__ == "__main__":  # before the other imports, during which Ctrl-C may come too
    import sys

    from mmeureka_jax.process.interrupts import ends_in_one_line

    def command() -> int:
        from mmeureka_jax.cli import main

        return main()

    sys.exit(ends_in_one_line(command))

import argparse
import logging
import os
import re
import sys
import warnings
from collections.abc import Sequence
from types import TracebackType

from mmeureka_jax import __version__
from mmeureka_jax.commands.arguments import add_commands
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
from mmeureka_jax.process.console import speak_in_lines

PATH_VARIABLES = ("JAX_COMPILATION_CACHE_DIR", "XDG_CACHE_HOME", "TFDS_DATA_DIR", "HF_HOME", "HF_HUB_CACHE")
TAKE_ADDRESSES = ("--judge-model",)


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
        code = report(error, getattr(args, "resumes", ""))
        if code is None:
            raise
        return code


def report(error: BaseException, resumes: str = "") -> int | None:
    """Says why a command has ended, also to the other processes of its run. Returns the exit code; None if the
    error is not a mistake of the user's.

    Args:
        resumes: what the same command does when it is started again.
    """
    cluster.look_for_cause(error)
    if isinstance(error, KeyboardInterrupt) or interrupts.came():
        code = interrupts.say(f"; the same command {resumes}" if resumes else "")
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
        code = 141
        message = "nobody reads its output any more"
    elif isinstance(error, OSError) and error.filename is not None:
        # A name that is too long, or a folder that may not be read, wherever it came up.
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
        name = match[1] or (before if before.startswith("--") else "arguments")
        if name not in TAKE_ADDRESSES:
            refuse_address(name, match[2])
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
        # After an interrupt, also in its constructor, an object of a library may not have all that its destructor uses.
        if not (is_late(unraisable.exc_value) or interrupts.came()):
            sys.__unraisablehook__(unraisable)

    sys.excepthook = print_exception
    sys.unraisablehook = print_unraisable
    warnings.filterwarnings("ignore", r"coroutine 'async_serialize.* was never awaited", RuntimeWarning)


def build_parser() -> argparse.ArgumentParser:
    """The parser of every command."""
    parser = argparse.ArgumentParser(prog="mmeureka", description="Rule-based RL for vision-language models in JAX.")
    parser.add_argument("--version", action="version", version=f"mmeureka_jax {__version__}")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_commands("mmeureka_jax.commands", subparsers)
    return parser
