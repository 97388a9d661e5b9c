"""The repetition penalty against a count by hand."""

import random

import pytest

from mmeureka_jax.rewards.rules.repetition import repetition_penalty


def brute_force(words, n):
    seen = set()
    repeated = 0
    grams = [" ".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    for gram in grams:
        repeated += gram in seen
        seen.add(gram)
    return -repeated / len(grams) if grams else 0.0


def test_equals_the_share_of_repeated_ngrams():
    generator = random.Random(0)
    for length in (0, 1, 3, 9, 10, 40, 200):
        for n in (1, 2, 10):
            words = [generator.choice("abc") for _ in range(length)]
            assert repetition_penalty(" ".join(words), ngram=n) == pytest.approx(brute_force(words, n))


def test_a_loop_costs_almost_one_and_distinct_words_nothing():
    assert repetition_penalty("let me see again " * 500, ngram=10) < -0.99
    assert repetition_penalty(" ".join(map(str, range(500))), ngram=10) == 0.0


def test_chinese_has_no_spaces():
    assert repetition_penalty("我们再看一次" * 50, ngram=10) < -0.9
