"""The tree search over a real sampler: what its trees hold, and what they do not depend on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from helpers.guessing import MODEL, write_guessing_checkpoint, write_stepping_checkpoint
from helpers.small_runs import use_devices

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import Config
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.errors import UserError
from mmeureka_jax.prm.rollouts import RolloutDrawer, room_after
from mmeureka_jax.prm.search_job import search_trees
from mmeureka_jax.prm.tree import Tree
from mmeureka_jax.setup.random_models import write_tiny_config

OVERRIDES = """
    data.prompt_style=plain data.max_prompt_tokens=64 sampler.max_new_tokens=32 sampler.shrink=0
    prm.trees=3 prm.search.rollouts=6 prm.search.max_searches=20 prm.search.length_scale=20 reward.workers=1
    tracking.progress=false
""".split()
GOLDS = ("4", "8", "7", "4", "8", "8", "4")  # the policy answers 4 or 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("search")
    write_stepping_checkpoint(folder / "policy")
    rows = [{"id": f"p{i}", "question": f"which digit is it, {i}?", "answer": gold} for i, gold in enumerate(GOLDS)]
    (folder / "problems.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def config_of(folder: Path, run: str, *overrides: str) -> Config:
    own = [
        f"run_dir={folder / run}",
        f"model.checkpoint={folder / 'policy'}",
        f"data.train={folder / 'problems.jsonl'}",
    ]
    return load_config(None, [*own, *OVERRIDES, *overrides])


@pytest.fixture(autouse=True)
def one_device(monkeypatch):
    use_devices(monkeypatch, 1)


@pytest.fixture(scope="module")
def trees(folder) -> bytes:
    with pytest.MonkeyPatch.context() as patch:
        use_devices(patch, 1)
        summary = search_trees(config_of(folder, "whole"))
    file = Path(summary["file"])
    counted = [Tree.from_json(line, "") for line in file.read_text().splitlines()]
    assert summary["rollouts"] == sum(tree.rollouts for tree in counted)
    assert summary["never_solved"] == sum(tree.root.value == 0 for tree in counted) >= 1
    return file.read_bytes()


@pytest.mark.slow
def test_a_rollout_is_right_if_its_answer_is(trees):
    nodes = 0
    for tree, gold in zip(map(json.loads, trees.splitlines()), GOLDS, strict=True):
        waiting = [tree["root"]]
        while waiting:
            node = waiting.pop()
            waiting += node["children"]
            for rollout in node["rollouts"]:
                nodes += len(node["steps"]) > 0
                whole = node["steps"] + rollout["steps"]
                ended = bool(rollout["steps"]) and rollout["steps"][-1] in "48"
                assert rollout["right"] == (ended and rollout["steps"][-1] == gold)
                assert set(whole[:-1]) <= {"1", "3"}
    assert nodes > 20  # rollouts went on from states with steps


@pytest.mark.slow
def test_killed_searches_leave_the_same_trees(folder, trees, monkeypatch):
    made = 0
    draw = RolloutDrawer.__call__

    def draw_until_killed(self, requests):
        nonlocal made
        made += 1
        if made in (2, 3, 6, 8, 9):
            raise KeyboardInterrupt
        return draw(self, requests)

    monkeypatch.setattr(RolloutDrawer, "__call__", draw_until_killed)
    kills = 0
    while True:
        try:
            summary = search_trees(config_of(folder, "killed"))
            break
        except KeyboardInterrupt:
            kills += 1
    assert kills == 5
    assert Path(summary["file"]).read_bytes() == trees


@pytest.mark.slow
@pytest.mark.parametrize(
    ("devices", "overrides"),
    [
        (1, ["prm.trees=7"]),
        (2, ["prm.trees=1", "mesh.data=2", "mesh.fsdp=1"]),
    ],
    ids=["other batch", "two devices"],
)
def test_neither_batch_nor_mesh_changes_trees(folder, trees, monkeypatch, devices, overrides):
    use_devices(monkeypatch, devices)
    summary = search_trees(config_of(folder, f"mesh{devices}{len(overrides)}", *overrides))
    assert Path(summary["file"]).read_bytes() == trees


@pytest.mark.slow
def test_a_solution_has_no_more_tokens_than_the_sampler_draws(folder):
    short = ["sampler.max_new_tokens=12", "prm.search.max_searches=6"]
    file = Path(search_trees(config_of(folder, "short", *short))["file"])
    nodes = [node for line in file.read_text().splitlines() for node in Tree.from_json(line, "").root.walk()]
    # A step has four tokens with its line's end, and the answer four with the end token: two steps at the most.
    assert max(len(node.steps) + len(one.steps) for node in nodes for one in node.rollouts if one.right) == 3
    full = [node for node in nodes if len(node.steps) == 3 and node.rollouts]
    assert all(one.steps == () and not one.right for node in full for one in node.rollouts)


@pytest.mark.slow
def test_a_policy_that_writes_no_steps_is_refused(folder):
    write_guessing_checkpoint(folder / "guessing", family="qwen2")
    with pytest.raises(UserError, match=r"none of the first 18 rollouts of .*guessing has a step: .*=steps"):
        search_trees(config_of(folder, "guessing_run", f"model.checkpoint={folder / 'guessing'}"))


def test_no_room_is_left_behind_a_special_token(tmp_path):
    write_tiny_config(tmp_path, replace(MODEL, family="qwen2"))
    processor = Processor.from_checkpoint(tmp_path, max_prompt_tokens=9)
    assert room_after(processor, "", 12) == 12
    assert room_after(processor, "<step>1</step>\n", 12) == 8
    assert room_after(processor, "<step>a <|im_start|> b</step>\n", 50) == 0


def test_greedy_rollouts_are_refused(folder):
    with pytest.raises(UserError, match="sampler.temperature is 0, which is greedy"):
        search_trees(config_of(folder, "greedy", "sampler.temperature=0"))
