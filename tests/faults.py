"""The faults of tests/mutation.py: one change each to the numeric core, data, rewards or checkpoints."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import PurePosixPath


@dataclass(frozen=True)
class Fault:
    """A change of one place.

    Attributes:
        file: under `mmeureka_jax/`.
        old: text that occurs in it once.
        new: what is there instead.
        tests: arguments of pytest, those that should see it.
        why: what is wrong with it.
    """

    file: str
    old: str
    new: str
    tests: str
    why: str

    @property
    def path(self) -> PurePosixPath:
        return PurePosixPath("mmeureka_jax", self.file)

    def applied(self, text: str) -> str:
        return text.replace(self.old, self.new)


LOSSES = "tests/rl/test_losses.py"
LEARNER = "tests/training/test_learner.py"
SUMS = "tests/rl/test_update_sums.py"
ROWS = "tests/rl/test_rows.py"
ADVANTAGES = "tests/rl/test_advantages.py"
CRITIC = "tests/rl/test_critic.py"
OPTIMIZER = "tests/rl/test_optimizer.py"
ACCURACY = "tests/rewards/test_accuracy.py"
VOCABULARY = "tests/models/test_padded_vocabulary.py"
POLICY = "tests/models/test_policy.py"
ROLLOUT_MEMORY = "tests/sampling/test_split_weights.py"
SAMPLER = "tests/sampling/test_sampler.py"
MESH = "tests/test_mesh.py"
SPREAD = "tests/sampling/test_spread.py"
PLAN = "tests/planning/test_plan.py"
CHECKPOINT = "tests/runs/test_checkpoint.py"
LORA = "tests/models/test_lora.py"
STEPS = "tests/data/test_shapes_steps.py"
SEARCH = "tests/prm/test_search.py"
SEARCH_FILES = "tests/prm/test_search_files.py"
SEARCH_JOB = "tests/prm/test_search_job.py"
LABELS = "tests/prm/test_labels.py"
LABEL_COMMAND = "tests/prm/test_label_command.py"
TREE_PAGE = "tests/report/test_tree_page.py"
AGGREGATORS = "tests/prm/test_aggregators.py"
BEST = "tests/prm/test_best_of_n.py"
MARKER_LOSS = "tests/prm/test_marker_loss.py"
GROWTH = "tests/prm/test_growth.py"
EXAMPLES = "tests/prm/test_examples.py"
STEP_METRICS = "tests/prm/test_step_metrics.py"
BEST_FILES = "tests/prm/test_best_of_n_files.py"
BEST_OF_EVAL = "tests/prm/test_best_of_eval.py"
PROCESS_REWARDS = "tests/rl/test_process_rewards.py"
ROLLOUT_SCORES = "tests/prm/test_rollout_scores.py"

# fmt: off
FAULTS = [
    # Losses and penalties.
    Fault("rl/losses.py", "(advantages < 0) & (x < low)", "(advantages < 0) & (x <= low)", LOSSES,
          "a ratio on the boundary is clipped"),
    Fault("rl/losses.py", "jnp.where(clipped_high, high, x)", "jnp.where(clipped_high, low, x)", LOSSES,
          "a token clipped above has the value of the lower bound"),
    Fault("rl/losses.py", "jnp.log1p(-clip_epsilon_low", "jnp.log1p(clip_epsilon_low", LOSSES,
          "the lower bound of CPG lies above 1"),
    Fault("rl/losses.py", "jax.lax.stop_gradient(slope) * log_probs", "slope * log_probs", LOSSES,
          "the drift's slope has a gradient"),
    Fault("rl/losses.py", "loss=result.loss + drift", "loss=result.loss - drift", LOSSES, "drift is rewarded"),
    Fault("rl/kl.py", '"k3": lambda d: jnp.expm1(jnp.minimum(-d,', '"k3": lambda d: jnp.expm1(jnp.minimum(d,',
          "tests/rl/test_kl.py", "k3 of the other direction"),
    Fault("rl/kl.py", "-0.2), 0.2)", "-0.1), 0.2)", "tests/rl/test_kl.py", "the coefficient falls more slowly"),
    Fault("rl/kl.py", "samples / config.kl_horizon", "1 / config.kl_horizon", "tests/rl/test_kl.py",
          "the horizon counts steps"),
    Fault("rl/ratios.py", "jnp.expm1(d) - d", "jnp.expm1(d) + d", "tests/rl/test_ratios.py", "drift of the wrong sign"),
    Fault("rl/averaging.py", "(counts > 0).sum()", "counts.size", "tests/rl/test_averaging.py",
          "empty responses count below the line"),
    Fault("rl/averaging.py", "return weights / np.float32(lengths.size * max_length)",
          "return weights / np.float32(response_mask.size)", "tests/rl/test_averaging.py",
          "the constant is the padded length"),
    # Advantages.
    Fault("rl/advantages.py", "max(centred.shape[1] - 1, 1)", "centred.shape[1]", ADVANTAGES,
          "the standard deviation of the population"),
    Fault("rl/advantages.py", "(n / (n - 1))", "((n - 1) / n)", ADVANTAGES, "leave-one-out scaled the wrong way"),
    Fault("rl/advantages.py", "cumsum(per_token[..., ::-1], axis=-1)[..., ::-1]", "cumsum(per_token, axis=-1)",
          ADVANTAGES, "returns so far instead of to come"),
    Fault("rl/advantages.py", "advantages - returns_to_go(", "advantages + returns_to_go(", ADVANTAGES,
          "KL in the reward is a bonus"),
    Fault("rl/advantages.py", "values = advantages[mask]\n", "values = advantages.ravel()\n", ADVANTAGES,
          "padding is whitened along"),
    Fault("rl/advantages.py", "gamma * gae_lambda * ahead", "gae_lambda * ahead", CRITIC, "gae without its discount"),
    Fault("rl/advantages.py", "deltas = rewards + gamma * following - values",
          "deltas = rewards + following - values", CRITIC, "the next value is not discounted"),
    Fault("rl/advantages.py", "(longest > mean)", "(longest < mean)", ADVANTAGES, "ADORA favours short answers"),
    Fault("rl/online_filter.py", "mean < config.lower,", "mean <= config.lower,",
          "tests/rl/test_online_filter.py", "the lower bound is exclusive"),
    Fault("rl/online_filter.py", "step <= config.freeze_steps", "step < config.freeze_steps",
          "tests/rl/test_online_filter.py", "the filter starts a step early"),
    # What updates are given, and what they add up.
    Fault("training/learner.py", "np.exp(old - sampled), rl", "np.exp(sampled - old), rl", LEARNER,
          "the importance weight inverted"),
    Fault("training/learner.py", "[config.seed, step, epoch]", "[config.seed, step]", LEARNER,
          "the same order in every epoch"),
    Fault("config/schema.py", "return self.epochs_per_rollout * self.prompts_per_rollout //",
          "return self.prompts_per_rollout //", LEARNER, "the schedule's length without the epochs"),
    Fault("training/learner.py", "old = learner.log_probs(state.params, config, groups)\n",
          "learner.log_probs(state.params, config, groups)\n", LEARNER,
          "ratios to the sampler next to importance weights"),
    Fault("training/learner.py", "penalties = kl_coefficient *", "penalties = -kl_coefficient *", LEARNER,
          "KL in the reward has the wrong sign"),
    Fault("training/learner.py", "self._objective.temperature, params", "1.0, params",
          "tests/training/test_reference.py", "log-probabilities of experience at temperature 1"),
    Fault("training/learner.py", "config, groups, reference.policy)", "config, groups)",
          "tests/training/test_reference.py", "the reference has the trained policy's adapters"),
    Fault("training/collect.py", 'f"{item.order}/{item.problem.id}"', "item.problem.id",
          "tests/training/test_collect.py", "noise named by the problem alone"),
    Fault("rl/objective.py", "_weighted(penalty, batch, share)", "_weighted(important(penalty), batch, share)", SUMS,
          "importance weighs the KL too"),
    Fault("rl/update.py", "share = Share(part.weights, kl", "share = Share(part.weights / part.weights.sum(), kl", SUMS,
          "each micro-batch has its own weights"),
    Fault("rl/rows.py", "response_mask=groups.response_mask & self.holds[..., None]",
          "response_mask=groups.response_mask", ROWS, "each row of a group has all of its responses"),
    Fault("rl/rows.py", "if length <= left]", "if length <= left + 1]", ROWS, "a row holds more than it has room for"),
    Fault("rl/rows.py", "turns.T.tolist()", "turns.tolist()", ROWS, "a group in rows of one size"),
    Fault("rl/update.py", " & jnp.isfinite(critic_norm)", "", SUMS, "a critic's gradient may be NaN"),
    # The optimiser and the critic.
    Fault("rl/optimizer.py", "(count + 1) / max(warmup, 1)", "count / max(warmup, 1)", OPTIMIZER,
          "the first update has a rate of 0"),
    Fault("rl/optimizer.py", '"embedding", "lora_a", "lora_b"', '"embedding"', OPTIMIZER, "no decay on adapters"),
    Fault("rl/optimizer.py", "mask=is_decayed", "mask=None", OPTIMIZER, "decay on biases and norms"),
    Fault("rl/optimizer.py", "jnp.where(norm > max_norm, max_norm / norm, 1.0)", "max_norm / norm", OPTIMIZER,
          "small gradients are made larger"),
    Fault("rl/critic.py", "old_values + jnp.clip(moved", "returns + jnp.clip(moved", CRITIC,
          "the clip is around the return"),
    # Models.
    Fault("models/layers.py", "return self.scale[...].astype(x.dtype) * normed.astype(x.dtype)",
          "return normed.astype(x.dtype)", POLICY, "norms without their scale"),
    Fault("models/layers.py", "second * cos + first * sin", "second * cos - first * sin", POLICY,
          "rotary turns one half the wrong way"),
    Fault("models/layers.py", "kept, x / (1 - self.dropout), 0", "kept, x, 0", LORA, "what is kept is not made larger"),
    Fault("models/layers.py", "y + self.lora_scale * self._project", "y + self._project", LORA,
          "adapters without their scale"),
    Fault("models/attention.py", "visible &= at <= places[:, None]", "visible &= at < places[:, None]",
          "tests/models/test_attention.py", "a token does not see itself"),
    Fault("models/attention.py", "scores *= query.shape[-1] ** -0.5", "scores *= query.shape[-1] ** -1.0",
          "tests/models/test_attention.py", "scores of another scale"),
    Fault("models/splash.py", "(keys < self.prompt) | (keys >= _first_place(numbers))", "keys >= _first_place(numbers)",
          "tests/models/test_attention.py", "splash attention hides the prompt from responses"),
    Fault("models/splash.py", "before = first <= _place(numbers).max(1, keepdims=True)",
          "before = first < _place(numbers).min(1, keepdims=True)",
          "tests/models/test_attention.py", "splash attention skips blocks that hold visible keys"),
    Fault("models/splash.py", "_mask_info(meeting, numbers, axis=0)", "_mask_info(meeting, numbers, axis=1)",
          "tests/models/test_attention.py", "gradients of keys read the blocks of other queries"),
    Fault("models/splash.py", "padding.astype(jnp.int32)", "0 * padding.astype(jnp.int32)",
          "tests/models/test_attention.py", "splash attention sees the prompt's padding"),
    Fault("models/decode_attention.py", "mask &= start + jnp.arange(_CHUNK) >= number * _CHUNK", "",
          "tests/models/test_decode_attention.py", "the last chunk counts places that were counted"),
    Fault("models/decode_attention.py", "-(-self.filled // _CHUNK)", "self.filled // _CHUNK",
          "tests/models/test_decode_attention.py", "a chunk that is not full is not read"),
    Fault("models/log_probs.py", "correction = jnp.exp(peak - higher)", "correction = jnp.exp(higher - peak)", POLICY,
          "blocks of the vocabulary are put together wrongly"),
    Fault("models/log_probs.py", "of_logits -= entropy_scale", "of_logits += entropy_scale", POLICY,
          "the entropy's gradient has the wrong sign"),
    Fault("models/log_probs.py", "(gradient / options.temperature)", "(gradient)", "tests/rl/test_update.py",
          "gradients without the temperature"),
    Fault("models/log_probs.py", "fresh & (self.entries(number) < self.vocab)", "fresh", POLICY,
          "the padding of the vocabulary has a probability"),
    Fault("sampling/token_draws.py", "if padding.any():", "if False:", VOCABULARY, "padding is sampled"),
    Fault("formats/hugging_face.py", "yield np.asarray(value)[: mapping.shape[0]]", "yield np.asarray(value)",
          VOCABULARY, "padding is exported"),
    Fault("formats/hugging_face.py", "slice(min(start, own), min(stop, own))", "slice(0, min(stop, own))", VOCABULARY,
          "a device's share of the vocabulary begins elsewhere"),
    Fault("models/lora.py", "return self.alpha / self.rank", "return self.alpha", LORA, "the scale without the rank"),
    Fault("models/lora.py", "uniform / np.sqrt(shape.shape[-2])", "uniform", LORA, "first values without their bound"),
    # The sampler.
    Fault("sampling/token_draws.py", '"validation": 1', '"validation": 0', SAMPLER,
          "validation draws with the noise of rollouts"),
    Fault("sampling/token_draws.py", "words[0]), words[1])", "words[0]), words[0])", SAMPLER,
          "half of a prompt's name is not read"),
    Fault("sampling/token_draws.py", "logits < kth, -jnp.inf", "logits <= kth, -jnp.inf", SAMPLER,
          "top-k without the k-th"),
    Fault("sampling/token_draws.py", "return jnp.where(above < top_p, low, middle + 1)",
          "return jnp.where(above <= 0.9 * top_p, low, middle + 1)", SAMPLER, "too small a nucleus"),
    Fault("sampling/token_draws.py", "forbidden[list(policy.forbidden_tokens)] = True", "pass", SAMPLER,
          "pictures' tokens are drawn"),
    Fault("sampling/token_draws.py", "(jnp.take_along_axis(weights, part[:, None, None], axis=1)[:, 0], uniform[:, 1])",
          "(jnp.take_along_axis(weights, part[:, None, None], axis=1)[:, 0], uniform[:, 0])", SAMPLER,
          "one random number for two choices"),
    # Data.
    Fault("data/loader.py", "+ self._host_index :: self._host_count]", ":: self._host_count]",
          "tests/data/test_loader.py", "every host reads the same rows"),
    Fault("data/loader.py", "self._batch_size * self._host_count\n", "self._batch_size\n",
          "tests/data/test_loader.py", "the position counts one host"),
    Fault("data/processor.py", "np.append(self._encode(body), np.array(ends, np.int32))", "self._encode(body)",
          "tests/data/test_processor.py", "responses without their end token"),
    Fault("data/processor.py", "first_window = np.cumsum(windows) - windows", "first_window = np.cumsum(windows)",
          "tests/data/test_processor.py", "image tokens point to the next picture"),
    Fault("data/vision_layout.py", "cut.transpose(6, 0, 3, 1, 4, 2, 5)", "cut.transpose(6, 0, 3, 1, 4, 5, 2)",
          "tests/data/test_vision_layout.py tests/data/test_pictures.py", "patches lie on their sides"),
    Fault("data/shapes/solving.py", "write(total + read) if i", "write(sum([*named.values()][: i + 1])) if i", STEPS,
          "a careless solution returns to the truth after its mistake"),
    Fault("data/shapes/scenes.py", "value = write(2 * half)", "value = write(2 * (self.width + self.height))", STEPS,
          "a careless solution does not continue from what it misread"),
    Fault("data/shapes/solving.py", "if solved.answer != right.answer:", "if True:", STEPS,
          "a careless solution may be right"),
    Fault("data/shapes/problems.py", "glance=slip)", "glance=None)", STEPS, "careless steps do not say what they are"),
    Fault("data/shapes/problems.py", "solved if is_lucky else wrong", "wrong", STEPS, "no glance is ever right"),
    Fault("setup/random_models.py", "for style in _CORPUS_STYLES:", "for style in (*_CORPUS_STYLES, \"steps\"):",
          "tests/setup/test_random_models.py", "a new prompt style changes the ids of tokens"),
    Fault("data/tiles.py", "width * height > 0.5 *", "width * height > 2 *", "tests/data/test_tiles.py",
          "larger grids only for larger pictures"),
    Fault("data/tiles.py", "tiles + (self.thumbnail and tiles > 1)", "tiles + self.thumbnail",
          "tests/data/test_tiles.py", "a thumbnail of a single tile"),
    # Rewards.
    Fault("rewards/answers/equality.py", "        del rest[found]\n", "", ACCURACY, "members of a set count twice"),
    Fault("rewards/answers/equality.py", "(piece.left_open, piece.right_open) != (other.left_open, other.right_open)",
          "piece.left_open != other.left_open", ACCURACY, "the right end of an interval is not looked at"),
    Fault("rewards/answers/numbers.py", "Rational(1, 2) * Rational(10)", "Rational(5) * Rational(10)", ACCURACY,
          "rounded decimals may be far off"),
    Fault("rewards/answers/extraction.py", "if len(set(found)) == 1 else", "if found else",
          f"{ACCURACY} tests/rewards/test_extraction.py", "the last of several answers counts"),
    Fault("rewards/answers/step_blocks.py", "position = close + len(f\"</{kind}>\")", "position = opening.end()",
          "tests/rewards/test_extraction.py", "tags that a step quotes count as the answer"),
    Fault("rewards/answers/step_blocks.py", "if not block.ends:", "if False:", "tests/rewards/test_extraction.py",
          "an answer that was cut counts"),
    Fault("rewards/rules/format.py", "all(map(str.strip, inside))", "any(map(str.strip, inside))",
          "tests/rewards/test_format.py", "steps may be empty"),
    Fault("rewards/rules/format.py", "response.count(tag) != 1", "response.count(tag) < 1",
          "tests/rewards/test_format.py", "tags may come twice"),
    Fault("rewards/rules/repetition.py", "return distinct / count - 1.0", "return distinct / len(words) - 1.0",
          "tests/rewards/test_repetition.py", "n-grams over words"),
    Fault("rewards/overlong.py", "max(length - (limit - buffer), 0)", "max(length - limit, 0)",
          "tests/training/test_rl.py::test_log_probs_of_the_reference_and_of_the_step_s_own_policy",
          "no penalty before the limit"),
    Fault("rewards/base.py", "sum(weights[rule] * part for", "sum(part for", "tests/rewards/test_workers.py",
          "rules without their weights"),
    Fault("evaluation/pass_at_k.py", "math.comb(int(count), k) / math.comb(n, k)", "(int(count) / n) ** k",
          "tests/evaluation/test_accuracy.py", "pass@k with replacement"),
    # Process rewards.
    Fault("prm/search.py", "alpha ** (1 - value)", "alpha ** value", SEARCH, "hard states come first"),
    Fault("prm/search.py", "len(step.split()) for step in rollout", "1 for _ in rollout", SEARCH,
          "lengths are counted in steps"),
    Fault("prm/search.py", "math.sqrt(searches)", "math.sqrt(visits)", SEARCH, "U knows only the state's own visits"),
    Fault("prm/search.py", "best = max(self.pool, key=priority)", "best = max(self.pool[::-1], key=priority)", SEARCH,
          "the last of equal priorities is chosen"),
    Fault("prm/search.py", "                parent = child\n", "", SEARCH,
          "steps after a solvable state are its siblings"),
    Fault("prm/search.py", "middle == len(rollout) - 1", "left == right", SEARCH,
          "a single step within a rollout is not probed"),
    Fault("prm/search.py", "candidate.node.visits += 1", "self.root.visits += 1", SEARCH, "the root has all visits"),
    Fault("prm/search.py", "self._drawn < self.settings.max_rollouts",
          "self._drawn + self.settings.rollouts <= self.settings.max_rollouts", SEARCH,
          "the budget of rollouts is never exceeded"),
    Fault("prm/search.py", "one.right and bool(one.steps)", "one.right", SEARCH,
          "a response without steps may be right"),
    Fault("prm/search.py", "wrong = dict.fromkeys(", "wrong = list(", SEARCH, "equal rollouts are searched twice"),
    Fault("prm/search.py", "        if node.value > 0:\n", "        if True:\n", SEARCH,
          "rollouts of unsolvable states are searched"),
    Fault("prm/search.py", "while search.request and (rollouts := recorded(search.request)) is not None:",
          "if search.request and (rollouts := recorded(search.request)) is not None:", SEARCH_FILES,
          "trees continue one call after another"),
    Fault("prm/search_files.py", "        _cut(self._trees, whole)\n", "", SEARCH_FILES, "half a row stays"),
    Fault("prm/search_files.py", "            _cut(self._draws, whole)\n", "            pass\n", SEARCH_FILES,
          "a call that was cut short ends the record"),
    Fault("prm/search_files.py", "            for name in ids:\n", "            for name in places:\n", SEARCH_FILES,
          "trees are in the order in which they ended"),
    Fault("prm/rollouts.py", "and has_answer(row[\"text\"])", "", SEARCH_JOB, "a cut solution can be right"),
    Fault("prm/rollouts.py", "f\"{request.problem.id}/{request.node}\"", "f\"{request.problem.id}\"", SEARCH_JOB,
          "all states of a problem draw with the same numbers"),
    Fault("prm/rollouts.py", "self.processor(pair[0]) if pair[1] > 0", "self.processor(pair[0]) if True", SEARCH_JOB,
          "a state without room is sampled"),
    Fault("prm/tree.py", "for rest in dict.fromkeys(right)]", "for rest in right]", SEARCH,
          "a right rollout is a child as often as it is drawn"),
    Fault("prm/labels.py", "self.labels[-1] <= 0", "self.labels[-1] < 0.5", LABELS,
          "a path ends before it is hopeless"),
    Fault("prm/labels.py", "text.split(\" \")", "text.split()", LABELS, "ends of lines end words, too"),
    Fault("prm/labels.py", "{seed}\\n{path.example.id}", "{path.example.id}", LABELS,
          "every seed chooses the same paths"),
    Fault("prm/labels.py", "[most:]", "[max(most, 1):]", LABELS, "a tree without negative paths has a positive one"),
    Fault("prm/label_files.py", "self.share * 2**_BITS", "(1 - self.share) * 2**_BITS", LABEL_COMMAND,
          "the validation set has the share of the training set"),
    Fault("prm/label_files.py", "sha256(problem.encode(", "sha256((problem + str(self.share)).encode(", LABEL_COMMAND,
          "problems change sides when the share grows"),
    Fault("prm/tree_files.py", "not in MAY_DIFFER]", "in MAY_DIFFER]", LABEL_COMMAND,
          "other seeds are refused, and other policies are not"),
    Fault("prm/tree_files.py", "differing(mine, its, f\"{prefix}{key}.\")", "()", LABEL_COMMAND,
          "settings within a section may differ"),
    Fault("prm/pages.py", "problem.question != tree.question", "False", TREE_PAGE, "the picture of another question"),
    Fault("report/tree_page.py", "0 if value == 0 else _BINS + 1 if value == 1 else", "", TREE_PAGE,
          "problems that are never solved are counted with rarely solved ones"),
    Fault("report/scripted_page.py", ".replace(\"<\", \"\\\\u003c\")", "", TREE_PAGE, "a text can end the data"),
    Fault("rl/marker_loss.py", "return labels * jax.nn.softplus(-odds)", "return jax.nn.softplus(-odds)", MARKER_LOSS,
          "labels between 0 and 1 count as 1 for Yes"),
    Fault("models/token_odds.py", "(first - second)", "(second - first)", MARKER_LOSS, "scores are those of No"),
    Fault("prm/form.py", "after[1:] = tokens[:-1] == self.marker", "after[:] = tokens == self.marker", MARKER_LOSS,
          "the state before the marker is read"),
    Fault("prm/form.py", "step.strip() + MARKER", "step + MARKER", MARKER_LOSS, "scored steps keep white space around"),
    Fault("prm/growth.py", "tensor[: len(others)] if", "tensor if", GROWTH, "spare rows count in the marker's"),
    Fault("prm/growth.py", "single_word=True, ", "", GROWTH, "Yes is cut out of Yesterday"),
    Fault("prm/examples.py", "(labels > 0)", "(labels >= 0.5)", EXAMPLES, "half of the rollouts make a 1"),
    Fault("prm/validation.py", "(repeats - 1) / 2", "0", STEP_METRICS, "equal scores count as order, not as one half"),
    Fault("prm/aggregators.py", "math.log(p) if p > 0 else -_MOST", "math.log(max(p, 1e-9))", AGGREGATORS,
          "the logarithm of 0 is small"),
    Fault("prm/aggregators.py", "if p < 1 else _MOST", "if p < 0.9999 else _MOST", AGGREGATORS, "odds are capped"),
    Fault("prm/best_of_n.py", "math.comb(count - 1 - rank, k - 1)", "math.comb(count - rank, k - 1)", BEST,
          "chances that do not add up to 1"),
    Fault("prm/best_of_n.py", "np.argsort(-scores, axis=1, kind=\"stable\")",
          "np.argsort(scores, axis=1, kind=\"stable\")[:, ::-1]", BEST, "the last of equal scores is chosen"),
    Fault("prm/best_of_n_files.py", "right[counted], stated", "right[: len(counted)], stated[::-1]",
          BEST_FILES, "verdicts and answers are of others"),
    Fault("prm/best_of_n_files.py", "np.flatnonzero(drawn.overall)", "np.arange(len(drawn.ids))",
          BEST_FILES, "problems count that do not count overall"),
    Fault("prm/answer_scores.py", "zip(problem.tokens, next(scored), strict=True)",
          "zip(range(len(problem.tokens)), next(scored), strict=True)",
          f"{BEST_OF_EVAL}::test_hostile_answers_score_0_and_are_named",
          "scores belong to the answer before, where one cannot be scored"),
    Fault("prm/answer_scores.py", "prompt + len(tokens) <= context", "len(tokens) <= context * 99",
          f"{BEST_OF_EVAL}::test_hostile_answers_score_0_and_are_named", "answers beyond the context are scored"),
    Fault("prm/answer_scores.py", '"answers": drawn.digest()', '"answers": drawn.name',
          f"{BEST_OF_EVAL}::test_scores_of_other_answers_are_not_continued", "scores of other answers are kept"),
    Fault("evaluation/ask.py", "load_params = functools.cache(opened.load_params)",
          "load_params = kept.params = functools.cache(opened.load_params)",
          f"{BEST_OF_EVAL}::test_an_evaluation_interrupted_in_its_scoring_draws_nothing_again",
          "the policy's parameters are there next to those of the process reward model"),
    Fault("evaluation/ask.py", "        _ask(model, exams, output, kept)\n",
          "        with ExitStack() as own:\n            _ask(model, exams, output, own)\n",
          f"{BEST_OF_EVAL}::test_an_evaluation_interrupted_in_its_scoring_draws_nothing_again",
          "answers are drawn again after an interrupted scoring"),
    # Process rewards in reinforcement learning.
    Fault("rl/advantages.py", "process.weight * returns_to_go(of_steps)", "process.weight * of_steps", PROCESS_REWARDS,
          "a step's reward is that of its last token alone"),
    Fault("rl/advantages.py", "_estimated(config, scores[None])[0]", "_estimated(config, np.unique(scores)[None])[0]",
          PROCESS_REWARDS, "equal scores count once, and steps change places"),
    Fault("rl/advantages.py", "np.expand_dims(weights, -1) * process_advantages", "process_advantages", PROCESS_REWARDS,
          "a prompt's weight is not that of its steps"),
    Fault("rl/advantages.py", "fewest = 2 if known is None or known.compares else 1", "fewest = 1", PROCESS_REWARDS,
          "a single step is compared with nothing"),
    Fault("prm/rollout_scores.py", "tokens[: place + 1]", "tokens[:place]", ROLLOUT_SCORES,
          "a step ends a token too late"),
    Fault("prm/rollout_scores.py", "and len(set(places)) == len(places)", "", ROLLOUT_SCORES,
          "of two steps that end in a token one has no score"),
    Fault("data/loader.py", "self._source[self._rows[order]]", "self._source[order % len(self._source)]",
          "tests/training/test_process_reward_runs.py", "steps are scored as those of another problem"),
    Fault("training/sizes.py", "if with_reference else (), process_model)", "if with_reference else (), None)", PLAN,
          "a process reward model takes no room"),
    # Memory of rollouts.
    Fault("sampling/prefill.py", "*axes_of(x)[1:]), number, 1)", "*axes_of(x)[1:]), 0, 1)", ROLLOUT_MEMORY,
          "parts of the prompts are written to one place"),
    Fault("sampling/memory.py", "> _USABLE * chip", "> chip", ROLLOUT_MEMORY, "no room for scores and logits"),
    Fault("models/decoding.py", "{\"mlp\": \"split_mlp\", ", "{\"mlp\": \"mlp\", ", ROLLOUT_MEMORY,
          "the MLP lies gathered"),
    # Rows over hosts and devices.
    Fault("mesh.py", "np.concatenate([of_shard[list(shards)].ravel() for shards in self.shards])",
          "of_shard.ravel()", MESH, "rows are taken to lie in the order of hosts"),
    Fault("mesh.py", "return arranged if shares >= most else by_host", "return arranged", MESH,
          "hosts share rows though each could have its own"),
    Fault("hosts.py", "[hosts[i % len(hosts)] for i in", "[hosts[0] for i in", "tests/test_hosts.py",
          "scores of the first host alone count"),
    Fault("sampling/spread.py", "np.tile(numbers, len(prompts", "np.repeat(numbers, len(prompts", SPREAD,
          "copies of a prompt draw the same responses"),
    Fault("sampling/spread.py", "return np.split(x, parts)[rows.index % parts]", "return np.split(x, parts)[0]", SPREAD,
          "hosts that share a prompt draw the same responses"),
    Fault("sampling/token_draws.py", "key_of(words, start + index)", "key_of(words, index)", SAMPLER,
          "copies of a prompt have the same random numbers"),
    # Plans.
    Fault("training/sizes.py", "if id(leaf) not in arguments]", "]", PLAN, "arguments are counted twice"),
    Fault("training/sizes.py", "_arrays((always, program.beside))", "_arrays(always)", PLAN,
          "other parts of a batch take no room"),
    Fault("rl/update.py", "(state, sums), batch)", "(state, sums))", PLAN,
          "an optimiser step runs on devices without the batch"),
    Fault("planning/memory.py", "replace(memory, peak=memory.sum) if is_cpu else memory", "memory", PLAN,
          "on a CPU a plan leaves out what programs compute with"),
    # Checkpoints and files.
    Fault("runs/checkpoint.py", "        verify_arrays(state, progress[\"arrays\"])\n", "", CHECKPOINT,
          "flipped bits are read"),
    Fault("runs/checkpoint.py", "ranked[::-1][: self.best]", "ranked[: self.best]", CHECKPOINT, "the worst are kept"),
    Fault("runs/checkpoint.py", 'counters=progress["counters"]', "counters={}", CHECKPOINT,
          "counts over steps begin again"),
    Fault("formats/checksums.py", "words * (2 * place + 1)", "words", CHECKPOINT, "numbers may change places"),
    Fault("formats/peft.py", "np.float32).T", "np.float32)", LORA, "adapters are written untransposed"),
]
# fmt: on
