"""The sampler against transformers' `generate`, the update's log-probabilities, and brute-force distributions."""

from __future__ import annotations

import itertools
from dataclasses import replace

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
import torch
from helpers.support import PROBLEMS, Lively
from transformers import TopKLogitsWarper, TopPLogitsWarper

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.mesh import make_mesh, tree_shardings
from mmeureka_jax.models import decode_attention
from mmeureka_jax.models.policy import encode_images, token_log_probs
from mmeureka_jax.sampling import decode, repack, sampler
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.sampling.sampler import Sampler
from mmeureka_jax.sampling.token_draws import (
    STREAMS,
    SamplingSettings,
    draw,
    filter_logits,
    prompt_seeds,
    response_keys,
    token_noise,
)
from mmeureka_jax.training.watchers import CompileCounter

MIXED = [PROBLEMS[name] for name in ("text only", "one window", "odd sizes", "several pictures")]
GROUP = 3


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Lively(tmp_path_factory.mktemp("checkpoint") / "model", tied=False)


def settings_for(model, **changes):
    defaults = SamplingSettings(
        group_size=GROUP, max_new_tokens=12, eos_token_ids=model.config.eos_token_ids,
        pad_token_id=model.config.pad_token_id, temperature=0.8,
    )  # fmt: skip
    return replace(defaults, **changes)


def roll(model, problems, settings, *, params=None, batch=None, seed=0, rollout=0, active=None):
    """Samples for problems, or for the first `active` of them; all arrays as NumPy."""
    batch = model.batch(problems) if batch is None else batch
    request = Request.of([item.id for item in problems[:active]], batch, rollout=rollout)
    params = model.params if params is None else params
    return Sampler(model.policy, settings, "rollout", seed).sample(params, request)[0]


def with_head(model, columns):
    """The parameters with some columns [D] of the output head replaced."""
    kernel = model.params["language"]["lm_head"]["kernel"]
    for token, column in columns.items():
        kernel = kernel.at[:, token].set(column)
    return model.params | {"language": model.params["language"] | {"lm_head": {"kernel": kernel}}}


def one_of_two_wins(model, first, second, strength=100.0):
    """The parameters with two opposite head columns: whatever the hidden state, one of the two tokens leads by far."""
    column = strength * np.random.default_rng(3).normal(size=model.config.text.hidden_size).astype(np.float32)
    return with_head(model, {first: column, second: -column})


def generate_with_transformers(model, item, length):
    inputs, _ = model.torch_inputs(item, np.zeros(0, np.int32))
    with torch.no_grad():
        out = model.torch.generate(
            **inputs, do_sample=False, max_new_tokens=length, suppress_tokens=list(model.policy.forbidden_tokens)
        )  # fmt: skip
    return out[0, inputs["input_ids"].shape[1] :].numpy()


@pytest.mark.slow
def test_greedy_equals_transformers_token_for_token(model):
    """64 tokens; prompts without, with one and with several pictures in one padded batch, each with three responses."""
    length = 64
    samples = roll(model, MIXED, settings_for(model, temperature=0.0, max_new_tokens=length))
    for i, item in enumerate(MIXED):
        expected = generate_with_transformers(model, item, length)
        assert (samples.lengths[i] == len(expected)).all()
        for tokens in samples.tokens[i]:
            np.testing.assert_array_equal(tokens[: len(expected)], expected, err_msg=item.id)
    assert samples.lengths.max() == length
    assert len(np.unique(samples.tokens)) > 20  # not a test of stuck or empty answers


def test_log_probs_are_those_of_the_update(model):
    """The sampler/trainer gap is rounding: two computations on one set of parameters."""
    settings = settings_for(model)
    batch = model.batch(MIXED)
    samples = roll(model, MIXED, settings, batch=batch)

    @jax.jit
    def recompute(params, batch, tokens):
        embeds = encode_images(model.policy, params, batch.images)
        return token_log_probs(
            model.policy, params, batch, embeds, tokens, temperature=settings.temperature
        )[0]  # fmt: skip

    mask = np.arange(settings.max_new_tokens) < samples.lengths[..., None]
    assert np.abs(np.where(mask, samples.log_probs - recompute(model.params, batch, samples.tokens), 0)).max() < 1e-5
    assert samples.log_probs[mask].std() > 0.1


def test_a_response_does_not_depend_on_what_else_is_in_the_batch(model):
    settings = settings_for(model)
    together = roll(model, MIXED, settings)

    # Another order, and other prompts in the other rows.
    order = [2, 0, 3, 1]
    shuffled = roll(model, [MIXED[i] for i in order], settings)
    np.testing.assert_array_equal(shuffled.tokens, together.tokens[order])
    others = [replace(item, id=f"other {item.id}") for item in MIXED[1:]]
    changed = roll(model, [MIXED[0], *others], settings)
    np.testing.assert_array_equal(changed.tokens[0], together.tokens[0])
    assert (changed.tokens[1:] != together.tokens[1:]).any(axis=-1).all()

    # Alone, in a group of one, padded to other sizes: the first response of the group.
    alone = roll(model, [MIXED[1]], replace(settings, group_size=1))
    np.testing.assert_array_equal(alone.tokens[0, 0], together.tokens[1, 0])
    np.testing.assert_allclose(alone.log_probs[0, 0], together.log_probs[1, 0], rtol=1e-5, atol=1e-5)  # float32 rounds


def test_rollouts_and_seeds_have_their_own_noise(model):
    settings = settings_for(model)
    first = roll(model, MIXED, settings)
    np.testing.assert_array_equal(first.tokens, roll(model, MIXED, settings).tokens)
    for other in (roll(model, MIXED, settings, rollout=1), roll(model, MIXED, settings, seed=1)):
        assert (other.tokens != first.tokens).any(axis=-1).all()
    responses = first.tokens.reshape(-1, settings.max_new_tokens)
    assert len(np.unique(responses, axis=0)) == len(responses)


def test_every_response_has_a_key_of_its_own():
    keys = [
        jax.random.key_data(response_keys(seed, stream, rollout, prompt_seeds(["a", "b", "c"]), 4)).reshape(12, -1)
        for seed, stream, rollout in itertools.product((0, 1), STREAMS, (0, 1, 2))
    ]
    keys = np.concatenate(keys)
    assert len(np.unique(keys, axis=0)) == len(keys) == 2 * len(STREAMS) * 3 * 12


@pytest.mark.parametrize("word", [0, 1])
def test_both_words_of_a_prompt_s_name_count(word):
    names = np.full((2, 2), 7, np.uint32)
    names[1, word] = 8
    one, other = jax.random.key_data(response_keys(0, "rollout", 0, names, 1))
    assert (one != other).any()


def test_a_part_of_a_group_has_the_keys_of_its_numbers():
    names = prompt_seeds(["a", "b"])
    whole = jax.random.key_data(response_keys(0, "rollout", 0, names, 8))
    part = jax.random.key_data(response_keys(0, "rollout", 0, names, 2, np.asarray([4, 6], np.int32)))
    np.testing.assert_array_equal(part, [whole[0, 4:6], whole[1, 6:8]])


def test_picture_placeholders_are_never_sampled(model):
    image, video = model.policy.forbidden_tokens
    params = one_of_two_wins(model, image, video)
    samples = roll(model, MIXED, settings_for(model), params=params)
    assert not np.isin(samples.tokens, [image, video]).any()
    assert samples.log_probs[..., 0].max() < -10  # the policy wanted nothing else: its log-probabilities are not hidden


def test_padding_rows_of_the_vocabulary_can_be_sampled(model):
    """As in transformers, where only what `suppress_tokens` names is left out."""
    spare = [len(model.processor.tokenizer), model.config.text.vocab_size - 1]
    assert spare[0] < spare[1]
    samples = roll(model, MIXED, settings_for(model), params=one_of_two_wins(model, *spare))
    assert np.isin(samples.tokens, spare).all() and len(np.unique(samples.tokens)) == 2


def test_a_response_ends_with_its_first_stop_token(model):
    settings = settings_for(model, max_new_tokens=16)
    free = roll(model, MIXED, replace(settings, eos_token_ids=()))
    assert (free.lengths == 16).all() and not free.finished.any()
    stops = tuple(int(token) for token in {free.tokens[0, 0, 5], free.tokens[1, 1, 0], free.tokens[3, 2, 9]})
    samples = roll(model, MIXED, replace(settings, eos_token_ids=stops))
    is_stop = np.isin(free.tokens, stops)
    expected = np.where(is_stop.any(-1), is_stop.argmax(-1) + 1, 16)
    np.testing.assert_array_equal(samples.lengths, expected)
    np.testing.assert_array_equal(samples.finished, is_stop.any(-1))
    assert 3 <= samples.finished.sum() < samples.finished.size and samples.lengths.min() == 1
    within = np.arange(16) < expected[..., None]
    np.testing.assert_array_equal(samples.tokens, np.where(within, free.tokens, settings.pad_token_id))
    # To rounding: with fewer rows a product adds up in another order.
    np.testing.assert_allclose(samples.log_probs, np.where(within, free.log_probs, 0.0), rtol=1e-5, atol=1e-5)


@pytest.fixture
def decode_rows(monkeypatch):
    """The rows of every decode step that is run from here on (programs that are compiled already do not count)."""
    rows = []
    plain = decode.decode_step

    def counted(policy, params, weights, tokens, *arguments):
        jax.debug.callback(lambda: rows.append(len(tokens)))
        return plain(policy, params, weights, tokens, *arguments)

    monkeypatch.setattr(decode, "decode_step", counted)
    decode.decode.clear_cache()
    yield rows
    decode.decode.clear_cache()


def test_decoding_stops_when_every_row_is_done(model, decode_rows):
    """Counts the steps of the decode loop, with a stop token that the one active response draws."""
    problems = [PROBLEMS["text only"], replace(PROBLEMS["text only"], id="filler")]
    free = roll(model, MIXED, settings_for(model)).tokens[0, 0].tolist()
    stop = free[4]
    length = free.index(stop) + 1
    decode_rows.clear()
    samples = roll(model, problems, settings_for(model, group_size=1, eos_token_ids=(stop,)), active=1)
    jax.effects_barrier()
    assert 2 <= length <= 5 and len(decode_rows) == length - 1
    assert samples.lengths.tolist() == [[length], [0]] and samples.finished.tolist() == [[True], [False]]
    assert samples.tokens[0, 0, :length].tolist() == free[:length]
    assert (samples.tokens[1] == model.config.pad_token_id).all() and (samples.log_probs[1] == 0).all()


def without_repacking(model, problems, settings):
    """One batch from the first token to the last, with caches of full size at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampler, "row_sizes", lambda rows, shrink: [rows])
        patch.setattr(sampler, "cache_sizes", lambda limit: [limit + 2 * repack.BLOCK])
        return roll(model, problems, settings)


@pytest.mark.slow
def test_finished_rows_and_growing_caches_change_nothing(model, decode_rows, monkeypatch):
    """Ragged responses, in batches that are halved several times and caches that grow, against one batch."""
    stops = tuple(range(100, 124))  # one of 32 tokens
    settings = settings_for(
        model, group_size=8, max_new_tokens=80, temperature=1.0, eos_token_ids=stops, shrink=0.5
    )  # fmt: skip
    expected = without_repacking(model, MIXED, settings)
    lengths = np.sort(expected.lengths.ravel())
    assert lengths[0] < 10 and lengths[16] < 60 and lengths[-1] == 80, lengths

    monkeypatch.setattr(repack, "_ROW_MULTIPLE", 1)
    assert repack.row_sizes(32, 0.5) == [32, 16, 8, 4, 2, 1]
    assert repack.cache_sizes(80) == [32, 96]
    decode_rows.clear()
    samples = roll(model, MIXED, settings)
    jax.effects_barrier()
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_array_equal(samples.lengths, expected.lengths)
    np.testing.assert_array_equal(samples.finished, expected.finished)
    np.testing.assert_allclose(samples.log_probs, expected.log_probs, atol=1e-5)
    assert len(set(decode_rows)) >= 3 and sum(decode_rows) < 0.7 * 79 * 32, decode_rows

    # As on an accelerator: caches of one size, of which what is filled is read, and fewer batches.
    monkeypatch.setattr(decode_attention, "platform", lambda: "tpu")
    monkeypatch.setattr(decode_attention, "_CHUNK", 16)
    assert repack.cache_sizes(80) == [96]
    decode.decode.clear_cache()
    request = Request.of([item.id for item in MIXED], model.batch(MIXED))
    subject = Sampler(model.policy, settings, "rollout", longest_prompt=request.prompts.tokens.shape[1] + 20)
    samples, _ = subject.sample(model.params, request)
    np.testing.assert_array_equal(samples.tokens, expected.tokens)
    np.testing.assert_allclose(samples.log_probs, expected.log_probs, atol=1e-5)


@pytest.mark.slow
def test_rollouts_compile_nothing_after_compile_ahead(tmp_path, monkeypatch):
    """Whatever lengths responses have: rows fall at different times, and caches grow with different rows."""
    devices = 2
    monkeypatch.setattr(repack, "_SMALLEST_CACHE", 32)
    monkeypatch.setattr(repack, "_ROW_MULTIPLE", 4)
    model = Lively(tmp_path / "model", tied=True, layers=2, depth=2)
    settings = settings_for(model, group_size=4, max_new_tokens=56, eos_token_ids=(), shrink=0.5)
    mesh = make_mesh(MeshConfig(data=devices), jax.devices()[:devices])
    names = [item.id for item in MIXED]
    with jax.set_mesh(mesh), CompileCounter() as compiles:
        params = jax.device_put(model.params, tree_shardings(mesh, model.params, model.policy.param_axes()))
        subject = Sampler(model.policy, settings, "rollout")
        batch = model.batch(MIXED)
        programs = list(subject.programs(params, Request.of([], batch, mesh)))
        assert len({program.name for program in programs}) == len(programs) >= 8
        for program in programs:
            program.lower().compile()
        assert compiles.since_last() >= len(programs)
        # The first has no decoding to do: it compiles `start` anew, with limits, which only benchmarks have.
        for number, limits in enumerate(([1] * 16, [56] * 16, range(2, 50, 3), [3] * 8 + [56] * 8, [40] * 15 + [41])):
            limits = np.asarray(limits, np.int32).reshape(4, 4)
            stopped, _ = subject.sample(params, Request.of(names, batch, mesh, rollout=number, limits=limits))
            np.testing.assert_array_equal(stopped.lengths, limits)
            assert compiles.since_last() == 0 or number == 0


def test_sizes_of_batches_and_caches():
    assert repack.row_sizes(256, 0.5) == [256, 128, 64, 32, 16, 8]
    assert repack.row_sizes(256, 0.75) == [256, 192, 144, 112, 88, 72, 56, 48, 40, 32, 24, 16, 8]
    assert repack.row_sizes(256, 0.0) == [256]
    assert repack.row_sizes(3, 0.75) == [3] and repack.row_sizes(11, 0.9) == [11, 8]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repack, "platform", lambda: "tpu")
        assert repack.row_sizes(128, 0.5) == [128, 64, 32, 16] and repack.row_sizes(16, 0.5) == [16]
    for rows, shrink in itertools.product((1, 7, 8, 9, 100, 1024), (0.01, 0.3, 0.75, 0.99)):
        sizes = repack.row_sizes(rows, shrink)
        assert sizes == sorted(set(sizes), reverse=True) and sizes[0] == rows and (sizes[-1] == 8 or rows <= 8)
    assert repack.cache_sizes(1024) == [64, 128, 192, 256, 384, 512, 768, 1040]
    assert repack.cache_sizes(64) == [32, 80] and repack.cache_sizes(40) == [64]
    for limit in (*range(1, 200), 1024, 3001):
        sizes = repack.cache_sizes(limit)
        assert sizes == sorted(set(sizes)) and sizes[-1] >= limit - 1 + repack.BLOCK


def brute_force_filter(logits, top_k, top_p):
    """Which tokens of one row remain, by sorting; float64."""
    kept = np.ones(len(logits), bool)
    if 0 < top_k < len(logits):
        kept &= logits >= np.sort(logits)[-top_k]
    if top_p < 1:
        order = [i for i in np.argsort(-logits, kind="stable") if kept[i]]
        probabilities = scipy.special.softmax(logits[order].astype(np.float64))
        total = 0.0
        last = None
        for index, probability in zip(order, probabilities, strict=True):
            if total >= top_p:
                break
            total = total + probability
            last = logits[index]
        kept &= logits >= last
    return kept


VOCABULARY = 9
LOGITS = st.lists(
    st.one_of(st.integers(-3, 3).map(float), st.floats(-20, 20, width=32)), min_size=VOCABULARY, max_size=VOCABULARY
).map(lambda row: np.array(row, np.float32))


@hypothesis.settings(deadline=None, max_examples=60)
@hypothesis.given(LOGITS, st.integers(0, VOCABULARY + 1), st.floats(0.01, 1.0))
def test_filter_logits_equals_brute_force(logits, top_k, top_p):
    ordered = np.sort(logits)[::-1][: top_k or None]
    mass = np.cumsum(scipy.special.softmax(ordered.astype(np.float64)))
    hypothesis.assume(np.abs(mass - top_p).min() > 1e-5)  # an edge that rounding decides
    with np.errstate(invalid="ignore"):
        ours = np.asarray(filter_logits(jnp.asarray(logits), top_k, top_p))
    kept = brute_force_filter(logits, top_k, top_p)
    np.testing.assert_array_equal(ours, np.where(kept, logits, -np.inf))


@pytest.mark.parametrize(("top_k", "top_p"), [(5, 1.0), (0, 0.7), (20, 0.9), (1, 0.5), (0, 0.05)])
def test_filter_logits_equals_transformers(top_k, top_p):
    logits = np.random.default_rng(0).normal(scale=3, size=(7, 50)).astype(np.float32)
    expected = torch.tensor(logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p < 1:
        expected = TopPLogitsWarper(top_p)(None, expected)
    np.testing.assert_array_equal(filter_logits(jnp.asarray(logits), top_k, top_p), expected.numpy())


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(1.0, 0, 1.0), (0.6, 0, 1.0), (1.7, 5, 1.0), (1.0, 0, 0.7), (1.3, 6, 0.8)]
)
def test_tokens_are_drawn_from_the_filtered_softmax(model, temperature, top_k, top_p):
    """A chi-square test of 40,000 draws against probabilities computed in float64."""
    vocabulary = 12
    count = 40_000
    forbidden = [3, 4]
    logits = np.random.default_rng(5).normal(scale=1.0, size=vocabulary).astype(np.float32)
    logits[forbidden] = logits.max() + 1
    config = replace(model.config, image_token_id=forbidden[0], video_token_id=forbidden[1])
    settings = settings_for(model, group_size=count, temperature=temperature, top_k=top_k, top_p=top_p)
    tokens, log_probs = draw(
        replace(model.policy, config=config),
        settings,
        token_noise(response_keys(0, "sample", 0, prompt_seeds(["a"]), count)[0], jnp.asarray([7]))[0],
        jnp.ones((count, 1)),
        jnp.asarray(logits)[None],
    )
    scaled = logits.astype(np.float64) / temperature
    np.testing.assert_allclose(log_probs, scipy.special.log_softmax(scaled)[tokens], atol=1e-5)

    allowed = np.delete(np.arange(vocabulary), forbidden)
    kept = allowed[brute_force_filter(scaled[allowed].astype(np.float32), top_k, top_p)]
    assert np.isin(tokens, kept).all() and len(kept) > 2
    counts = np.bincount(np.asarray(tokens), minlength=vocabulary)[kept]
    assert scipy.stats.chisquare(counts, count * scipy.special.softmax(scaled[kept])).pvalue > 1e-3


def test_greedy_takes_the_likeliest_token_and_reports_temperature_one(model):
    logits = np.random.default_rng(2).normal(size=(2, 30)).astype(np.float32)
    settings = settings_for(model, group_size=1, temperature=0.0, top_k=3, top_p=0.1)
    config = replace(model.config, image_token_id=int(logits[0].argmax()), video_token_id=29)
    policy = replace(model.policy, config=config)
    tokens, log_probs = draw(policy, settings, jnp.zeros((2, 2)), jnp.asarray(logits), jnp.eye(30))
    open_logits = np.where(np.isin(np.arange(30), policy.forbidden_tokens), -np.inf, logits)
    np.testing.assert_array_equal(tokens, open_logits.argmax(-1))
    expected = np.take_along_axis(scipy.special.log_softmax(logits, axis=-1), np.asarray(tokens)[:, None], axis=-1)[
        :, 0
    ]
    np.testing.assert_allclose(log_probs, expected, atol=1e-5)
