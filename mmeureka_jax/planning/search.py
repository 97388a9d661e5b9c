"""Settings with which a run fits a target, or takes less time: generated, estimated, and the best few compiled.

The estimates are formulas of a few lines, good enough to choose what to compile and not more: what is suggested has
been compiled, and has its bytes and seconds from there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from mmeureka_jax.config.schema import Config
from mmeureka_jax.errors import UserError
from mmeureka_jax.planning.arithmetic import Model, cache_bytes, language_parameters, language_read, layer_kernels
from mmeureka_jax.planning.lengths import Lengths
from mmeureka_jax.planning.links import HOP_SECONDS
from mmeureka_jax.planning.memory import HEADROOM
from mmeureka_jax.planning.plan import Plan
from mmeureka_jax.planning.step_time import Assumptions
from mmeureka_jax.setup.checks import validate_config
from mmeureka_jax.setup.chips import Chip

Overrides = Mapping[str, Any]  # dotted key -> value

_POWERS = (1, 2, 4, 8, 16, 32, 64, 128)
_KINDS = ("mesh.context", "mesh.tensor", "sampler.batch_prompts", "sampler.decode_weights")
_SAVED_WITHOUT_REMAT = 6  # arrays of the MLP's width that a layer keeps for the backward pass, in the compute dtype
_AT_WORK = 4  # arrays of the MLP's width that exist at a time


@dataclass(frozen=True)
class Suggestion:
    """Settings that were compiled.

    Attributes:
        step_s: predicted seconds of a step; None if they do not fit.
    """

    overrides: tuple[str, ...]
    fits: bool
    step_s: float | None


@dataclass(frozen=True)
class Estimate:
    """What a candidate is estimated to need, on each chip.

    Attributes:
        bytes: in the phase that needs most.
        parts: seconds of a step by what they are for: `prefill`, `decode`, `update`, and `decode links`, `update links`
            for what is added by waiting for other chips.
    """

    bytes: float
    parts: Mapping[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())


def search(
    plan: Plan, compile_plan: Callable[[Config], Plan], count: int, assumptions: Assumptions
) -> list[Suggestion]:
    """Compiles the `count` candidates that are estimated best.

    Args:
        plan: of the config as it is.
        compile_plan: makes the plan of another config for the same target.

    Returns:
        Those that were compiled, the fastest that fits first; the config as it is is not among them.
    """
    found: list[Suggestion] = []
    for overrides in ranked(plan, assumptions):
        if len(found) == count:
            break
        config = with_changes(plan.run.config, overrides)
        try:
            validate_config(config)
            tried = compile_plan(config)
        except UserError:
            continue  # settings that do not go together, or a mesh that does not divide a size
        seconds = tried.time.seconds if tried.fits and tried.time is not None else None
        found.append(Suggestion(as_overrides(overrides), tried.fits, seconds))
    return sorted(found, key=lambda one: (not one.fits, one.step_s or math.inf))


def ranked(plan: Plan, assumptions: Assumptions) -> list[Overrides]:
    """The candidates that may fit by their estimates, the fastest first; behind them those that may not, those that
    need least first."""
    run = plan.run
    chip = plan.target.chip
    if chip is None:
        raise UserError("--search needs a target whose speed is known: a TPU slice or GPUs")
    model = Model.of(run.opened.policy, run.learner.abstract_state().trainable)
    found = best_candidates(run.config, model, chip, len(plan.target.devices), assumptions)
    return [overrides for overrides, _ in found]


def best_candidates(
    config: Config, model: Model, chip: Chip, chips: int, assumptions: Assumptions
) -> list[tuple[Overrides, Estimate]]:
    """The candidates in the order of `ranked`, with their estimates."""
    limit = (1 - HEADROOM) * chip.memory_bytes
    best: dict[tuple[Any, ...], tuple[tuple[Any, ...], Overrides, Estimate]] = {}
    for overrides in candidates(config, model, chips):
        changed = with_changes(config, overrides)
        one = estimate(changed, model, chip, chips, assumptions)
        fits = one.bytes <= limit
        rank = (not fits, one.seconds if fits else one.bytes, len(overrides), one.bytes)
        # Of settings that only differ in how an update is cut the best: each compile should tell something new.
        key = tuple(_get(changed, name) for name in _KINDS)
        if key not in best or rank < best[key][0]:
            best[key] = rank, overrides, one
    return [(overrides, one) for _, overrides, one in sorted(best.values(), key=lambda entry: entry[0])]


def candidates(config: Config, model: Model, chips: int) -> Iterator[Overrides]:
    """Settings to try: those that differ from the config's, are legal for its algorithm, and split what the model can
    split."""
    rl = config.rl
    longest = config.sampler.max_new_tokens
    slices = config.mesh.slices
    meshes = [
        (tensor, context)
        for tensor, context in itertools.product(_POWERS[:4], _POWERS[:4])
        if chips % (slices * tensor * context) == 0 and model.text.num_kv_heads % tensor == 0
    ]
    some = {0, rl.row_tokens, longest, longest + longest // 4, 2 * longest}
    rows = sorted(tokens for tokens in some if tokens <= rl.group_size * longest)
    parts = [count for count in _POWERS if rl.prompts_per_update % count == 0]
    calls = [count for count in (*_POWERS[3:], 256, 512, 1024) if rl.prompts_per_rollout % count == 0]
    remats = ("full", "none")
    kinds = ("auto", "split")
    every = itertools.product(meshes, rows, parts, calls, remats, kinds)
    for (tensor, context), row, part, call, remat, kind in every:
        changes: dict[str, Any] = {
            "mesh.data": slices,
            "mesh.fsdp": chips // (slices * tensor * context),
            "mesh.context": context,
            "mesh.tensor": tensor,
            "rl.row_tokens": row,
            "rl.micro_batches": part,
            "sampler.batch_prompts": call,
            "sampler.decode_weights": kind,
            "model.remat": remat,
        }
        if not row:
            changes["rl.packing"] = type(rl).packing
        given = {key: value for key, value in changes.items() if _get(config, key) != value}
        # -1 is what is left: the same mesh in other words.
        if given.keys() <= {"mesh.fsdp"} and config.mesh.fsdp == -1:
            continue
        yield given


def estimate(config: Config, model: Model, chip: Chip, chips: int, assumptions: Assumptions) -> Estimate:
    """Bytes and seconds by formulas, for the longest prompts and responses (bytes) and for those assumed (seconds)."""
    return _Estimator(config, model, chip, chips, assumptions).whole()


class _Estimator:
    def __init__(self, config: Config, model: Model, chip: Chip, chips: int, assumptions: Assumptions):
        self.config = config
        self.model = model
        self.chip = chip
        self.chips = chips
        self.assumptions = assumptions
        mesh = config.mesh
        self.tensor = mesh.tensor
        self.context = mesh.context
        self.shards = chips // (mesh.tensor * mesh.context)  # of the rows of an update
        self.fsdp = self.shards // mesh.slices  # of parameters
        self.sampling = self.fsdp * mesh.context  # the same in the sampler, which has no `context`
        self.width = model.width
        self.prompt = config.data.max_prompt_tokens
        self.limit = config.sampler.max_new_tokens
        self.lengths = Lengths.with_mean(self.limit, assumptions.response)
        self.typical = assumptions.prompt or self.prompt / 2

    def whole(self) -> Estimate:
        needed = self._state() + max(self._update_bytes(), self._decode_bytes(), self._prefill_bytes())
        return Estimate(needed, self._rollout_seconds() | self._update_seconds())

    def _state(self) -> float:
        base = language_parameters(self.model.text) * (self.model.base_width if self.model.adapters else 4)
        return (base + 8 * self.model.trained) / (self.fsdp * self.tensor)

    def _row(self) -> tuple[float, int]:
        """Rows of a micro-batch on a chip, and places in one."""
        rl = self.config.rl
        rows = math.ceil(rl.prompts_per_update / rl.micro_batches / self.shards)
        groups = rl.prompts_per_update / rl.micro_batches
        held = min(1.0, groups / self.shards) if not rl.row_tokens else 1.0  # the share of a group that a row holds
        places = rl.row_tokens or math.ceil(rl.group_size * held) * self.limit
        return rows, self.prompt + places

    def _update_bytes(self) -> float:
        text = self.model.text
        rows, places = self._row()
        of_chip = rows * places / (self.context * self.tensor) * self.width
        kept = text.hidden_size
        if self.config.model.remat == "none":
            kept += _SAVED_WITHOUT_REMAT * text.intermediate_size
        work = of_chip * _AT_WORK * text.intermediate_size
        gathered = (layer_kernels(text) * 2 + text.hidden_size * text.vocab_size) * self.width / self.tensor
        sums = 2 if self.config.rl.micro_batches > 1 else 1
        gradients = 4 * self.model.trained * sums / (self.fsdp * self.tensor)
        logits = 3 * self.config.model.logits_mb * 2**20
        return of_chip * text.num_layers * kept + work + gathered + gradients + logits

    def _decode_weights(self) -> float:
        shared = self.tensor * (self.sampling if self.config.sampler.decode_weights == "split" else 1)
        return self.width * (language_read(self.model.text) + self.model.adapters) / shared

    def _calls(self) -> tuple[float, int]:
        """Sampler calls of a step, and prompts of one."""
        rl = self.config.rl
        prompts = self.config.sampler.batch_prompts or rl.prompts_per_rollout
        passing = self.assumptions.pass_rate if rl.filter.enabled else 1.0
        return rl.prompts_per_rollout / passing / prompts, prompts

    def _decode_bytes(self) -> float:
        _, prompts = self._calls()
        tokens = prompts * (self.prompt + self.config.rl.group_size * self.limit)
        return self._decode_weights() + cache_bytes(self.model.text, tokens, self.width) / self.chips

    def _prefill_bytes(self) -> float:
        text = self.model.text
        _, prompts = self._calls()
        here = self.config.sampler.prefill_prompts or math.ceil(prompts * self.tensor / self.chips)
        work = here * self.prompt * self.width * _AT_WORK * text.intermediate_size / self.tensor
        return self._decode_weights() + work + cache_bytes(text, prompts * self.prompt, self.width) / self.chips

    # Seconds.

    def _sends(self, size: float, parts: int) -> float:
        """An all-gather of so many bytes over half of a chip's links."""
        return size * (1 - 1 / parts) / (self.chip.interconnect_bandwidth / 2) / self.assumptions.links

    def _computes(self, operations: float) -> float:
        return operations / self.chips / (self.chip.flops * self.assumptions.compute)

    def _moves(self, size: float) -> float:
        return size / (self.chip.memory_bandwidth * self.assumptions.memory)

    def _rollout_seconds(self) -> dict[str, float]:
        text = self.model.text
        calls, prompts = self._calls()
        n = self.config.rl.group_size
        lengths = self.lengths
        prompt = self.typical
        steps = lengths.longest(prompts * n)
        rows = prompts * n * lengths.mean / steps
        caches = cache_bytes(text, prompts * prompt + rows * steps / 2, self.width) / self.chips
        token = self._moves(self._decode_weights() + caches)
        activations = rows * text.hidden_size * self.width * self.tensor / self.chips
        sent = 2 * text.num_layers * 2 * self._sends(activations, self.tensor)
        if self.tensor > 1:
            sent += 2 * text.num_layers * 2 * HOP_SECONDS
        if self.config.sampler.decode_weights == "split":
            # Each of a layer's four products is computed in parts of its sums, for the rows of all chips that share it.
            parts = rows * text.hidden_size * self.width / self.tensor
            hops = HOP_SECONDS * max(self.sampling // 2, 1)
            sent += 4 * text.num_layers * 2 * (self._sends(parts, self.sampling) + hops)
        prefill = self._computes(self.model.prefill(prompt).hardware * prompts)
        prefill = max(prefill, self._sends(self._decode_weights(), self.fsdp))
        return {"prefill": calls * prefill, "decode": calls * steps * token, "decode links": calls * steps * sent}

    def _update_seconds(self) -> dict[str, float]:
        text = self.model.text
        rl = self.config.rl
        lengths = self.lengths
        prompt = self.typical
        rows, places = self._row()
        needed = rl.group_size * rl.prompts_per_update * lengths.mean
        runs = max(rl.micro_batches, needed / (rows * self.shards * (places - self.prompt)))
        groups = rl.prompts_per_rollout * rl.epochs_per_rollout
        work = self.model.update(prompt, lengths.typical(rl.group_size)).hardware * groups
        repeated = self.model.update(prompt, ()).hardware
        more = max(runs * rows * self.shards / rl.prompts_per_update - 1, 0)  # rows that repeat a prompt
        compute = self._computes(work + repeated * groups * more)
        gathered = 3 * self._sends(self.width * language_read(text) / self.tensor, self.fsdp)
        weights = gathered * runs * rl.updates_per_step
        tokens = groups * (prompt * (1 + more) + rl.group_size * lengths.mean) / self.shards / self.context
        activations = 8 * text.num_layers * self._sends(tokens * text.hidden_size * self.width, self.tensor)
        return {"update": compute, "update links": max(weights - compute, 0.0) + activations}


def as_overrides(changes: Overrides) -> tuple[str, ...]:
    """`key=value` as commands take them."""
    return tuple(f"{key}={value}" for key, value in changes.items())


def with_changes(config: Config, changes: Overrides) -> Config:
    """A config with other values of some dotted keys."""
    result: Any = config
    for key, value in changes.items():
        result = _replaced(result, key.split("."), value)
    return result


def _replaced(section: Any, path: Sequence[str], value: Any) -> Any:
    first, *rest = path
    return replace(section, **{first: _replaced(getattr(section, first), rest, value) if rest else value})


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
