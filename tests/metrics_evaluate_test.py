import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hyperparameters import TEMPLATE, hyperparameters
from metric_oracle import oracle
from random_saes import forward, random_params

from sae_jax.activations.matrix import OnDemand
from sae_jax.metrics.evaluate import evaluate_group

D_IN, WIDTH, N = 16, 20, 130
MEMBERS = [(20, 5), (11, 11), (14, 1)]


def samples(n=N):
    rng = np.random.default_rng(0)
    return (rng.normal(size=(n, D_IN)) + rng.normal(scale=5, size=D_IN)).astype(np.float32)


def padded_group():
    """Parameters of all members, and their stack, padded with zeros."""
    singles = [random_params(seed, D_IN, d_sae) for seed, (d_sae, _) in enumerate(MEMBERS)]
    singles[0]["b_enc"][3] = 0.0  # dead: it never reaches the five largest
    singles[0]["w_enc"][:, 3] = 0.0

    def padded(array, axis):
        widths = [(0, 0)] * array.ndim
        widths[axis] = (0, WIDTH - array.shape[axis])
        return np.pad(array, widths)

    stacked = {
        "w_enc_t": np.stack([padded(p["w_enc"].T, 0) for p in singles]),
        "b_enc": np.stack([padded(p["b_enc"], 0) for p in singles]),
        "w_dec": np.stack([padded(p["w_dec"], 0) for p in singles]),
        "b_dec": np.stack([p["b_dec"] for p in singles]),
    }
    return singles, jax.tree.map(jnp.asarray, stacked)


def evaluate(params, x, **options):
    hyper = hyperparameters(*[(d_sae, k, 0, 1e-3) for d_sae, k in MEMBERS])
    return evaluate_group(TEMPLATE, params, {}, hyper, x, **options)


def top_k(k):
    def keep(pre):
        kept = np.argsort(-np.abs(pre), axis=1, kind="stable")[:, :k]
        z = np.zeros_like(pre)
        np.put_along_axis(z, kept, np.take_along_axis(pre, kept, 1), 1)
        return z

    return keep


def coherence(w_dec, alive):
    rows = w_dec[alive] / np.linalg.norm(w_dec[alive], axis=1, keepdims=True)
    cosine = np.abs(rows @ rows.T)[~np.eye(len(rows), dtype=bool)]
    return {"decoder_coherence_max": cosine.max(), "decoder_coherence_mean": cosine.mean()}


@pytest.fixture(scope="module")
def scores():
    singles, stacked = padded_group()
    return singles, evaluate(stacked, samples())


@pytest.mark.parametrize("member", range(len(MEMBERS)))
def test_every_metric_equals_float64_of_the_member_alone(scores, member):
    singles, rows = scores
    params, (d_sae, k), x = singles[member], MEMBERS[member], samples()
    z, x_hat = forward(params, x, top_k(k))
    want = oracle(x, z, x_hat)
    want |= coherence(params["w_dec"].astype(np.float64), want["firing_rate"] > 0)
    assert rows[member].keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_allclose(rows[member][name], value, rtol=2e-5, atol=1e-6, err_msg=name)
    assert rows[member]["l0"] == pytest.approx(k, rel=1e-6)
    assert len(rows[member]["firing_rate"]) == d_sae
    assert isinstance(rows[member]["mse"], float)
    assert isinstance(rows[member]["num_alive"], int)


def test_padding_latents_enter_no_metric(scores):
    singles, rows = scores
    own = {"w_enc_t" if name == "w_enc" else name: a for name, a in singles[2].items()}
    own["w_enc_t"] = own["w_enc_t"].T
    (alone,) = evaluate_group(
        TEMPLATE,
        jax.tree.map(lambda a: jnp.asarray(a)[None], own),
        {},
        hyperparameters((14, 1, 0, 1e-3)),
        samples(),
    )
    for name, value in alone.items():
        np.testing.assert_allclose(rows[2][name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize(
    ("batch_size", "part_size"), [(1, None), (64, None), (1000, None), (64, 130), (64, 1)]
)
def test_neither_the_batch_size_nor_that_of_what_is_read_moves_a_metric(
    scores, batch_size, part_size
):
    _, stacked = padded_group()
    x = OnDemand((N, D_IN), samples().__getitem__)
    for got, want in zip(
        evaluate(stacked, x, batch_size=batch_size, part_size=part_size), scores[1], strict=True
    ):
        for name, value in want.items():
            np.testing.assert_allclose(got[name], value, rtol=1e-5, err_msg=name)


def test_a_member_that_is_nan_leaves_the_others_alone(scores):
    _, stacked = padded_group()
    stacked["w_enc_t"] = stacked["w_enc_t"].at[1].set(jnp.nan)
    got = evaluate(stacked, samples())
    assert np.isnan(got[1]["mse"])
    for member in (0, 2):
        for name, value in scores[1][member].items():
            np.testing.assert_array_equal(got[member][name], value, err_msg=name)
