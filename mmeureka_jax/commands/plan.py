"""`mmeureka plan`: whether a run fits into the memory of devices that need not be there."""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mmeureka_jax.commands.arguments import add_command, positive, positive_int
from mmeureka_jax.errors import EXIT_DOES_NOT_FIT
from mmeureka_jax.process.console import stderr_closed


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = add_command(
        commands, "plan", run, "compile a run for devices that need not be there: does it fit, and how long is a step"
    )
    parser.add_argument("config", type=Path, help="a YAML file (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of config keys")
    parser.add_argument(
        "--on", required=True, metavar="TARGET", help="a TPU slice (v5e:4x4, 2xv5e:16x16), GPUs (h100:8) or cpu:N"
    )
    parser.add_argument("--job", choices=("train", "sft"), default="train", help="the command that will run it")
    parser.add_argument(
        "--stage", type=positive_int, default=1, metavar="N", help="of a config with stages (default: 1)"
    )
    parser.add_argument(
        "--programs",
        choices=("largest", "all"),
        default="largest",
        help="compile of each kind of program the largest, which decides whether it fits, or all",
    )
    parser.add_argument(
        "--response",
        type=positive,
        metavar="TOKENS",
        help="mean response, for the time of a step (default: a fifth of sampler.max_new_tokens)",
    )
    parser.add_argument(
        "--prompt", type=positive, metavar="TOKENS", help="mean prompt (default: half of data.max_prompt_tokens)"
    )
    parser.add_argument(
        "--search",
        type=positive_int,
        metavar="N",
        help="look for settings that fit, or take less time: the N that are estimated best are compiled",
    )
    parser.add_argument("--cache", metavar="DIR", help="keep the compiled programs there, for the run to load")
    parser.add_argument("--json", action="store_true", help="print one JSON object, last on stdout")


def run(args: argparse.Namespace) -> int:
    with stderr_closed():  # JAX's CUDA plugin misses a driver, which a plan does not need
        import jax  # noqa: F401
    from mmeureka_jax.config.load import load_config
    from mmeureka_jax.config.schema import Config
    from mmeureka_jax.planning.plan import Plan, make_plan
    from mmeureka_jax.planning.planned_run import stage_of
    from mmeureka_jax.planning.printing import as_json, as_text
    from mmeureka_jax.planning.search import search
    from mmeureka_jax.planning.step_time import Assumptions
    from mmeureka_jax.planning.targets import open_target
    from mmeureka_jax.setup.checks import validate_config

    config = load_config(args.config, args.overrides)
    validate_config(config, command=args.job)
    target = open_target(args.on)
    with cache_in(args.cache):
        assumptions = Assumptions(args.response, args.prompt)

        def plan_of(config: Config) -> Plan:
            return make_plan(config, target, command=args.job, which=args.programs, assumptions=assumptions)

        plan = plan_of(stage_of(config, args.stage))
        found = search(plan, plan_of, args.search, assumptions) if args.search else []
    print(json.dumps(as_json(plan, found)) if args.json else as_text(plan, found))
    return 0 if plan.fits else EXIT_DOES_NOT_FIT


@contextmanager
def cache_in(folder: str | None) -> Iterator[None]:
    """JAX's persistent compilation cache: in `folder`, for every program; without one it is off, as programs that come
    from a cache take no time."""
    import jax

    settings: dict[str, object] = {"jax_enable_compilation_cache": folder is not None}
    if folder is not None:
        settings |= {
            "jax_compilation_cache_dir": str(Path(folder).resolve()),
            "jax_persistent_cache_min_compile_time_secs": 0.0,
            "jax_persistent_cache_min_entry_size_bytes": -1,
        }
    before = {name: getattr(jax.config, name) for name in settings}
    with warnings.catch_warnings():
        # A compiler without its device writes programs, but cannot load those that are there already.
        warnings.filterwarnings("ignore", "Error reading persistent compilation cache entry")
        for name, value in settings.items():
            jax.config.update(name, value)
        try:
            yield
        finally:
            for name, value in before.items():
                jax.config.update(name, value)
