"""Located values (yaml_text.py) as a tree of frozen dataclasses, strictly, and such trees as plain ones.

It knows nothing of the keys: the caller passes the classes (schema.py). Every value remembers where it was written, so
an unknown key or a wrong type is reported with its file and line (or its override), all of them at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union

from mmeureka_jax.config.yaml_text import (
    MAX_SHOWN,
    Located,
    describe,
    format_value,
    is_plain_text,
    merge,
    plain,
    read_file,
    read_override,
    shown,
)
from mmeureka_jax.errors import UserError

T = TypeVar("T")
Sections = NewType("Sections", dict)  # sections by names that the tree does not know: {name: {key: value}}
Overlay = NewType("Overlay", dict)  # some keys of the tree itself, to be laid over it
CustomFunction = NewType("CustomFunction", str)  # "path/to/file.py:function", a function of the user's own
_MAX_PROBLEMS = 50  # listed in one message


class _Mismatch(Exception):
    """What was expected instead of a value."""


def field_types(cls: Any) -> dict[str, Any]:
    """The annotation of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def section_of(annotation: Any) -> type | None:
    """The dataclass that an annotation such as `RLConfig` or `RandomModelConfig | None` holds."""
    return next((a for a in _alternatives(annotation) if isinstance(a, type) and dataclasses.is_dataclass(a)), None)


def dotted_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Every key of the tree, sections included, such as `rl`, `rl.loss`, `rl.filter`, `rl.filter.lower`."""
    for name, annotation in field_types(cls).items():
        yield f"{prefix}{name}"
        if section := section_of(annotation):
            yield from dotted_keys(section, f"{prefix}{name}.")


def given_keys(overlay: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys of everything that an overlay sets, sections included."""
    for name, value in overlay.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from given_keys(value, f"{prefix}{name}.")


def _nearest_key(cls: type, key: str) -> str:
    """The key of the tree most like `key`; one with the same last name wins over one spelled alike, and of those one in
    an outer section."""

    def likeness(candidate: str) -> float:
        same_leaf = candidate.rpartition(".")[2] == key.rpartition(".")[2]
        return difflib.SequenceMatcher(None, key, candidate).ratio() + same_leaf - 0.15 * candidate.count(".")

    return max(dotted_keys(cls), key=likeness)


def _instead(cls: type, key: str) -> str:
    """What to write for a key that the tree does not have."""
    if key.endswith("<<"):
        return "merge keys of YAML are not read; write the keys out, or name a file that has them in base:"
    if key in dotted_keys(cls):  # "a.b" is one name in a file, and a path only on the command line
        outer, _, last = key.rpartition(".")
        return f"in a file, dots are sections: write {last} in the section {outer}, as in {_nested(key)}"
    return f"the nearest key is {_nearest_key(cls, key[:MAX_SHOWN])!r}"


def _nested(key: str) -> str:
    first, _, rest = key.partition(".")
    return f"{first}: {{{_nested(rest)}}}" if rest else f"{first}: ..."


def expected(annotation: Any) -> str:
    """What a value of the type is, in words that complete "must be ..."."""
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    names |= {
        CustomFunction: "path/to/file.py:function",
        Overlay: "sections",
        Sections: "sections by names such as {NAME: {...}}",
    }
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        items = {int: "integers such as [1, 2]", float: "numbers such as [0.5, 1]", str: "texts such as [a, b]"}
        items |= {Overlay: "sections such as - {steps: 10, rl: {loss: cpgd}}"}
        return f"a list of {items[typing.get_args(annotation)[0]]}"
    if dataclasses.is_dataclass(annotation):
        return "a section (`key: value` lines, or {})"
    return " or ".join(names.get(a) or expected(a) for a in _alternatives(annotation))


def _convert(annotation: Any, value: Any) -> Any:
    """`value` as the annotation's type. Raises `_Mismatch`."""
    options = _alternatives(annotation)
    if value is None and types.NoneType in options:
        return None
    annotation, *others = (a for a in options if a is not types.NoneType)
    if others:
        for option in (annotation, *others):
            with contextlib.suppress(_Mismatch):
                return _convert(option, value)
        raise _Mismatch
    if typing.get_origin(annotation) is Literal and isinstance(value, str) and value in typing.get_args(annotation):
        return value
    if annotation is Overlay and isinstance(value, dict):
        return value
    if annotation is Sections and isinstance(value, dict):
        sections = {name: plain(section) for name, section in value.items()}
        if all(isinstance(section, dict) for section in sections.values()):
            return sections
    if isinstance(value, str) and not is_plain_text(value):
        raise _Mismatch
    if annotation is CustomFunction and isinstance(value, str) and is_custom_function(value):
        return value
    if typing.get_origin(annotation) is tuple and isinstance(value, list):
        return tuple(_convert(typing.get_args(annotation)[0], item) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is float and is_number and (isinstance(value, float) or abs(value) < 10**300):
        return float(value)
    if annotation is int and is_number and value == value and abs(value) != float("inf") and int(value) == value:
        return int(value)  # 1e3 is an integer
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise _Mismatch


def _build(cls: type[T], located: Located, prefix: str, root: type | None, problems: list[str]) -> T:
    """An instance of `cls`; what does not fit is added to `problems` and left at its default.

    Args:
        root: the whole tree's class, for what to write instead of an unknown key; None: those are left out.
    """
    annotations = field_types(cls)
    values: dict[str, Any] = {}
    for name, item in located.value.items():
        key = f"{prefix}{name}"
        if len(problems) == _MAX_PROBLEMS:
            problems.append("and perhaps more")
        if len(problems) > _MAX_PROBLEMS:
            break
        if name not in annotations:
            if root is not None:
                problems.append(f"{item.origin}: unknown key {shown(repr(key))}; {_instead(root, key)}")
            continue
        annotation = annotations[name]
        section = section_of(annotation)
        if section and isinstance(item.value, dict):
            if item.covered is None:
                values[name] = _build(section, item, f"{key}.", root, problems)
                continue
            item = item.covered
        value = item.value
        # On the command line run_dir=2024 is a folder's name, with no quotes that the shell would eat.
        if str in _alternatives(annotation) and item.text is not None and not isinstance(value, str | None):
            value = item.text
        try:
            if section and value is not None:
                raise _Mismatch
            values[name] = _convert(annotation, value)
        except _Mismatch:
            got = f"{describe(value)}{_hint(annotation, value)}"
            problems.append(f"{item.origin}: {key} must be {expected(annotation)}; got {got}")
    return cls(**values)


def _hint(annotation: Any, value: Any) -> str:
    choices = [c for a in _alternatives(annotation) if typing.get_origin(a) is Literal for c in typing.get_args(a)]
    return did_you_mean(value, choices) if isinstance(value, str) else ""


def did_you_mean(name: str, choices: Sequence[str]) -> str:
    """The end of a message about a name that is not among the choices, if it is spelled much like one of them."""
    near = difflib.get_close_matches(name[:MAX_SHOWN], choices, n=3)
    near.sort(key=lambda choice: sorted(choice) != sorted(name))  # two letters exchanged are the likeliest slip
    return f" (did you mean {near[0]}?)" if near else ""


def is_custom_function(text: str) -> bool:
    """Whether a text has the form of a `CustomFunction`; the file need not exist."""
    return all(text.rpartition(".py:")[::2])


def load_tree(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Reads `path` (and the files that its `base:` names) and dotted overrides into the dataclass tree `cls`.

    Raises:
        UserError: a file that is missing or not YAML, an unknown key, a value of the wrong type; one line each.
    """
    located = Located({}, "defaults") if path is None else read_file(Path(path))
    for override in overrides:
        located = merge(located, read_override(override))
    problems: list[str] = []
    config = _build(cls, located, "", cls, problems)
    if problems:
        raise UserError("\n".join(problems))
    return config


def _located(value: Any, where: str) -> Located:
    """A plain tree whose keys may be dotted."""
    if not isinstance(value, Mapping):
        return Located(value, where)
    merged = Located({}, where)
    for key, below in value.items():
        entry = _located(below, where)
        for part in reversed(str(key).split(".")):
            entry = Located({part: entry}, where)
        merged = merge(merged, entry)
    return merged


def known_part(cls: type[T], tree: Mapping[str, Any], origin: str) -> T:
    """What a plain tree of another version of `cls` says of this one: keys that are not known are left out.

    Raises:
        UserError: a known key has a value of the wrong type; one line each, that begins with `origin`.
    """
    problems: list[str] = []
    built = _build(cls, _located(tree, origin), "", None, problems)
    if problems:
        raise UserError("\n".join(problems))
    return built


def overlaid(tree: T, overlay: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> T:
    """`tree` with what `overlay` says over it, and `overrides` over that. Keys of the overlay may be dotted.

    Raises:
        UserError: an unknown key, or a value of the wrong type; one line each, that begins with `origin`.
    """
    whole = merge(_located(to_dict(tree), "config"), _located(overlay, origin))
    for override in overrides:
        whole = merge(whole, read_override(override))
    problems: list[str] = []
    cls = type(tree)
    built = _build(cls, whole, "", cls, problems)
    if problems:
        raise UserError("\n".join(problems))
    return built


# ---------------------------------------------------------------------------------------------------------------------
# And back.


def to_dict(config: Any) -> dict[str, Any]:
    """The tree as plain dicts, lists and scalars, every field present."""

    def unpacked(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: unpacked(v) for k, v in value.items()}
        return [unpacked(v) for v in value] if isinstance(value, tuple | list) else value

    return unpacked(dataclasses.asdict(config))


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed between two trees of `to_dict`, one line a key: `rl.loss: ppo_clip -> cpgd`."""
    lines: list[str] = []
    for name in [*old, *(name for name in new if name not in old)]:
        before = old.get(name)
        after = new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += config_diff(before, after, f"{prefix}{name}.")
        elif name not in old or name not in new:
            lines.append(
                f"{prefix}{name}: {format_value(before) if name in old else '(absent)'}"
                f" -> {format_value(after) if name in new else '(absent)'}"
            )
        elif before != after:
            lines.append(f"{prefix}{name}: {format_value(before)} -> {format_value(after)}")
    return lines


def filled(tree: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    """`tree` with the keys of `defaults` that it lacks, in every section that it has."""
    known = {
        name: filled(value, defaults[name])
        if isinstance(value, Mapping) and isinstance(defaults.get(name), Mapping)
        else value
        for name, value in tree.items()
    }
    return {**known, **{name: value for name, value in defaults.items() if name not in tree}}
