"""`mmeureka data build|check|show|difficulty`: look at problems, find the rows that cannot be used, prepare a TFDS
dataset, measure how hard problems are for a model."""

from __future__ import annotations

import argparse
import base64
import html
import io
import json
import re
from collections import Counter
from pathlib import Path

from mmeureka_jax.commands.arguments import (
    add_root_arguments,
    pixels,
    positive,
    positive_int,
    refuse_too_many,
    seed,
    size,
)
from mmeureka_jax.commands.jax_setup import start_jax
from mmeureka_jax.config.schema import ACCURACY_RULES, PROMPT_STYLES, DataConfig, RewardConfig
from mmeureka_jax.data.pictures import picture_size, read_picture
from mmeureka_jax.data.problems import ProblemSource, open_problems
from mmeureka_jax.data.record import ImageRef, Problem
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError, printable
from mmeureka_jax.files import write_atomic
from mmeureka_jax.process.console import plural

_NOTES_SHOWN = 5  # at most of each kind; the summary counts them, --json has all
_PICTURE_SIDE = 480  # pixels, at most, on the page of `show`
_PAGE = """<!doctype html>
<html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }}
article {{ border-top: 1px solid #ccc; padding: 1rem 0 }}
h2 {{ font-size: 1rem }} pre {{ white-space: pre-wrap; font: inherit; margin: .5rem 0 }}
img {{ max-width: 100%; border: 1px solid #eee }} .dim {{ color: #666 }} .error {{ color: #a00 }}
</style>
<h1>{title}</h1>
{body}
</html>
"""


def add_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds `data` with its four commands; each sets `run`, a function of the parsed arguments."""
    parser = subparsers.add_parser("data", help="build, check and show data sets", description=__doc__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="build|check|show|difficulty")
    defaults = DataConfig()

    build = commands.add_parser("build", help="write problems as a TFDS dataset (ArrayRecord, no TensorFlow)")
    _add_source_arguments(build)
    build.add_argument("--name", required=True, help="of the dataset: small letters, digits and _")
    build.add_argument(
        "--output", metavar="DIR", help="TFDS data folder (default: TFDS_DATA_DIR, ~/tensorflow_datasets)"
    )
    build.add_argument("--split", default="train", help="split to write; others of the dataset stay (default: train)")
    build.add_argument("--skip-unusable", action="store_true", help="leave out rows that cannot be used, naming them")
    build.add_argument("--allow-no-answer", action="store_true", help="take rows without an answer too")
    build.set_defaults(run=build_command)

    check = commands.add_parser("check", help="find every row that cannot be used; exit code 2 if no row can")
    _add_source_arguments(check)
    check.add_argument("--model", "--checkpoint", metavar="DIR", help="checkpoint that prompts are measured for")
    check.add_argument("--max-prompt-tokens", type=size, metavar="N", default=defaults.max_prompt_tokens)
    check.add_argument("--prompt-style", choices=PROMPT_STYLES, default=defaults.prompt_style)
    check.add_argument("--min-pixels", type=pixels, metavar="N", default=defaults.min_pixels)
    check.add_argument("--max-pixels", type=pixels, metavar="N", default=defaults.max_pixels)
    check.add_argument(
        "--accuracy", choices=ACCURACY_RULES, default=RewardConfig.accuracy, help="rule to parse answers for"
    )
    check.add_argument("--headers-only", action="store_true", help="do not decode pictures, which finds truncated ones")
    check.add_argument("--allow-no-answer", action="store_true", help="take rows without an answer too")
    check.add_argument("--json", metavar="FILE", help="write the report there")
    check.set_defaults(run=check_command)

    add_difficulty_parser(commands)

    show = commands.add_parser("show", help="print some rows, or write them as a page with their pictures")
    _add_source_arguments(show)
    show.add_argument("--rows", default="0:4", metavar="A:B", help="which rows (default: 0:4)")
    show.add_argument("--output", metavar="PAGE.html", help="write a page with the pictures there")
    show.set_defaults(run=show_command)


def add_difficulty_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("difficulty", help="a model's accuracy on each problem, over several answers")
    _add_source_arguments(parser)
    parser.add_argument("--model", required=True, metavar="DIR", help="a checkpoint folder or hub id")
    parser.add_argument("--adapters", metavar="DIR", help="adapters that belong to it, in PEFT's layout")
    parser.add_argument("--output", type=Path, required=True, metavar="D.jsonl", help="continues one that is there")
    parser.add_argument("--n", type=size, default=8, metavar="N", help="answers to each problem (default: 8)")
    parser.add_argument("--temperature", type=positive, default=1.0, metavar="T", help="default: 1")
    parser.add_argument("--seed", type=seed, default=0, metavar="N")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="only the first N usable problems")
    parser.add_argument("--batch-size", type=size, default=16, metavar="N", help="problems at a time (default: 16)")
    group = parser.add_argument_group("default: as the run that exported the checkpoint asked, else as in a config")
    group.add_argument("--prompt-style", choices=PROMPT_STYLES)
    group.add_argument("--accuracy", choices=ACCURACY_RULES)
    for name in ("--max-new-tokens", "--max-prompt-tokens"):
        group.add_argument(name, type=size, metavar="N")
    for name in ("--min-pixels", "--max-pixels"):
        group.add_argument(name, type=pixels, metavar="N")
    parser.set_defaults(run=difficulty_command)


def difficulty_command(args: argparse.Namespace) -> int:
    """Samples, grades and writes; prints how many problems there are of each accuracy."""
    refuse_too_many(args)
    start_jax()
    from mmeureka_jax.evaluation.difficulty import measure_difficulty
    from mmeureka_jax.evaluation.evaluate import EvalOptions
    from mmeureka_jax.evaluation.prompt_files import ModelOptions

    options = EvalOptions(
        data=args.spec, root=args.root, allow_outside_root=args.allow_outside_root, limit=args.limit,
        prompt_style=args.prompt_style, min_pixels=args.min_pixels, max_pixels=args.max_pixels,
        max_prompt_tokens=args.max_prompt_tokens, accuracy=args.accuracy, max_new_tokens=args.max_new_tokens,
        batch_size=args.batch_size,
    )  # fmt: skip
    rows = measure_difficulty(
        ModelOptions(args.model, args.adapters),
        options,
        args.output,
        n=args.n,
        temperature=args.temperature,
        seed=args.seed,
    )
    counts = Counter(round(row["accuracy"] * args.n) for row in rows)
    for right in range(args.n + 1):
        print(f"{right} of {args.n} right: {plural(counts[right], 'problem')}")
    print(f"{args.output.resolve()}")
    return 0


def _add_source_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "spec", metavar="SPEC", help="a .jsonl, .json or .parquet file, a folder or glob, tfds:NAME@SPLIT"
    )
    add_root_arguments(parser)


def build_command(args: argparse.Namespace) -> int:
    """Writes a TFDS dataset and prints where it is and how to name it."""
    from mmeureka_jax.data.builders.files import build_dataset

    built = build_dataset(
        args.spec,
        args.name,
        data_dir=args.output,
        split=args.split,
        root=args.root,
        allow_outside_root=args.allow_outside_root,
        require_answer=not args.allow_no_answer,
        skip_unusable=args.skip_unusable,
    )
    for reason in built.rejected:
        print(f"left out: {reason}")
    print(f"{plural(built.num_rows, 'row')} in {built.directory}")
    where = f"TFDS_DATA_DIR={args.output} " if args.output else ""
    print(f"name it as {where}{built.spec}")
    return 0


def check_command(args: argparse.Namespace) -> int:
    """Prints every row that cannot be used and a summary. Exit code 2 if no row can be used."""
    from mmeureka_jax.data.check import check_problems

    source = open_problems(
        args.spec,
        root=args.root,
        allow_outside_root=args.allow_outside_root,
        require_answer=not args.allow_no_answer,
    )
    processor = None
    if args.model:
        from mmeureka_jax.data.processor import Processor
        from mmeureka_jax.formats.hub import resolve_checkpoint

        processor = Processor.from_checkpoint(
            resolve_checkpoint(args.model, weights=False),
            prompt_style=args.prompt_style,
            max_prompt_tokens=args.max_prompt_tokens,
            min_pixels=args.min_pixels,
            max_pixels=args.max_pixels,
        )
    report = check_problems(source, processor, accuracy=args.accuracy, decode_images=not args.headers_only)
    for rejected in report.rejected:
        print(f"row {rejected.row}: {rejected.kind}: {rejected.reason}")
    printed: Counter[str] = Counter()
    for note in report.notes:
        printed[note.kind] += 1
        if printed[note.kind] <= _NOTES_SHOWN:
            print(f"row {note.row}: note: problem {note.id!r}: {note.text}")
    print(report.summary())
    if args.json:
        write_atomic(Path(args.json), (json.dumps(report.to_json(), indent=1) + "\n").encode())
    return 0 if report.usable else EXIT_BAD_INPUT


def show_command(args: argparse.Namespace) -> int:
    """Prints rows, or writes them as a page. Exit code 2 if none of them can be used."""
    source = open_problems(args.spec, root=args.root, allow_outside_root=args.allow_outside_root, require_answer=False)
    rows = _parse_rows(args.rows, len(source))
    shown: list[tuple[int, Problem | UserError]] = [(row, _problem_or_error(source, row)) for row in rows]
    if args.output:
        title = html.escape(f"{source.name}: rows {rows.start} to {rows.stop - 1} of {len(source)}")
        body = "\n".join(_article(row, problem) for row, problem in shown)
        write_atomic(Path(args.output), _PAGE.format(title=title, body=body).encode())
        print(args.output)
    else:
        print(printable("\n\n".join(_text(row, problem) for row, problem in shown)))
    return 0 if any(isinstance(problem, Problem) for _, problem in shown) else EXIT_BAD_INPUT


def _parse_rows(text: str, length: int) -> range:
    match = re.fullmatch(r"(\d+)|(\d*):(\d*)", text)
    if not match:
        raise UserError(f"--rows {text}: expected A:B, such as 0:4, or one row number")
    single, first, last = match.groups()
    start = int(single or first or 0)
    stop = start + 1 if single else int(last) if last else None
    rows = range(length)[start:stop]
    if not rows:
        raise UserError(f"--rows {text}: there are no such rows; the data set has {length}")
    return rows


def _problem_or_error(source: ProblemSource, row: int) -> Problem | UserError:
    try:
        return source[row]
    except UserError as error:
        return error


def _text(row: int, problem: Problem | UserError) -> str:
    if isinstance(problem, UserError):
        return f"row {row}: cannot be used: {problem}"
    pictures = iter(problem.images)
    lines = [f"row {row}: {problem.id}"]
    for message in problem.messages:
        parts = [f"[{_describe(next(pictures))}]" if p["type"] == "image" else p["text"] for p in message["content"]]
        lines.append(f"  {message['role']}: {''.join(parts)}")
    lines.append(f"  answer: {problem.answer if problem.answer is not None else '(none)'}")
    lines += [f"  {key}: {value}" for key, value in problem.metadata.items()]
    lines += [f"  (column {column!r} looks like a picture and is not read)" for column in problem.unread]
    return "\n".join(lines)


def _describe(ref: ImageRef) -> str:
    try:
        height, width = picture_size(ref)
    except UserError as error:
        return str(error)
    return f"{ref.path.name if ref.path is not None else 'image'}, {width} x {height}"


def _article(row: int, problem: Problem | UserError) -> str:
    if isinstance(problem, UserError):
        return f'<article><h2>row {row}</h2><p class="error">{html.escape(str(problem))}</p></article>'
    pictures = iter(problem.images)
    lines = [f"<article><h2>row {row}: {html.escape(problem.id)}</h2>"]
    for message in problem.messages:
        lines.append(f'<p class="dim">{message["role"]}</p>')
        for part in message["content"]:
            text = part["type"] == "text"
            lines.append(f"<pre>{html.escape(part['text'])}</pre>" if text else _picture(next(pictures)))
    answer = problem.answer if problem.answer is not None else "(none)"
    lines.append(f"<p><b>answer</b> {html.escape(answer)}</p>")
    lines += [f'<pre class="dim">{html.escape(f"{key}: {value}")}</pre>' for key, value in problem.metadata.items()]
    for column in problem.unread:
        lines.append(f'<p class="error">column {html.escape(repr(column))} looks like a picture and is not read</p>')
    return "\n".join([*lines, "</article>"])


def _picture(ref: ImageRef) -> str:
    try:
        image = read_picture(ref)
    except UserError as error:
        return f'<p class="error">{html.escape(str(error))}</p>'
    caption = f"{image.width} x {image.height}"
    image.thumbnail((_PICTURE_SIDE, _PICTURE_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{caption}" title="{caption}" src="data:image/png;base64,{data}">'
