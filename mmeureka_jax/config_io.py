"""YAML files and dotted overrides into a tree of frozen dataclasses, strictly, and back.

Knows nothing of this project's config: `config.py` gives the classes. Every value remembers where it was written, so an
unknown key or a wrong type is reported with its file and line (or its override), all of them at once.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, Union

import yaml

from mmeureka_jax.errors import UserError

T = TypeVar("T")
BASE_KEY = "base"
Overlay = NewType("Overlay", dict)  # some keys of the tree itself, to be laid over it
CustomFunction = NewType("CustomFunction", str)  # "path/to/file.py:function", a function of the user's own


# ---------------------------------------------------------------------------------------------------------------------
# YAML whose plain scalars are those of YAML 1.2: `1e-5` is a number; `on`, `no` and `12:30` are text.

_PLAIN_SCALARS = {
    "null": (r"~|null|Null|NULL|", "~nN"),
    "bool": (r"true|True|TRUE|false|False|FALSE", "tTfF"),
    "int": (r"[-+]?[0-9][0-9_]*", "-+0123456789"),
    "float": (
        r"[-+]?(\.[0-9]+|[0-9][0-9_]*(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)",
        "-+.0123456789",
    ),
}


class _Resolver:
    """Mixin of the loader and the dumper, so that what is saved reads back as what it was."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}


for _tag, (_pattern, _first) in _PLAIN_SCALARS.items():
    for _character in [*_first, ""] if _tag == "null" else _first:
        _Resolver.yaml_implicit_resolvers.setdefault(_character, []).append(
            (f"tag:yaml.org,2002:{_tag}", re.compile(rf"(?:{_pattern})\Z"))
        )


class _Loader(_Resolver, yaml.SafeLoader):
    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        return int(self.construct_scalar(node))  # decimal only: 010 is ten


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


class _Dumper(_Resolver, yaml.SafeDumper):
    """Sections a key a line, lists on one line."""


def _represent_list(dumper: _Dumper, items: list[Any]) -> yaml.SequenceNode:
    return dumper.represent_sequence("tag:yaml.org,2002:seq", items, flow_style=True)


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    # PyYAML writes these line breaks as they are, and reads them back as spaces; in double quotes it escapes them.
    quoted = '"' if any(mark in text for mark in "\x85\u2028\u2029") else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=quoted)


_Dumper.add_representer(list, _represent_list)
_Dumper.add_representer(str, _represent_text)


# ---------------------------------------------------------------------------------------------------------------------
# Values that know where they were written.


@dataclass(frozen=True)
class _Located:
    """A value as written: a scalar, a plain list, or a dict of `_Located`."""

    value: Any
    origin: str  # "configs/x.yaml:12" or "override 'rl.loss=cpgd'"
    text: str | None = None  # an override's own text, for fields that hold text


def _from_node(loader: _Loader, node: yaml.Node, path: Path) -> _Located:
    origin = f"{path}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.SequenceNode) and node.tag == "tag:yaml.org,2002:seq":
        return _Located([_plain(_from_node(loader, item, path)) for item in node.value], origin)
    if not isinstance(node, yaml.MappingNode):
        return _Located(loader.construct_object(node, deep=True), origin)
    values: dict[str, _Located] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        key = loader.construct_object(key_node, deep=True)
        if not isinstance(key, str):
            raise UserError(f"{path}:{line}: keys are names; got {key!r}")
        if key in values:
            raise UserError(f"{path}:{line}: the key {key!r} is given twice (first at {values[key].origin})")
        values[key] = dataclasses.replace(_from_node(loader, value_node, path), origin=f"{path}:{line}")
    return _Located(values, origin)


def _plain(located: _Located) -> Any:
    return {key: _plain(value) for key, value in located.value.items()} if _is_section(located) else located.value


def _is_section(located: _Located) -> bool:
    return isinstance(located.value, dict) and all(isinstance(value, _Located) for value in located.value.values())


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of `key: value` lines, over the chain of files that its `base:` names, as plain dicts and lists.

    Raises:
      UserError: a file that is missing or malformed, or a key that is given twice; with file and line.
    """
    return _plain(_read_file(path))


def _parse_yaml(text: str, path: Path) -> _Located | None:
    """The one document of `text`; None if it is empty. Raises `yaml.YAMLError`, or `UserError` with file and line."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _from_node(loader, node, path)
    except (ValueError, RecursionError) as error:  # 0x of a tag like !!int, an anchor inside itself
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path}: not valid YAML: {error}") from None
    finally:
        loader.dispose()


def _read_file(path: Path, seen: tuple[Path, ...] = ()) -> _Located:
    """`path` merged over the chain of files that its `base:` names."""
    resolved = path.resolve()
    if resolved in seen:
        chain = " -> ".join(str(p) for p in [*seen, resolved])
        raise UserError(f"{path}: `base:` goes round in a circle: {chain}; remove one of them")
    try:
        root = _parse_yaml(path.read_text(encoding="utf-8"), path)
    except FileNotFoundError:
        named_by = f" (named by `base:` of {seen[-1]})" if seen else ""
        raise UserError(f"{path}: no such config file{named_by}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the config file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or str(error)
        raise UserError(f"{where}: not valid YAML: {problem}") from None

    if root is None:
        return _Located({}, str(path))
    if not isinstance(root.value, dict):
        raise UserError(f"{root.origin}: a config file holds `key: value` lines; got {_describe(root.value)}")
    base = root.value.pop(BASE_KEY, None)
    if base is None:
        return root
    if not isinstance(base.value, str):
        raise UserError(f"{base.origin}: `base` is the path of one config file; got {_describe(base.value)}")
    return _merge(_read_file(path.parent / base.value, (*seen, resolved)), root)


def _read_override(override: str) -> _Located:
    """`a.b=value` as `{a: {b: value}}`."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"override {override!r}: expected KEY=VALUE, such as rl.loss=cpgd")
    origin = f"override {override!r}"
    try:
        parsed = _parse_yaml(text, Path("override"))
    except (yaml.YAMLError, UserError):
        parsed = _Located(text, origin)  # *.parquet and the like: text that is not YAML
    located = _relocate(parsed or _Located(None, origin), origin, text)
    for part in reversed(key.strip().split(".")):
        located = _Located({part: located}, origin)
    return located


def _relocate(located: _Located, origin: str, text: str | None = None) -> _Located:
    if isinstance(located.value, dict):
        return _Located({k: _relocate(v, origin) for k, v in located.value.items()}, origin, text)
    return _Located(located.value, origin, text)


def _merge(under: _Located, over: _Located) -> _Located:
    """`over` on top of `under`: mappings key by key, anything else replaced."""
    if not (isinstance(under.value, dict) and isinstance(over.value, dict)):
        return over
    merged = dict(under.value)
    for key, value in over.value.items():
        merged[key] = _merge(merged[key], value) if key in merged else value
    return _Located(merged, over.origin)


# ---------------------------------------------------------------------------------------------------------------------
# Building dataclasses from located values.


class _Mismatch(Exception):
    """What was expected instead of a value."""


def _field_types(cls: Any) -> dict[str, Any]:
    """The annotation of each field of a dataclass."""
    hints = typing.get_type_hints(cls)
    return {f.name: hints[f.name] for f in dataclasses.fields(cls)}


def _alternatives(annotation: Any) -> tuple[Any, ...]:
    if typing.get_origin(annotation) in (Union, types.UnionType):
        return typing.get_args(annotation)
    return (annotation,)


def _section_of(annotation: Any) -> type | None:
    """The dataclass that an annotation such as `RLConfig` or `RandomModelConfig | None` holds."""
    return next((a for a in _alternatives(annotation) if isinstance(a, type) and dataclasses.is_dataclass(a)), None)


def dotted_keys(cls: type, prefix: str = "") -> Iterator[str]:
    """Every key of the tree, sections included, such as `rl`, `rl.loss`, `rl.filter`, `rl.filter.lower`."""
    for name, annotation in _field_types(cls).items():
        yield f"{prefix}{name}"
        if section := _section_of(annotation):
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


def _describe(value: Any) -> str:
    if isinstance(value, dict):
        return "a section (`key: value` lines)"
    return _format(value) if value is None or isinstance(value, bool | int | float | list) else repr(value)


def _expected(annotation: Any) -> str:
    names = {int: "an integer", float: "a number", bool: "true or false", str: "text", types.NoneType: "null"}
    names |= {CustomFunction: "path/to/file.py:function", Overlay: "sections"}
    if typing.get_origin(annotation) is Literal:
        return "one of " + ", ".join(map(str, typing.get_args(annotation)))
    if typing.get_origin(annotation) is tuple:
        items = {int: "integers such as [1, 2]", float: "numbers such as [0.5, 1]", str: "texts such as [a, b]"}
        items |= {Overlay: "sections such as - {steps: 10, rl: {loss: cpgd}}"}
        return f"a list of {items[typing.get_args(annotation)[0]]}"
    if dataclasses.is_dataclass(annotation):
        return "a section (`key: value` lines, or {})"
    return " or ".join(names.get(a) or _expected(a) for a in _alternatives(annotation))


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
    if typing.get_origin(annotation) is Literal and value in typing.get_args(annotation):
        return value
    if annotation is Overlay and isinstance(value, dict):
        return value
    if annotation is CustomFunction and isinstance(value, str) and all(value.rpartition(".py:")[::2]):
        return value
    if typing.get_origin(annotation) is tuple and isinstance(value, list):
        return tuple(_convert(typing.get_args(annotation)[0], item) for item in value)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if annotation is float and is_number:
        return float(value)
    if annotation is int and is_number and value == value and abs(value) != float("inf") and int(value) == value:
        return int(value)  # 1e3 is an integer
    if annotation in (bool, str) and isinstance(value, annotation):
        return value
    raise _Mismatch


def _build(cls: type[T], located: _Located, prefix: str, root: type, problems: list[str]) -> T:
    """An instance of `cls`; what does not fit is added to `problems` and left at its default."""
    annotations = _field_types(cls)
    values: dict[str, Any] = {}
    for name, item in located.value.items():
        key = f"{prefix}{name}"
        if name not in annotations:
            nearest = _nearest_key(root, key)
            problems.append(f"{item.origin}: unknown key {key!r}; the nearest key is {nearest!r}")
            continue
        annotation = annotations[name]
        section = _section_of(annotation)
        if section and isinstance(item.value, dict):
            values[name] = _build(section, item, f"{key}.", root, problems)
            continue
        value = item.value
        # On the command line run_dir=2024 is a folder's name, with no quotes that the shell would eat.
        if str in _alternatives(annotation) and item.text is not None and not isinstance(value, str | None):
            value = item.text
        try:
            if section and value is not None:
                raise _Mismatch
            values[name] = _convert(annotation, value)
        except _Mismatch:
            got = f"{_describe(value)}{_hint(annotation, value)}"
            problems.append(f"{item.origin}: {key} must be {_expected(annotation)}; got {got}")
    return cls(**values)


def _hint(annotation: Any, value: Any) -> str:
    choices = [c for a in _alternatives(annotation) if typing.get_origin(a) is Literal for c in typing.get_args(a)]
    near = difflib.get_close_matches(str(value), choices, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def load_tree(cls: type[T], path: str | Path | None, overrides: Sequence[str] = ()) -> T:
    """Reads `path` (and the files that its `base:` names) and dotted overrides into the dataclass tree `cls`.

    Raises:
      UserError: a file that is missing or not YAML, an unknown key, a value of the wrong type; one line each.
    """
    located = _Located({}, "defaults") if path is None else _read_file(Path(path))
    for override in overrides:
        located = _merge(located, _read_override(override))
    problems: list[str] = []
    config = _build(cls, located, "", cls, problems)
    if problems:
        raise UserError("\n".join(problems))
    return config


def overlaid(tree: T, overlay: Mapping[str, Any], origin: str, overrides: Sequence[str] = ()) -> T:
    """`tree` with what `overlay` says over it, and `overrides` over that. Keys of the overlay may be dotted.

    Raises:
      UserError: an unknown key, or a value of the wrong type; one line each, that begins with `origin`.
    """

    def located(value: Any, where: str) -> _Located:
        if not isinstance(value, Mapping):
            return _Located(value, where)
        merged = _Located({}, where)
        for key, below in value.items():
            entry = located(below, where)
            for part in reversed(str(key).split(".")):
                entry = _Located({part: entry}, where)
            merged = _merge(merged, entry)
        return merged

    whole = _merge(located(to_dict(tree), "config"), located(overlay, origin))
    for override in overrides:
        whole = _merge(whole, _read_override(override))
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

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {k: plain(v) for k, v in value.items()}
        return [plain(v) for v in value] if isinstance(value, tuple | list) else value

    return plain(dataclasses.asdict(config))


def load_yaml(text: str) -> Any:
    """The tree of what `dump_yaml` wrote, unchecked. Raises `yaml.YAMLError`."""
    return yaml.load(text, Loader=_Loader)


def dump_yaml(tree: dict[str, Any]) -> str:
    """`tree` as YAML that `load_tree` reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=10**6)


def _format(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def config_diff(old: Mapping[str, Any], new: Mapping[str, Any], prefix: str = "") -> list[str]:
    """What changed between two trees of `to_dict`, one line a key: `rl.loss: ppo_clip -> cpgd`."""
    lines: list[str] = []
    for name in [*old, *(name for name in new if name not in old)]:
        before, after = old.get(name), new.get(name)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            lines += config_diff(before, after, f"{prefix}{name}.")
        elif name not in old or name not in new:
            lines.append(
                f"{prefix}{name}: {_format(before) if name in old else '(absent)'}"
                f" -> {_format(after) if name in new else '(absent)'}"
            )
        elif before != after:
            lines.append(f"{prefix}{name}: {_format(before)} -> {_format(after)}")
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
