"""Small faults, one at a time, in a copy of the tree: does a test see them? Run by hand.

    python -m tests.mutation                      every fault of tests/faults.py
    python -m tests.mutation 3 17 rl/losses.py    those of these numbers and files
    python -m tests.mutation --targeted           without the everyday tests, where the targeted ones see nothing

The tests that should see a fault run first, with and without it; then the everyday tests (`-m "not slow"`), then all.
Prints a table, and ends with 1 if a fault survives.
"""

from __future__ import annotations

import argparse
import functools
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

from tests.faults import FAULTS, Fault

ROOT = Path(__file__).parents[1]
PASSED = 0
FAILED = 1


@dataclass(frozen=True)
class Outcome:
    """What became of a fault: which tests saw it, or that none did."""

    caught: bool
    by: str
    seconds: float


class Tree:
    """A copy of the repository's files, whose tests can be run with and without a fault."""

    def __init__(self, folder: Path):
        self.folder = folder
        listed = subprocess.run(
            ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
            cwd=ROOT, check=True, capture_output=True, text=True,
        )  # fmt: skip
        for name in listed.stdout.splitlines():
            if (ROOT / name).is_file() or (ROOT / name).is_symlink():
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, folder / name, follow_symlinks=False)

    def test(self, *arguments: str) -> tuple[int, str]:
        """The exit code of pytest, which stops at the first failure, and what failed."""
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *arguments]
        environment = os.environ | {"PYTHONPATH": str(self.folder), "PYTHONDONTWRITEBYTECODE": "1"}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        failed = re.search(r"^(?:FAILED|ERROR) (.*?)(?: - .*)?$", done.stdout, flags=re.MULTILINE)
        return done.returncode, failed[1] if failed else done.stdout.strip().rpartition("\n")[2]

    @functools.cache  # noqa: B019 - one tree for the whole run
    def passes_without_fault(self, tests: str) -> bool:
        return self.test("-n", "0", *tests.split())[0] == PASSED

    def try_fault(self, fault: Fault, *, targeted: bool) -> Outcome:
        start = time.monotonic()
        if not self.passes_without_fault(fault.tests):
            return Outcome(False, "its tests fail without it", time.monotonic() - start)
        path = self.folder / fault.path
        before = path.read_text()
        path.write_text(fault.applied(before))
        try:
            stages = [("-n", "0", *fault.tests.split())]
            if not targeted:
                stages += [("-n", "2", "-m", "not slow"), ("-n", "2")]
            for arguments in stages:
                code, failed = self.test(*arguments)
                if code != PASSED:
                    return Outcome(True, failed, time.monotonic() - start)
        finally:
            path.write_text(before)
        return Outcome(False, "", time.monotonic() - start)


def chosen(names: Sequence[str]) -> list[tuple[int, Fault]]:
    numbered = list(enumerate(FAULTS, start=1))
    return [(i, fault) for i, fault in numbered if not names or str(i) in names or fault.file in names]


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Small faults, one at a time: does a test see them?")
    parser.add_argument("faults", nargs="*", help="numbers of faults, or files under mmeureka_jax/")
    parser.add_argument("--targeted", action="store_true", help="run only the tests that should see a fault")
    options = parser.parse_args(arguments)
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="mmeureka-mutation-") as folder:
        tree = Tree(Path(folder))
        for number, fault in chosen(options.faults):
            outcome = tree.try_fault(fault, targeted=options.targeted)
            survivors += not outcome.caught
            said = "caught  " if outcome.caught else "SURVIVED"
            print(f"{number:3} {said} {outcome.seconds:5.0f} s  {fault.file}: {fault.why}", flush=True)
            if outcome.by:
                print(f"{'':21}{outcome.by}", flush=True)
    print(f"{survivors} survived" if survivors else "all caught")
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main())
