"""Experiments of companions: kinds of run, seeds that are done, and what comes of them."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Annotated

import pytest

from mmeureka_jax.companions.experiment import Companion, Experiment, load_experiment, run_experiment, spread
from mmeureka_jax.config.limits import POSITIVE
from mmeureka_jax.errors import UserError


@dataclass(frozen=True)
class Growth(Experiment):
    rate: float = 1.0
    steps: Annotated[int, POSITIVE] = 3


class Computing:
    """Grows a number, and notes what it was asked for."""

    def __init__(self):
        self.asked = []

    def __call__(self, config, seeds, advance):
        self.asked.append((config.rate, tuple(seeds)))
        advance(config.steps)
        steps = range(1, config.steps + 1)
        return [[{"step": step, "size": seed + config.rate * step, "all": [seed]} for step in steps] for seed in seeds]


class Counted:
    def __init__(self, total):
        self.total = total
        self.n = 0

    def update(self, n=1):
        self.n += n

    def set_postfix_str(self, s):
        pass


def companion(computing):
    def problems(config):
        return ["rate must not be 7"] if config.rate == 7 else []

    return Companion(
        "growth", Growth, problems, lambda config: config.steps, computing, ("size",), ("last size",),
        lambda rows: {"all.svg": json.dumps({name: len(of) for name, of in rows.items()}).encode()},
    )  # fmt: skip


def run(tmp_path, computing, *overrides, bars=None):
    made = companion(computing)
    config = load_experiment(made, None, [f"run_dir={tmp_path}", *overrides])

    def bar(total):
        counted = Counted(total)
        (bars if bars is not None else []).append(counted)
        return counted

    return run_experiment(made, config, bar)


def test_numbers_of_each_kind_and_seed(tmp_path):
    bars = []
    numbers = run(tmp_path, Computing(), "seeds=[0,5]", "variants={slow: {rate: 0.5}, fast: {rate: 2}}", bars=bars)
    assert numbers == {"slow": {"last size": [1.5, 6.5]}, "fast": {"last size": [6.0, 11.0]}}
    assert [(bar.total, bar.n) for bar in bars] == [(6, 6)]
    assert json.loads((tmp_path / "all.svg").read_text()) == {"slow": 2, "fast": 2}
    page = (tmp_path / "comparison.html").read_text()
    assert "data:image/svg+xml;base64," in page
    assert "4 ± 3.5" in (tmp_path / "summary.md").read_text()


def test_what_is_done_is_not_done_again(tmp_path):
    first = Computing()
    second = Computing()
    run(tmp_path, first, "seeds=[0,1]")
    numbers = run(tmp_path, second, "seeds=[2,1,0]", "variants={run: {}, fast: {rate: 2}}")
    assert first.asked == [(1.0, (0, 1))]
    assert second.asked == [(1.0, (2,)), (2.0, (2, 1, 0))]
    assert numbers["run"] == {"last size": [5.0, 4.0, 3.0]}


def test_a_run_is_done_when_all_of_it_is_there(tmp_path):
    run(tmp_path, Computing())
    (tmp_path / "run/seed0/done.json").unlink()
    again = Computing()
    run(tmp_path, again)
    assert again.asked == [(1.0, (0,))]


def test_results_of_other_settings_are_in_the_way(tmp_path):
    run(tmp_path, Computing())
    with pytest.raises(UserError, match=r"seed0 holds a run with other settings:\n  rate: 1.0 -> 2.0"):
        run(tmp_path, Computing(), "rate=2")


@pytest.mark.parametrize(
    "override, message",
    [
        ("seeds=[1,1]", r"seeds must be different integers, such as \[0, 1, 2\]; got \[1, 1\]"),
        ("seeds=[]", r"seeds must be different integers"),
        ("seeds=[-1]", r"seeds must be 0 or more; got -1"),
        ("steps=0", r"^steps must be positive; got 0"),
        ("rate=7", r"^rate must not be 7"),
        ("rate=.inf", r"^rate must be finite"),
        ("size=1", r"unknown key 'size'"),
        ("variants={fast: {rate: 7}}", r"^variants: fast: rate must not be 7"),
        ("variants={fast: {speed: 7}}", r"variants: fast.*unknown key 'speed'"),
        ("variants={fast: {seeds: [7]}}", r"variants: fast: seeds cannot be set for one kind of run"),
        ("variants={'../fast': {rate: 2}}", r"variants: '../fast': a name may have letters"),
        ("variants={'..': {rate: 2}}", r"variants: '..': a name may have letters"),
    ],
)
def test_bad_settings(tmp_path, override, message):
    with pytest.raises(UserError, match=message):
        run(tmp_path, Computing(), override)
    assert not list(tmp_path.iterdir())


def test_spread():
    assert spread([1.0, 3.0]) == {"mean": 2.0, "std": pytest.approx(2**0.5), "seeds": [1.0, 3.0]}
    assert spread([1.0])["std"] == 0.0
