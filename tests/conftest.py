"""Test session set-up: eight fake CPU devices, so that every sharding is a real one, and no accelerator or network."""

import atexit
import gc
import os
import shutil
import signal
import tempfile

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["HF_HUB_OFFLINE"] = "1"
# Most of the time of the tests is compilation: without LLVM's optimiser, which tiny models do not need, and with XLA's
# older emitters of fused loops, it takes a third of the time.
FLAGS = (
    "--xla_force_host_platform_device_count=8",
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
)
for flag in FLAGS:
    flags = os.environ.get("XLA_FLAGS", "")
    if flag.partition("=")[0] not in flags:
        os.environ["XLA_FLAGS"] = f"{flags} {flag}".strip()

# Lowering is a quarter shorter if it notes no lines of source.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

# A shell in the background starts its commands deaf to interrupts, and so would be those that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# What is compiled once serves every worker and every command that a test starts.
if "PYTEST_XDIST_WORKER" not in os.environ:
    compiled = tempfile.mkdtemp(prefix="mmeureka-test-compiled-")
    os.environ |= {"JAX_COMPILATION_CACHE_DIR": compiled, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.05"}
    atexit.register(shutil.rmtree, compiled, ignore_errors=True)

# Annotated shapes and dtypes are checked at run time wherever a test calls the numeric core.
import hypothesis  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from mmeureka_jax.process.cpu import switch_ynn_off  # noqa: E402

switch_ynn_off()
install_import_hook(
    [f"mmeureka_jax.{name}" for name in ("models.attention", "models.layers", "models.log_probs", "models.policy")],
    "beartype.beartype",
)

# The same examples every time; `pytest --hypothesis-profile=default` looks for new ones.
hypothesis.settings.register_profile("repeatable", derandomize=True)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(config, items):
    """Each worker begins with a share of the files that have slow tests. What workers take from each other in the end
    is then quick, and no fixture that takes long is made twice."""
    workers = getattr(config, "workerinput", {}).get("workercount", 1)
    slow_files = list(dict.fromkeys(item.path for item in items if item.get_closest_marker("slow")))
    shares = [
        [item for item in items if item.path in slow_files[number::workers]] for number in range(workers)
    ]  # fmt: skip
    quick = [item for item in items if item.path not in slow_files]
    for share in shares:
        missing = max(-(-len(items) // workers) - len(share), 0)
        share += quick[:missing]
        del quick[:missing]
    items[:] = [item for share in [*shares, quick] for item in share]


def pytest_terminal_summary(terminalreporter):
    """How long the whole suite and its everyday part take: seconds of all workers, fixtures included."""
    seconds = {"everyday": 0.0, "slow": 0.0}
    counts = {"everyday": 0, "slow": 0}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                kind = "slow" if "slow" in report.keywords else "everyday"
                seconds[kind] += report.duration
                counts[kind] += report.when == "call"
    if any(counts.values()):
        parts = (f"{counts[kind]} {kind} tests take {seconds[kind]:.0f} s" for kind in seconds)
        terminalreporter.write_line(f"{', '.join(parts)}, of all workers together")


def pytest_collection_finish(session):
    """Tracing makes objects by the million, few of them garbage: what is imported is not looked through again, and the
    rest less often (6% of the time of tests that compile)."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(100_000, 50, 100)


@pytest.fixture(scope="module")
def shared_reward_workers():
    """The runs of a module that are made in this process have answers scored by the same processes."""
    from helpers.small_runs import same_reward_workers

    with same_reward_workers():
        yield
