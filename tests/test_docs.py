"""The documentation does not drift from the code: links, config keys and their defaults, files, commands."""

from __future__ import annotations

import functools
import json
import re
import shlex
from collections import Counter
from pathlib import Path

import pytest

from mmeureka_jax.cli import build_parser
from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.prm import ProcessRewardConfig
from mmeureka_jax.config.reading import dotted_keys
from mmeureka_jax.config.schema import (
    BenchmarksConfig,
    Config,
    LoraConfig,
    ModelConfig,
    RandomModelConfig,
    RewardConfig,
    TrackingConfig,
)
from mmeureka_jax.rewards.accuracy import accuracy, compare
from mmeureka_jax.rl.advantages import ADVANTAGES
from mmeureka_jax.rl.losses import LOSSES

ROOT = Path(__file__).parents[1]
FOLDERS = (
    ".",
    "docs",
    "docs/reference",
    "docs/companions",
    "launch",
    "benchmarks",
    *(f"eval/{folder.name}" for folder in (ROOT / "eval").iterdir()),
)
PAGES = sorted(page for folder in FOLDERS for page in (ROOT / folder).glob("*.md"))
RECIPES = sorted([*(ROOT / "configs").rglob("*.yaml"), *(ROOT / "launch").iterdir()])
page = pytest.mark.parametrize("path", PAGES, ids=lambda p: str(p.relative_to(ROOT)))

KEYS = set(dotted_keys(Config))
LEAVES = {key for key in KEYS if not any(other.startswith(f"{key}.") for other in KEYS)}
SECTIONS = {key for key in KEYS - LEAVES if "." not in key}
FILE_SUFFIXES = (".md", ".py", ".yaml", ".json", ".jsonl", ".parquet")


def anchors(path: Path) -> set[str]:
    """The anchors that a Markdown renderer makes of the headings."""
    headings = re.findall(r"^#+ +(.*)$", path.read_text(), flags=re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@page
def test_links_resolve(path: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text()):
        if re.match(r"[a-z]+://", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.exists(), f"{target} does not exist"
        assert linked.is_relative_to(ROOT), f"{target} leads out of the repository"
        if anchor:
            assert anchor in anchors(linked), f"{target}: no such heading"


def documented_defaults() -> dict[str, str]:
    """key -> default, from the tables of the reference."""
    text = (ROOT / "docs" / "reference" / "keys.md").read_text()
    rows = re.findall(r"^\| `([a-z0-9_.]+)` \| `([^`]*)` \| (.*) \|$", text, flags=re.M)
    assert len({key for key, *_ in rows}) == len(rows), "a key is documented twice"
    return {key: default for key, default, _ in rows}


def test_every_config_key_is_documented():
    described = documented_defaults()
    assert described.keys() - LEAVES == set(), "documented, but no such key"
    assert LEAVES - described.keys() == set(), "not documented"


@pytest.mark.parametrize("key", sorted(LEAVES))
def test_documented_default_is_the_default(key: str):
    """The default is read as an override would be, so the page also shows how to write each value."""
    *sections, name = key.split(".")
    given = functools.reduce(getattr, sections, load_config(None, [f"{key}={documented_defaults()[key]}"]))
    model = ModelConfig(random=RandomModelConfig(), lora=LoraConfig())  # those are null by default
    whole = Config(
        model=model,
        reward=RewardConfig(process=ProcessRewardConfig()),
        tracking=TrackingConfig(benchmarks=BenchmarksConfig()),
    )
    default = functools.reduce(getattr, sections, whole if len(sections) > 1 else Config())
    assert getattr(given, name) == getattr(default, name)


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda p: str(p.relative_to(ROOT)))
def test_mentioned_config_keys_exist(path: Path):
    pattern = rf"(?<![\w/.-])(?:{'|'.join(sorted(SECTIONS))})(?:\.[a-z0-9_]+)+"
    mentioned = {key for key in re.findall(pattern, path.read_text()) if not key.endswith(FILE_SUFFIXES)}
    assert mentioned <= KEYS


@page
def test_mentioned_files_exist(path: Path):
    """Paths of this repository in backticks (run folders and the user's own files start elsewhere)."""
    text = path.read_text()
    folders = "mmeureka_jax|configs|launch|docs|tests|benchmarks|eval"
    mentioned = re.findall(rf"`((?:{folders})/[\w./-]*)`", text)
    mentioned += re.findall(r"(?<![\w/])((?:configs|launch)/[\w./-]+\.(?:yaml|sh|sbatch))", text)
    assert [name for name in mentioned if not (ROOT / name).exists()] == []


def test_files_of_the_architecture_exist():
    """Its paths start from the package; those of the repository's other folders are written out."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    mentioned = re.findall(r"`([\w/]+\.py)`", text)
    assert len(mentioned) > 20
    known = [ROOT / "mmeureka_jax", ROOT]
    assert [name for name in mentioned if not any((folder / name).exists() for folder in known)] == []


def test_no_walk_of_the_architecture_returns_to_a_file():
    text = (ROOT / "docs" / "architecture.md").read_text()
    (section,) = re.findall(r"^## Walks$(.*?)^## ", text, re.M | re.S)
    walks = [re.findall(r"^\d+\. `([\w/]+\.py)` ", walk, re.M) for walk in section.split("\n### ")[1:]]
    assert len(walks) == 7
    for walk in walks:
        assert len(walk) > 10
        assert [name for name in walk if not (ROOT / "mmeureka_jax" / name).exists()] == []
        assert len(set(walk)) == len(walk)


@page
def test_mentioned_make_targets_exist(path: Path):
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    commands = re.findall(r"(?:^|`)make ((?:[a-z]+(?: |$|`|(?= *#)))+)", path.read_text(), flags=re.M)
    assert {word for command in commands for word in command.strip("` ").split()} <= targets


def shell_commands(path: Path) -> list[list[str]]:
    """The `mmeureka ...` lines of the page's code blocks, as argument lists."""
    blocks = re.findall(r"^```\w*\n(.*?)^```", path.read_text(), flags=re.M | re.S)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    commands = [shlex.split(line.replace("$i &", "0"), comments=True) for line in lines if "mmeureka " in line]
    return [words[words.index("mmeureka") + 1 :] for words in commands if "mmeureka" in words]


@page
def test_mentioned_commands_parse(path: Path):
    parser = build_parser()
    for arguments in shell_commands(path):
        parser.parse_args(arguments)  # exits, and so fails, on what it does not know


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=lambda p: str(p.relative_to(ROOT)))
def test_no_path_of_one_machine(path: Path):
    assert not re.search(r"(?<![\w.$~}])/(?:root|home|Users|work|opt)/", path.read_text())


MARKER = re.compile(r" *(?:[-*]|\d+\.) (?:\d{4}-\d\d-\d\d\. )?")  # a decision begins with its date
CODE = re.compile(r"`[^`]*`")
ADDRESS = re.compile(r"\]\([^)]*\)")
SENTENCE_END = re.compile(r"""(?<!\.\.)(?<!\bDr)(?<!\bal)(?<!\be\.g)(?<!\bi\.e)(?<!\bvs)[.!?][)"'*_]*(?=\s|$)""")


def paragraphs(text: str) -> list[list[str]]:
    """The lines of each paragraph and list item, without markers; no headings, tables, pictures and code."""
    found: list[list[str]] = [[]]
    in_code = False
    for line in text.splitlines():
        fence = line.lstrip().startswith("```")
        in_code ^= fence
        if fence or in_code or not line.strip() or line.lstrip().startswith(("#", "|", "<", "![")):
            found.append([])
        elif MARKER.match(line):
            found.append([MARKER.sub("", line, count=1)])
        else:
            found[-1].append(line.strip())
    return [lines for lines in found if lines]


def breaks_out_of_place(text: str) -> list[str]:
    """Lines of prose that hold two sentences, or that end within one."""
    wrong = []
    for lines in paragraphs(text):
        for number, line in enumerate(lines, start=1):
            prose = ADDRESS.sub("]", CODE.sub("`x`", line))
            ends = [match.end() for match in SENTENCE_END.finditer(prose)]
            holds_two = any(end < len(prose.rstrip()) for end in ends)
            breaks_off = number < len(lines) and len(prose) not in ends and not prose.endswith(":")
            if holds_two or breaks_off:
                wrong.append(line)
    return wrong


@page
def test_prose_is_one_sentence_a_line(path: Path):
    assert breaks_out_of_place(path.read_text()) == []


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("One sentence.\nAnother (with `a. b`).\n", 0),
        ("Two of them. On one line.\n", 1),
        ("Two of them (the first.) On one line.\n", 1),
        ("A sentence that\nis broken.\n", 1),
        (
            "- 2026-11-21. **A title.**\n  Its reason, 0.5 s by [a page](http://a.org/b. c).\n- No stop\n",
            0,
        ),
        ("Dr. GRPO (Chen et al., 2021) leaves it out:\n- one\n- two\n\n```\nCode. Of two\nlines\n```\n", 0),
    ],
)
def test_the_rule_of_one_sentence_a_line(text: str, wrong: int):
    assert len(breaks_out_of_place(text)) == wrong


def rows_of_tables(text: str, *headings: str) -> list[list[str]]:
    """The cells of all tables whose first columns have these headings."""
    rows = []
    inside = False
    for line in text.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if not line.startswith("|"):
            inside = False
        elif cells[: len(headings)] == list(headings):
            inside = True
        elif inside and not cells[0].startswith("---"):
            rows.append(cells)
    return rows


def quoted(cell: str) -> list[str]:
    return [text.replace("⏎", "\n") for text in re.findall(r"`([^`]+)`", cell)]


def test_the_examples_of_the_rewards_page_are_judged_as_it_says():
    text = (ROOT / "docs" / "rewards.md").read_text()
    rows = rows_of_tables(text, "gold answer", "scores", "does not score")
    assert len(rows) > 25
    wrong = []
    for gold, scoring, other, *_ in rows:
        (gold,) = quoted(gold)
        wrong += [(gold, answer, 1) for answer in quoted(scoring) if compare(answer, gold) != 1.0]
        wrong += [(gold, answer, 0) for answer in quoted(other) if compare(answer, gold) != 0.0]
    responses = rows_of_tables(text, "rule", "response", "gold answer", "score")
    assert len(responses) > 5
    for form, response, gold, score, _ in responses:
        if accuracy(quoted(response)[0], quoted(gold)[0], quoted(form)[0]) != float(score):
            wrong.append((gold, response, score))
    assert wrong == []


def test_the_table_of_differences_to_upstream_counts_as_it_says():
    cases = [json.loads(line) for line in (ROOT / "tests/rewards/cases/upstream.jsonl").read_text().splitlines()]
    compared = [case for case in cases if case["form"] != "tags"]
    agreeing = [case for case in compared if accuracy(case["response"], case["gold"], case["form"]) == case["score"]]
    rows = rows_of_tables((ROOT / "docs" / "rewards.md").read_text(), "kind", "cases", "agree")
    stated = {kind: (int(count), int(agree)) for kind, count, agree, *_ in rows if kind}
    counts = {kind: Counter(case["kind"] for case in group) for kind, group in (("all", compared), ("same", agreeing))}
    expected = {kind: (count, counts["same"][kind]) for kind, count in counts["all"].items()}
    assert stated == expected | {"all": (len(compared), len(agreeing))}


def rows_of_algorithms(heading: str) -> dict[str, str]:
    """The algorithms in the table under a heading of the algorithms page: name -> the rest of its row."""
    (section,) = re.findall(rf"^## {heading}: .*?$(.*?)^## ", (ROOT / "docs/algorithms.md").read_text(), re.M | re.S)
    rows = re.findall(r"^\| (`[^|]*`) \|(.*)\|$", section, re.M)
    return {name: row for names, row in rows for name in re.findall(r"`(\w+)`", names)}


def test_every_loss_has_a_row():
    assert set(rows_of_algorithms("Losses")) == set(LOSSES)


def test_every_estimator_has_a_row_that_says_whether_it_is_whitened():
    rows = rows_of_algorithms("Advantages")
    assert set(rows) == set(ADVANTAGES)
    assert {name for name, row in rows.items() if "| whitened |" in row} == {
        name for name, estimator in ADVANTAGES.items() if estimator.whitened
    }
