"""One of several processes that sample together; run by test_distributed.py.

    python -m tests.helpers.collect_on_hosts PORT PROCESS PROCESSES WORK_DIR [key.sub=value ...]

In the order of the mesh the hosts alternate, as on pods (see mesh.make_mesh). Rewards here are a checksum of the text,
and of the process that scored it: every process checks that each group, its own and the others', has the prompt of its
order, the tokens that one device has drawn (`write_expected`), and the rewards of its responses, and that all processes
hold the same.
"""

from __future__ import annotations

import sys
import zlib
from dataclasses import replace
from itertools import islice
from pathlib import Path

import jax
import numpy as np
import pytest

from mmeureka_jax.config.load import load_config
from mmeureka_jax.config.schema import MeshConfig
from mmeureka_jax.data.loader import LoadedProblem
from mmeureka_jax.data.record import Problem
from mmeureka_jax.errors import UserError
from mmeureka_jax.hosts import barrier, every_host, raise_together, text_of_all
from mmeureka_jax.mesh import row_shares
from mmeureka_jax.models.batch import collate
from mmeureka_jax.rewards.base import RewardResult
from mmeureka_jax.rl.online_filter import GroupBuffer
from mmeureka_jax.sampling.answers import PromptSizes, generate_queued
from mmeureka_jax.sampling.request import Request
from mmeureka_jax.setup.policy import find_checkpoint, open_policy
from mmeureka_jax.setup.problems import open_processor
from mmeureka_jax.training.collect import Collector, rollout_sampler

PROMPTS = 12
EXPECTED = "expected.npz"


def problem(order):
    text = f"how many dots ? {order}"
    return Problem(str(order), ({"role": "user", "content": [{"type": "text", "text": text}]},), (), "1", {})


def checksum(text):
    return float(zlib.crc32(text.encode()) % 1000)


class Rewards:
    def __init__(self, process):
        self.process = process
        self.count = 0

    def score(self, requests):
        self.count += len(requests)
        total = [checksum(request.response) + 1000 * self.process for request in requests]
        return [RewardResult(value, {"accuracy": 0.5}) for value in total]


def collected(config, opened, processor, rewards):
    def batches():  # as the loader deals them out: position i of every `count` goes to share i
        shares = collector.spread.shares
        step = config.sampler.batch_prompts
        for start in range(0, 1000, step):
            orders = range(start + shares.index, start + step, shares.count)
            yield [LoadedProblem(problem(order), processor(problem(order)), order) for order in orders]

    collector = Collector(config, opened, processor, batches(), rewards, num_windows=0, vision_frozen=False)
    params = opened.load_params()
    result = collector.collect(params, GroupBuffer(), step=0, updates=0, on_round=lambda count: None)
    assert result.metrics["filter/rounds"] == PROMPTS // config.sampler.batch_prompts
    return collector, result.groups


def load(overrides):
    sizes = f"rl.prompts_per_rollout={PROMPTS}", f"rl.prompts_per_update={PROMPTS}", "rl.filter.enabled=false"
    return load_config("configs/smoke.yaml", [*sizes, *overrides])


def write_expected(work_dir, *overrides):
    """Draws all responses on one device, without the other processes, into a file for them."""
    config = load(overrides)
    checkpoint = find_checkpoint(config.model, Path(work_dir))
    alone = open_policy(checkpoint, config.model, MeshConfig(), devices=jax.local_devices()[:1])
    processor = open_processor(checkpoint, config.data)
    prompts = collate([processor(problem(order)) for order in range(PROMPTS)], 64, 0)
    with jax.set_mesh(alone.mesh):
        request = Request.of([f"{order}/{order}" for order in range(PROMPTS)], prompts, alone.mesh)
        drawn = rollout_sampler(alone.policy, processor, config).sample(alone.load_params(), request)[0]
    arrays = {name: np.asarray(getattr(drawn, name)) for name in ("tokens", "lengths", "finished")}
    np.savez(Path(work_dir) / EXPECTED, **arrays)


def check_queue(collector, opened, processor, expected):
    """The first host has half as many problems as the others; the first responses are drawn again."""
    sampler = replace(collector.sampler, settings=replace(collector.sampler.settings, group_size=1))
    mesh = opened.sampler_mesh
    shares = row_shares(mesh)
    orders = range(shares.index, PROMPTS if shares.index else PROMPTS // 2, shares.count)
    problems = [replace(problem(order), id=f"{order}/{order}") for order in orders]
    sizes = PromptSizes(4, (64,), 0)
    counted = []
    queued = generate_queued(sampler, mesh, opened.load_params(), processor, problems, sizes, counted.append)
    answered = list(islice(queued, len(problems)))  # and no further: a host may be done before another
    barrier("answered")
    assert [one.id for one, _ in answered] == [one.id for one in problems] and sum(counted) == len(problems)
    for order, (_, response) in zip(orders, answered, strict=True):
        length = int(expected["lengths"][order, 0])
        np.testing.assert_array_equal(response.tokens, expected["tokens"][order, 0, :length])
        assert response.finished == expected["finished"][order, 0]
    assert text_of_all("é" * jax.process_index()) == ["é" * process for process in range(jax.process_count())]


def main(port, process, processes, work_dir, *overrides):
    jax.distributed.initialize(f"127.0.0.1:{port}", processes, process)
    config = load(overrides)
    by_host = sorted(jax.devices(), key=lambda device: device.process_index)
    checkpoint = find_checkpoint(config.model, Path(work_dir))
    opened = open_policy(checkpoint, config.model, config.mesh, devices=[by_host[i] for i in (0, 2, 1, 3)])
    with jax.set_mesh(opened.mesh):
        processor = open_processor(opened.checkpoint, config.data)
        rewards = Rewards(process)
        collector, groups = collected(config, opened, processor, rewards)

    assert [group.order for group in groups] == list(range(PROMPTS))
    for group in groups:
        tokens = group.prompt.tokens[: group.prompt_length]
        np.testing.assert_array_equal(tokens, processor(problem(group.order)).tokens)
        texts = [processor.decode(row[:length]) for row, length in zip(group.responses, group.lengths, strict=True)]
        assert [reward % 1000 for reward in group.rewards] == [checksum(text) for text in texts], group.order
        assert len({reward // 1000 for reward in group.rewards}) == 1
    numbers = np.stack([group.rewards for group in groups])
    assert len(np.unique(numbers % 1000)) > 50
    assert (every_host(numbers) == numbers).all()
    with np.load(Path(work_dir) / EXPECTED) as file:
        expected = dict(file)
    np.testing.assert_array_equal(np.stack([group.responses for group in groups]), expected["tokens"])
    check_queue(collector, opened, processor, expected)

    raise_together(None)
    with pytest.raises(UserError, match=r"^héllo from 1$"):
        raise_together("héllo from 1" if process == 1 else None)
    barrier("done")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), *sys.argv[4:])
