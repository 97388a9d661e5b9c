"""The stream of problems: whole epochs in their own order, split exactly over hosts, resumed exactly anywhere."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mmeureka_jax.data.loader import ProblemLoader, RowOrder
from mmeureka_jax.data.problems import ProblemSource, open_problems
from mmeureka_jax.data.record import Problem, RowError
from mmeureka_jax.errors import UserError

ROOT = Path(__file__).parents[2]
ROWS = 11
INDICES = [i for i in range(ROWS) if i != 4]  # row 4 is not to be read


def fake_processor(problem: Problem) -> str:
    """Stands for a Processor: what it returns is passed through."""
    if problem.id == "broken":
        raise UserError("its picture cannot be read")
    return f"prompt of {problem.id}"


@pytest.fixture
def source(tmp_path: Path) -> ProblemSource:
    lines = [json.dumps({"id": f"p{i}", "question": f"{i}?", "answer": f"{i}"}) for i in range(ROWS)]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    return open_problems(str(tmp_path / "p.jsonl"))


def make_loader(source: ProblemSource, *, indices=INDICES, batch_size=4, seed=3, shuffle=True, **options):
    order = RowOrder(indices, seed, shuffle)
    return ProblemLoader(source, order, fake_processor, batch_size=batch_size, **options)


def take(loader: ProblemLoader, batches: int) -> list[list[tuple[int, str]]]:
    taken = [next(loader) for _ in range(batches)]
    for loaded in (loaded for batch in taken for loaded in batch):
        assert loaded.prompt == f"prompt of {loaded.problem.id}"
    return [[(loaded.order, loaded.problem.id) for loaded in batch] for batch in taken]


def flat(batches: list[list[tuple[int, str]]]) -> list[tuple[int, str]]:
    return [pair for batch in batches for pair in batch]


def test_every_epoch_holds_every_row_once_in_an_order_of_its_own(source):
    loader = make_loader(source)
    stream = flat(take(loader, 10))
    loader.close()
    assert [order for order, _ in stream] == list(range(40))
    epochs = [tuple(name for _, name in stream[start : start + 10]) for start in range(0, 40, 10)]
    assert all(sorted(epoch) == sorted(f"p{i}" for i in INDICES) for epoch in epochs)
    assert len(set(epochs)) == 4
    assert flat(take(make_loader(source, seed=4), 10)) != stream


def test_without_shuffling_rows_come_in_their_order(source):
    stream = flat(take(make_loader(source, shuffle=False), 5))
    assert stream == [(order, f"p{INDICES[order % 10]}") for order in range(20)]


@pytest.mark.parametrize("host_count", [2, 3])
def test_hosts_partition_the_stream(source, host_count):
    whole = flat(take(make_loader(source, batch_size=4 * host_count), 5))
    hosts = [take(make_loader(source, host=(host, host_count)), 5) for host in range(host_count)]
    for host, batches in enumerate(hosts):
        assert flat(batches) == whole[host::host_count]


def test_resume_from_every_state_goes_on_exactly(source):
    """Batches of 4 from epochs of 10 rows: states lie inside epochs, at their ends, and batches over their ends."""
    loader = make_loader(source)
    states = [loader.get_state()]
    batches = []
    for _ in range(8):
        batches += take(loader, 1)
        states.append(loader.get_state())
    for done, state in enumerate(states):
        resumed = make_loader(source)
        resumed.set_state(json.loads(json.dumps(state)))
        assert resumed.get_state() == state
        assert take(resumed, 8 - done) == batches[done:]
        assert resumed.get_state() == states[-1]
    loader.set_state(states[3])  # and in place, with batches read ahead
    assert take(loader, 3) == batches[3:6]


def test_state_does_not_depend_on_the_number_of_hosts(source):
    loader = make_loader(source, batch_size=6)
    take(loader, 2)
    expected = flat(take(make_loader(source, batch_size=6), 4))[12:]
    hosts = []
    for host in range(2):
        resumed = make_loader(source, batch_size=3, host=(host, 2))
        resumed.set_state(loader.get_state())
        hosts += flat(take(resumed, 2))
    assert sorted(hosts) == expected


def test_a_state_of_several_hosts_counts_the_rows_of_all(source):
    whole = flat(take(make_loader(source, batch_size=8), 5))
    loader = make_loader(source, host=(1, 2))
    take(loader, 2)
    alone = make_loader(source, batch_size=8)
    alone.set_state(loader.get_state())
    assert flat(take(alone, 3)) == whole[16:]


def test_prefetching_changes_nothing(source):
    expected = take(make_loader(source, prefetch=0), 6)
    assert take(make_loader(source, prefetch=1), 6) == take(make_loader(source, prefetch=5), 6) == expected


@pytest.mark.slow
def test_worker_processes_give_the_same_stream_and_end(source):
    expected = take(make_loader(source), 7)
    loader = make_loader(source, workers=2)
    assert take(loader, 3) == expected[:3]
    state = loader.get_state()
    loader.close()
    assert not multiprocessing.active_children()
    resumed = make_loader(source, workers=2)
    resumed.set_state(state)
    assert take(resumed, 4) == expected[3:]
    resumed.close()


@pytest.mark.slow
def test_worker_processes_outlive_sigterm_but_not_the_run(source, tmp_path):
    """The step under way still needs them when a scheduler ends all processes; SIGKILL may reach the run alone."""
    script = f"""if True:
        from mmeureka_jax.data.loader import ProblemLoader, RowOrder
        from mmeureka_jax.data.problems import open_problems
        problems = open_problems({str(tmp_path / "p.jsonl")!r})
        loader = ProblemLoader(problems, RowOrder(range(11), 0, True), str, batch_size=3, workers=2)
        next(loader)
        import multiprocessing
        print(*[child.pid for child in multiprocessing.active_children()], flush=True)
        while True:
            input()
            next(loader)
            print("next", flush=True)
    """
    run = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    workers = [int(pid) for pid in run.stdout.readline().split()]
    assert len(workers) == 2
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
    for _ in range(4):  # more than was prepared ahead
        run.stdin.write("\n")
        run.stdin.flush()
        assert run.stdout.readline() == "next\n"
    run.kill()
    run.wait()
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in workers):
        assert time.monotonic() < deadline, "data workers are left over"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize("workers", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_row_that_fails_is_named(tmp_path, workers):
    lines = [json.dumps({"id": name, "question": "?", "answer": "1"}) for name in ("good", "broken")]
    (tmp_path / "p.jsonl").write_text("\n".join(lines))
    source = open_problems(str(tmp_path / "p.jsonl"))
    loader = make_loader(source, indices=[0, 1], batch_size=2, shuffle=False, workers=workers)
    with pytest.raises(RowError, match=r"p\.jsonl:2: problem 'broken': its picture cannot be read") as error:
        next(loader)
    assert error.value.problem_id == "broken"
    loader.close()


def test_a_state_of_other_data_is_refused(source):
    loader = make_loader(source)
    for other in (make_loader(source, seed=4), make_loader(source, shuffle=False), make_loader(source, indices=[1, 2])):
        with pytest.raises(UserError, match="the data stream was saved with"):
            loader.set_state(other.get_state())


def test_no_usable_rows(source):
    with pytest.raises(UserError, match="no usable rows"):
        make_loader(source, indices=[])


def test_one_row_is_a_stream_too(source):
    assert flat(take(make_loader(source, indices=[2], batch_size=3), 1)) == [(0, "p2"), (1, "p2"), (2, "p2")]
