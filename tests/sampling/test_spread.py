"""Prompts of a sampler call over hosts that are not there; test_mesh.py and test_distributed.py have devices."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import numpy as np
import pytest

from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.errors import UserError
from mmeureka_jax.mesh import make_mesh, row_shares, sampler_mesh
from mmeureka_jax.sampling import spread as module
from mmeureka_jax.sampling.request import Request, Samples
from mmeureka_jax.sampling.spread import Spread, copies_of_prompts


@pytest.mark.parametrize(
    ("prompts", "shards", "group_size", "copies"),
    [(16, 8, 8, 1), (16, 64, 8, 4), (4, 32, 8, 8), (12, 8, 6, 2), (6, 4, 6, 2), (3, 9, 9, 3)],
)
def test_the_smallest_number_of_copies_that_divides(prompts, shards, group_size, copies):
    assert copies_of_prompts(prompts, shards, group_size) == copies


def test_prompts_that_cannot_be_spread_say_which_could():
    with pytest.raises(UserError, match="6 prompts .* over data x fsdp x context = 64 shards; choose a multiple of 8 "):
        copies_of_prompts(6, 64, 8)


@dataclass(frozen=True)
class FakeDevice:
    id: int
    process_index: int
    platform: str = "cpu"
    device_kind: str = "cpu"


class Host:
    """What one of several hosts asks for and gets. A response is known by its prompt and number."""

    def __init__(self, mesh, prompts, group_size):
        self.spread = Spread.of(mesh, prompts, group_size)
        shares = self.spread.shares
        self.orders = np.arange(shares.index, prompts, shares.count)
        own = Samples(self.orders[:, None], *[np.zeros(len(self.orders))] * 3)  # any arrays of a row for each prompt
        request = self.spread.request([str(order) for order in self.orders], own)
        first = np.zeros(len(request.names), int) if request.first is None else request.first
        number = first[:, None] + np.arange(group_size // request.copies)
        self.drawn = Samples(*[request.prompts.tokens * 100 + number] * 4)
        names = Request.of([str(order) for order in request.prompts.tokens[:, 0]], request.prompts).names
        np.testing.assert_array_equal(request.names, names)


@pytest.mark.parametrize(
    ("hosts", "sizes", "prompts", "copies"),
    [
        (4, {}, 32, 1),
        (4, {}, 8, 2),
        (4, {}, 2, 8),  # two hosts draw the responses to a prompt
        (4, {"tensor": 2}, 12, 2),
        (4, {"tensor": 8}, 3, 2),  # two hosts have the same rows, and all load the same prompts
        (8, {"context": 4, "tensor": 2}, 6, 4),
    ],
)
def test_every_response_is_drawn_once_whatever_the_hosts(monkeypatch, hosts, sizes, prompts, copies):
    group_size = 8
    devices = [FakeDevice(i, process_index=i % hosts) for i in range(16)]
    mesh = sampler_mesh(make_mesh(MeshConfig(**sizes), devices))
    monkeypatch.setattr(module, "to_global", lambda mesh, tree: tree)
    all_hosts = {}
    for host in range(hosts):
        monkeypatch.setattr(jax, "process_index", lambda host=host: host)
        all_hosts[host] = Host(mesh, prompts, group_size)
    shares = row_shares(mesh)
    rows = [all_hosts[sharing[0]].drawn.tokens for sharing in shares.hosts]
    for sharing in shares.hosts:
        for host in sharing:
            np.testing.assert_array_equal(all_hosts[host].drawn.tokens, all_hosts[sharing[0]].drawn.tokens)
    assert all_hosts[0].spread.copies == copies and len({len(own) for own in rows}) == 1
    expected = np.arange(prompts)[:, None] * 100 + np.arange(group_size)
    np.testing.assert_array_equal(np.sort(np.concatenate(rows).ravel()), expected.ravel())

    monkeypatch.setattr(module, "rows_of_all", lambda tree, hosts: Samples(*[np.concatenate(rows)] * 4))
    for number, host in all_hosts.items():
        monkeypatch.setattr(jax, "process_index", lambda number=number: number)
        np.testing.assert_array_equal(host.spread.groups(host.drawn).tokens, expected[host.orders])
