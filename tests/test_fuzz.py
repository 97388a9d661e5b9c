"""Odd configs, checkpoints and run folders by the hundred: each is read or refused with a message, and nothing else.

`MMEUREKA_FUZZ=2000 pytest tests/test_fuzz.py --hypothesis-profile=default` looks further than the everyday run.
"""

from __future__ import annotations

import copy
import functools
import json
import math
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers.commands import SMALL, prompt_row
from helpers.odd_runs import write_small_run
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mmeureka_jax.config.load import load_config, save_config
from mmeureka_jax.config.reading import dotted_keys
from mmeureka_jax.config.schema import Config
from mmeureka_jax.config.stages import stage_configs
from mmeureka_jax.data.problems import open_problems
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import read_config, stored_dtypes
from mmeureka_jax.report.comparison import Run, state_of, write_comparison
from mmeureka_jax.report.page import write_report
from mmeureka_jax.runs.folder import config_changes
from mmeureka_jax.runs.metadata import read_metadata
from mmeureka_jax.runs.provenance import PROVENANCE_FILE, read_provenance
from mmeureka_jax.runs.tracking import read_metrics
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.setup.random_models import write_tiny_checkpoint
from mmeureka_jax.training.sweep import load_sweep

EXAMPLES = int(os.environ.get("MMEUREKA_FUZZ", "60"))
fuzzed = settings(max_examples=EXAMPLES, deadline=20_000)  # milliseconds: none hangs

# A value of every kind that a number, a text, a list or a section is not.
ODD: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 3, 0.5, -0.0, 10**9, 2**31, 2**63, 10**400, -(10**400), 1e30, 1e308, math.inf,
    math.nan,
    "", " ", "a", "\0", "\ud800", "../../x", "x" * 5000, "1e400", "2024-01-01", [], {}, [[]], [1, 2], ["a"], [None],
    {"a": 1}, {"": {}}, functools.reduce(lambda inner, _: [inner], range(200), 1),
)  # fmt: skip
ODD_TEXTS = (
    "!!python/object/apply:os.system ['touch RUN']", "!!binary aGVsbG8=", "!!set {a}", "!!omap [a: b]", "&a [*a]", "*a",
    "0x10", "1_0", "1e5", ".inf", ".nan", "~", "'10'", '"\\ud800"', '"\\0"', "[", "{", "]", "}", "- a", "? b", "\t",
    "|",
    "%", "@", "a: b", "{a: b}", "<<: {a: b}", "2024-01-01", "1" * 5000, "yes", "[1, [2, [3]]]", "!", "---", "...",
)  # fmt: skip
KEYS = tuple(dotted_keys(Config))
odd_texts = st.sampled_from(ODD_TEXTS) | st.sampled_from(ODD).map(lambda value: json.dumps(value)[:6000]) | st.text()


def refuses_or_reads(read: Callable[[], Any]) -> None:
    """Any other exception is the test's failure."""
    try:
        read()
    except UserError as error:
        assert str(error).strip() and len(str(error)) < 20_000


def nested(key: str, text: str) -> str:
    """The lines of a file that set a dotted key."""
    *sections, last = key.split(".")
    return "".join(f"{'  ' * depth}{name}:\n" for depth, name in enumerate(sections)) + (
        f"{'  ' * len(sections)}{last}: {text}\n"
    )


@fuzzed
@given(
    lines=st.lists(st.tuples(st.sampled_from([*KEYS, "base", "stages"]), odd_texts), max_size=3),
    raw=odd_texts,
    overrides=st.lists(st.tuples(st.sampled_from(KEYS) | odd_texts, st.sampled_from("=:"), odd_texts), max_size=3),
)
def test_configs(lines, raw, overrides, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp() / "configs"
    folder.mkdir(exist_ok=True)
    path = folder / "run.yaml"
    for text in (
        "".join(nested(*line) for line in lines),
        f"model: {{random: {{}}}}\n{raw}\n",
        "".join(nested(*line) for line in lines) + raw,
    ):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        refuses_or_reads(lambda: load_sweep(path))
        for given_overrides in ([], ["".join(override) for override in overrides]):

            def read(words=given_overrides):
                config = load_config(path, words)
                refuses_or_reads(lambda: validate_config(config))
                refuses_or_reads(lambda: validate_config(config, command="sft"))
                for stage in stage_configs(config):
                    save_config(stage, folder / "saved.yaml")

            refuses_or_reads(read)


# JSON files: one place of the tree becomes something else, or the text is cut, doubled or spoilt.


def places(tree: Any, path: tuple = ()) -> Iterator[tuple]:
    yield path
    for key, below in tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ():
        if not isinstance(key, int) or key < 4:
            yield from places(below, (*path, key))


def changed(tree: Any, path: tuple, value: Any) -> Any:
    if not path:
        return value
    tree = copy.copy(tree)
    if path[1:] or value is not KeyError:
        tree[path[0]] = changed(tree[path[0]], path[1:], value)
    else:
        del tree[path[0]]
    return tree


def spoilt(content: bytes, choose: Callable) -> bytes:
    """The bytes of a JSON or JSONL file, made odd."""
    kind = choose(st.sampled_from(["value", "value", "value", "cut", "bytes", "whole"]))
    if kind == "value":
        lines = content.decode().splitlines() if content.startswith(b'{"step"') else [content.decode()]
        number = choose(st.integers(0, len(lines) - 1))
        tree = json.loads(lines[number])
        # By name, not by weight: most of a tokenizer's places are tokens.
        some = sorted({str(path[:2]): path for path in places(tree) if len(path) < 4}.values(), key=str)
        path = choose(st.sampled_from(some))
        value = choose(st.sampled_from([*ODD, KeyError]))
        lines[number] = json.dumps(changed(tree, path, value if path or value is not KeyError else {}))
        return ("\n".join(lines) + "\n").encode()
    if kind == "whole":
        return choose(
            st.sampled_from([b"", b"{}", b"[]", b"null", b"3", b'"a"', b"[" * 5000, b"\xff\xfe{\0}\0", b"\0"])
        )
    at = choose(st.integers(0, len(content)))
    return content[:at] if kind == "cut" else content[:at] + choose(st.binary(min_size=1, max_size=8)) + content[at:]


FAMILIES = ("qwen2_5_vl", "qwen2_vl", "internvl", "qwen2")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory) -> dict[str, Path]:
    """A small checkpoint of each family, and a problem to ask it."""
    folder = tmp_path_factory.mktemp("checkpoints")
    for family in FAMILIES:
        write_tiny_checkpoint(folder / family, replace(SMALL, family=family, vision_intermediate_size=16))
        (folder / family / PROVENANCE_FILE).write_text(
            json.dumps({"step": 1, "prompt_style": "plain", "max_pixels": 9000, "min_pixels": 4000,
                        "max_new_tokens": 8, "accuracy": "boxed", "lora_base_dtype": "bfloat16"})
        )  # fmt: skip
    Image.new("RGB", (60, 60), "red").save(folder / "red.png")
    rows = [prompt_row("a", "what is 1 + 1 ?"), prompt_row("b", "how many ?", "red.png")]
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {family: folder / family for family in FAMILIES}


def read_checkpoint(folder: Path) -> None:
    refuses_or_reads(lambda: read_provenance(folder))
    config = read_config(folder)
    refuses_or_reads(lambda: stored_dtypes(folder))
    processor = Processor.from_checkpoint(folder, prompt_style="plain", max_prompt_tokens=1000)
    problems = open_problems(str(folder.parent / "rows.jsonl"), require_answer=False)
    for problem in problems:
        refuses_or_reads(lambda one=problem: processor.measure(one))
    assert config.text.vocab_size > 0


@fuzzed
@given(data=st.data())
def test_checkpoints(data, checkpoints, tmp_path_factory):
    folder = checkpoints[data.draw(st.sampled_from(FAMILIES))]
    file = data.draw(st.sampled_from(sorted(path for path in folder.glob("*.json"))))
    content = file.read_bytes()
    try:
        file.write_bytes(spoilt(content, data.draw))
        refuses_or_reads(lambda: read_checkpoint(folder))
    finally:
        file.write_bytes(content)


@fuzzed
@given(data=st.data())
def test_headers_of_tensors(data, checkpoints):
    folder = checkpoints["qwen2"]
    file = folder / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = spoilt(content[8 : 8 + length], data.draw)
    try:
        file.write_bytes(len(header).to_bytes(8, "little") + header + content[8 + length :])
        refuses_or_reads(lambda: stored_dtypes(folder))
    finally:
        file.write_bytes(content)


@pytest.fixture(scope="module")
def a_run(tmp_path_factory) -> Path:
    return write_small_run(tmp_path_factory.mktemp("runs") / "run")


def read_run(folder: Path, output: Path) -> None:
    refuses_or_reads(lambda: write_report(folder))
    rows = read_metrics(folder)
    state = state_of(folder, rows)
    write_comparison([Run("a", "b", rows, state)], output, title="t", metrics=["reward/total"])
    metadata = read_metadata(folder)
    assert metadata is not None
    config_changes(metadata, Config())


@settings(fuzzed, max_examples=max(EXAMPLES // 10, 1))  # drawing charts takes its time
@given(data=st.data())
def test_run_folders(data, a_run, tmp_path_factory):
    files = [a_run / "metadata.json", a_run / "metrics.jsonl", *sorted((a_run / "rollouts").glob("*.jsonl"))]
    file = data.draw(st.sampled_from(files))
    content = file.read_bytes()
    try:
        file.write_bytes(spoilt(content, data.draw))
        refuses_or_reads(lambda: read_run(a_run, tmp_path_factory.getbasetemp() / "comparison"))
    finally:
        file.write_bytes(content)
