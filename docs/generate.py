"""Writes docs/reference/: every key, command and metric, as the code has them (`make reference`).

A test compares the pages with what this makes.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import io
import pkgutil
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mmeureka_jax import companions
from mmeureka_jax.cli import build_parser
from mmeureka_jax.companions.experiment import Companion, Experiment
from mmeureka_jax.config import prm, schema
from mmeureka_jax.config.limits import LARGEST, AtMost, Limit, limits_of_keys
from mmeureka_jax.config.reading import dotted_keys, expected, field_types, section_of, to_dict
from mmeureka_jax.config.yaml_text import dump_yaml
from mmeureka_jax.rl.advantages import ADVANTAGES
from mmeureka_jax.rl.losses import LOSSES
from mmeureka_jax.runs.metrics import METRICS

FOLDER = Path(__file__).parent / "reference"
NOTE = "*Written by `make reference` from the code; do not edit.*"
KEYS = set(dotted_keys(schema.Config))
# Keys whose type is text and whose choices are registered elsewhere.
CHOICES = {"rl.advantage": ADVANTAGES, "rl.loss": LOSSES}


def main() -> None:
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        (FOLDER / name).write_text(text)


def pages() -> dict[str, str]:
    """The text of each page, by its file name."""
    return {
        "keys.md": keys_page(),
        "companions.md": companions_page(),
        "commands.md": commands_page(),
        "metrics.md": metrics_page(),
    }


# What pages are made of.


def page(*parts: str) -> str:
    return "\n\n".join(parts) + "\n"


def table(headings: list[str], rows: list[list[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def code(text: str) -> str:
    return f"`{text}`" if text else ""


def marked(text: str) -> str:
    """A comment or a help text as Markdown: keys and tags as code, pages of docs/ as links."""

    def mark(match: re.Match[str]) -> str:
        word = match[0]
        if word.startswith("docs/"):
            return f"[{word[5:]}](../{word[5:]})"
        return code(word) if word in KEYS or word[0] in "<\\" else word

    return re.sub(r"`[^`]+`|<\w+>|\\boxed\{\}|docs/\w+\.md|\b[a-z]\w*(?:\.\w+)+", mark, text)


def sentences(text: str) -> str:
    """Text as Markdown with one sentence a line."""
    text = " ".join(text.split())
    return re.sub(r"(?<=\.) (?=[A-Z`])", "\n", marked(text[:1].upper() + text[1:]))


# Keys.


def descriptions() -> dict[str, dict[str, list[str]]]:
    """The comments of each key of each section's class: the lines directly above it, and the one behind it."""
    found = {name: keys for module in (schema, prm) for name, keys in _described(Path(module.__file__)).items()}
    for companion in all_companions():
        for cls in _with_bases(companion.config):
            found[cls.__name__] = _described(Path(inspect.getfile(cls)))[cls.__name__]
    return found


def _with_bases(cls: type) -> list[type]:
    """The classes that the keys of an experiment are in, the outermost first."""
    return [base for base in reversed(cls.__mro__) if issubclass(base, Experiment)]


def _described(file: Path) -> dict[str, dict[str, list[str]]]:
    """As `descriptions`, for the classes of one file."""
    source = file.read_text()
    comments: dict[int, str] = {}
    alone: set[int] = set()  # lines with nothing but a comment
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comments[token.start[0]] = token.string.lstrip("# ")
            if token.line.strip().startswith("#"):
                alone.add(token.start[0])
    found: dict[str, dict[str, list[str]]] = {}
    for section in ast.parse(source).body:
        if not isinstance(section, ast.ClassDef):
            continue
        found[section.name] = {}
        for node in section.body:
            if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                first = node.lineno
                while first - 1 in alone:
                    first -= 1
                above = " ".join(comments[line] for line in range(first, node.lineno))
                behind = comments.get(node.end_lineno or node.lineno, "")
                found[section.name][node.target.id] = [text for text in (above, behind) if text]
    return found


def what_it_is(key: str, annotation: Any) -> str:
    """The type of a key in words."""
    if key in CHOICES:
        return f"one of {', '.join(CHOICES[key])}, or path/to/file.py:function"
    return expected(annotation)


def limits(cls: type, name: str) -> str:
    """The limits that a key declares, in words."""
    declared = limits_of_keys(cls)[name]
    words = [limit.words for limit in declared if isinstance(limit, Limit)]
    words += ["or .inf" if x.or_infinite else f"at most {x.number:,}" for x in declared if isinstance(x, AtMost)]
    return ", ".join(words)


def default(cls: type, name: str) -> str:
    """The default of a key, as YAML."""
    return dump_yaml({"key": to_dict(cls())[name]}).strip().removeprefix("key: ")


def sections(cls: type, prefix: str = "", about: str = "") -> Iterator[tuple[str, type, str]]:
    """The prefix of a section's keys, its class and what there is to say about it; then those below it."""
    yield prefix, cls, f"{cls.__doc__} {about}"
    for name, annotation in field_types(cls).items():
        if section := section_of(annotation):
            null = "" if getattr(cls(), name) else f"Null by default: {descriptions()[cls.__name__][name][0]}."
            yield from sections(section, f"{prefix}{name}.", null)


def keys_page() -> str:
    described = descriptions()
    parts = [
        "# Every key",
        NOTE,
        "[configuration.md](../configuration.md) says how a config is written.\n"
        "`{}` for a section that is null by default takes all its defaults.\n"
        f"Integers are at most {LARGEST:,}, and other numbers finite and at most 1e30, also where no limit is given.",
    ]
    for prefix, cls, about in sections(schema.Config):
        rows = [
            [
                code(f"{prefix}{name}"),
                code(default(cls, name)),
                what_it_is(f"{prefix}{name}", annotation),
                limits(cls, name),
                marked(described[cls.__name__][name][0]),
            ]
            for name, annotation in field_types(cls).items()
            if section_of(annotation) is None
        ]
        parts += [f"## {prefix[:-1] or 'Top level'}", sentences(about)]
        parts.append(table(["key", "default", "what it is", "limits", "meaning"], rows))
    return page(*parts)


# Keys of companions.


def all_companions() -> list[Companion]:
    """The companions that modules below mmeureka_jax/companions/ make, by their names."""
    modules = pkgutil.walk_packages(companions.__path__, f"{companions.__name__}.")
    found = [value for info in modules for value in vars(importlib.import_module(info.name)).values()]
    by_name = {value.name: value for value in found if isinstance(value, Companion)}
    return [by_name[name] for name in sorted(by_name)]


def companions_page() -> str:
    described = descriptions()
    parts = [
        "# Every key of the companions",
        NOTE,
        "[companions.md](../companions.md) says how an experiment file is written.\n"
        "Integers and other numbers are limited as those of [keys.md](keys.md).",
    ]
    for companion in all_companions():
        cls = companion.config
        own = {name: texts for base in _with_bases(cls) for name, texts in described[base.__name__].items()}
        rows = [
            [code(name), code(default(cls, name)), expected(annotation), limits(cls, name), marked(own[name][0])]
            for name, annotation in field_types(cls).items()
        ]
        parts += [f"## {companion.name}", sentences(str(cls.__doc__))]
        parts.append(table(["key", "default", "what it is", "limits", "meaning"], rows))
    return page(*parts)


# Commands.


def commands(parser: argparse.ArgumentParser) -> Iterator[tuple[argparse.ArgumentParser, str]]:
    """Every command below a parser, and the line that lists of commands have for it."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for name, below in action.choices.items():
                yield below, helps[name]
                yield from commands(below)


def arguments(parser: argparse.ArgumentParser) -> Iterator[str]:
    """The tables of a parser's arguments: the plain ones, and each group that has a title of its own."""
    titles = {group.title: group for group in parser._action_groups}
    plain = [titles.pop("positional arguments"), titles.pop("options")]
    for title, groups in [("", plain), *((f"{title}:\n\n", [group]) for title, group in titles.items())]:
        rows = [
            argument(action)
            for group in groups
            for action in group._group_actions
            if not isinstance(action, argparse._HelpAction | argparse._SubParsersAction)
        ]
        if rows:
            yield title + table(["argument", "meaning"], rows)


def argument(action: argparse.Action) -> list[str]:
    """The row of one argument."""
    formatter = argparse.HelpFormatter("mmeureka")
    values = formatter._format_args(action, action.dest.upper()) if action.nargs != 0 else ""
    required = ["required"] if action.option_strings and action.required else []
    meaning = [formatter._expand_help(action)] if action.help else []
    return [code(f"{', '.join(action.option_strings)} {values}".strip()), marked("; ".join(required + meaning))]


def commands_page() -> str:
    parts = ["# Every command", NOTE, "Exit codes and what a command leaves behind are in [resume.md](../resume.md)."]
    for command, about in commands(build_parser()):
        parts += [f"## {command.prog}", sentences(f"{(command.description or about).rstrip('.')}.")]
        parts += arguments(command)
        if command.epilog:
            parts.append(sentences(command.epilog))
    return page(*parts)


# Metrics.


def metrics_page() -> str:
    about = [
        "A row of `metrics.jsonl` holds those of one step.",
        "Means are over all responses of a step and all hosts, before the online filter, unless a line says otherwise.",
        "A part of a name in capitals stands for several names.",
        "A loss of your own may log further ones, under `policy/` and `loss/`.",
        "What to watch, and what it tells, is in [algorithms.md](../algorithms.md#what-to-watch).",
    ]
    rows = [[code(metric.name), metric.unit, metric.meaning] for metric in METRICS]
    return page("# Every metric", NOTE, "\n".join(about), table(["metric", "unit", "meaning"], rows))


if __name__ == "__main__":
    main()
