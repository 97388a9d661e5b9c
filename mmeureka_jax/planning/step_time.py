"""How long a step of a run takes on a target: for each phase what computing, memory and links take, and which binds.

Operations are those of arithmetic.py, bytes and collectives those of the compiled programs, rates those of the chip
times the fractions of `Assumptions`. A phase's time is the longest of its products, its bytes, and the weights and
gradients that travel along `data` and `fsdp`, which can be sent ahead; what travels along `context` and `tensor` is
activations, which the next product waits for, and is added. Programs are compiled for the longest prompts and
responses: what depends on them is scaled down to those that are assumed.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import jax
import numpy as np

from mmeureka_jax.mesh import Program
from mmeureka_jax.models.batch import GroupBatch, pick_bucket
from mmeureka_jax.models.decoding import DecoderWeights
from mmeureka_jax.planning.arithmetic import Model, Operations, cache_bytes
from mmeureka_jax.planning.hlo import Collective, ProgramText
from mmeureka_jax.planning.lengths import Lengths
from mmeureka_jax.planning.links import Network
from mmeureka_jax.planning.planned_run import PlannedRun
from mmeureka_jax.planning.targets import Target
from mmeureka_jax.planning.traffic import bytes_moved
from mmeureka_jax.sampling.decode_state import DecodeState
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.setup.chips import Chip
from mmeureka_jax.training.sizes import device_bytes

T = TypeVar("T")

DRAWS = 8  # batches of lengths whose rows are laid out
_AHEAD = {"data", "fsdp"}  # mesh axes along which weights and gradients travel


@dataclass(frozen=True)
class Assumptions:
    """What neither the config nor the compiler says.

    Attributes:
        response: mean tokens of a response; None: that of `Lengths` with the usual median.
        prompt: mean tokens of a prompt; None: half of `data.max_prompt_tokens`.
        pass_rate: share of groups that pass the online filter, where it is on.
        compute: attainable fraction of a chip's operations a second. MaxText's 16B model reaches an MFU of 61% on v5e
            with every layer computed again, which is 81% with those operations counted
            (github.com/AI-Hypercomputer/maxtext, src/MaxText/configs/v5e).
        memory: of its memory's bandwidth.
        links: of its links' bandwidth.
    """

    response: float | None = None
    prompt: float | None = None
    pass_rate: float = 0.5
    compute: float = 0.8
    memory: float = 0.8
    links: float = 0.8


@dataclass(frozen=True)
class Cost:
    """What some programs take on a chip, in seconds."""

    compute: float = 0.0
    memory: float = 0.0
    ahead: float = 0.0  # links, of what can be sent ahead
    waited: float = 0.0  # links, of what the next product waits for

    @property
    def links(self) -> float:
        return self.ahead + self.waited

    @property
    def seconds(self) -> float:
        return max(self.compute, self.memory, self.ahead) + self.waited

    @property
    def binding(self) -> str:
        parts = {"compute": self.compute, "memory": self.memory, "links": self.links}
        return max(parts, key=lambda name: parts[name])

    def __add__(self, other: Cost) -> Cost:
        return Cost(
            self.compute + other.compute,
            self.memory + other.memory,
            self.ahead + other.ahead,
            self.waited + other.waited,
        )

    def __mul__(self, times: float) -> Cost:
        return Cost(self.compute * times, self.memory * times, self.ahead * times, self.waited * times)


@dataclass(frozen=True)
class Phase:
    """A part of a step.

    Attributes:
        runs: how often its programs run.
        operations: of all chips in a step.
        cost: of the whole phase.
        seconds: what it takes; of decoding the sum over tokens, each of which may be bound by something else.
    """

    name: str
    runs: float
    operations: Operations
    cost: Cost
    seconds: float


@dataclass(frozen=True)
class StepTime:
    """The predicted time of a step.

    Attributes:
        tokens: of prompts and responses that the step trains on.
        assumed: sentences on what is neither in the config nor read from the programs.
    """

    phases: tuple[Phase, ...]
    chips: int
    peak: float
    tokens: float
    assumed: tuple[str, ...]

    @property
    def seconds(self) -> float:
        return sum(phase.seconds for phase in self.phases)

    @property
    def mfu(self) -> float:
        return sum(phase.operations.model for phase in self.phases) / (self.seconds * self.chips * self.peak)

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds

    @property
    def binding(self) -> str:
        """Of the phase that takes longest, with its name, such as `decode: memory`."""
        longest = max(self.phases, key=lambda phase: phase.seconds)
        return f"{longest.name}: {longest.cost.binding}"


@dataclass(frozen=True)
class CompiledKind:
    """The program of the largest shapes of a kind, compiled."""

    program: Program
    text: ProgramText


def predict_step(
    run: PlannedRun, target: Target, programs: Mapping[str, CompiledKind], assumptions: Assumptions
) -> StepTime | None:
    """The time of a step of a planned run; None where it cannot be said: for the processor of this machine, for
    supervised fine-tuning, and if a program is missing because the compiler refuses it.

    Args:
        programs: by kind, the part of a program's name before its sizes.
    """
    needed = {"start", "decode"} | ({"gradients", "optimiser"} if "optimiser" in programs else {"update"})
    if target.chip is None or run.recipe.kind != "rl" or not needed <= set(programs):
        return None
    model = Model.of(run.opened.policy, run.learner.abstract_state().trainable)
    network = Network(target.chip, run.opened.mesh)
    return StepClock(run, model, network, programs, assumptions).predict()


class StepClock:
    """Predicts the time of a step from the programs of a run."""

    def __init__(
        self,
        run: PlannedRun,
        model: Model,
        network: Network,
        programs: Mapping[str, CompiledKind],
        assumptions: Assumptions,
    ):
        """
        Args:
            run: one of `mmeureka train`.
            programs: by kind, the part of a program's name before its sizes.
        """
        config = run.config
        self.config = config
        self.model = model
        self.network = network
        self.programs = programs
        self.packing = run.learner.packing
        self.assumptions = assumptions
        self.image_windows = run.image_windows
        self.chip: Chip = network.chip
        self.sizes = dict(zip(network.axes, network.devices.shape, strict=True))
        self.chips = network.devices.size
        self.lengths = Lengths.with_mean(config.sampler.max_new_tokens, assumptions.response)
        self.prompt = assumptions.prompt or config.data.max_prompt_tokens / 2
        self.bucket = pick_bucket(math.ceil(self.prompt), config.data.prompt_lengths)
        self.groups = config.rl.prompts_per_rollout / (assumptions.pass_rate if config.rl.filter.enabled else 1)

    def predict(self) -> StepTime:
        """
        Raises:
            KeyError: a program of the run is missing.
        """
        phases = [self._prefill(), self._decode(), *self._scoring(), self._update()]
        if "optimiser" in self.programs:
            phases.append(self._optimiser())
        trained = self.config.rl.prompts_per_rollout
        tokens = trained * (self.prompt + self.config.rl.group_size * self.lengths.mean)
        return StepTime(tuple(phases), self.chips, self.chip.flops, tokens, tuple(self._assumed()))

    # Phases.

    def _prefill(self) -> Phase:
        kind = self.programs["start"]
        request = found(kind.program.arguments, Request)
        prompts, places = request.prompts.tokens.shape
        model = self.model
        operations = (model.encode(self.image_windows) + model.prefill(self.prompt)) * self.groups
        of_call = (model.encode(self.image_windows) * self._tower_copies() + model.prefill(self.bucket)) * prompts
        cost = self._cost(kind, of_call.hardware, self.bucket / places)
        runs = self.groups / prompts
        return Phase("prefill", runs, operations, cost * runs, cost.seconds * runs)

    def _decode(self) -> Phase:
        """Token by token: rows that have ended leave, weights are read for every token whatever is left."""
        kind = self.programs["decode"]
        state = found(kind.program.arguments, DecodeState)
        weights = found(kind.program.arguments, DecoderWeights)
        rows, limit = state.tokens.shape
        prompts = len(state.prompts.lengths)
        n = self.config.rl.group_size
        runs = self.groups * n / rows
        text = self.model.text
        steps = np.arange(1, min(math.ceil(self.lengths.longest(rows)), limit))
        shrink = self.config.sampler.shrink
        # Rows leave in batches, when a part of them is done: on average half of that part is still there.
        left = np.minimum(self.lengths.running[steps - 1] * ((1 + 1 / shrink) / 2), 1.0) if shrink else 1.0
        running = rows * np.broadcast_to(left, steps.shape)
        of_weights = device_bytes(weights) - device_bytes(weights.embedding)
        width = self.model.width
        of_caches = cache_bytes(text, 1, width) / self.chips * (prompts * self.bucket + running * steps)
        compiled_caches = device_bytes((state.prompts, state.past_keys, state.past_values))
        # The rest of what the program moves for a token: activations, logits.
        rest = max(bytes_moved(kind.text, (1, 1)) - of_weights - compiled_caches, 0.0) * running / rows
        token = self.model.decode_token(self.prompt, 0).hardware
        own = self.model.decode_token(self.prompt, 1).hardware - token
        ahead, waited = self._links(kind.text, 1.0, (1.0, 1.0))
        empty = self._links(kind.text, 0.0, (1.0, 1.0))  # latencies
        share = running / rows
        links = sum(empty) + (ahead + waited - sum(empty)) * share
        rates = self.assumptions
        compute = running * (token + own * steps) / self.chips / (rates.compute * self.chip.flops)
        memory = (of_weights + of_caches + rest) / (rates.memory * self.chip.memory_bandwidth)
        seconds = float(np.sum(np.maximum(compute, memory) + links))
        cost = Cost(float(compute.sum()), float(memory.sum()), 0.0, float(links.sum()))
        operations = sum((self.model.decode(self.prompt, length) for length in self.lengths.typical(64)), Operations())
        return Phase("decode", runs, operations * (self.groups * n / 64), cost * runs, seconds * runs)

    def _scoring(self) -> Iterable[Phase]:
        """Log-probabilities and values that an update compares with."""
        rl = self.config.rl
        wanted = self.model.log_probs(self.prompt, self.lengths.typical(rl.group_size)) * rl.prompts_per_rollout
        batches = rl.prompts_per_rollout / rl.prompts_per_update
        for name in ("log-probabilities", "reference log-probabilities", "values"):
            if name in self.programs:
                yield self._by_rows(name, self.programs[name], batches, wanted, self.model.log_probs)

    def _update(self) -> Phase:
        kind = self.programs["gradients"] if "gradients" in self.programs else self.programs["update"]
        rl = self.config.rl
        windows = self.image_windows
        wanted = self.model.update(self.prompt, self.lengths.typical(rl.group_size), windows)
        wanted *= rl.prompts_per_rollout * rl.epochs_per_rollout

        def of_row(prompt: float, responses: Iterable[float]) -> Operations:
            lengths = tuple(responses)
            without = self.model.update(prompt, lengths)
            whole = self.model.update(prompt, lengths, windows)
            return Operations(
                whole.model, without.hardware + (whole.hardware - without.hardware) * self._tower_copies()
            )

        return self._by_rows("update", kind, rl.updates_per_step, wanted, of_row)

    def _by_rows(
        self,
        name: str,
        kind: CompiledKind,
        batches: float,
        wanted: Operations,
        of_row: Callable[[float, Iterable[float]], Operations],
    ) -> Phase:
        """A program over rows of groups, for so many batches of `packing.groups` groups.

        Args:
            of_row: operations of a row: a prompt, and responses of these lengths.
        """
        batch = found(kind.program.arguments, GroupBatch)
        count = len(batch.responses)
        packing = self.packing
        compiled = batch.prompts.tokens.shape[1] + packing.places(batch.width)
        cost = Cost()
        seconds = 0.0
        for width, share in self._micro_batches().items():
            operations = of_row(self.bucket, self.lengths.typical(width / self.lengths.mean)).hardware * count
            one = self._cost(kind, operations, (self.bucket + width) / compiled) * (share * batches)
            cost += one
            seconds += one.seconds
        return Phase(name, batches * sum(self._micro_batches().values()), wanted, cost, seconds)

    @functools.cache  # noqa: B019  (a clock is short-lived)
    def _micro_batches(self) -> dict[int, float]:
        """Places for responses in a row -> how many micro-batches of such rows a batch has, on average over a few
        batches whose lengths are drawn."""
        packing = self.packing
        widths: Counter[int] = Counter()
        for seed in range(DRAWS):
            drawn = self.lengths.draw((packing.groups, packing.group_size), seed)
            widths.update(packing.places(rows.width) for rows in packing.layout(drawn))
        return {width: number / DRAWS for width, number in widths.items()}

    def _optimiser(self) -> Phase:
        kind = self.programs["optimiser"]
        cost = self._cost(kind, 0.0, 1.0)
        runs = self.config.rl.updates_per_step
        return Phase("optimiser", runs, Operations(), cost * runs, cost.seconds * runs)

    # What they share.

    def _tower_copies(self) -> int:
        """Chips that each run the vision tower on the same pictures: it is not split over `tensor`."""
        return self.sizes.get("tensor", 1)

    def _cost(self, kind: CompiledKind, operations: float, scale: float) -> Cost:
        """Of one run of a program.

        Args:
            operations: of all chips.
            scale: places that it is assumed to have, by those that it is compiled for.
        """
        rates = self.assumptions
        # Branches are taken in the vision tower: between attention to a window and to the whole picture.
        tower = self.model.tower
        moved = bytes_moved(kind.text, costliest=tower.full / tower.depth if tower and tower.full else 1.0)
        fixed = min(2.0 * device_bytes(kind.program.arguments), moved)  # parameters, gradients: read and written
        moved = fixed + (moved - fixed) * scale
        ahead, waited = self._links(kind.text, scale)
        return Cost(
            operations / self.chips / (rates.compute * self.chip.flops),
            moved / (rates.memory * self.chip.memory_bandwidth),
            ahead,
            waited,
        )

    def _links(self, text: ProgramText, scale: float, trips: Sequence[float] = ()) -> tuple[float, float]:
        """Seconds of what can be sent ahead, and of what is waited for, whose bytes are scaled."""
        ahead = 0.0
        waited = 0.0
        for one in text.collectives(self.sizes, trips)[0]:
            if self._goes_ahead(one):
                ahead += one.count * self.network.seconds(one)
            else:
                waited += one.count * self.network.seconds(one, one.bytes * scale)
        return ahead / self.assumptions.links, waited / self.assumptions.links

    def _goes_ahead(self, collective: Collective) -> bool:
        return bool(collective.axes) and set(collective.axes) <= _AHEAD

    def _assumed(self) -> Iterable[str]:
        rates = self.assumptions
        lengths = self.lengths
        config = self.config
        yield (
            f"responses of {lengths.mean:,.0f} tokens on average, log-normal and cut off at {lengths.limit:,}; a "
            "sampler call lasts as long as its longest one"
        )
        yield f"prompts of {self.prompt:,.0f} tokens, padded to {self.bucket:,}"
        if config.rl.filter.enabled:
            yield f"{rates.pass_rate:.0%} of the groups pass the online filter"
        yield (
            f"{rates.compute:.0%} of the chip's operations, {rates.memory:.0%} of its memory bandwidth and "
            f"{rates.links:.0%} of its links' are reached"
        )
        yield "phases follow one another; pictures are read and rewards computed meanwhile"


def found(arguments: Any, kind: type[T]) -> T:
    """The first argument of this type."""
    leaves = jax.tree.leaves(arguments, is_leaf=lambda leaf: isinstance(leaf, kind))
    return next(leaf for leaf in leaves if isinstance(leaf, kind))
