"""Programs are compiled once, on another thread where that saves waiting, and are counted."""

import threading
from contextlib import contextmanager

import jax
import numpy as np
import pytest
from sweeps import samples
from virtual_devices import on_eight_devices

from sae_jax import SAEConfig, TrainConfig, grid, train_sweep
from sae_jax.sweep.compilations import counted_compilations

PROGRAMS = {"init_group": 2, "train_epoch": 2, "group_sums": 1, "group_coherence": 1}


@contextmanager
def compilations():
    """Names of the programs that are compiled, and whether on the thread that trains."""
    found, trains = [], threading.get_ident()

    def listen(event, seconds, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            found.append((fun_name, threading.get_ident() == trains))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def of(found, program):
    """On which threads a program was compiled."""
    return [trains for name, trains in found if program in name]


@pytest.mark.parametrize("normalize", ["none", "center_and_scale"])
def test_every_group_takes_programs_that_were_compiled_for_its_shapes(normalize):
    # Widths of their own, so that no other test has compiled the same.
    width = 21 if normalize == "none" else 22
    configs = [
        *grid(d_sae=width, k=(2, 3), normalize=normalize, layer=(0, 1), position=0),
        SAEConfig(width + 10, 2, normalize=normalize, layer=0, position=0),
    ]
    x = {(layer, 0): samples(160, 13, seed=layer) + 1 for layer in (0, 1)}
    with compilations() as found:
        result = train_sweep(configs, x, x, TrainConfig(epochs=1, batch_size=32), progress=False)
    assert len(result.members) == 5
    # Of three groups two, of equal shapes, share their programs, and all are scored alike.
    for program, number in PROGRAMS.items():
        assert len(of(found, program)) == number, found
    assert not any(of(found, "group_sums")), "the thread that trains should not compile scores"


def test_targets_have_programs_of_their_own_shapes():
    x, y = samples(160, 11), samples(160, 17, seed=1)
    arguments = {"targets": y, "val_targets": y, "progress": False}
    with compilations() as found:
        train_sweep([SAEConfig(23, 2)], x, x, TrainConfig(epochs=1, batch_size=32), **arguments)
    for program in PROGRAMS:
        assert len(of(found, program)) == 1, found


def test_on_several_devices_nothing_is_compiled_twice():
    counts = on_eight_devices("compilations")
    # Scores of both have the same shapes.
    assert counts == dict.fromkeys(PROGRAMS, 2) | {"group_coherence": 1}, counts


def test_compilations_are_counted():
    with counted_compilations() as counted:
        double = jax.jit(lambda x: 2 * x)
        double(np.ones(29, np.float32)), double(np.ones(29, np.float32))
        thread = threading.Thread(target=double, args=(np.ones(31, np.float32),))
        thread.start()
        thread.join()
    jax.jit(lambda x: 3 * x)(np.ones(29, np.float32))
    assert counted.count == 2
    assert 0 < counted.waited < counted.seconds
    assert str(counted).startswith("compiled 2 programs in ")


def test_a_sweep_says_what_it_compiled(capfd):
    x = samples(64, 9)
    train_sweep([SAEConfig(25, 2)], x, x, TrainConfig(epochs=1, batch_size=32))
    assert "programs in" in capfd.readouterr().err.splitlines()[-1]


def test_an_optimizer_that_fails_fails_the_sweep():
    def broken(rate):
        raise RuntimeError("no such optimizer")

    x = samples(64, 9)
    with pytest.raises(RuntimeError, match="no such optimizer"):
        train_sweep(
            [SAEConfig(26, 2)], x, x, TrainConfig(epochs=1), optimizer=broken, progress=False
        )
