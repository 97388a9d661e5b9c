"""Peer and project in turn, several times, on the same work: both medians and their ratio.

    python -m benchmarks.compare step --peers-python peers/bin/python --peer-scripts DIR --side 112

    step       peer_trl.py             TRL's GRPOTrainer, every parameter trained
    generate   peer_hf.py              transformers' generate
    update     peer_hf.py              forward, backward and AdamW in torch, every parameter trained
    tunix      peer_tunix_sampler.py   tunix's Sampler on the text backbone (text prompts for the project too)

The peers' environment and scripts lie outside the project (see README.md). Checkpoints come from the peers, so that
both sides have the same sizes. Each run is a process of its own and only one runs at a time, so that what else the
machine does hits both sides alike. The ratio is above 1 where the project is faster.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Contest:
    """One kind of work as command lines for both sides, and the figure of each side's JSON line that counts."""

    peer: list[str]
    peer_figure: str
    ours: list[str]
    our_figure: str
    lower_is_better: bool = False

    def ratio(self, peer: float, ours: float) -> float:
        return peer / ours if self.lower_is_better else ours / peer


def contest(args: argparse.Namespace, model: Path) -> Contest:
    batch = args.prompts * args.group
    if args.what == "step":
        same = ["--prompts", args.prompts, "--group", args.group, "--new", args.new, "--side", args.side]
        same += ["--steps", args.steps, "--model", model]
        return Contest(
            peer=words("peer_trl.py", *same),
            peer_figure="s_per_step",
            ours=words("benchmarks.step", *same, "--train", "all"),
            our_figure="s_per_step",
            lower_is_better=True,
        )
    sizes = ["--prompt", args.prompt, "--new", args.new]
    peer_sizes = ["--batch", batch, *sizes, "--reps", args.steps]
    if args.what == "update":
        batch_sizes = ["--prompts", args.prompts, "--group", args.group, "--side", 112, "--train", "all"]
        return Contest(
            peer=words("peer_hf.py", *peer_sizes),
            peer_figure="train_tok_per_s",
            ours=words("benchmarks.update", "--model", model, *sizes, *batch_sizes, "--repeats", args.steps),
            our_figure="logical_tok_per_s",
        )
    of_tunix = args.what == "tunix"
    side = 0 if of_tunix else 112
    our_sizes = ["--batch", batch, "--group", args.group, "--side", side, *sizes, "--repeats", args.steps]
    return Contest(
        peer=words("peer_tunix_sampler.py" if of_tunix else "peer_hf.py", *peer_sizes),
        peer_figure="tok_per_s" if of_tunix else "gen_tok_per_s",
        ours=words("benchmarks.generate", "--model", model, *our_sizes),
        our_figure="tok_per_s",
    )


def words(*parts: Any) -> list[str]:
    return [str(part) for part in parts]


@dataclass(frozen=True)
class Peers:
    """The peers' interpreter and scripts."""

    python: Path
    scripts: Path

    def run(self, script: str, *options: str) -> str:
        """Output of one of their scripts."""
        imports = "runpy"
        if script != "peer_tunix_sampler.py" and (self.scripts / "shim_torchvision.py").exists():
            imports += ", shim_torchvision"  # which not every script imports itself
        code = f"import {imports}; runpy.run_path({script!r}, run_name='__main__')"
        return run([str(self.python), "-c", code, *options], cwd=self.scripts)

    def make_checkpoint(self, what: str, path: Path) -> None:
        """The random checkpoint that a contest runs on, as the peer's script has it."""
        if what == "step":
            self.run("make_tiny_qwen.py", str(path))
        else:
            self.run("peer_hf.py", "--save", str(path))


def run(command: Sequence[str], cwd: Path) -> str:
    """Output of a command on the CPU. What it says on stderr is shown only if it fails."""
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}\nended with exit code {done.returncode}:\n{done.stderr[-4000:]}")
    return done.stdout


def figure(output: str, name: str) -> float:
    return float(json.loads(output.strip().splitlines()[-1])[name])


def main(arguments: Sequence[str] | None = None) -> int:
    args = build_parser().parse_args(arguments)
    peers = Peers(Path(os.path.abspath(args.peers_python)), args.peer_scripts.resolve())
    load = os.getloadavg()[0]
    theirs: list[float] = []
    ours: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        peers.make_checkpoint(args.what, model)
        work = contest(args, model)
        for number in range(args.repeats):
            theirs.append(figure(peers.run(*work.peer), work.peer_figure))
            print(f"{number + 1}/{args.repeats} peer: {theirs[-1]:g}", file=sys.stderr, flush=True)
            ours.append(figure(run([sys.executable, "-m", *work.ours], cwd=ROOT), work.our_figure))
            print(f"{number + 1}/{args.repeats} ours: {ours[-1]:g}", file=sys.stderr, flush=True)
    result = {
        "what": args.what,
        "ratio": round(work.ratio(statistics.median(theirs), statistics.median(ours)), 3),
        "peer": {"script": work.peer[0], work.peer_figure: statistics.median(theirs), "all": theirs},
        "ours": {"script": work.ours[0], work.our_figure: statistics.median(ours), "all": ours},
        "ratios": [round(work.ratio(*pair), 3) for pair in zip(theirs, ours, strict=True)],
        "options": {name: getattr(args, name) for name in ("prompts", "group", "prompt", "new", "side", "steps")},
        "load": [round(load, 1), round(os.getloadavg()[0], 1)],
    }
    print(json.dumps(result), flush=True)
    return 0


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.compare",
        description="Peer and project in turn on the same work.",
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=("step", "generate", "update", "tunix"))
    parser.add_argument("--peers-python", type=Path, required=True, metavar="PYTHON", help="of the peers' environment")
    parser.add_argument("--peer-scripts", type=Path, required=True, metavar="DIR", help="folder of peer_*.py")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side")
    parser.add_argument("--steps", type=int, default=5, help="timed steps in a run")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group", type=int, default=8, help="responses that share a prompt; 1: nothing is shared")
    parser.add_argument("--prompt", type=int, default=40, help="tokens of a prompt (not of step)")
    parser.add_argument("--new", type=int, default=64, help="tokens of a response")
    parser.add_argument("--side", type=int, default=112, help="pixels a side of the pictures of step")
    return parser


if __name__ == "__main__":
    sys.exit(main())
