"""`mmeureka plan`: the JSON that scripts read, exit codes, and what each program needs."""

from __future__ import annotations

import dataclasses
import json
import math
import re

import jax
import pytest
from helpers.commands import ONE_LAYER, TINY, mmeureka

from mmeureka_jax.config.load import load_config
from mmeureka_jax.errors import UserError
from mmeureka_jax.formats.hugging_face import read_config
from mmeureka_jax.models.policy import Policy
from mmeureka_jax.planning import plan as planning
from mmeureka_jax.planning.arithmetic import Model
from mmeureka_jax.planning.memory import bytes_in
from mmeureka_jax.planning.plan import make_plan
from mmeureka_jax.planning.planned_run import open_run
from mmeureka_jax.planning.printing import as_json, as_text
from mmeureka_jax.planning.search import as_overrides, candidates, estimate, search, with_changes
from mmeureka_jax.planning.step_time import Assumptions, CompiledKind, predict_step
from mmeureka_jax.planning.targets import open_target
from mmeureka_jax.setup.chips import chip_named
from mmeureka_jax.setup.random_models import write_tiny_checkpoint
from mmeureka_jax.training import memory_check
from mmeureka_jax.training.sizes import always_there, device_bytes

SMALL = [
    *ONE_LAYER, "sampler.batch_prompts=4", "rl.prompts_per_update=8", "mesh.data=-1", "mesh.fsdp=2",
    "rl.kl_coefficient=0.1", "run_dir=/nowhere",
]  # fmt: skip


@pytest.fixture(scope="module")
def plan():
    """configs/smoke.yaml on four devices."""
    return make_plan(load_config("configs/smoke.yaml", SMALL), open_target("cpu:4"), quiet=True)


def test_the_json_has_the_fixed_form(plan):
    printed = json.loads(json.dumps(as_json(plan)))
    keys = "target chips fits limit_bytes programs compiles compile_s step_s mfu binding suggestions"
    assert list(printed) == keys.split()
    names = "name peak_bytes sum_bytes resident_bytes compile_s fits"
    assert [list(program) for program in printed["programs"]] == [names.split()] * len(plan.programs)
    assert (printed["target"], printed["chips"], printed["fits"]) == ("cpu:4", 4, True)
    assert printed["compile_s"] == pytest.approx(sum(one["compile_s"] for one in printed["programs"]), abs=0.1)


def test_a_peak_on_a_cpu_has_the_temporaries(plan):
    """XLA leaves them out there."""
    gradients = next(program for program in plan.programs if program.name.startswith("gradients"))
    memory = gradients.memory
    assert memory.peak == memory.sum == memory.arguments + memory.outputs - memory.aliased + memory.temporaries
    assert memory.temporaries > 0


def test_the_largest_of_each_kind_are_compiled(plan):
    names = [program.name for program in plan.programs]
    assert len({name.partition(",")[0] for name in names}) == len(names) < plan.compiles


def bytes_of(tree) -> int:
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def test_resident_is_what_no_argument_holds(plan):
    """Gradients read neither moments nor the reference nor other parts; the optimiser reads all of the state, and no
    part; the sums that it starts from are made of nothing."""
    by_kind = {program.name.partition(",")[0]: program for program in plan.programs}
    state = plan.run.learner.abstract_state()
    reference = bytes_of(state.params)
    moments = bytes_of(state.optimizer)
    gradients = by_kind["gradients"]
    _, _, part, _ = gradients.program.arguments
    parts = 2 * bytes_of(part)
    assert by_kind["optimiser"].resident_bytes == reference + parts
    assert by_kind["sums of no part"].resident_bytes == bytes_of(state) + reference + parts
    assert by_kind["initial state"].resident_bytes == reference
    beside = moments + reference + bytes_of(part)
    assert gradients.resident_bytes == pytest.approx(beside, abs=100)  # the counters of the state
    assert by_kind["decode"].resident_bytes >= moments + reference


@pytest.fixture
def too_small(plan, monkeypatch):
    """Devices with room for no more than the parameters, on which nothing is compiled anew."""
    programs = tuple(dataclasses.replace(program, limit_bytes=100_000) for program in plan.programs)
    small = dataclasses.replace(plan, programs=programs)
    monkeypatch.setattr(planning, "make_plan", lambda *_, **__: small)
    return small


def test_what_does_not_fit_is_exit_code_3(too_small, capsys):
    assert mmeureka("plan", "configs/smoke.yaml", *SMALL, "--on", "cpu:4", "--json") == 3
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["fits"] is False
    assert "does not fit: start, " in as_text(too_small)


@pytest.mark.parametrize(
    "target, said",
    [
        ("v5e", "not a target; give a TPU slice"),
        ("h100:12", "up to 8 on one host or a multiple"),
        ("v5p:4x4", "has 3 sizes, such as v5p:2x2x2"),
        ("v5e:4x4", "libtpu, the TPU compiler, which is not installed: pip install 'jax[tpu]=="),
        ("h100:8", "jax-cuda12-pjrt=="),
        ("cpu:7", "mesh: these parameters cannot be sharded over it"),
    ],
)
def test_what_cannot_be_planned_is_exit_code_2(target, said, monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert mmeureka("plan", "configs/smoke.yaml", "--on", target) == 2
    assert said in capsys.readouterr().err


def test_a_run_warns_of_too_little_memory_before_it_loads(plan, monkeypatch, caplog):
    run = plan.run
    state, reference = always_there(run.learner, with_reference=True)
    held = device_bytes((state, reference))
    monkeypatch.setattr(memory_check, "device_memory", lambda _: 4 * held)
    with jax.set_mesh(run.opened.mesh):
        programs = run.programs()
        memory_check.warn_of_memory(programs)
        assert not caplog.messages
        monkeypatch.setattr(memory_check, "device_memory", lambda _: held)
        memory_check.warn_of_memory(programs)
    (message,) = caplog.messages
    assert "`mmeureka plan CONFIG --on TARGET`" in message and "with the reference policy" in message


def test_a_process_reward_model_is_counted(plan, tmp_path):
    """In the compute dtype, spread over `fsdp`; in what is there, and in what the sampler finds beside it."""
    write_tiny_checkpoint(tmp_path / "model", TINY)
    config = load_config("configs/smoke.yaml", [*SMALL, f"reward.process.model={tmp_path / 'model'}"])
    run = open_run(config, open_target("cpu:4"), tmp_path / "shapes")
    params = run.recipe.abstract_process_model(run.opened)
    count = sum(math.prod(x.shape) for x in jax.tree.leaves(Policy(read_config(tmp_path / "model")).abstract_params()))
    assert 4 * count / 2 <= device_bytes(params) < 4 * count
    counted = always_there(run.learner, with_reference=True, process_model=params)
    without = always_there(run.learner, with_reference=True)
    assert device_bytes(counted) - device_bytes(without) == device_bytes(params)
    resident = [run.learner.resident_bytes(with_reference=True, process_model=x) for x in (params, None)]
    assert resident[0] - resident[1] == device_bytes(params)


@pytest.mark.parametrize(
    "message, size",
    [
        (
            "RESOURCE_EXHAUSTED: ... total memory required for HLO temporaries (596.05G) exceeds (15.75G)",
            596.05 * 2**30,
        ),
        ("RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 25.37G of 15.75G hbm.", 25.37 * 2**30),
        ("RESOURCE_EXHAUSTED: something else", 0),
    ],
)
def test_the_bytes_of_a_refusal_are_read(message, size):
    assert bytes_in(message) == round(size)


def on_gpus(plan, **changes):
    """The time of a step, if the plan's four devices were H100s in one host."""
    h100 = chip_named("h100")
    target = dataclasses.replace(plan.target, chip=dataclasses.replace(h100, **changes))
    kinds = {
        program.name.partition(",")[0]: CompiledKind(program.program, plan.texts[program.name])
        for program in plan.programs
    }
    return predict_step(plan.run, target, kinds, Assumptions(response=5, prompt=40, pass_rate=0.25))


def test_a_step_is_the_sum_of_its_phases(plan):
    time = on_gpus(plan)
    assert [phase.name for phase in time.phases] == [
        "prefill", "decode", "reference log-probabilities", "update", "optimiser",
    ]  # fmt: skip
    assert time.seconds == pytest.approx(sum(phase.seconds for phase in time.phases))
    prefill, decode, *_, update, optimiser = time.phases
    rl = plan.run.config.rl
    assert prefill.runs == decode.runs == rl.prompts_per_rollout / 0.25 / 4  # batch_prompts
    assert optimiser.runs == rl.prompts_per_rollout / rl.prompts_per_update
    assert time.tokens == pytest.approx(rl.prompts_per_rollout * (40 + rl.group_size * 5))
    model = Model.of(plan.run.opened.policy, plan.run.learner.abstract_state().trainable)
    groups = rl.prompts_per_rollout / 0.25
    wanted = model.encode(plan.run.image_windows) + model.prefill(40)
    assert prefill.operations.model == pytest.approx(groups * wanted.model)
    assert time.mfu == pytest.approx(
        sum(phase.operations.model for phase in time.phases) / (time.seconds * 4 * time.peak)
    )


def test_each_rate_moves_its_own_part(plan):
    before = on_gpus(plan)
    for field, part in {"flops": "compute", "memory_bandwidth": "memory"}.items():
        faster = on_gpus(plan, **{field: 2 * getattr(chip_named("h100"), field)})
        for phase, old in zip(faster.phases, before.phases, strict=True):
            for name in ("compute", "memory", "links"):
                factor = 0.5 if name == part else 1.0
                assert getattr(phase.cost, name) == pytest.approx(factor * getattr(old.cost, name))
    near = on_gpus(plan, link_bandwidth=1e30)
    assert all(new.cost.links < old.cost.links for new, old in zip(near.phases, before.phases, strict=True))


def test_the_text_names_buffers_links_and_assumptions(plan):
    text = as_text(dataclasses.replace(plan, time=on_gpus(plan)))
    assert re.search(r"makes [\d.]+ [kMG]B.*  f32\[", text)
    assert re.search(r"sends [\d.]+ [kMG]B  all-gather over fsdp, \d+ times", text)
    assert re.search(r"a step takes [\d.e-]+ s: .* MFU [\d.]+%", text)
    assert "assumed: 25% of the groups pass the online filter" in text
    assert as_json(plan)["step_s"] is None  # no time of this machine's processor


def test_candidates_are_legal_and_differ(plan):
    config = plan.run.config
    model = Model.of(plan.run.opened.policy, plan.run.learner.abstract_state().trainable)
    found = list(candidates(config, model, 8))
    assert len({as_overrides(one) for one in found}) == len(found) > 50
    for one in found[::7]:
        changed = with_changes(config, one)
        mesh = changed.mesh
        assert mesh.data * mesh.fsdp * mesh.context * mesh.tensor in (8, -mesh.data * mesh.context * mesh.tensor)
        assert model.text.num_kv_heads % mesh.tensor == 0
        assert load_config("configs/smoke.yaml", [*SMALL, *as_overrides(one)]) == changed  # they can be pasted


def test_estimates_follow_what_is_split(plan):
    """More parts, more chips and split weights need less; a slower chip takes longer."""
    config = plan.run.config
    model = Model.of(plan.run.opened.policy, plan.run.learner.abstract_state().trainable)
    chip = chip_named("v5e")

    def needed(chips=8, chip=chip, **changes):
        return estimate(with_changes(config, {k.replace("__", "."): v for k, v in changes.items()}), model, chip, chips,
                        Assumptions())  # fmt: skip

    assert needed(mesh__tensor=2, mesh__fsdp=4).bytes > needed(16, mesh__tensor=2, mesh__fsdp=8).bytes
    assert needed(rl__micro_batches=1).bytes >= needed(rl__micro_batches=8).bytes
    assert needed(sampler__decode_weights="split").bytes <= needed(sampler__decode_weights="gathered").bytes
    assert needed(chip=dataclasses.replace(chip, memory_bandwidth=chip.memory_bandwidth / 8)).seconds > needed().seconds


def test_the_fastest_that_fits_is_suggested_first(plan):
    gpus = dataclasses.replace(plan, target=dataclasses.replace(plan.target, chip=chip_named("h100")))
    time = on_gpus(plan)
    slower = dataclasses.replace(time, phases=time.phases * 2)
    refused = dataclasses.replace(plan.programs[0], compiled=None)
    outcomes = iter([
        dataclasses.replace(plan, programs=(refused,)),
        UserError("a mesh that does not divide a size"),
        dataclasses.replace(plan, time=slower),
        dataclasses.replace(plan, time=time),
    ])  # fmt: skip

    def compile_plan(config):
        outcome = next(outcomes)
        if isinstance(outcome, UserError):
            raise outcome
        return outcome

    found = search(gpus, compile_plan, 3, Assumptions())
    assert [one.fits for one in found] == [True, True, False]
    assert [one.step_s for one in found] == [time.seconds, slower.seconds, None]
    assert "does not fit: " in as_text(plan, found)
    assert as_json(plan, found)["suggestions"][0]["overrides"] == list(found[0].overrides)
