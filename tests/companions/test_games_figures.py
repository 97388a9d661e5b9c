"""Figures of NashConv that were found with other code: the published one for two rows, and a sequence form in numpy.

Those of Kuhn poker and matrix games are held to their printed digits. In Leduc poker rounding decides the last iterates
of regret methods after some hundreds of iterations, so these are held within the range that it makes of them.
"""

from __future__ import annotations

import numpy as np
import pytest

from mmeureka_jax.companions.games.run import solve
from mmeureka_jax.companions.games.settings import GamesConfig

STEPS = (10, 100, 300, 1000)
KUHN = {  # NashConv of the last iterate after STEPS, as printed; 0: what rounding leaves
    "mwu": ("mwu", {}, "0.216 0.172 0.238 0.197"),
    "omwu": ("omwu", {}, "0.161 0.0047 3.5e-6 0"),
    "momwu": ("momwu", {}, "0.179 0.0393 0.00123 1.5e-8"),
    "gda": ("gda", {}, "0.327 0.195 0.111 0.157"),
    "mogda": ("mogda", {}, "0.0876 0.00755 1.3e-5 0"),
    "cfr+": ("cfr+", {}, "0.078 0.081 0.050 0.039"),
    "mocfr+ plain": ("mocfr+", {"weighting": "plain"}, "0.0686 0.0419 0.00489 2.5e-6"),
    "mocfr+": ("mocfr+", {}, "0.0837 0.0099 0.000441 5.99e-10"),
}
CFR_PLUS_AVERAGE = "0.065 0.0024 8.7e-4 1.7e-4"
RPS = [  # after 100, 1,000 and 10,000 iterations
    ("mwu", {}, "0.56 1.7 1.1"),
    ("momwu", {}, "0.41 0.0043 0"),
    ("gda", {}, "1.3 0.38 0.80"),
    ("mogda", {}, "0.060 3e-10 0"),
    ("rm+", {}, "0.23 0.18 0.16"),
    ("morm+", {}, "0.13 1.3e-5 0"),
    ("morm+", {"mu": 0.1}, "0.0034 0 0"),
    ("morm+", {"mu": 0.1, "alternating": False}, "1.6 0.15 0.26"),
]
RANDOM = [
    ("mwu", {"learning_rate": 0.1}, "0.19 0.086 0.026"),
    ("momwu", {}, "0.026 4e-5 0"),
    ("rm+", {}, "0.033 0.018 0.013"),
    ("morm+", {}, "0.020 4.8e-6 0"),
]


def agrees(found, printed):
    """Whether a number is the printed one: within half a unit of its last digit."""
    if printed == "0":
        return 0 < found < 1e-14
    digits, _, exponent = printed.partition("e")
    unit = 10.0 ** (int(exponent or 0) - len(digits.partition(".")[2]))
    return abs(found - float(printed)) <= 0.51 * unit


def check(found, steps, printed):
    numbers = printed.split()
    wrong = {step: (found[step], number) for step, number in zip(steps, numbers, strict=True)}
    wrong = {step: pair for step, pair in wrong.items() if not agrees(*pair)}
    assert not wrong


def test_agrees():
    assert agrees(0.0837, "0.084") and not agrees(0.0847, "0.084")
    assert agrees(3.47e-6, "3.5e-6") and not agrees(3.4e-6, "3.5e-6")
    assert agrees(0.04997, "0.050") and not agrees(0.0489, "0.050")
    assert agrees(3e-16, "0") and not agrees(3e-13, "0")


def values(game, method, settings, iterations):
    """NashConv of the last iterate, by iteration."""
    rows = solve(GamesConfig(game=game, method=method, iterations=iterations, **settings), [0]).rows[0]
    return {row["step"]: row["nash_conv"] for row in rows}


@pytest.fixture(scope="module")
def kuhn():
    """The rows of every method."""
    return {
        name: solve(GamesConfig(method=method, iterations=1000, **settings), [0]).rows[0]
        for name, (method, settings, _) in KUHN.items()
    }


@pytest.mark.parametrize("name", KUHN)
def test_kuhn_poker(kuhn, name):
    found = {row["step"]: row["nash_conv"] for row in kuhn[name]}
    assert list(found) == [1, 3, 10, 30, 100, 300, 1000]
    check(found, STEPS, KUHN[name][2])


def test_average_of_cfr_plus_in_kuhn_poker(kuhn):
    found = {row["step"]: row["average"] for row in kuhn["cfr+"]}
    check(found, STEPS, CFR_PLUS_AVERAGE)


def test_other_methods_have_no_average(kuhn):
    assert [name for name, rows in kuhn.items() if "average" in rows[0]] == ["cfr+"]


@pytest.mark.slow
@pytest.mark.parametrize("method, settings, expected", RPS)
def test_biased_rock_paper_scissors(method, settings, expected):
    check(values("rps", method, {"learning_rate": 0.1} | settings, 10_000), (100, 1000, 10_000), expected)


@pytest.mark.slow
@pytest.mark.parametrize("method, settings, expected", RANDOM)
def test_random_matrix(method, settings, expected):
    check(values("random", method, settings, 10_000), (100, 1000, 10_000), expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, settings, expected",
    [("gda", {}, "0.0886"), ("mogda", {}, "0.146"), ("momwu", {}, "0.592")],
)
def test_gradient_methods_in_leduc_poker(method, settings, expected):
    check(values("leduc", method, settings, 1000), [1000], expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "method, settings, at_100, at_1000",
    [
        ("cfr+", {}, 0.0964, 0.0148),
        ("mocfr+", {"weighting": "plain"}, 0.0757, 0.0095),
        ("mocfr+", {}, 0.165, 0.0416),
    ],
)
def test_regret_methods_in_leduc_poker(method, settings, at_100, at_1000):
    """To three digits while rounding does not matter; later to an order of magnitude, of twenty changes by 1e-15."""
    config = GamesConfig(game="leduc", method=method, iterations=1000, perturbation=1e-15, **settings)
    runs = solve(config, range(20)).rows
    early = np.array([row["nash_conv"] for rows in runs for row in rows if row["step"] == 100])
    late = np.array([rows[-1]["nash_conv"] for rows in runs])
    assert np.allclose(early, at_100, rtol=5e-3)
    assert np.median(late) / 3 < at_1000 < 3 * np.median(late)
    if method == "cfr+":
        averages = np.array([rows[-1]["average"] for rows in runs])
        assert np.allclose(averages, 5.0e-4, rtol=0.1)
        at = [row["average"] for row in runs[0] if row["step"] == 100]
        assert at == [pytest.approx(0.02683, abs=5e-6)]
