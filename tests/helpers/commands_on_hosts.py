"""One of several processes that run commands together, one after the other; run by test_distributed.py.

    python -m tests.helpers.commands_on_hosts COMMANDS --coordinator HOST:PORT --num-processes N --process-id I

COMMANDS is a JSON file with the arguments of each. The first one joins the processes and the last one leaves them, as a
command does that is alone; what is imported, started and compiled once serves all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from unittest import mock

from mmeureka_jax.cli import main
from mmeureka_jax.process import cluster
from tests.helpers.small_runs import same_reward_workers


def run_all(commands: list[list[str]], joined: list[str]) -> int:
    commands[0] += joined
    with mock.patch.object(cluster, "leave"):
        for command in commands[:-1]:
            if code := main(command):
                return code
    return main(commands[-1])


if __name__ == "__main__":
    with same_reward_workers():
        sys.exit(run_all(json.loads(Path(sys.argv[1]).read_text()), sys.argv[2:]))
