"""`mmeureka prm demo` from its policy on: trees, labels, model, and the choice among answers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.guessing import write_stepping_checkpoint

from mmeureka_jax.cli import main
from mmeureka_jax.prm.tree import Tree
from mmeureka_jax.runs.provenance import PROVENANCE_FILE
from mmeureka_jax.training import prm_demo, sft

OVERRIDES = """
    steps=2 data.validation=null data.max_prompt_tokens=64 sampler.max_new_tokens=24 reward.workers=1
    prm.trees=3 prm.search.rollouts=3 prm.search.max_searches=4 prm.paths_per_step=4 prm.max_process_tokens=40
    tracking.validate_every=2 tracking.tensorboard=false checkpoint.every_steps=2 mesh.cpu_devices=1
""".split()


@pytest.mark.slow
def test_the_demo_goes_from_a_policy_to_the_best_of_its_answers(tmp_path, monkeypatch, capsys):
    rows = [{"id": f"p{i}", "question": f"which digit, {i}?", "answer": "48"[i % 2]} for i in range(12)]
    problems = tmp_path / "problems.jsonl"
    problems.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = tmp_path / "demo"
    write_stepping_checkpoint(folder / "mm_policy", family="qwen2_5_vl")
    provenance = {"kind": "sft", "step": 2, "prompt_style": "plain", "accuracy": "steps", "max_new_tokens": 24}
    (folder / "mm_policy" / PROVENANCE_FILE).write_text(json.dumps(provenance))
    monkeypatch.setattr(sft, "fine_tune", lambda config: Path(config.run_dir))
    monkeypatch.setattr(prm_demo, "ASKED", str(problems))
    monkeypatch.setattr(prm_demo, "_HELD_OUT", 0.3)
    monkeypatch.setattr(prm_demo, "N", 4)
    monkeypatch.setattr(prm_demo, "_BATCH_SIZE", 8)
    command = ["prm", "demo", "--output", str(folder), *OVERRIDES, f"data.train={problems}"]
    assert main(command) == 0
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert set(result) == {"random", "majority", "pass_at_n", "best_of_n", "n", "seconds", "trees", "prm"}
    assert 0 < result["random"] < result["pass_at_n"] <= 1 and result["n"] == 4
    assert result["best_of_n"].keys() == {
        "min", "mean", "max", "last", "product", "sum_log_p", "sum_logit", "mean_odds",
    }  # fmt: skip
    trees = [Tree.from_json(line, "") for line in Path(result["trees"]).read_text().splitlines()]
    assert [tree.id for tree in trees] == [row["id"] for row in rows]
    assert (Path(result["prm"]) / "model.safetensors").is_file()
    assert (folder / "trees" / "trees.html").is_file() and (folder / "best_of_4" / "best_of_n.html").is_file()

    made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")}
    assert main(command) == 0
    again = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert again == result | {"seconds": again["seconds"]}
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.safetensors")} == made
