"""The gradients of a GRPO update of Qwen2.5-7B against tunix's, both compiled for a TPU slice that is not there.

    python -m benchmarks.vs_tunix_compiled --peers-python peers/bin/python --prompt 2048 --new 1024 --group 8

Operations, bytes that move between a chip's memory and its processor, and peak memory, each for a logical token: of a
prompt with n responses there are n * (prompt + response). Text, bfloat16, each layer computed again in the backward
pass, the gradients added to those of the micro-batch before. Tunix has a row of prompt and response for each response,
and as many rows in a micro-batch as `--rows` says; the project has whole groups.

Tunix unrolls its layers, which take minutes to compile. Both sides are compiled with each number of `--layers`, and the
figures for all 28 lie on the line through those.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.common import positive
from benchmarks.contest import Contest, Side, find_peer, flags, run_side
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError
from mmeureka_jax.planning.hlo import ProgramText
from mmeureka_jax.planning.traffic import bytes_moved

LAYERS = 28
CHIPS = 16
FIGURES = ("operations", "bytes", "peak_bytes")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.vs_tunix_compiled",
        description="Operations, traffic and memory of a compiled GRPO update: tunix and the project.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--peers-python", default=sys.executable, metavar="PYTHON", help="of the peer's environment (default: this one)"
    )
    parser.add_argument("--tensor", type=positive, default=4, help="chips that share a layer, on both sides")
    parser.add_argument("--group", type=positive, default=8, help="responses that share a prompt")
    parser.add_argument("--prompt", type=positive, default=2048, help="tokens of a prompt")
    parser.add_argument("--new", type=positive, default=1024, help="tokens of a response")
    parser.add_argument("--rows", type=positive, default=4, help="responses in a micro-batch of tunix")
    parser.add_argument("--attention", choices=("splash", "einsum"), default="splash", help="of tunix")
    parser.add_argument("--layers", type=positive, nargs=2, default=(2, 4), help="numbers of layers to compile")
    return parser


def contest(args: argparse.Namespace) -> Contest:
    work = flags(topology="v5e:4x4", tensor=args.tensor, group=args.group, prompt=args.prompt, new=args.new)
    prompts = CHIPS // args.tensor  # one for each share of the batch
    return Contest(
        peer=Side("benchmarks.peers.tunix_compiled", [*work, *flags(rows=args.rows, attention=args.attention)], ""),
        ours=Side("benchmarks.compiled_gradients", [*work, *flags(prompts=prompts)], ""),
        vocab_size=0,
        needs=("google-tunix==0.1.7 jax[tpu]==0.10.2",),
        lower_is_better=True,
    )


def measure(python: str, side: Side, layers: Sequence[int], tokens: int, folder: Path) -> dict[str, Any]:
    """The figures of a logical token, for all layers; and those that were compiled, of whole programs."""
    compiled = []
    for number in layers:
        text = folder / "program.txt"
        options = [*side.options, *flags(layers=number, text=text)]
        result = run_side(python, Side(side.module, options, ""))
        result["bytes"] = CHIPS * bytes_moved(ProgramText(text.read_text()))
        compiled.append({name: result[name] for name in FIGURES})
        versions = result["versions"]
        print(f"{side.module}, {number} layers: {compiled[-1]}", file=sys.stderr, flush=True)
    return {
        "a_token": {name: on_line(layers, [one[name] for one in compiled]) / tokens for name in FIGURES},
        "compiled": dict(zip(map(str, layers), compiled, strict=True)),
        "versions": versions,
    }


def on_line(layers: Sequence[int], values: Sequence[float]) -> float:
    """The value for `LAYERS` on the line through two others."""
    slope = (values[1] - values[0]) / (layers[1] - layers[0])
    return values[0] + slope * (LAYERS - layers[0])


def hold(args: argparse.Namespace) -> dict[str, Any]:
    """Both sides. The peak is a chip's, of a micro-batch each, so it is compared for the tokens of a micro-batch."""
    both = contest(args)
    peer_python = find_peer(args.peers_python, both)
    length = args.prompt + args.new
    with tempfile.TemporaryDirectory() as folder:
        theirs = measure(peer_python, both.peer, args.layers, args.rows * length, Path(folder))
        ours = measure(sys.executable, both.ours, args.layers, CHIPS // args.tensor * args.group * length, Path(folder))
    return {
        "ratios": {name: round(ours["a_token"][name] / theirs["a_token"][name], 3) for name in FIGURES},
        "peer": theirs,
        "ours": ours,
        "options": {name: value for name, value in vars(args).items() if name != "peers_python"},
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = build_parser()
    args = parser.parse_args(arguments)
    try:
        if args.layers[0] == args.layers[1]:
            raise UserError("--layers: two different numbers make a line")
        result = hold(args)
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    print(json.dumps(result), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
