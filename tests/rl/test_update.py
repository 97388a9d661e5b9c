"""The update against PyTorch and against itself: micro-batches, frozen parts, skipped steps, donation."""

from __future__ import annotations

import functools
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from helpers.groups import parts_of
from helpers.support import PROBLEMS, Lively

from mmeureka_jax.config.schema import Config, MeshConfig, OptimizerConfig, RLConfig, SamplerConfig
from mmeureka_jax.mesh import make_mesh
from mmeureka_jax.models.batch import GroupBatch
from mmeureka_jax.models.policy import encode_images, group_hidden, log_probs_of_hidden, token_log_probs
from mmeureka_jax.rl.groups import Targets
from mmeureka_jax.rl.metrics import computed
from mmeureka_jax.rl.objective import imitation_objective, policy_objective
from mmeureka_jax.rl.train_state import Training, make_training
from mmeureka_jax.rl.update import CompiledUpdate

ITEMS = [PROBLEMS[name] for name in ("text only", "one window", "odd sizes", "several pictures")]
TEXT_ITEMS = [PROBLEMS["text only"]] * 4
GROUP = 2
LENGTH = 6
KEEP_GRADIENT = optax.trace(decay=0.0)  # its state is the gradient that it was given, bit for bit
TEMPERATURE = 0.8


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    lively = Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=True)
    # Shorter programs, the same numbers: test_policy.py holds remat and chunks to them.
    lively.policy = replace(lively.policy, remat=False, logits_mb=1000.0)
    return lively


def make_batch(model, items, params=None, seed=0, places=LENGTH):
    """Random responses of up to LENGTH tokens, with ratios to the sampling policy that spread over both clips."""
    params = model.params if params is None else params
    rng = np.random.default_rng(seed)
    shape = (len(items), GROUP, places)
    prompts = model.batch(items)
    responses = rng.integers(5, 250, shape).astype(np.int32)

    @jax.jit
    def log_probs(params, prompts, responses):
        embeds = encode_images(model.policy, params, prompts.images)
        return token_log_probs(model.policy, params, prompts, embeds, responses, temperature=TEMPERATURE)[0]

    now = np.asarray(log_probs(params, prompts, responses))
    mask = np.arange(places) < rng.integers(1, LENGTH + 1, shape[:2])[..., None]
    targets = Targets(
        old_log_probs=now - rng.normal(scale=0.4, size=shape).astype(np.float32),
        advantages=rng.normal(size=(*shape[:2], 1)).astype(np.float32).repeat(places, axis=2),
        fresh=np.arange(len(items)) % 2 == 0,
    )
    return GroupBatch(prompts, None, responses, mask), targets


@pytest.fixture(scope="module")
def part(model):
    return make_batch(model, ITEMS)


@pytest.fixture(scope="module")
def text_part(model):
    return make_batch(model, TEXT_ITEMS)


def config_for(**rl):
    return Config(rl=RLConfig(**rl), sampler=SamplerConfig(temperature=TEMPERATURE, max_new_tokens=LENGTH))


def gradient_of(
    model,
    objective,
    part,
    *,
    params=None,
    micro_batches=1,
    packing=0.0,
    frozen=(),
    max_grad_norm=1e9,
    kl_coefficient=0.0,
):
    """Gradients (of the trainable part), metrics and the new state of one update."""
    training = keep_gradient(frozen, max_grad_norm)
    step = compiled_update(model, objective, training)
    params = jax.tree.map(jnp.copy, model.params if params is None else params)  # the state is donated
    state = training.init(model.policy, params)
    state, metrics = step(state, parts_of(objective, *part, micro_batches, packing), kl_coefficient)
    return state.optimizer.trace, computed(jax.device_get(metrics)), state


def keep_gradient(frozen=(), max_grad_norm=1e9, critic=None):
    """Updates keep the gradients and change no parameter."""
    return Training(KEEP_GRADIENT, lambda count: jnp.zeros(()), frozen, max_grad_norm, critic)


def compiled_update(model, objective, training):
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    return CompiledUpdate(model.policy, objective, training, training.shardings(model.policy, mesh))


def by_path(tree):
    return {jax.tree_util.keystr(path): np.asarray(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def assert_gradients_close(ours, expected, tolerance):
    ours = by_path(ours)
    expected = by_path(expected)
    assert ours.keys() == expected.keys()
    for name, value in expected.items():
        assert np.linalg.norm(ours[name] - value) <= tolerance * np.linalg.norm(value), name


class FrozenTower:
    """CPGD with a frozen tower on pictures, and the update of a whole batch.

    On a checkpoint as it is initialised: the log-probabilities of a lively one, of -40 and less, carry a rounding error
    of 1e-5 that depends on which matrix product XLA picks for the size of a micro-batch.
    """

    def __init__(self, model):
        self.part = make_batch(model, ITEMS, model.start_params, places=2 * LENGTH)
        self.objective = policy_objective(config_for(loss="cpgd", drift_coefficient=0.1))
        self.update = functools.partial(gradient_of, model, self.objective, params=model.start_params)
        self.whole = self.update(self.part, frozen=("vision",))


@pytest.fixture(scope="module")
def frozen_tower(model):
    return FrozenTower(model)


@pytest.mark.slow
@pytest.mark.parametrize(("packing", "tolerance"), [(0, 1e-6), (0.8, 1e-5)], ids=["padded", "packed"])
def test_micro_batches_give_the_update_of_the_whole(frozen_tower, packing, tolerance):
    """Gradients, losses and metrics, with unequal lengths in each. Sums over packed tokens are in another order."""
    parts = parts_of(frozen_tower.objective, *frozen_tower.part, 4, packing)
    assert [part.batch.width for part in parts] == [16 if packing else None] * 4
    expected, of_whole, _ = frozen_tower.whole
    gradients, metrics, _ = frozen_tower.update(
        frozen_tower.part, micro_batches=4, packing=packing, frozen=("vision",)
    )  # fmt: skip
    assert_gradients_close(gradients, expected, tolerance)
    for name, value in of_whole.items():
        rtol = tolerance if name.startswith("loss/") else 1e-5
        np.testing.assert_allclose(metrics[name], value, rtol=rtol, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_grpo_with_a_reference_equals_a_loop_in_torch(model, part):
    """Loss and gradient of clipped ratios and the k3 penalty, written as loops over responses and tokens."""
    low = 0.2
    high = 0.3
    coefficient = 0.5
    batch, targets = part
    reference = targets.old_log_probs + np.random.default_rng(9).normal(scale=0.3, size=targets.old_log_probs.shape)
    reference = reference.astype(np.float32)
    config = config_for(
        loss="ppo_clip", clip_epsilon_low=low, clip_epsilon_high=high, kl_coefficient=coefficient, kl_estimator="k3"
    )
    with_reference = batch, targets.replace(reference_log_probs=reference)
    gradients, metrics, _ = gradient_of(model, policy_objective(config), with_reference, kl_coefficient=coefficient)

    model.torch.zero_grad()
    loss = 0.0
    penalty = 0.0
    clipped = [0, 0]
    ratios = []
    drift = []
    gaps = []
    tokens = 0
    for row, item in enumerate(ITEMS):
        for j in range(GROUP):
            length = int(batch.lengths[row, j])
            advantage = float(targets.advantages[row, j, 0])
            _, table = model.torch_log_probs(item, batch.responses[row, j, :length], temperature=TEMPERATURE)
            of_response = 0.0
            of_penalty = 0.0
            for t in range(length):
                now = table[t, batch.responses[row, j, t]]
                ratio = torch.exp(now - float(targets.old_log_probs[row, j, t]))
                of_response -= torch.minimum(ratio * advantage, torch.clamp(ratio, 1 - low, 1 + high) * advantage)
                gap = float(reference[row, j, t]) - now
                of_penalty += torch.exp(gap) - 1 - gap
                ratios.append(ratio.item())
                clipped[0] += advantage < 0 and ratio < 1 - low
                clipped[1] += advantage > 0 and ratio > 1 + high
                drift.append(-gap.item())
                if targets.fresh[row]:
                    gaps.append(abs(now.item() - float(targets.old_log_probs[row, j, t])))
            loss += of_response / length / (len(ITEMS) * GROUP)
            penalty += coefficient * of_penalty / length / (len(ITEMS) * GROUP)
            tokens += length
    (loss + penalty).backward()

    assert_gradients_close(gradients, model.torch_gradients(), 1e-3)
    expected = {
        "loss/total": loss.item() + penalty.item(),
        "loss/policy": loss.item(),
        "loss/kl": penalty.item(),
        "policy/clip_fraction_low": clipped[0] / tokens,
        "policy/clip_fraction_high": clipped[1] / tokens,
        "policy/ratio_max": max(ratios),
        "policy/ratio": np.mean(ratios),
        "policy/kl_reference": np.mean(drift),
        "policy/sampler_gap_mean": np.mean(gaps),
        "policy/sampler_gap_max": max(gaps),
    }
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=2e-4, err_msg=name)
    assert min(clipped) > 2 and metrics["optimizer/skipped"] == 0


@pytest.mark.slow
def test_entropy_bonus_and_importance_weights(model, text_part):
    """The bonus is the mean entropy, by the same weights as the loss, and its gradient that of the entropy; importance
    multiplies each token's policy loss and nothing else."""
    batch, targets = text_part
    importance = np.random.default_rng(3).uniform(0.5, 2, targets.old_log_probs.shape).astype(np.float32)
    with_bonus = policy_objective(config_for(loss="pg", entropy_coefficient=0.25, token_averaging="token_mean"))
    embeds = encode_images(model.policy, model.params, batch.prompts.images)
    tokens = batch.response_mask.sum()

    @jax.jit
    @jax.grad
    def expected(params):
        states = group_hidden(model.policy, params, batch.prompts, embeds, batch.responses)
        log_probs, entropy = log_probs_of_hidden(
            model.policy, params, states, temperature=TEMPERATURE, entropy_gradient=True
        )
        loss = -importance * targets.advantages * log_probs - 0.25 * entropy
        return jnp.where(batch.response_mask, loss, 0).sum() / tokens

    weighted = batch, targets.replace(importance=importance)
    gradients, metrics, _ = gradient_of(model, with_bonus, weighted, frozen=("vision",))
    assert_gradients_close(gradients, {"language": expected(model.params)["language"]}, 1e-4)
    np.testing.assert_allclose(metrics["loss/entropy"], -0.25 * metrics["policy/entropy"], rtol=1e-5)
    np.testing.assert_allclose(metrics["loss/total"], metrics["loss/policy"] + metrics["loss/entropy"], rtol=1e-5)
    np.testing.assert_allclose(metrics["policy/importance"], importance[batch.response_mask].mean(), rtol=1e-5)


@pytest.mark.slow
def test_imitation_equals_cross_entropy_in_torch(model, text_part):
    """Over all tokens of the batch, as the mean of transformers' `labels` loss is over those of one row."""
    batch, _ = text_part
    gradients, metrics, _ = gradient_of(model, imitation_objective(), (batch, None), frozen=("vision",))
    for parameter in model.torch.parameters():
        parameter.grad = torch.zeros_like(parameter)
    total = 0.0
    tokens = 0
    for row, item in enumerate(TEXT_ITEMS):
        for j in range(GROUP):
            response = batch.responses[row, j, : int(batch.lengths[row, j])]
            inputs, start = model.torch_inputs(item, response)
            labels = inputs["input_ids"].clone()
            labels[:, :start] = -100
            total += model.torch(**inputs, labels=labels).loss * len(response)
            tokens += len(response)
    (total / tokens).backward()
    np.testing.assert_allclose(metrics["loss/total"], total.item() / tokens, rtol=1e-5)
    assert_gradients_close(gradients, {"language": model.torch_gradients()["language"]}, 1e-3)


@pytest.mark.slow
def test_a_frozen_tower_takes_embeddings_or_encodes_the_pictures(model, frozen_tower):
    """The decoder gets the same gradients, and what is frozen stays as it is, bit for bit."""
    batch, targets = frozen_tower.part
    params = model.start_params
    features = jax.jit(encode_images, static_argnums=0)(model.policy, params, batch.prompts.images)
    no_pictures = jax.tree.map(lambda x: x[:, :0], batch.prompts.images)
    cached = batch.replace(
        image_features=jax.device_get(features), prompts=batch.prompts.replace(images=no_pictures)
    )  # fmt: skip
    gradients, metrics, state = frozen_tower.update((cached, targets), frozen=("vision", "language/embed_tokens"))
    encoded, of_encoded, after_encoding = frozen_tower.whole
    expected = {name: value for name, value in encoded["language"].items() if name != "embed_tokens"}
    assert_gradients_close(gradients, {"language": expected}, 1e-5)
    np.testing.assert_allclose(metrics["loss/total"], of_encoded["loss/total"], rtol=1e-4)
    embedding = {"embed_tokens": params["language"]["embed_tokens"]}
    jax.tree.map(
        np.testing.assert_array_equal, state.frozen, {"vision": params["vision"], "language": embedding}
    )  # fmt: skip
    for one in (state, after_encoding):
        jax.tree.map(np.testing.assert_array_equal, one.params["vision"], params["vision"])


def test_gradients_are_clipped_to_their_global_norm(model, text_part):
    objective = policy_objective(config_for(loss="ppo_clip"))

    free, metrics, _ = gradient_of(model, objective, text_part, frozen=("vision",))
    norm = metrics["optimizer/grad_norm"]
    np.testing.assert_allclose(optax.tree.norm(free), norm, rtol=1e-5)
    for name, branch in free["language"].items():
        np.testing.assert_allclose(metrics[f"optimizer/grad_norm/language/{name}"], optax.tree.norm(branch), rtol=1e-5)
    clipped, metrics, _ = gradient_of(model, objective, text_part, frozen=("vision",), max_grad_norm=float(norm / 3))
    norm_before = metrics["optimizer/grad_norm"]
    np.testing.assert_allclose(norm_before, norm, rtol=1e-6)
    assert_gradients_close(clipped, jax.tree.map(lambda x: x / 3, free), 1e-5)


class Compiled:
    """The compiled, donating update as the learner has it: CPGD and AdamW on a mesh of one device."""

    def __init__(self, model):
        config = OptimizerConfig(learning_rate=1e-3, schedule="cosine", warmup_fraction=0.04, frozen=("vision",))
        self.model = model
        self.training = make_training(Config(optimizer=config), 100)
        mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
        self.shardings = self.training.shardings(model.policy, mesh)
        self.objective = policy_objective(config_for(loss="cpgd", drift_coefficient=0.1))
        self._step = CompiledUpdate(model.policy, self.objective, self.training, self.shardings)

    def step(self, state, part):
        state, metrics = self._step(state, parts_of(self.objective, *part))
        return state, computed(jax.device_get(metrics))

    def state(self):
        params = jax.tree.map(jnp.copy, self.model.params)  # what is passed in is donated
        return jax.device_put(self.training.init(self.model.policy, params), self.shardings)


@pytest.fixture(scope="module")
def compiled(model):
    return Compiled(model)


def test_the_state_is_donated(compiled, text_part):
    before = compiled.state()
    leaves = jax.tree.leaves((before.trainable, before.optimizer, before.frozen))
    addresses = {leaf.unsafe_buffer_pointer() for leaf in leaves}
    after, _ = compiled.step(before, text_part)
    assert all(leaf.is_deleted() for leaf in leaves)
    kept = [leaf.unsafe_buffer_pointer() in addresses for leaf in jax.tree.leaves(after)]
    assert np.mean(kept) > 0.9  # the new state lies where the old one was


def test_updates_follow_the_schedule_and_reduce_the_loss(compiled, text_part):
    state = compiled.state()
    losses = []
    for count in range(12):
        state, metrics = compiled.step(state, text_part)
        np.testing.assert_allclose(metrics["optimizer/learning_rate"], compiled.training.schedule(count), rtol=1e-6)
        losses.append(float(metrics["loss/policy"]))
    assert int(state.updates) == 12 and losses[-1] < losses[0] - 0.03


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_batch_that_is_not_finite_changes_nothing(compiled, text_part, bad):
    """Bit for bit, optimiser and counters included; the step after it continues as if it had not been there."""
    state, metrics = compiled.step(compiled.state(), text_part)
    assert metrics["optimizer/skipped"] == 0 and int(state.updates) == 1
    before = jax.device_get(state)
    batch, targets = text_part
    poisoned = targets.advantages.copy()
    poisoned[2, 0] = bad
    state, metrics = compiled.step(state, (batch, targets.replace(advantages=poisoned)))
    assert metrics["optimizer/skipped"] == 1 and not np.isfinite(metrics["optimizer/grad_norm"])
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), before)
    state, metrics = compiled.step(state, text_part)
    assert metrics["optimizer/skipped"] == 0 and int(state.updates) == 2
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))
