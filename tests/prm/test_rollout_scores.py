"""Steps of sampled responses: the tokens in which they end, and their scores there."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import numpy as np
import pytest

from mmeureka_jax.config.schema import MeshConfig, ModelConfig, RandomModelConfig
from mmeureka_jax.data.processor import Processor
from mmeureka_jax.data.record import Problem
from mmeureka_jax.data.steps import placed_steps, steps_of
from mmeureka_jax.prm.growth import write_grown
from mmeureka_jax.prm.rollout_scores import RolloutScorer, steps_in_tokens
from mmeureka_jax.prm.scorer import Solutions, open_scorer
from mmeureka_jax.setup.policy import open_policy
from mmeureka_jax.setup.random_models import write_tiny_checkpoint
from mmeureka_jax.training.process_rewards import process_metrics

TINY = RandomModelConfig(hidden_size=48, num_layers=1, vision_depth=1, vision_full_attention_blocks=(0,))
RESPONSES = [
    [
        "<step>数三个点 😀</step>\n<step>so é, or</step> then <answer>3</answer> and so on",
        "<step>one</step>\n<step>cut",
        "no steps",
        "<step>a marker <prm> spelt out</step><answer>3</answer>",
    ],
    ["<answer>4</answer>", "<step>x</step><step> </step><answer>4</answer>", "", "<step>y</step>"],
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    write_tiny_checkpoint(folder / "policy", TINY)
    write_grown(folder / "policy", folder / "grown")
    return folder


@pytest.fixture(scope="module")
def processor(folders):
    return Processor.from_checkpoint(folders / "policy", prompt_style="plain", max_prompt_tokens=100)


def problem_of(order):
    text = f"how many dots ? {order}"
    return Problem(str(order), ({"role": "user", "content": [{"type": "text", "text": text}]},), (), "1", {})


class Pieces:
    """A processor whose tokens are pieces of bytes."""

    def __init__(self, pieces):
        self.pieces = pieces

    def decode(self, tokens):
        return b"".join(self.pieces[token] for token in tokens).decode(errors="replace")


def test_a_step_ends_in_the_token_with_the_end_of_its_tag():
    """Texts cut anywhere, within characters and tags too: the fewest tokens whose bytes hold the whole tag."""
    rng = np.random.default_rng(0)
    text = "<step>数 😀</step>\n<step>é</step> ü <answer>3 €</answer> ö"
    data = text.encode()
    for _ in range(50):
        cuts = sorted({0, len(data), *rng.integers(1, len(data), rng.integers(1, 40)).tolist()})
        pieces = [data[a:b] for a, b in zip(cuts, cuts[1:], strict=False)]
        steps, places = steps_in_tokens(Pieces(pieces), np.arange(len(pieces)))
        assert steps == ["数 😀", "é", "3 €"]
        for place, tag in zip(places, ("</step>\n", "</step> ", "</answer>"), strict=True):
            end = data.index(tag.encode()) + len(tag.strip().encode())
            assert place == next(i for i in range(len(pieces)) if cuts[i + 1] >= end)


@pytest.mark.parametrize("response", [text for group in RESPONSES for text in group])
def test_steps_of_tokens_are_those_of_the_text(processor, response):
    tokens = processor.encode_response(response)
    steps, places = steps_in_tokens(processor, tokens)
    assert tuple(steps) == steps_of(response)
    closing = [processor.tokenizer.convert_tokens_to_ids(tag) for tag in ("</step>", "</answer>")]
    assert all(tokens[place] in closing for place in places) and len(set(places)) == len(places)
    assert [text for text, _ in placed_steps(response)] == steps
    assert all(response[:end].endswith(("</step>", "</answer>")) for _, end in placed_steps(response))


def test_scores_of_responses_are_those_of_their_texts(folders, processor):
    opened = open_policy(folders / "grown", ModelConfig(), MeshConfig(), devices=jax.devices()[:2])
    scorer = open_scorer(opened, batch_size=2)
    groups = []
    for order, responses in enumerate(RESPONSES):
        tokens = [processor.encode_response(text) for text in responses]
        padded = np.stack([np.pad(row, (0, 90 - len(row)), constant_values=7) for row in tokens])
        groups.append(SimpleNamespace(order=order, responses=padded, lengths=np.asarray([len(row) for row in tokens])))
    scores = RolloutScorer(scorer, processor, problem_of).score(groups, 96)
    assert scores.shape == (2, 4, 96)
    for order, responses in enumerate(RESPONSES):
        for i, text in enumerate(responses):
            steps = steps_of(text) if "<prm>" not in text else ()
            (expected,) = scorer.score([Solutions(problem_of(order), [steps])])[0]
            own = scores[order, i]
            np.testing.assert_allclose(own[~np.isnan(own)], expected, rtol=1e-4)
            places = np.flatnonzero(~np.isnan(own))
            assert places.tolist() == (steps_in_tokens(processor, processor.encode_response(text))[1] if steps else [])
    metrics = process_metrics(scores)
    assert metrics["process/steps"] == (3 + 1 + 0 + 0 + 1 + 2 + 0 + 1) / 8 and metrics["process/unscored"] == 3 / 8
    assert metrics["process/score"] == pytest.approx(np.nanmean(scores), rel=1e-6)


def test_two_steps_that_end_in_one_token_have_no_scores(folders):
    grown = Processor.from_checkpoint(folders / "grown", prompt_style="plain", max_prompt_tokens=100)
    read = RolloutScorer(SimpleNamespace(processor=grown), Pieces([b"<step>a</step><step>b", b"</step>"]), problem_of)
    tokens, places = read._read(np.asarray([0, 1]))
    assert places == [0, 1] and len(tokens)
    joined = RolloutScorer(read.scorer, Pieces([b"<step>a</step><step>b</step>"]), problem_of)
    tokens, places = joined._read(np.asarray([0]))
    assert places == [] and not len(tokens)
