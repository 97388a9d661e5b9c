"""`mmeureka companions games`: once by flags, and experiments that leave results."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers.commands import mmeureka

from mmeureka_jax.companions.experiment import kinds_of, load_experiment
from mmeureka_jax.companions.games.run import GAMES
from mmeureka_jax.companions.games.settings import GamesConfig, checkpoints

ROOT = Path(__file__).parents[2]
CONFIGS = sorted((ROOT / "configs" / "companions").glob("games_*.yaml"))


def run(capsys, *arguments):
    code = mmeureka("companions", "games", *arguments)
    return code, capsys.readouterr()


def test_numbers_by_flags(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, said = run(capsys, "--game", "kuhn", "--method", "cfr+", "--iterations", "20", "mu=0.5", "--json")
    assert code == 0
    numbers = json.loads(said.out)
    assert numbers.keys() == {"nash_conv", "average", "seconds"}
    assert numbers["nash_conv"].keys() == numbers["average"].keys() == {"1", "3", "10", "20"}
    assert numbers["nash_conv"]["10"] == pytest.approx(0.0779, abs=5e-5)
    assert list(tmp_path.iterdir()) == []


def test_seed_by_flag(capsys):
    found = {}
    for seed in ("0", "1"):
        arguments = (
            "--game",
            "random",
            "--method",
            "morm+",
            "--iterations",
            "3",
            "--seed",
            seed,
            "actions=4",
            "--json",
        )
        found[seed] = json.loads(run(capsys, *arguments)[1].out)["nash_conv"]
    assert found["0"] != found["1"]


def test_lines_for_people(capsys):
    code, said = run(capsys, "--game", "rps", "--method", "rm", "--iterations", "3")
    assert code == 0
    assert "iteration         3   NashConv " in said.out and "average" in said.out
    assert "rm on rps: " in said.out


def test_experiment_is_continued(capsys, tmp_path):
    config = tmp_path / "kinds.yaml"
    config.write_text("game: rps\niterations: 10\nvariants:\n  regret: {method: rm+}\n  descent: {method: mogda}\n")
    arguments = (str(config), f"run_dir={tmp_path / 'out'}", "--json")
    code, said = run(capsys, *arguments)
    assert code == 0
    first = json.loads(said.out)
    assert first["kinds"].keys() == {"regret", "descent"}
    assert first["kinds"]["regret"].keys() == {"last nash_conv", "last average"}
    assert "<svg" in (tmp_path / "out/nash_conv.svg").read_text()
    kept = (tmp_path / "out/regret/seed0/metrics.jsonl").stat().st_mtime_ns
    (tmp_path / "out/descent/seed0/done.json").unlink()
    code, said = run(capsys, *arguments)
    assert code == 0
    assert json.loads(said.out)["kinds"] == first["kinds"]
    assert (tmp_path / "out/regret/seed0/metrics.jsonl").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    "arguments, words",
    [
        (("--method", "cfr++"), "did you mean cfr+?"),
        (("--game", "kuhn", "lerning_rate=1"), "the nearest key is 'learning_rate'"),
        (("--game", "kuhn", "restart=0"), "restart must be positive or null; got 0"),
        (("beta=2",), "beta must be between 0 and 1"),
        (("seeds=[0,1]",), "variants and several seeds make an experiment: name a config file"),
        (("iterations=1e8", "measure_every=1"), "measure_every must leave at most 100,000 measurements"),
        (("nowhere.yaml",), "nowhere.yaml: no such config file"),
    ],
)
def test_bad_arguments(capsys, tmp_path, arguments, words):
    code, said = run(capsys, *arguments)
    assert code == 2
    assert words in said.err


@pytest.mark.parametrize(
    "iterations, every, expected",
    [(1, 0, [1]), (100, 0, [1, 3, 10, 30, 100]), (45, 20, [1, 3, 10, 20, 30, 40, 45]), (10, 1, list(range(1, 11)))],
)
def test_checkpoints(iterations, every, expected):
    assert checkpoints(GamesConfig(iterations=iterations, measure_every=every)) == expected


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_configs_of_the_repository(path, monkeypatch):
    monkeypatch.setattr("mmeureka_jax.companions.games.settings.check_game", lambda name: None)  # OpenSpiel is optional
    config = load_experiment(GAMES, path)
    assert kinds_of(config)
