"""Several processes, as on several hosts, train one sweep, and one that dies ends the job."""

import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from sweeps import quietly, samples

import sae_jax
from sae_jax import SAEConfig
from sae_jax.activations.writer import write_store
from sae_jax.problems import Problem
from sae_jax.sweep import processes

ROOT = Path(sae_jax.__file__).parents[1]
SCRIPT = ROOT / "experiments" / "train_sweep.py"
WORKER = ROOT / "tests" / "support" / "hosts_worker.py"
# Seconds until JAX gives up a silent process, and to end after that.
DEADLINE = 60
# What a run needs at most on a busy machine.
PATIENCE = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Of a store, and of programs that are compiled once for all processes."""
    folder = tmp_path_factory.mktemp("hosts")
    problems = [Problem(str(i), f"Question {i}?", (f"{i + 2}+2=0",)) for i in range(400)]
    write_store(folder / "store", {(0, 0): samples(400)}, problems)
    return folder


def environment(folder, num_devices=1):
    return os.environ | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        "JAX_PLATFORMS": "cpu",
        # Optimized less, programs are compiled in less time, and sum in the same order.
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={num_devices}"
        " --xla_backend_optimization_level=0",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "xla"),
    }


def free_port():
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return found.getsockname()[1]


def started(folder, output, *flags, num_processes=2, num_devices=1):
    """The processes of a job that trains four members for ten steps an epoch, in two groups."""
    shared = [f"--activations={folder / 'store'}", "--layer=0", "--position=0", "--k=3"]
    shared += [
        "--d_sae=16,60",
        "--normalize=none,center",
        "--batch_size=32",
        f"--output={output}",
        *flags,
    ]
    port = free_port()
    joins = [
        [f"--coordinator=127.0.0.1:{port}", f"--num_processes={num_processes}", f"--process_id={i}"]
        for i in range(num_processes)
    ]
    return [
        subprocess.Popen(
            [sys.executable, SCRIPT, *shared, *(join if num_processes > 1 else [])],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(folder, num_devices),
        )
        for join in joins
    ]


def ended(job):
    """Exit status, output and complaints of each process of a job."""
    try:
        return [(*process.communicate(timeout=PATIENCE), process.returncode) for process in job]
    finally:
        for process in job:
            process.kill()


def trained(folder, output, *flags, **job):
    """The sweep of a job that has to end well, and what each of its processes printed."""
    found = ended(started(folder, output, *flags, **job))
    assert [status for *_, status in found] == [0] * len(found), found
    return sae_jax.SweepResult.load(output), [printed for printed, *_ in found]


@pytest.fixture(scope="module")
def alone(folder):
    """The sweep as one process trains it."""
    return trained(folder, folder / "alone", "--epochs=6", num_processes=1)[0]


def assert_close(result, expected):
    for member, other in zip(result.members, expected.members, strict=True):
        assert member.config == other.config
        np.testing.assert_allclose(member.losses, other.losses, rtol=1e-5)
        variance = member.metrics["explained_variance"]
        assert variance == pytest.approx(other.metrics["explained_variance"], abs=5e-4)


def wait_for_checkpoint(output, job):
    while not list(output.parent.glob(f"{output.name}.checkpoints/group_*/[0-9]*")):
        assert all(process.poll() is None for process in job), ended(job)
        time.sleep(0.02)


@pytest.mark.parametrize(
    "flags", [["--mesh=members:2"], ["--mesh=data:2", "--stream"], ["--mesh=latents:2"]]
)
def test_two_processes_train_what_one_does_and_one_of_them_speaks(folder, alone, tmp_path, flags):
    log = f"--log_dir={tmp_path / 'log'}"
    result, printed = trained(folder, tmp_path / "run", "--epochs=6", log, *flags)
    assert_close(result, alone)
    assert str(tmp_path / "run" / "results.csv") in printed[0]
    assert [line for line in printed[1].splitlines() if "Gloo" not in line] == []
    assert len(list((tmp_path / "log").rglob("events.*"))) == len(alone)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["log", "run"]


def test_a_users_own_program_has_all_members_in_every_process(folder):
    port = str(free_port())
    job = [
        subprocess.Popen(
            [sys.executable, WORKER, port, str(i)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(folder)
            | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(WORKER.parent)])},
        )
        for i in range(2)
    ]
    outcomes = ended(job)
    assert [status for *_, status in outcomes] == [0, 0], outcomes
    first, second = (json.loads(printed.splitlines()[-1]) for printed, *_ in outcomes)
    assert first.pop("told") == ["compiling", "epoch", "epoch", "scored"]
    assert second.pop("told") == []
    assert first == second
    # Hosts that differ in their members read all rows, and those that share batches half of them.
    assert first["rows"] == {"members:2": [37, 8, 5], "data:2": [21, 4, 5]}
    expected = quietly(
        [SAEConfig(8, k=2, seed=seed) for seed in range(2)],
        samples(40),
        samples(20, seed=1),
        epochs=2,
        batch_size=16,
    )
    np.testing.assert_allclose(first["losses"], [m.losses for m in expected.members], rtol=1e-5)
    biases = [m.params["b_dec"] for m in expected.members]
    np.testing.assert_allclose(first["b_dec"], biases, rtol=1e-4, atol=1e-6)


def killed(folder, output, flags, victim, seconds):
    """Kills a process of two some time after the first checkpoint, and sees the other end.

    Returns:
      Whether the job was still at work when the process was killed.
    """
    job = started(folder, output, "--checkpoint_every=1", "--resume", *flags)
    wait_for_checkpoint(output, job)
    time.sleep(seconds)
    if job[victim].poll() is not None:
        return ended(job) == []
    job[victim].kill()
    began = time.monotonic()
    outcomes = ended(job)
    assert time.monotonic() - began < DEADLINE
    _, complaint, status = outcomes[1 - victim]
    assert status != 0
    last = complaint.splitlines()[-1]
    assert last.startswith(f"error: process {1 - victim} of 2 ended before the job was done")
    assert "Start all again with --resume" in last
    return True


def test_a_killed_process_ends_the_job_which_one_process_resumes(folder, alone, tmp_path):
    output = tmp_path / "run"
    assert killed(folder, output, ["--epochs=6"], victim=1, seconds=0)
    result, _ = trained(folder, output, "--epochs=6", "--resume", num_processes=1)
    assert_close(result, alone)


@pytest.mark.slow
def test_ten_kills_at_random_moments_leave_no_trace(folder, tmp_path):
    flags = ["--epochs=60", "--mesh=data:2"]
    expected = trained(folder, tmp_path / "whole", "--epochs=60", num_processes=1)[0]
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    moments = random.Random(seed)
    for i in range(10):
        output = tmp_path / f"run_{i}"
        seconds, victim = moments.uniform(0, 5), moments.randrange(2)
        print(f"process {victim} killed {seconds:.2f} s after the first checkpoint")
        killed(folder, output, flags, victim, seconds)
        if (output.parent / f"{output.name}.checkpoints").exists():
            job = {"num_processes": 1 + i % 2, "num_devices": 2 - i % 2}
            result, _ = trained(folder, output, "--resume", *flags, **job)
        else:
            result = sae_jax.SweepResult.load(output)
        assert_close(result, expected)


@pytest.mark.parametrize("num_before", [1, 2])
def test_sigterm_to_the_last_process_stops_all_and_others_resume(
    folder, alone, tmp_path, num_before
):
    output, flags = tmp_path / "run", ["--epochs=6", "--checkpoint_every=1"]
    job = started(folder, output, *flags, num_processes=num_before)
    wait_for_checkpoint(output, job)
    job[-1].terminate()
    outcomes = ended(job)
    assert [status for *_, status in outcomes] == [128 + signal.SIGTERM] * num_before
    assert "--resume continues" in outcomes[0][1]
    result = trained(folder, output, "--resume", *flags, num_processes=3 - num_before)[0]
    assert_close(result, alone)


def test_a_flag_that_is_missing_is_named(folder, tmp_path):
    for flags, message in (
        (["--coordinator=127.0.0.1:1"], "without --num_processes, --process_id; expected all"),
        (["--distributed"], "--distributed found no job"),
    ):
        (outcome,) = ended(started(folder, tmp_path / "run", *flags, num_processes=1))
        assert outcome[2] == 1
        assert outcome[1].splitlines()[-1].startswith("error: ")
        assert message in outcome[1]


class Service:
    """A coordination service of two processes that run one after the other."""

    def __init__(self, monkeypatch):
        self.words = {}
        self._patch = monkeypatch.setattr
        self._patch(processes.jax, "process_count", lambda: 2)
        self._patch(processes, "_client", lambda: self)

    def run_as(self, process, work):
        self._patch(processes.jax, "process_index", lambda: process)
        self._patch(processes, "_numbers", iter(range(100)))
        return work()

    def key_value_set(self, key, value, allow_overwrite=False):
        assert allow_overwrite or key not in self.words
        self.words[key] = value

    def blocking_key_value_get(self, key, timeout_in_ms):
        return self.words[key]


def test_a_word_of_process_0_is_everyones(monkeypatch):
    service = Service(monkeypatch)
    for process in (0, 1):
        words = service.run_as(process, lambda: [processes.of_main(lambda i=i: i) for i in (3, 1)])
        assert words == [3, 1]
    assert service.run_as(1, lambda: processes.of_main(lambda: 99)) == 3


def test_an_error_in_process_0_ends_the_others_too(monkeypatch):
    def fail():
        raise ValueError("no space")

    service = Service(monkeypatch)
    with pytest.raises(ValueError, match="no space"):
        service.run_as(0, lambda: processes.of_main(fail))
    with pytest.raises(processes.MainFailed, match="process 0 raised ValueError: no space"):
        service.run_as(1, lambda: processes.of_main(fail))


def test_other_inputs_than_those_of_process_0_are_refused_by_name(monkeypatch):
    service = Service(monkeypatch)
    service.run_as(0, lambda: processes.check_same({"configs": [1], "sizes": {(0, 1): 2}}))
    service.run_as(1, lambda: processes.check_same({"configs": [1], "sizes": {(0, 1): 2}}))
    with pytest.raises(ValueError, match="process 1 was given other sizes than process 0"):
        service.run_as(1, lambda: processes.check_same({"configs": [1], "sizes": {(0, 1): 3}}))


def test_a_folder_that_the_processes_do_not_share_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not see .*sweep.json, which process 0 wrote"):
        processes.check_sees(tmp_path / "sweep.json")
