"""The loss at the markers and its gradients against the closed form and torch; scores against transformers."""

from __future__ import annotations

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers.marked_models import Marked
from helpers.support import PROBLEMS
from transformers import AutoTokenizer

from mmeureka_jax.config.schema import MeshConfig, ModelConfig
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.prm.form import process_problem, process_tokens, tokens_of_steps
from mmeureka_jax.prm.scorer import Solutions, open_scorer
from mmeureka_jax.rl.marker_loss import MarkerObjective, StepLabels, cross_entropy
from mmeureka_jax.rl.objective import Share
from mmeureka_jax.setup.policy import open_policy

PICTURED = PROBLEMS["one window"]
TEXT = PROBLEMS["text only"]
# Two processes of the first problem, one of the second, with soft labels.
LABELLED = [
    [("it has 4 dots<prm>\n\nand No more<prm>", (0.75, 0.0)), ("we guess 9 dots, which is\n\na guess<prm>", (0.25,))],
    [("1 + 1 = 2<prm>\n\nthe answer is 2<prm>\n\nYes<prm>", (1.0, 0.5, 1.0))],
]


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    return Marked(tmp_path_factory.mktemp("marked") / "model", tied=False, layers=2, depth=2)


def batch_of(marked, width=None):
    problems = [process_problem(PICTURED), process_problem(TEXT)]
    shape = (2, 2, 40)
    responses = np.zeros(shape, np.int32)
    mask = np.zeros(shape, bool)
    labels = np.zeros(shape, np.float32)
    for row, own in enumerate(LABELLED):
        for column, (text, values) in enumerate(own):
            tokens = process_tokens(marked.processor, text)
            responses[row, column, : len(tokens)] = tokens
            mask[row, column, : len(tokens)] = True
            places = [place + 1 for place, token in enumerate(tokens) if token == marked.tokens.marker]
            labels[row, column, places] = values
            assert len(places) == len(values)
            np.testing.assert_array_equal(np.flatnonzero(marked.tokens.labelled(tokens)), places)
    counted = np.zeros(shape, bool)
    for row, own in enumerate(LABELLED):
        for column in range(len(own)):
            tokens = responses[row, column]
            counted[row, column] = np.roll(tokens == marked.tokens.marker, 1)
    batch = GroupBatch(marked.batch(problems), None, responses, mask, width=width)
    return batch, StepLabels(labels, counted, np.tile(marked.tokens.choices, (2, 1)))


def ours(marked, width):
    """Loss, what was measured, and gradients of all parameters."""
    batch, labels = batch_of(marked, width)
    objective = MarkerObjective()
    share = Share(objective.token_weights(labels.marked), jnp.float32(0))
    state = SimpleNamespace(frozen={}, updates=0)
    loss_of = jax.value_and_grad(objective.part_loss(marked.policy, None), has_aux=True)
    compute = jax.jit(lambda params: loss_of((params, {}), state, (batch, labels), share))
    (loss, measured), (gradients, _) = compute(marked.params)
    return loss, measured, gradients


@pytest.mark.slow
@pytest.mark.parametrize(("tied", "width"), [(False, None), (True, 48)], ids=["padded", "tied, one after another"])
def test_loss_and_gradients_are_those_of_torch_s_cross_entropy(tied, width, tmp_path):
    marked = Marked(tmp_path / "model", tied=tied, layers=2, depth=2)
    logits = []
    targets = []
    for problem, own in zip((PICTURED, TEXT), LABELLED, strict=True):
        for text, values in own:
            logits.append(marked.torch_choices(process_problem(problem), process_tokens(marked.processor, text)))
            targets += [[label, 1 - label] for label in values]
    chosen = torch.cat(logits)
    expected = torch.nn.functional.cross_entropy(chosen, torch.tensor(targets))
    expected.backward()
    p = torch.softmax(chosen.double(), -1)[:, 0].detach().numpy()
    labels = np.asarray(targets)[:, 0]
    closed = -np.mean(labels * np.log(p) + (1 - labels) * np.log(1 - p))

    loss, measured, gradients = ours(marked, width)
    assert float(loss) == pytest.approx(expected.item(), rel=2e-4) == pytest.approx(closed, rel=2e-4)
    assert measured.tokens["tokens"] == len(labels)
    assert measured.tokens["prm/accuracy"] == np.sum((p >= 0.5) == (labels >= 0.5))
    theirs = jax.tree.leaves(marked.torch_gradients())
    for (path, mine), of_torch in zip(jax.tree_util.tree_leaves_with_path(gradients), theirs, strict=True):
        name = jax.tree_util.keystr(path)
        distance = np.linalg.norm(mine - of_torch)
        vanishing = name.endswith("['k_proj']['bias']")  # softmax takes no notice of it
        assert distance <= 2e-4 * np.linalg.norm(of_torch) or (vanishing and distance < 1e-5), name


@pytest.mark.slow
def test_scores_are_those_of_transformers(marked):
    solutions = [["it has 4 dots", "and No more"], [], ["we guess 9 dots"], ["one", "two", "three", "four", "five"]]
    items = [Solutions(TEXT, solutions[:1]), Solutions(PICTURED, solutions), Solutions(TEXT, [[]])]
    opened = open_policy(marked.folder, ModelConfig(compute_dtype="float32"), MeshConfig(), devices=jax.devices()[:2])
    scorer = open_scorer(opened, max_pixels=256 * 28 * 28, batch_size=3)
    done = []
    scores = scorer.score(items, done.append)
    assert sum(done) == 3 and scores[2] == [[]] and scores[1][1] == []
    for item, of_item in zip(items, scores, strict=True):
        for steps, mine in zip(item.solutions, of_item, strict=True):
            assert len(mine) == len(steps)
            if steps:
                tokens = tokens_of_steps(marked.processor, steps)
                with torch.no_grad():
                    theirs = torch.softmax(marked.torch_choices(process_problem(item.problem), tokens), -1)[:, 0]
                np.testing.assert_allclose(mine, theirs, atol=2e-4)
    assert np.std([score for of_item in scores for own in of_item for score in own]) > 0.01


def test_tokens_are_those_of_transformers_for_the_whole_text(marked):
    """As one text, with the tokenizer of the folder: the template's turns, question and process."""
    tokenizer = AutoTokenizer.from_pretrained(marked.folder)
    assert tokenizer.convert_tokens_to_ids("<prm>") == marked.tokens.marker
    assert tokenizer("<prm>Yes<prm> No.", add_special_tokens=False).input_ids[:3] == [
        marked.tokens.marker, marked.tokens.yes, marked.tokens.marker,
    ]  # fmt: skip
    turns = tokenizer.apply_chat_template([{"role": "user", "content": []}], add_generation_prompt=True, tokenize=False)
    steps = ["  1 + 1 = 2\n", "so the answer is 2"]
    text = f"{turns}Question: what is 1 + 1 ?\nProcess: 1 + 1 = 2<prm>\n\nso the answer is 2<prm><|im_end|>"
    prompt = marked.processor(process_problem(TEXT))
    mine = [*prompt.tokens, *tokens_of_steps(marked.processor, steps)]
    assert mine == tokenizer(text, add_special_tokens=False).input_ids


def test_cross_entropy_is_exact_for_sure_models():
    odds = jnp.asarray([-200.0, 200.0, 0.0, 3.0])
    labels = jnp.asarray([1.0, 1.0, 0.3, 0.0])
    np.testing.assert_allclose(cross_entropy(odds, labels), [200, 0, np.log(2), np.log1p(np.exp(3))], rtol=1e-6)
