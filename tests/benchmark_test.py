import jax.numpy as jnp
import numpy as np
import products
import pytest
import scaling
import torch
import torch_reference
import wall_clock
from sweeps import batches, samples
from workload import PUBLISHED_SIZES

from sae_jax.metrics import quality
from sae_jax.report import reference
from sae_jax.sweep.estimate import Work

D_IN, D_SAE, K, N = 12, 24, 4, 70


def losses(sae, x, *, fused=True, loss_of=torch_reference.loss_of):
    """The loss before each step of two epochs."""
    params = sae.parameters() if isinstance(sae, torch.nn.Module) else sae.values()
    optimizer = torch_reference.adam(params, 1e-3, fused=fused)
    rows = [torch.tensor(rows) for rows in batches(N, 16, epochs=2)]
    return torch.stack(
        [torch_reference.step(sae, optimizer, torch.tensor(x)[r], loss_of) for r in rows]
    ).numpy()


def saes(count):
    torch.manual_seed(0)
    params = [torch_reference.random_params(D_IN, D_SAE) for _ in range(count)]
    return [torch_reference.TorchTopKSAE(one, K) for one in params]


def test_fused_adam_and_autocast_train_as_the_lean_loop():
    x = samples(N)
    plain = losses(*saes(1), x, fused=False)
    assert plain[-1] < 0.99 * plain[0]
    np.testing.assert_allclose(losses(*saes(1), x), plain, rtol=1e-5)
    autocast = losses(*saes(1), x, loss_of=torch_reference.autocast_loss_of)
    np.testing.assert_allclose(autocast, plain, rtol=2e-2)
    assert np.abs(autocast - plain).max() > 1e-6 * plain.max()  # Products were rounded.


def test_the_ensemble_trains_each_member_as_a_loop_would():
    x = samples(N)
    stacked, losses_of = torch_reference.ensemble(saes(3))
    alone = [losses(sae, x) for sae in saes(3)]
    together = losses(stacked, x, loss_of=losses_of)
    np.testing.assert_allclose(together, np.stack(alone, axis=1), rtol=1e-5)


def test_scores_in_torch_are_those_of_the_metrics():
    x = samples(N) + 3
    x[:, 0] *= 5
    (sae,) = saes(1)
    with torch.no_grad():
        sae.encoder.weight[:3] = 0.0  # Three latents that never fire.
        sae.encoder.bias[:3] = 0.0
        z = sae.encode(torch.tensor(x))
        x_hat = sae.decode(z)
    want = quality.score(*(jnp.asarray(part.numpy()) for part in (torch.tensor(x), z, x_hat)))
    got = torch_reference.scores(sae.encode, sae.decode, torch.tensor(x))
    assert got["dead_fraction"] >= 3 / D_SAE
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name], rtol=1e-4, err_msg=name)


def test_the_sizes_are_those_of_the_published_grid():
    assert list(PUBLISHED_SIZES) == [(c.d_sae, c.k) for c in reference.grid(num_seeds=1)]


def test_the_table_has_every_published_member():
    x = np.tile(samples(40, d_in=16), (2, 1))
    table = wall_clock.torch_table("PyTorch loop, fused Adam", x[:64], x[64:], epochs=1)
    assert [line["l0"] for line in table] == [k for _, k in PUBLISHED_SIZES]


def test_the_line_of_growth_is_that_of_the_seconds_of_an_epoch():
    def row(name, size, seconds):
        shape = {"members": 2, "num_samples": 90, "batch_size": 40}
        ms = 1e3 * seconds / (2 * 3)
        return shape | {"contender": name, "d_sae": size, "ms_per_member_step": ms}

    sizes = (100, 200, 400)
    rows = [row("straight", size, 0.5 + 0.01 * size) for size in sizes]
    rows += [row("bent", size, size**2) for size in sizes]
    straight, bent = scaling.fit_rows(rows, "d_sae")
    assert (straight["contender"], bent["contender"]) == ("straight", "bent")
    assert straight["a"] == pytest.approx(0.5)
    assert straight["b"] == pytest.approx(0.01)
    assert straight["largest_relative_error"] < 1e-6
    assert bent["largest_relative_error"] > 0.1


def test_the_seconds_of_each_kind_of_work_are_found_again():
    rng = np.random.default_rng(0)
    true = np.array(rng.uniform(1, 2, len(Work._fields))) * 10.0 ** -np.arange(len(Work._fields))
    works = [Work(*rng.uniform(1, 10, len(true)) / true) for _ in range(20)]
    seconds = np.array(works) @ true
    found = scaling.fitted(works, seconds.tolist(), true)
    np.testing.assert_allclose(found, true, rtol=1e-6)
    found = scaling.fitted(works, seconds.tolist(), 1.3 * true)
    np.testing.assert_allclose(np.array(works) @ found, seconds, rtol=0.02)
    assert np.abs(found / true - 1).mean() < 0.15


def test_products_are_multiplied_and_their_rate_counted(monkeypatch):
    monkeypatch.setattr(products, "_NUM_PRODUCTS", 2)

    def all_in_half_a_second(runs):
        for run in runs.values():
            run()
            run()  # The results of the first are given up.
        return dict.fromkeys(runs, 0.5)

    rows = products.product_rows((24,), all_in_half_a_second)
    assert len(rows) == 3 * 2
    # Two products of 2 * 512 * 24 * 256 operations each, on the one device of these tests.
    expected = 2 * 6_291_456 / 0.5 / 1e9
    for row in rows:
        assert (row["XLA_gflops"], row["PyTorch_gflops"]) == pytest.approx((expected, expected))
