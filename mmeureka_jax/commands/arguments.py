"""The commands are found here, and what they share: types of arguments that refuse what no command can use, arguments
that several commands have, and the options that these become."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmeureka_jax.config.schema import PROMPT_STYLES, RewardConfig
from mmeureka_jax.errors import UserError

if TYPE_CHECKING:
    from mmeureka_jax.evaluation.judge_model import JudgeModel
    from mmeureka_jax.evaluation.options import EvalOptions, ModelOptions
    from mmeureka_jax.evaluation.prompt_files import PromptOptions
    from mmeureka_jax.prm.labels import LabelRules


def number(kind: type, accepts: Callable[[Any], bool], description: str) -> Callable[[str], Any]:
    """An argument type: a number of `kind` that `accepts` is true of."""

    def parse(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or not accepts(value):
            raise argparse.ArgumentTypeError(f"must be {description}; got {text!r}")
        return value

    return parse


positive_int = number(int, lambda value: 0 < value < 2**31, "a positive integer")
size = number(int, lambda value: 0 < value <= 2**20, "a positive integer, at most 1048576")
pixels = number(int, lambda value: 0 < value <= 2**28, "a positive integer, at most 268435456")
count = number(int, lambda value: 0 <= value < 2**31, "0 or a positive integer")
seed = number(int, lambda value: 0 <= value < 2**31, "0 or a positive integer below 2147483648")
positive = number(float, lambda value: 0 < value < 1e30, "a positive number")
not_negative = number(float, lambda value: 0 <= value < 1e30, "0 or a positive number")
fraction = number(float, lambda value: 0 < value <= 1, "a number above 0 and at most 1")

DTYPES = ("float32", "bfloat16", "float16")

_NUMBERS = {
    **dict.fromkeys(("n", "batch_size", "max_new_tokens", "max_prompt_tokens", "reward_workers"), size),
    **dict.fromkeys(("min_pixels", "max_pixels"), pixels),
    **{"limit": positive_int, "temperature": not_negative, "top_k": count, "top_p": fraction, "seed": seed},
}


def check_numbers(options: Mapping[str, Any]) -> None:
    """Raises a UserError for a number from Python that the command would refuse as an argument."""
    for name, value in options.items():
        if name in _NUMBERS and value is not None:
            try:
                _NUMBERS[name](str(value))
            except argparse.ArgumentTypeError as error:
                raise UserError(f"{name} {error}") from None


def step(text: str) -> int | str:
    """An argument type: a checkpoint of a run."""
    return (
        text
        if text in ("best", "latest")
        else number(int, lambda value: 0 <= value < 2**31, "a step, best or latest")(text)
    )


def mesh(text: str) -> tuple[int, ...]:
    """An argument type: the sizes of the mesh's axes."""
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = ()
    if len(sizes) != 3 or any(abs(size) > 2**20 for size in sizes):
        raise argparse.ArgumentTypeError(f"must be three sizes, data,fsdp,tensor, such as 1,4,2; got {text!r}")
    return sizes


def benchmark(text: str) -> tuple[str, Path]:
    """An argument type: a benchmark's name and where its released files are."""
    name, separator, path = text.partition("=")
    if not (name and separator and path):
        raise argparse.ArgumentTypeError(f"must be NAME=PATH, such as mathvista=data/MathVista; got {text!r}")
    return name, Path(path)


def add_command(
    commands: argparse._SubParsersAction,
    name: str,
    run: Callable[[argparse.Namespace], int],
    summary: str,
    *,
    resumes: str = "",
) -> argparse.ArgumentParser:
    """The parser of one command.

    Args:
        run: the command; returns the exit code.
        summary: what it does, for `mmeureka --help`.
        resumes: what the same command does when it is started again after an interruption; "" if it starts anew.
    """
    description = f"{summary[0].upper()}{summary[1:]}."
    parser = commands.add_parser(name, help=summary, description=description, allow_abbrev=False)
    parser.set_defaults(run=run, resumes=resumes)
    return parser


def add_commands(package: str, commands: argparse._SubParsersAction) -> None:
    """Adds every command of a package: its modules that have an `add_parser`."""
    folder = importlib.import_module(package).__path__
    for info in pkgutil.iter_modules(folder, f"{package}."):
        module = importlib.import_module(info.name)
        if hasattr(module, "add_parser"):
            module.add_parser(commands)


def add_run_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `train` and `sft`."""
    parser.add_argument("config", type=Path, help="a YAML file (see configs/)")
    parser.add_argument("overrides", nargs="*", metavar="key.sub=value", help="overrides of config keys")
    add_process_arguments(parser, "a run over many processes")


def add_process_arguments(parser: argparse.ArgumentParser, title: str) -> None:
    """How several processes find each other; see `start_jax`."""
    group = parser.add_argument_group(title)
    group.add_argument("--coordinator", metavar="HOST:PORT", help="where process 0 listens")
    group.add_argument("--num-processes", type=positive_int, metavar="N")
    group.add_argument("--process-id", type=count, metavar="I")


def add_model_arguments(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Those of the commands that open a policy; see `model_options`."""
    parser.add_argument("--model", required=required, metavar="DIR", help="a checkpoint folder or hub id")
    parser.add_argument("--adapters", metavar="DIR", help="adapters that belong to it, in PEFT's layout")
    parser.add_argument("--compute-dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    parser.add_argument(
        "--mesh",
        type=mesh,
        default=(-1, 1, 1),
        metavar="D,F,T",
        help="data,fsdp,tensor; -1: what is left (default: -1,1,1)",
    )


def add_root_arguments(parser: argparse.ArgumentParser) -> None:
    """Where the pictures of a data set may lie."""
    parser.add_argument("--root", metavar="DIR", help="folder that image paths must lie in (default: the data file's)")
    parser.add_argument("--allow-outside-root", action="store_true", help="read images from anywhere")


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of the commands of `data`."""
    parser.add_argument(
        "spec", metavar="SPEC", help="a .jsonl, .json or .parquet file, a folder or glob, tfds:NAME@SPLIT"
    )
    add_root_arguments(parser)


def add_prompt_file_arguments(parser: argparse.ArgumentParser, rows: str) -> None:
    """Those of `sample` and `score`; see `prompt_options`.

    Args:
        rows: what a row of the input is, for the help.
    """
    parser.add_argument("--input", type=Path, required=True, metavar="P.jsonl", help=rows)
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="O.jsonl",
        help="O.jsonl.partial until it is complete",
    )
    parser.add_argument(
        "--image-root", metavar="DIR", help="where image paths start and must lie (default: the input's)"
    )
    parser.add_argument("--prompt-style", choices=PROMPT_STYLES, default="plain", help="default: messages as they are")
    parser.add_argument("--batch-size", type=size, default=16, metavar="N", help="prompts (default: %(default)s)")
    add_pixel_arguments(parser)
    parser.add_argument("--max-prompt-tokens", type=size, metavar="N", help="default: the model's context")


def add_sampling_arguments(parser: argparse.ArgumentParser, temperature: float) -> None:
    """How many answers are drawn, and from which distribution.

    Args:
        temperature: the default.
    """
    parser.add_argument("--n", type=size, default=1, metavar="N", help="answers to each (default: 1)")
    parser.add_argument(
        "--temperature",
        type=not_negative,
        default=temperature,
        metavar="T",
        help=f"0: greedy (default: {temperature:g})",
    )
    parser.add_argument("--top-k", type=count, default=0, metavar="K", help="0: off (default)")
    parser.add_argument("--top-p", type=fraction, default=1.0, metavar="P", help="1: off (default)")
    parser.add_argument("--seed", type=seed, default=0, metavar="N", help="default: %(default)s")


def add_judge_model_arguments(parser: argparse.ArgumentParser) -> None:
    """A judge of benchmarks besides the two rules; see `judge_model`."""
    group = parser.add_argument_group("a judge model beside the two rules of a benchmark (default: none)")
    group.add_argument(
        "--judge-model",
        metavar="SPEC",
        help="FILE.py:FUNCTION, or the address of an OpenAI-compatible server, such as http://localhost:8000/v1",
    )
    group.add_argument("--judge-model-name", metavar="NAME", help="the model at that address")


def add_label_arguments(parser: argparse.ArgumentParser) -> None:
    """How a training set of a process reward model is made from trees; see `label_rules`."""
    from mmeureka_jax.prm.labels import MIN_WORDS

    parser.add_argument(
        "--hard", action="store_true", help="labels are 1 where a value is above 0 (default: the values)"
    )
    parser.add_argument(
        "--min-words",
        type=count,
        default=MIN_WORDS,
        metavar="N",
        help="leave out texts of fewer words (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=seed, default=0, metavar="N", help="chooses among positive paths (default: %(default)s)"
    )


def add_pixel_arguments(parser: argparse._ActionsContainer) -> None:
    """The limits of pictures; None where they are not given."""
    parser.add_argument("--min-pixels", type=pixels, metavar="N", help="pictures are resized to between these;")
    parser.add_argument("--max-pixels", type=pixels, metavar="N", help="28 x 28 pixels are one token")


def refuse_missing(args: argparse.Namespace, *names: str) -> None:
    """Raises a UserError for required arguments that are not there: those of a command that has commands of its own."""
    if missing := [f"--{name}" for name in names if getattr(args, name) is None]:
        raise UserError(f"the following arguments are required: {', '.join(missing)}")


def refuse_too_many(args: argparse.Namespace) -> None:
    """Raises a UserError for a batch whose tokens cannot be counted in 32 bits: no memory holds them."""
    tokens = getattr(args, "n", 1) * args.batch_size * (args.max_new_tokens or 1)
    if tokens >= 2**31:
        raise UserError(f"--n x --batch-size x --max-new-tokens is {tokens:,}; lower them to below {2**31:,} together")


def model_options(args: argparse.Namespace) -> ModelOptions:
    """What `add_model_arguments` added, as the commands' functions take it."""
    from mmeureka_jax.config.schema import MeshConfig
    from mmeureka_jax.evaluation.options import ModelOptions

    return ModelOptions(args.model, args.adapters, args.compute_dtype, MeshConfig(*args.mesh))


def eval_options(args: argparse.Namespace, data: str) -> EvalOptions:
    """The arguments that are called as an option is; the command leaves the other options as they are by default."""
    from mmeureka_jax.evaluation.options import EvalOptions

    given = vars(args)
    names = [field.name for field in fields(EvalOptions) if field.name != "data"]
    return EvalOptions(data, **{name: given[name] for name in names if name in given})


def judge_model(args: argparse.Namespace) -> JudgeModel | None:
    """What `add_judge_model_arguments` added. Raises UserError for a judge that there cannot be."""
    from mmeureka_jax.evaluation.judge_function import JudgeFunction
    from mmeureka_jax.evaluation.judge_server import ServedModel

    spec = args.judge_model
    name = args.judge_model_name
    if spec is None:
        if name is not None:
            raise UserError("--judge-model-name is for --judge-model with the address of a server")
        return None
    if spec.lower().startswith(("http://", "https://")):
        if not name:
            raise UserError("--judge-model is an address: give the model there too, with --judge-model-name NAME")
        return ServedModel.at(spec, name)
    if ".py:" not in spec:
        raise UserError(
            f"--judge-model {spec!r} is neither FILE.py:FUNCTION nor an address that starts with http:// or https://"
        )
    if name is not None:
        raise UserError("--judge-model-name is for an address; a function of your own chooses its model itself")
    return JudgeFunction.read(spec, args.reward_workers if "reward_workers" in args else RewardConfig.workers)


def label_rules(args: argparse.Namespace) -> LabelRules:
    """What `add_label_arguments` added."""
    from mmeureka_jax.prm.labels import LabelRules

    return LabelRules(args.hard, args.seed, args.min_words)


def prompt_options(args: argparse.Namespace) -> PromptOptions:
    """What `add_prompt_file_arguments` added, as the commands' functions take it."""
    from mmeureka_jax.evaluation.prompt_files import PromptOptions

    return PromptOptions(
        input=args.input,
        image_root=args.image_root,
        style=args.prompt_style,
        min_pixels=args.min_pixels,
        max_pixels=args.max_pixels,
        max_prompt_tokens=args.max_prompt_tokens,
        batch_size=args.batch_size,
    )
