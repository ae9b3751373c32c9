import os
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sae_jax.activations.locks import lock, lock_beside

LOCKS = {"lock": lock, "lock_beside": lock_beside}

HOLDER = """
import sys, time
from sae_jax.activations import locks
with getattr(locks, sys.argv[1])(sys.argv[2]):
    print("held", flush=True)
    time.sleep(60)
"""


def hold(kind: str, path: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, kind, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


@pytest.mark.parametrize("kind", LOCKS)
def test_another_process_is_refused_until_the_holder_is_killed(kind, tmp_path):
    path = tmp_path / "run"
    process = hold(kind, path)
    try:
        with pytest.raises(ValueError, match=rf"another process is writing to {path}$"):
            LOCKS[kind](path).__enter__()
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    with LOCKS[kind](path):
        pass
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_name_and_a_link_to_it_are_one_place(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    for kind in LOCKS.values():
        with kind(tmp_path / "run"), pytest.raises(ValueError, match="another process"):
            kind(tmp_path / "link").__enter__()


def test_what_a_lock_is_beside_may_be_replaced(tmp_path):
    with lock_beside(tmp_path / "run"):
        (tmp_path / "run").mkdir()
        (tmp_path / "run").rename(tmp_path / "old")
        with pytest.raises(ValueError, match="another process"):
            lock_beside(tmp_path / "run").__enter__()


def test_a_locked_folder_may_be_removed(tmp_path):
    with lock(tmp_path / "run"):
        shutil.rmtree(tmp_path / "run")
        with lock(tmp_path / "run"):
            pass
        with lock(tmp_path / "other"):
            (tmp_path / "other").rename(tmp_path / "run")
    assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "run").write_text("keep me")
    with pytest.raises(ValueError, match="run is a file; expected a folder"):
        lock(tmp_path / "run").__enter__()
    assert (tmp_path / "run").read_text() == "keep me"


def test_there_is_never_more_than_one_holder(tmp_path):
    """Holders come and go, and remove the file, while others try."""
    holders, most, turns = [], [], []

    def work() -> None:
        while len(turns) < 200:
            try:
                with lock(tmp_path):
                    holders.append(1)
                    most.append(len(holders))
                    os.sched_yield()
                    holders.pop()
                    turns.append(1)
            except ValueError:
                os.sched_yield()

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert max(most) == 1
