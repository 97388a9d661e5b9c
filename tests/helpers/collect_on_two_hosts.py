"""One of two processes that sample together on a mesh in whose order the hosts alternate; run by test_distributed.py.

    python -m tests.helpers.collect_on_two_hosts PORT PROCESS WORK_DIR [key.sub=value ...]

Pods order their devices so (see mesh.make_mesh). Rewards here are a checksum of the text: every process checks that
each group, its own and the other's, has the prompt of its order and the rewards of its responses.
"""

from __future__ import annotations

import sys
import zlib
from pathlib import Path

import jax
import numpy as np
import pytest

from mmeureka_jax.config.load import load_config
from mmeureka_jax.data.loader import LoadedProblem
from mmeureka_jax.data.record import Problem
from mmeureka_jax.errors import UserError
from mmeureka_jax.hosts import barrier, raise_together
from mmeureka_jax.rewards.base import RewardResult
from mmeureka_jax.rl.online_filter import GroupBuffer
from mmeureka_jax.setup.policy import find_checkpoint, open_policy
from mmeureka_jax.setup.problems import open_processor
from mmeureka_jax.training.collect import Collector


def problem(order):
    text = f"how many dots ? {order}"
    return Problem(str(order), ({"role": "user", "content": [{"type": "text", "text": text}]},), (), "1", {})


def checksum(text):
    return float(zlib.crc32(text.encode()) % 1000)


class Rewards:
    def score(self, requests):
        return [RewardResult(checksum(request.response), {"accuracy": 0.5}) for request in requests]


def main(port, process, work_dir, *overrides):
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, process)
    sizes = "rl.prompts_per_rollout=16", "sampler.batch_prompts=8", "rl.filter.enabled=false"
    config = load_config("configs/smoke.yaml", [*sizes, *overrides])
    by_host = sorted(jax.devices(), key=lambda device: device.process_index)
    checkpoint = find_checkpoint(config.model, Path(work_dir))
    opened = open_policy(checkpoint, config.model, config.mesh, devices=[by_host[i] for i in (0, 2, 1, 3)])
    assert [device.process_index for device in opened.mesh.devices.flat] == [0, 1, 0, 1]
    with jax.set_mesh(opened.mesh):
        processor = open_processor(opened.checkpoint, config.data)

        def batches():  # as the loader deals them out: position h of every two goes to host h
            for start in range(0, 1000, 8):
                orders = range(start + process, start + 8, 2)
                yield [LoadedProblem(problem(order), processor(problem(order)), order) for order in orders]

        collector = Collector(
            config, opened, processor, batches(), Rewards(), num_windows=0, vision_frozen=False
        )  # fmt: skip
        collected = collector.collect(
            opened.load_params(), GroupBuffer(), step=0, updates=0, on_round=lambda count: None
        )

    assert collected.metrics["filter/rounds"] == 2 and [group.order for group in collected.groups] == list(range(16))
    for group in collected.groups:
        np.testing.assert_array_equal(
            group.prompt.tokens[: group.prompt_length], processor(problem(group.order)).tokens
        )
        texts = [processor.decode(row[:length]) for row, length in zip(group.responses, group.lengths, strict=True)]
        assert group.rewards.tolist() == [checksum(text) for text in texts], group.order
    rewards = np.concatenate([group.rewards for group in collected.groups])
    assert len(np.unique(rewards)) > 50
    raise_together(None)
    with pytest.raises(UserError, match=r"^héllo from 1$"):
        raise_together("héllo from 1" if process == 1 else None)
    barrier("done")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:])
