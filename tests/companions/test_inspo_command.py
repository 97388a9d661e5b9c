"""`mmeureka companions inspo`: its configs, bad settings, and what it prints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mmeureka_jax.cli import main
from mmeureka_jax.companions.experiment import kinds_of, load_experiment
from mmeureka_jax.companions.inspo.run import INSPO
from mmeureka_jax.companions.inspo.settings import DATA_SETS, InspoConfig

CONFIGS = sorted((Path(__file__).parents[2] / "configs/companions/inspo").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_are_whole(path):
    config = load_experiment(INSPO, path)
    assert config.run_dir == f"runs/companions/inspo/{path.stem}"
    assert len(kinds_of(config)) >= 2


@pytest.mark.parametrize(
    "overrides, message",
    [
        (["data=balanced"], "data must be one of ab_ba, aa_ab_ba, all, ab, alberdice_02_20"),
        (["game=bridge", "data=mix", "payoffs=[1,2,3,4]"], "payoffs is for matrix games"),
        (["payoffs=[1,2,3]"], "payoffs must be 4, 9, 16, ... up to 256 numbers; got 3"),
        (["payoffs=[1,2,3,4,5,6,7,8,9]"], "counts must be given with payoffs of another size; write 9 numbers"),
        (["counts=[1,2,3]"], "counts must be 4 numbers, one at least above 0; got [1.0, 2.0, 3.0]"),
        (["counts=[0,0,0,0]"], "counts must be 4 numbers, one at least above 0"),
        (["alpha=0"], "alpha must be positive; got 0.0"),
        (["method=imspo"], "method must be one of inspo, simultaneous, awr, awr_independent, bc; got 'imspo'"),
        (["variants={a: {decay: 2}}"], "variants: a: decay must be between 0 and 1; got 2.0"),
        (["rate=1"], "unknown key 'rate'"),
    ],
)
def test_bad_settings(tmp_path, capsys, overrides, message):
    assert main(["companions", "inspo", f"run_dir={tmp_path / 'run'}", *overrides]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_config_that_is_not_there(capsys):
    assert main(["companions", "inspo", "no/such.yaml"]) == 2
    assert "no/such.yaml" in capsys.readouterr().err


def test_data_sets_have_counts():
    for game in ("xor", "m_ne"):
        for name in DATA_SETS[game]:
            load_experiment(INSPO, None, [f"game={game}", f"data={name}"])
    assert InspoConfig().data in DATA_SETS["xor"]


def test_numbers_of_an_experiment(tmp_path, capsys):
    arguments = ["companions", "inspo", f"run_dir={tmp_path}", "seeds=[0,1]", "variants={turns: {}, bc: {method: bc}}"]
    assert main([*arguments, "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["kinds"]["turns"]["last return"]["seeds"] == pytest.approx([1.0, 1.0], abs=1e-4)
    assert printed["kinds"]["bc"]["last return"]["mean"] == pytest.approx(0, abs=1e-6)
    rows = (tmp_path / "turns/seed1/metrics.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == list(range(0, 201, 20))
    assert set(json.loads(rows[0])) == {"step", "return", "greedy_return", "entropy"}
    assert (tmp_path / "comparison.html").exists()
