"""`mmeureka data show`: some problems as text, or as a page with their pictures."""

from __future__ import annotations

import argparse
import base64
import html
import io
import re
from pathlib import Path

from mmeureka_jax.commands.arguments import add_source_arguments
from mmeureka_jax.data.pictures import picture_size, read_picture
from mmeureka_jax.data.problems import ProblemSource, open_problems
from mmeureka_jax.data.record import ImageRef, Problem
from mmeureka_jax.errors import EXIT_BAD_INPUT, UserError, printable
from mmeureka_jax.files import write_atomic

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


def add_parser(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser("show", help="print some rows, or write them as a page with their pictures")
    add_source_arguments(parser)
    parser.add_argument("--rows", default="0:4", metavar="A:B", help="which rows (default: 0:4)")
    parser.add_argument("--output", metavar="PAGE.html", help="write a page with the pictures there")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
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
    """The rows of `--rows`. Raises a UserError for what is no range, or an empty one."""
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
    """A row as text."""
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
    """A picture's name and size, or why it cannot be read."""
    try:
        height, width = picture_size(ref)
    except UserError as error:
        return str(error)
    return f"{ref.path.name if ref.path is not None else 'image'}, {width} x {height}"


def _article(row: int, problem: Problem | UserError) -> str:
    """A row as HTML."""
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
    """A picture, in the page itself, or why it cannot be read."""
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
