"""Which function of the package an instruction of a compiled program comes from."""

from __future__ import annotations

import functools
import re
from pathlib import Path

import mmeureka_jax

_PACKAGE = Path(mmeureka_jax.__file__).parent.name
_TABLES = ("FileNames", "FunctionNames", "FileLocations", "StackFrames")
# Functions that say nothing about where in the model an array is made: what calls them does.
_GENERAL = {
    "constrain", "project", "_project_forward", "_project_backward", "run_stack", "Linear", "Linear.__call__",
    "part_sums", "keys_first", "split_heads", "take_in_shards",
}  # fmt: skip


class SourceNames:
    """The tables at the head of a program's text, which stack frames refer to; without them, a file and a line may be
    at the instruction itself."""

    def __init__(self, text: str):
        tables: dict[str, dict[int, str]] = {name: {} for name in _TABLES}
        table: dict[int, str] | None = None
        for line in text.splitlines():
            if line in tables:
                table = tables[line]
            elif line.endswith("{") and line[:1] in ("%", "E"):
                break
            elif table is not None and (entry := re.match(r"(\d+) (.*)", line)):
                table[int(entry[1])] = entry[2].strip('"')
        self._files = tables["FileNames"]
        self._functions = tables["FunctionNames"]
        self._locations = tables["FileLocations"]
        self._frames = tables["StackFrames"]

    def origin(self, attributes: str) -> str | None:
        """A readable name for where an instruction with these attributes comes from, such as `backward of GatedMLP
        (models/layers.py:133)`; None if the text does not say."""
        metadata = re.search(r"metadata=\{([^}]*)\}", attributes)
        if metadata is None:
            return None
        name = re.search(r'op_name="([^"]*)"', metadata[1])
        path = name[1] if name else ""
        place = self._place(metadata[1])
        if place is None:
            place = path.rsplit("/", 1)[-1] if "/" in path else ""
        return f"{_pass_of(path)}{place}" if place else None

    def _place(self, metadata: str) -> str | None:
        if frame := re.search(r"stack_frame_id=(\d+)", metadata):
            return self._of_frame(int(frame[1]))
        file = re.search(r'source_file="([^"]*)"', metadata)
        line = re.search(r"source_line=(\d+)", metadata)
        if file is None or (inside := _in_package(file[1])) is None:
            return None
        return f"{inside}:{line[1]}" if line else inside

    @functools.lru_cache(maxsize=4096)  # noqa: B019  (lives as long as the text that it belongs to)
    def _of_frame(self, number: int) -> str | None:
        """The innermost function of the package that is more than a helper."""
        fallback: str | None = None
        while number in self._frames:
            frame = _numbers(self._frames[number])
            location = _numbers(self._locations.get(frame["file_location_id"], ""))
            file = _in_package(self._files.get(location.get("file_name_id", 0), ""))
            function = self._functions.get(location.get("function_name_id", 0), "")
            if file is not None:
                name = f"{_readable(function)} ({file}:{location['line']})"
                fallback = fallback or name
                if function not in _GENERAL:
                    return name
            parent = frame.get("parent_frame_id", 0) - 1  # 1: none
            if parent == number:
                break
            number = parent
        return fallback


def _numbers(entry: str) -> dict[str, int]:
    return {name: int(value) for name, value in re.findall(r"(\w+)=(\d+)", entry)}


def _in_package(file: str) -> str | None:
    """The path within the package."""
    parts = Path(file).parts
    if _PACKAGE not in parts:
        return None
    start = len(parts) - parts[::-1].index(_PACKAGE)
    return "/".join(parts[start:])


def _readable(function: str) -> str:
    return re.sub(r"\.(__call__|<\w+>)", "", function)


def _pass_of(path: str) -> str:
    """Which pass of a differentiated program an operation belongs to."""
    if "rematted_computation" in path:
        return "recomputed "
    return "backward of " if "transpose(" in path else ""
