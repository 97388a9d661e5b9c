"""YAML text as values that know where they were written, and plain trees as YAML text.

It reads files, the chain of files that their `base:` names, and dotted overrides; and only what a config needs: plain
scalars, lists and sections, each key once, in files of a config's size.
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mmeureka_jax.errors import UserError, brief, printable
from mmeureka_jax.files import read_text

BASE_KEY = "base"

# No config comes near these; files that do were made to take all time or memory.
_MAX_BYTES = 2**17
_MAX_DEPTH = 20
_MAX_VALUES = 10_000  # with what anchors repeat
MAX_SHOWN = 100  # characters of a value in a message
_MAX_TEXT = 4096  # characters, as of a path


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
    depth = values = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth += 1
        self.values += 1
        _check_size(self.depth, self.values, self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

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


def _check_size(depth: int, values: int, mark: yaml.Mark) -> None:
    """Raises a `YAMLError` for what no config is, while it is read and again when aliases are followed."""
    if depth > _MAX_DEPTH or values > _MAX_VALUES:
        what = f"{_MAX_DEPTH} levels deep" if depth > _MAX_DEPTH else f"{_MAX_VALUES} values long"
        problem = f"more than {what}, which no config is (does an anchor repeat itself?)"
        raise yaml.MarkedYAMLError(problem=problem, problem_mark=mark)


# ---------------------------------------------------------------------------------------------------------------------
# Values that know where they were written.


@dataclass(frozen=True)
class Located:
    """A value as written: a scalar, a plain list, or a dict of `Located`."""

    value: Any
    origin: str  # "configs/x.yaml:12" or "override 'rl.loss=cpgd'"
    text: str | None = None  # an override's own text, for fields that hold text
    covered: Located | None = None  # for a section: the value under it that is not a section


_PLAIN_TAGS = {
    yaml.ScalarNode: {f"tag:yaml.org,2002:{kind}" for kind in ("null", "bool", "int", "float", "str")},
    yaml.SequenceNode: {"tag:yaml.org,2002:seq"},
    yaml.MappingNode: {"tag:yaml.org,2002:map"},
}


@dataclass
class _Reader:
    """Makes located values of the nodes of one file, with limits on how many and how deep."""

    loader: _Loader
    path: Path
    values: int = 0

    def read(self, node: yaml.Node, depth: int = 0) -> Located:
        origin = f"{self.path}:{node.start_mark.line + 1}"
        self.values += 1
        _check_size(depth, self.values, node.start_mark)
        if node.tag not in _PLAIN_TAGS[type(node)]:
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise UserError(f"{origin}: the tag {shown(tag)} is not read; write a plain value, list or section")
        if isinstance(node, yaml.SequenceNode):
            return Located([plain(self.read(item, depth + 1)) for item in node.value], origin)
        if isinstance(node, yaml.ScalarNode):
            return Located(self._scalar(node), origin)
        values: dict[str, Located] = {}
        for key_node, value_node in node.value:
            place = f"{self.path}:{key_node.start_mark.line + 1}"
            key = self._scalar(key_node) if isinstance(key_node, yaml.ScalarNode) else f"a {key_node.id}"
            if key_node.tag != "tag:yaml.org,2002:str" or not isinstance(key, str):
                raise UserError(f"{place}: keys are names; got {describe(key)}")
            if key in values:
                raise UserError(f"{place}: the key {shown(repr(key))} is given twice (first at {values[key].origin})")
            values[key] = dataclasses.replace(self.read(value_node, depth + 1), origin=place)
        return Located(values, origin)

    def _scalar(self, node: yaml.ScalarNode) -> Any:
        try:
            return self.loader.construct_object(node)
        except (ValueError, KeyError) as error:  # such as !!int of a word, or a number of 5,000 digits
            what = f"{shown(repr(node.value))} is no {node.tag.rpartition(':')[2]}"
            raise UserError(f"{self.path}:{node.start_mark.line + 1}: {what}: {brief(error)}") from None


def plain(located: Located) -> Any:
    """A value without where it was written, and so all below it."""
    return {key: plain(value) for key, value in located.value.items()} if _is_section(located) else located.value


def _is_section(located: Located) -> bool:
    return isinstance(located.value, dict) and all(isinstance(value, Located) for value in located.value.values())


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of `key: value` lines, over the chain of files that its `base:` names, as plain dicts and lists.

    Raises:
        UserError: a file that is missing or malformed, or a key that is given twice; with file and line.
    """
    return plain(read_file(path))


def _parse_yaml(text: str, path: Path) -> Located | None:
    """The one document of `text`; None if it is empty. Raises `yaml.YAMLError`, or `UserError` with file and line."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        return None if node is None else _Reader(loader, path).read(node)
    except ValueError as error:  # a character beyond Unicode's, written as \U00110000
        raise error if isinstance(error, UserError) else UserError(f"{path}: not valid YAML: {brief(error)}") from None
    finally:
        loader.dispose()


def read_file(path: Path, seen: tuple[Path, ...] = ()) -> Located:
    """`path` merged over the chain of files that its `base:` names."""
    named_by = f" (named by `base:` of {seen[-1]})" if seen else ""
    try:
        resolved = path.resolve()
        if resolved in seen:
            chain = " -> ".join(str(p) for p in [*seen, resolved])
            raise UserError(f"{path}: `base:` goes round in a circle: {chain}; remove one of them")
        if len(seen) > _MAX_DEPTH:
            raise UserError(f"{path}: `base:` after `base:`, more than {_MAX_DEPTH} of them{named_by}")
        root = _parse_yaml(read_text(path, max_bytes=_MAX_BYTES), path)
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file{named_by}") from None
    except RuntimeError:
        raise UserError(f"{path}: a symbolic link that leads back to itself{named_by}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot read the config file: {error.strerror or error}{named_by}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text (byte {error.start}); save the config file as UTF-8") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or brief(error)
        raise UserError(f"{where}: not valid YAML: {shown(str(problem))}") from None

    if root is None:
        return Located({}, str(path))
    if not isinstance(root.value, dict):
        raise UserError(f"{root.origin}: a config file holds `key: value` lines; got {describe(root.value)}")
    base = root.value.pop(BASE_KEY, None)
    if base is None:
        return root
    if not (isinstance(base.value, str) and is_plain_text(base.value)):
        raise UserError(f"{base.origin}: `base` is the path of one config file; got {describe(base.value)}")
    return merge(read_file(path.parent / base.value, (*seen, resolved)), root)


def read_override(override: str) -> Located:
    """`a.b=value` as `{a: {b: value}}`."""
    key, separator, text = override.partition("=")
    if not separator or not key.strip():
        raise UserError(f"override {shown(repr(override))}: expected KEY=VALUE, such as rl.loss=cpgd")
    origin = f"override {shown(repr(override))}"
    try:
        parsed = _parse_yaml(text, Path("override"))
    except (yaml.YAMLError, UserError):
        parsed = Located(text, origin)  # *.parquet and the like: text that is not YAML
    located = _relocate(parsed or Located(None, origin), origin, text)
    parts = key.strip().split(".")
    if len(parts) > _MAX_DEPTH:
        raise UserError(f"{origin}: no key has {len(parts)} parts")
    for part in reversed(parts):
        located = Located({part: located}, origin)
    return located


def _relocate(located: Located, origin: str, text: str | None = None) -> Located:
    if isinstance(located.value, dict):
        return Located({k: _relocate(v, origin) for k, v in located.value.items()}, origin, text)
    return Located(located.value, origin, text)


def merge(under: Located, over: Located) -> Located:
    """`over` on top of `under`: mappings key by key, anything else replaced; what a section covers is kept for a
    message, if it is no section."""
    if not isinstance(over.value, dict):
        return over
    if not isinstance(under.value, dict):
        return over if under.value is None else replace(over, covered=under)
    merged = dict(under.value)
    for key, value in over.value.items():
        merged[key] = merge(merged[key], value) if key in merged else value
    return Located(merged, over.origin, covered=under.covered)


# ---------------------------------------------------------------------------------------------------------------------
# Values in messages, and written.


def shown(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}... ({len(text)} characters)"


def is_plain_text(text: str) -> bool:
    """Whether a file can be named so, and the text be written to one and shown."""
    return len(text) <= _MAX_TEXT and printable(text) == text and not {"\t", "\n"} & set(text)


def describe(value: Any) -> str:
    if isinstance(value, dict):
        return "a section (`key: value` lines)"
    if isinstance(value, str) and not is_plain_text(value):
        why = f"longer than {_MAX_TEXT} characters"
        if len(value) <= _MAX_TEXT:
            why = "with control characters, line ends or half a character in it"
        return f"one {why}: {shown(ascii(value))}"
    if isinstance(value, int) and abs(value) >= 10**MAX_SHOWN:
        return f"a number of {value.bit_length()} bits"  # Python does not write very long ones
    return shown(format_value(value) if value is None or isinstance(value, bool | int | float | list) else repr(value))


def format_value(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, default=repr)


def dump_yaml(tree: dict[str, Any]) -> str:
    """`tree` as YAML that `load_tree` reads back equal."""
    return yaml.dump(tree, Dumper=_Dumper, sort_keys=False, default_flow_style=False, allow_unicode=True, width=10**6)
