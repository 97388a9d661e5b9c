"""What the benchmarks share: which policy runs, random prompts for it, and how a benchmark is run and timed.

Every benchmark calls the code that training calls. After warm-up the same work is done several times, each time until
the devices are done; figures are medians. The last line on stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from mmeureka_jax.config.schema import (
    Config,
    DataConfig,
    FilterConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    RandomModelConfig,
    RewardConfig,
    RLConfig,
    SamplerConfig,
)
from mmeureka_jax.data.processor import assemble_prompt
from mmeureka_jax.data.vision_layout import VisionGeometry
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError
from mmeureka_jax.files import write_atomic
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.mesh import batch_divisor
from mmeureka_jax.models.batch import Prompt, collate
from mmeureka_jax.models.policy import Params
from mmeureka_jax.models.qwen_vl_config import QWEN2_5_VL, Qwen2_5VLConfig
from mmeureka_jax.process.cpu import cores, split_cpu, switch_ynn_off
from mmeureka_jax.setup.policy import OpenedPolicy, find_checkpoint, open_policy
from mmeureka_jax.setup.random_models import write_tiny_checkpoint
from mmeureka_jax.training.watchers import CompileCounter

WARM_UP = 2  # calls before the first that counts; they compile

# `--model tiny`: the sizes of the random checkpoint that the peers are measured with, 6 million parameters.
TINY = RandomModelConfig(
    hidden_size=256,
    intermediate_size=768,
    num_layers=6,
    num_heads=8,
    num_kv_heads=2,
    vision_hidden_size=128,
    vision_intermediate_size=256,
    vision_depth=4,
    vision_num_heads=4,
    vision_full_attention_blocks=(1, 3),
)

# `--config`: sizes of the released checkpoints, from the config.json of Qwen/Qwen2.5-VL-{3B,7B}-Instruct.
_RELEASED_TEXT = {"head_dim": 128, "rms_norm_eps": 1e-6, "rope_theta": 1e6, "mrope_section": (16, 24, 24)}
_RELEASED_VISION = {
    "hidden_size": 1280,
    "intermediate_size": 3420,
    "depth": 32,
    "num_heads": 16,
    "full_attention_blocks": (7, 15, 23, 31),
}
_RELEASED: dict[str, dict[str, Any]] = {
    "3b": {
        "vocab_size": 151936,
        "hidden_size": 2048,
        "intermediate_size": 11008,
        "num_layers": 36,
        "num_heads": 16,
        "num_kv_heads": 2,
        "tie_word_embeddings": True,
    },
    "7b": {
        "vocab_size": 152064,
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_layers": 28,
        "num_heads": 28,
        "num_kv_heads": 4,
        "tie_word_embeddings": False,
    },
}


# Options.


def make_parser(module: str, summary: str) -> argparse.ArgumentParser:
    """A parser with the options that say which policy runs, and how."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{module}", description=summary, allow_abbrev=False)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="DIR", help="checkpoint folder or hub id, or `tiny`: a random one, 6 M")
    which.add_argument("--config", choices=sorted(_RELEASED), help="sizes of a released model, random weights")
    parser.add_argument("--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument("--param-dtype", choices=("float32", "bfloat16"), help="of --config; default bfloat16")
    parser.add_argument(
        "--cpu-devices",
        type=positive,
        metavar="N",
        help="as mesh.cpu_devices; default: one for each core, if the prompts can be divided among them",
    )
    parser.add_argument("--remat", choices=("none", "full"), default="none", help="as model.remat")
    return parser


def add_training_arguments(parser: argparse.ArgumentParser) -> None:
    """The size of an update batch (except for the group), and what is trained."""
    parser.add_argument("--prompts", type=positive, default=8)
    parser.add_argument("--new", type=positive, default=64, help="tokens of a response")
    parser.add_argument("--train", choices=("all", "language"), default="language", help="language: frozen vision")
    parser.add_argument("--micro-batches", type=positive, default=1)


def add_group_argument(parser: argparse.ArgumentParser, default: int) -> None:
    parser.add_argument("--group", type=positive, default=default, help="responses that share a prompt")


def add_prompt_arguments(parser: argparse.ArgumentParser, length: int, side: int) -> None:
    """Prompts of random tokens."""
    parser.add_argument("--prompt", type=positive, default=length, help="tokens of a prompt, picture included")
    parser.add_argument("--side", type=int, default=side, help="pixels a side of its picture; 0: text alone")


def positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not positive")
    return value


# Policies.


@dataclass(frozen=True)
class RandomPolicy(OpenedPolicy):
    """A policy without weight files: parameters are drawn at random on the devices that hold them."""

    param_dtype: str = "bfloat16"

    def load_params(self) -> Params:
        leaves, tree = jax.tree.flatten_with_path(self.policy.abstract_params())

        def draw(key: jax.Array) -> Params:
            keys = jax.random.split(key, len(leaves))
            drawn = [
                jnp.ones(leaf.shape, self.param_dtype)
                if path[-1].key == "scale"
                else 0.02 * jax.random.normal(own, leaf.shape, self.param_dtype)
                for own, (path, leaf) in zip(keys, leaves, strict=True)
            ]
            return jax.tree.unflatten(tree, drawn)

        return jax.jit(draw, out_shardings=self.shardings())(jax.random.key(0))


def open_model(args: argparse.Namespace, folder: Path) -> OpenedPolicy:
    """The policy that the options name; `folder` is for files that have to be made.

    Raises:
        UserError: no such checkpoint, one of another family, or options that do not go together.
    """
    if args.config is None and args.param_dtype is not None:
        raise UserError("--param-dtype is for the random weights of --config; a checkpoint is read as float32")
    checkpoint = args.model
    if checkpoint in (None, "tiny"):
        checkpoint = str(folder / "model")
        write_tiny_checkpoint(checkpoint, TINY)
    if args.config is not None:  # the tiny one's tokenizer stays, its weights are not read
        config = released_config(args.config, read_config(checkpoint))
        write_atomic(Path(checkpoint) / "config.json", json.dumps(config.to_hf()).encode())
    model = ModelConfig(checkpoint=checkpoint, compute_dtype=args.compute_dtype, remat=args.remat)
    opened = open_policy(find_checkpoint(model, folder), model, MeshConfig())
    if getattr(opened.policy.config, "model_type", None) != QWEN2_5_VL:
        raise UserError(
            f"--model {args.model}: the benchmarks count the work of Qwen2.5-VL; give one of its checkpoints"
        )
    if args.config is None:
        return opened
    return RandomPolicy(opened.policy, opened.mesh, opened.checkpoint, param_dtype=args.param_dtype or "bfloat16")


def released_config(name: str, tiny: Qwen2_5VLConfig) -> Qwen2_5VLConfig:
    """The sizes of a released checkpoint, with the token ids of the built-in tokenizer."""
    text = replace(tiny.text, **_RELEASED_TEXT, **_RELEASED[name])
    vision = replace(tiny.vision, **_RELEASED_VISION, out_hidden_size=text.hidden_size)
    return replace(tiny, text=text, vision=vision)


def training_config(args: argparse.Namespace, opened: OpenedPolicy) -> Config:
    """A run whose step is one rollout and one update on all of it, as the peers' is."""
    rule = Path(__file__).with_name("contains_answer.py")
    return Config(
        model=ModelConfig(checkpoint=str(opened.checkpoint)),
        data=DataConfig(prompt_style="plain", max_prompt_tokens=opened.policy.config.text.max_position_embeddings),
        reward=RewardConfig(
            custom=f"{rule}:contains_answer", custom_weight=1.0, accuracy_weight=0.0, format_weight=0.0
        ),
        sampler=SamplerConfig(max_new_tokens=args.new),
        rl=RLConfig(
            group_size=args.group,
            prompts_per_rollout=args.prompts,
            prompts_per_update=args.prompts,
            micro_batches=args.micro_batches,
            filter=FilterConfig(enabled=False),
        ),
        optimizer=OptimizerConfig(learning_rate=1e-5, frozen=("vision",) if args.train == "language" else ()),
    )


LONGEST = 8  # times the median


def log_normal_lengths(prompts: int, group: int, median: int, seed: int = 0) -> np.ndarray:
    """Lengths [prompts, group] of at least 1 and at most LONGEST * median tokens."""
    drawn = median * np.exp(np.random.default_rng(seed).standard_normal((prompts, group)))
    return np.clip(np.round(drawn), 1, LONGEST * median).astype(np.int32)


def random_prompts(config: Qwen2_5VLConfig, count: int, length: int, side: int) -> Prompt:
    """`count` prompts of exactly `length` random tokens, each with a picture of `side` squared pixels (0: without).

    Needs no tokenizer.

    Raises:
        UserError: `side` is not a whole number of image tokens, or `length` is too short for them.
    """
    rng = np.random.default_rng(0)
    vision = config.vision
    geometry = VisionGeometry(vision.patch_size, vision.spatial_merge_size, vision.window_size)
    if side % geometry.factor:
        raise UserError(f"--side {side} is not a multiple of {geometry.factor}, the side of an image token")
    grid = (side // vision.patch_size,) * 2
    grids = [grid] if side else []
    picture = [config.vision_start_token_id, *[config.image_token_id] * geometry.image_tokens(grid)]
    picture = [*picture, config.vision_end_token_id] if side else []
    if length <= len(picture):
        raise UserError(f"--prompt {length} leaves no place for text: the picture takes {len(picture)} tokens")
    special = [config.image_token_id, config.video_token_id, config.vision_start_token_id, config.vision_end_token_id]
    text_tokens = np.setdiff1d(
        np.arange(config.text.vocab_size), [*special, *config.eos_token_ids, config.pad_token_id]
    )
    places = (geometry.num_windows(grid), geometry.patches_per_window, geometry.patch_dim)
    prompts = []
    for _ in range(count):
        tokens = rng.choice(text_tokens, length).astype(np.int32)
        tokens[1 : 1 + len(picture)] = picture
        patches = [rng.standard_normal(places, np.float32) for _ in grids]
        prompts.append(assemble_prompt(tokens, grids, patches, config.image_token_id, geometry))
    return collate(prompts, length, places[0])


# Measuring.


@dataclass(frozen=True)
class Timing:
    """Seconds of each timed call, and how many XLA compilations they caused together."""

    seconds: list[float]
    compiles: int

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


def time_calls(call: Callable[[], Any], repeats: int) -> Timing:
    """Times `call` after `WARM_UP` calls, each until its result is there."""
    return time_in_turn({"": call}, repeats)[""]


def time_in_turn(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, Timing]:
    """Times several calls in turn, each after `WARM_UP` of its own: other load on the machine affects all alike."""
    timings = {name: Timing([], 0) for name in calls}
    with CompileCounter() as compiles:
        for number in range(WARM_UP + repeats):
            for name, call in calls.items():
                compiles.since_last()
                start = time.perf_counter()
                jax.block_until_ready(call())
                seconds = time.perf_counter() - start
                if number >= WARM_UP:
                    before = timings[name]
                    timings[name] = Timing([*before.seconds, seconds], before.compiles + compiles.since_last())
    return timings


def significant(value: float, digits: int = 4) -> float:
    return float(f"{value:.{digits}g}")


def check_batch_sizes(mesh: Mesh, sizes: dict[str, int]) -> None:
    """Raises a UserError that lists every number of prompts that the mesh does not divide."""
    divisor = batch_divisor(mesh)
    problems = [f"  {name} = {size}" for name, size in sizes.items() if size % divisor]
    if problems:
        raise UserError(
            f"mesh: data x fsdp = {divisor} does not divide these numbers of prompts:\n" + "\n".join(problems)
        )


def peak_memory_mb() -> float:
    """The most memory that one device has held, if the backend counts it; on CPU that of this process, compiler
    included."""
    stats = [device.memory_stats() or {} for device in jax.local_devices()]
    device = max(entry.get("peak_bytes_in_use", 0) for entry in stats)
    return round((device or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024) / 2**20, 1)


def cpu_devices(args: argparse.Namespace) -> int:
    """As many as there are cores, or the next smaller number that divides the prompts (of a micro-batch)."""
    if "rows" in args:
        prompts = args.rows
    else:
        prompts = args.prompts if "prompts" in args else args.batch // args.group
    prompts //= getattr(args, "micro_batches", 1)
    return max(count for count in range(1, cores() + 1) if max(prompts, 1) % count == 0)


def run_benchmark(
    measure: Callable[[argparse.Namespace, Path], dict[str, Any]],
    parser: argparse.ArgumentParser,
    arguments: Sequence[str] | None,
) -> int:
    """Runs `measure(args, temporary folder)` and prints its figures, the options and the machine as one JSON line."""
    args = parser.parse_args(arguments)
    switch_ynn_off()
    split_cpu(args.cpu_devices or cpu_devices(args))
    load = os.getloadavg()[0]
    try:
        with tempfile.TemporaryDirectory() as folder:
            figures = measure(args, Path(folder))
    except UserError as error:
        print(f"{parser.prog}: error: {error}", file=sys.stderr)
        return EXIT_BAD_INPUT
    machine = {
        "device": f"{jax.device_count()} x {jax.devices()[0].device_kind}",
        "jax": jax.__version__,
        "load_before": round(load, 1),
    }
    print(json.dumps({**figures, "options": vars(args), **machine}), flush=True)
    return 0
