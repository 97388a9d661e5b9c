"""`benchmarks.vs_tunix_compiled`: what it counts, and how it reads two runs as one of all layers."""

from __future__ import annotations

import importlib
import json

import jax
import jax.numpy as jnp
import pytest
from helpers.commands import ROOT
from jax.sharding import Mesh, PartitionSpec


@pytest.fixture
def contest(monkeypatch):
    monkeypatch.syspath_prepend(ROOT)
    return importlib.import_module("benchmarks.vs_tunix_compiled")


PRODUCT = 2 * 8 * 16 * 16  # [8, 16] @ [16, 16]


def chain(x, weights, *, remat=False):
    def layer(x, weight):
        return jnp.tanh(x @ weight), None

    return jax.lax.scan(jax.checkpoint(layer) if remat else layer, x, weights)[0]


def in_parts(x, weight):
    mesh = Mesh(jax.devices()[:2], ("rows",))
    rows = PartitionSpec("rows")
    return jax.shard_map(jnp.matmul, mesh=mesh, in_specs=(rows, PartitionSpec()), out_specs=rows)(x, weight)


def either(x, weight):
    return jax.lax.cond(x.sum() > 0, lambda: x @ weight @ weight, lambda: x @ weight)


@pytest.mark.parametrize(
    ("function", "weights", "products"),
    [
        (chain, (5, 16, 16), 5),
        (jax.grad(lambda x, weights: chain(x, weights).sum(), argnums=(0, 1)), (5, 16, 16), 15),
        (jax.grad(lambda x, weights: chain(x, weights, remat=True).sum(), argnums=(0, 1)), (5, 16, 16), 20),
        (in_parts, (16, 16), 1),
        (either, (16, 16), 2),
    ],
    ids=["scan", "gradient", "remat", "shards", "branches"],
)
def test_operations_count_every_turn_and_device(contest, function, weights, products):
    operations = importlib.import_module("benchmarks.peers.operations").operations
    traced = jax.jit(function).trace(jnp.zeros((8, 16)), jnp.zeros(weights))
    assert operations(traced.jaxpr.jaxpr) == products * PRODUCT


def test_both_sides_are_compiled_and_compared_by_token(contest, monkeypatch, capsys):
    monkeypatch.setattr(contest, "find_peer", lambda python, _: python)
    monkeypatch.setattr(contest, "bytes_moved", lambda text: text)
    monkeypatch.setattr(contest, "ProgramText", lambda text: float(text))
    asked = []

    def run_side(python, side):
        given = dict(zip(side.options[::2], side.options[1::2], strict=True))
        asked.append(given)
        layers = int(given["--layers"])
        tokens = 4 * 30 if "--rows" in given else 4 * 2 * 30  # four prompts with two responses each
        part = 1.0 if "--rows" in given else 0.5
        with open(given["--text"], "w") as file:
            file.write(str(part * tokens * (10 + layers) / contest.CHIPS))
        figures = {"operations": part * tokens * (100 + layers), "peak_bytes": part * tokens * (1 + layers)}
        return figures | {"versions": {"jax": "0"}}

    monkeypatch.setattr(contest, "run_side", run_side)
    assert contest.main(["--prompt", "20", "--new", "10", "--group", "2", "--layers", "3", "5"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["peer"]["a_token"] == pytest.approx({"operations": 128, "bytes": 38, "peak_bytes": 29})
    assert result["ratios"] == {"operations": 0.5, "bytes": 0.5, "peak_bytes": 0.5}
    assert [given["--layers"] for given in asked] == ["3", "5"] * 2
    same = {name for name in asked[0].keys() & asked[2].keys() if name != "--text"}
    assert {"--topology", "--tensor", "--group", "--prompt", "--new"} <= same
    assert all(asked[0][name] == asked[2][name] for name in same)


def test_two_equal_numbers_of_layers_are_refused(contest, capsys):
    assert contest.main(["--layers", "2", "2"]) == 2
    assert "--layers" in capsys.readouterr().err


def test_the_project_side_asks_for_one_program_of_gradients(contest, tmp_path):
    """Its overrides are those of the recipe: two micro-batches of whole groups, each response of full length."""
    from mmeureka_jax.config.load import load_config

    side = importlib.import_module("benchmarks.compiled_gradients")
    parser = contest.build_parser()
    args = parser.parse_args(["--prompt", "64", "--new", "32", "--group", "2"])
    args.prompts = 4
    config = load_config(side.RECIPE, side.settings(args, tmp_path))
    assert config.rl.micro_batches == 2 and config.rl.prompts_per_update == 8
    assert config.data.prompt_lengths == (64,) and config.sampler.max_new_tokens == 32
