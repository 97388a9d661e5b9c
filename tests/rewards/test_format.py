"""The format rule against hand-made responses."""

import pytest

from mmeureka_jax.rewards.rules.format import MIN_ZERO_THOUGHT, follows_format

LONG = "x" * MIN_ZERO_THOUGHT


@pytest.mark.parametrize(
    ("response", "instruct", "zero"),
    [
        (f"<think>{LONG}</think><answer>5</answer>", 1.0, 1.0),
        (f"<think>\n{LONG}\n</think>\n\n<answer>\n5\n</answer>\n", 1.0, 1.0),
        (f"<think>{LONG[1:]}</think><answer>5</answer>", 1.0, 0.0),
        (f"<think>{LONG[1:]}  </think><answer>5</answer>", 1.0, 0.0),
        (f"Well: <think>{LONG}</think><answer>5</answer>", 1.0, 0.0),
        (f"<think>{LONG}</think><answer>5</answer> Done.", 1.0, 0.0),
        (f"<think>{LONG}</think> so <answer>5</answer>", 0.0, 0.0),
        (f"<answer>5</answer><think>{LONG}</think>", 0.0, 0.0),
        (f"<think>{LONG}</think><answer> </answer>", 0.0, 0.0),
        ("<think> \n</think><answer>5</answer>", 0.0, 0.0),
        (f"<think>{LONG}<answer>5</answer></think>", 0.0, 0.0),
        (f"<think>{LONG}</think><answer>4</answer><answer>5</answer>", 0.0, 0.0),
        (f"<think>a</think><think>{LONG}</think><answer>5</answer>", 0.0, 0.0),
        (f"<think>{LONG}</think><answer>5", 0.0, 0.0),
        ("5", 0.0, 0.0),
        ("", 0.0, 0.0),
    ],
)
def test_format(response, instruct, zero):
    assert follows_format(response, style="instruct") == instruct
    assert follows_format(response, style="zero") == zero
