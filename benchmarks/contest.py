"""A contest: a peer and the project in turn on the same work. What the three `vs_*` benchmarks share.

Each run is a process of its own, on the CPU in float32, and only one runs at a time, so that what else the machine does
hits both sides alike. Both read one random checkpoint, `common.TINY` with a vocabulary that the contest names. A run
reports the median of its timed calls, after `WARM_UP` others on both sides; what counts is the median of the runs. The
ratio is above 1 where the project is faster.

The peer may live in an environment without the project: its programs, in `peers/`, import nothing of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from benchmarks.common import TINY, positive, random_prompts
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.process.cpu import cores
from mmeureka_jax.setup.random_models import SPECIAL_TOKENS, special_token_ids, write_tiny_checkpoint

ROOT = Path(__file__).parents[1]
BUSY = 0.3  # cores that other programs may use just before a run, whose threads wait for the slowest


@dataclass(frozen=True)
class Side:
    """A program as `python -m` takes it, and the figure of its JSON line that counts."""

    module: str
    options: list[str]
    figure: str


@dataclass(frozen=True)
class Contest:
    peer: Side
    ours: Side
    vocab_size: int
    needs: tuple[str, ...]  # what `pip install` has to get for the peer, one call each
    lower_is_better: bool = False
    same: tuple[str, ...] = ()  # sizes that both sides report; they have to agree

    def ratio(self, peer: float, ours: float) -> float:
        return peer / ours if self.lower_is_better else ours / peer


def make_parser(module: str, summary: str) -> argparse.ArgumentParser:
    """A parser with the options that every contest has."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=summary, allow_abbrev=False)
    parser.add_argument(
        "--peers-python", default=sys.executable, metavar="PYTHON", help="of the peer's environment (default: this one)"
    )
    parser.add_argument("--repeats", type=positive, default=3, help="runs of each side")
    parser.add_argument("--steps", type=positive, default=5, help="timed calls in a run")
    return parser


def flags(**options: Any) -> list[str]:
    """`--name value` of each option."""
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


def prompt_count(args: argparse.Namespace) -> int:
    """How many prompts `--batch` responses have, `--group` to a prompt."""
    if args.batch % args.group:
        raise UserError(f"--group {args.group} does not divide --batch {args.batch}")
    return args.batch // args.group


def run_contest(
    make: Callable[[argparse.Namespace, Path], Contest],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
) -> int:
    """Holds the contest `make(args, checkpoint folder)` and prints figures, ratio and options as one JSON line."""
    args = parser.parse_args(arguments)
    try:
        with tempfile.TemporaryDirectory() as folder:
            model = Path(folder) / "model"
            result = hold(make(args, model), args, model)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(json.dumps(result), flush=True)
    return 0


def hold(contest: Contest, args: argparse.Namespace, model: Path) -> dict[str, Any]:
    """Both sides, `args.repeats` times each.

    Raises:
        UserError: the peer cannot be imported, or the options do not go together.
    """
    peers_python = find_peer(args.peers_python, contest)
    write_byte_checkpoint(model, contest.vocab_size)
    if "prompt" in args:
        # Raises the error that both sides would.
        random_prompts(read_config(model), 1, args.prompt, getattr(args, "side", 0))
    busy: list[float] = []
    peer_runs: list[dict[str, Any]] = []
    our_runs: list[dict[str, Any]] = []
    turns = (("peer", contest.peer, peers_python, peer_runs), ("ours", contest.ours, sys.executable, our_runs))
    for number in range(args.repeats):
        for name, side, python, runs in turns:
            busy.append(busy_cores())
            runs.append(run_side(python, side))
            print(f"{number + 1}/{args.repeats} {name}: {runs[-1][side.figure]:g}", file=sys.stderr, flush=True)
    if max(busy) > BUSY:
        print(f"others kept {max(busy)} cores busy: the ratio is not to be trusted", file=sys.stderr, flush=True)
    for size in contest.same:
        found = {run[size] for run in peer_runs + our_runs}
        if len(found) > 1:
            raise SystemExit(f"the sides did not do the same work: {size} {sorted(found)}")
    theirs, ours = ([run[side.figure] for run in runs] for _, side, _, runs in turns)
    return {
        "ratio": round(contest.ratio(statistics.median(theirs), statistics.median(ours)), 3),
        "ratios": [round(contest.ratio(*pair), 3) for pair in zip(theirs, ours, strict=True)],
        "peer": {"program": contest.peer.module, contest.peer.figure: statistics.median(theirs), "all": theirs},
        "ours": {"program": contest.ours.module, contest.ours.figure: statistics.median(ours), "all": ours},
        "same": {size: our_runs[0][size] for size in contest.same},
        "options": {name: value for name, value in vars(args).items() if name != "peers_python"},
        "cores": cores(),
        "versions": peer_runs[0]["versions"] | {"our jax": our_runs[0]["jax"]},
        "busy_cores": busy,
    }


def find_peer(name: str, contest: Contest) -> str:
    """The path of the peer's interpreter.

    Raises:
        UserError: there is none, or it cannot import the peer's program.
    """
    python = shutil.which(name)
    if python is None:
        raise UserError(f"--peers-python {name}: no such program")
    python = os.path.abspath(python)  # not resolved: in a virtual environment it is a link
    done = run([python, "-c", f"import {contest.peer.module}"])
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        install = "".join(f"\n  {python} -m pip install {packages}" for packages in contest.needs)
        raise UserError(
            f"{python} cannot import {contest.peer.module}: {reason}\n"
            f"Name the interpreter of the peers' environment with --peers-python, or install what is missing:{install}"
        )
    return python


def run_side(python: str, side: Side) -> dict[str, Any]:
    """The JSON line, the last on stdout, of one run. What the run says on stderr is shown only if it fails."""
    done = run([python, "-m", side.module, *side.options])
    if done.returncode:
        command = " ".join(done.args)
        raise SystemExit(f"{command}\nended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """A command at the root of the repository, on the CPU and without the network."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)


def busy_cores() -> float:
    """How many cores the machine keeps busy, over a second in which this process does nothing."""

    def ticks() -> int:
        user, nice, system, _idle, _wait, *others = map(int, Path("/proc/stat").read_text().split()[1:9])
        return user + nice + system + sum(others)

    start = time.perf_counter()
    before = ticks()
    time.sleep(1)
    return round((ticks() - before) / os.sysconf("SC_CLK_TCK") / (time.perf_counter() - start), 2)


def write_byte_checkpoint(folder: Path, vocab_size: int) -> None:
    """`common.TINY` with so many rows in its vocabulary, and a tokenizer that makes every byte of a text a token."""
    write_tiny_checkpoint(folder, TINY)
    characters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({character: token for token, character in enumerate(characters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    tokenizer.save(str(folder / "tokenizer.json"))

    config = read_config(folder)
    config = replace(
        config, text=replace(config.text, vocab_size=vocab_size), **special_token_ids(tokenizer.get_vocab())
    )
    (folder / "config.json").write_text(json.dumps(config.to_hf()))
    (folder / "generation_config.json").write_text(json.dumps(config.to_hf_generation()))

    tensors = load_file(folder / "model.safetensors")
    table = np.random.default_rng(0).standard_normal((vocab_size, config.text.hidden_size), np.float32)
    tensors["model.embed_tokens.weight"] = table * np.float32(0.02)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
