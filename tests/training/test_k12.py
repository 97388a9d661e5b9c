"""Real problems through the whole loop: a K12 JSON list, a tiny random policy in the real file format, every row used
or reported with a reason."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.commands import ONE_LAYER, mmeureka
from PIL import Image

from mmeureka_jax.runs.tracking import read_metrics, read_rollouts

pytestmark = pytest.mark.usefixtures("shared_reward_workers")

CONFIG = Path(__file__).parents[2] / "configs" / "k12_tiny.yaml"


def run_k12(data: Path, run_dir: Path, *overrides: str) -> tuple[set[str], dict]:
    """Trains on `data` with all groups logged. Returns the ids that were trained on, and the data check's report."""
    common = [f"data.train={data}", f"run_dir={run_dir}", "tracking.progress=false", "tracking.rollouts_logged=1000"]
    common += ["rl.packing=0", "sampler.compile_ahead=false"]  # fewer programs, and smaller ones
    assert mmeureka("train", CONFIG, *common, *ONE_LAYER, *overrides) == 0
    trained_on = {group["problem_id"] for _, groups in read_rollouts(run_dir) for group in groups}
    return trained_on, json.loads((run_dir / "data_check.json").read_text())


def assert_healthy(run_dir: Path, steps: int) -> None:
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(1, steps + 1))
    for row in rows:
        assert np.isfinite(row["loss/total"]) and row["optimizer/grad_norm"] > 0
        assert row["optimizer/skipped"] == 0 and row["reward/failures"] == 0
        assert row["policy/sampler_gap_max"] < 1e-3
    assert (run_dir / "report.html").is_file()


@pytest.fixture
def small_list(tmp_path) -> Path:
    """Ten rows: one, two and no pictures, odd sizes, LaTeX, choices; and two that cannot be used."""
    (tmp_path / "images").mkdir()
    noise = np.random.default_rng(0)
    rows = []
    for number in range(10):
        name = f"images/{number}.png"
        pixels = noise.integers(0, 255, (20 + 31 * number, 180 - 11 * number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / name)
        answer = ["3", "\\frac{1}{2}", "B", "2\\sqrt{3}", "12.5"][number % 5]
        question = f"As shown in the figure, $AB={number}$cm, \\( \\angle A=60^\\circ \\). Find the area."
        rows.append({"id": f"row-{number}", "question": question, "answer": answer, "image_path": name})
    rows[4]["image_path"] = "images/nowhere.png"
    rows[7]["answer"] = ""
    path = tmp_path / "k12.json"
    path.write_text(json.dumps(rows))
    return path


@pytest.mark.slow
def test_every_row_is_trained_on_or_reported(small_list, tmp_path, caplog):
    sizes = "rl.prompts_per_rollout=8", "rl.prompts_per_update=8", "steps=2", "data.prompt_buckets=[1024,2048]"
    trained_on, report = run_k12(small_list, tmp_path / "run", *sizes, "sampler.max_new_tokens=8")
    rejected = {row["id"]: row["reason"] for row in report["rejected"]}
    assert set(rejected) == {"row-4", "row-7"}
    assert "nowhere.png" in rejected["row-4"] and "answer" in rejected["row-7"]
    assert trained_on == {f"row-{number}" for number in range(10)} - set(rejected)
    assert_healthy(tmp_path / "run", 2)
