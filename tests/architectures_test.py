import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from random_saes import forward, random_jumprelu, random_params, random_topk, samples

from sae_jax import JumpReLUSAE, TopKSAE
from sae_jax.architectures.initialization import init_params

D_IN, D_SAE = 64, 150


@pytest.fixture(scope="module")
def fresh():
    return {k: np.asarray(v) for k, v in init_params(jax.random.key(0), D_IN, D_SAE, 200).items()}


def test_initialization_is_uniform_within_linear_layers_bounds(fresh):
    """`torch.nn.Linear`: uniform on (-1/sqrt(fan_in), 1/sqrt(fan_in)), variance bound^2 / 3."""
    for name, fan_in in (("w_enc", D_IN), ("b_enc", D_IN), ("b_dec", D_SAE)):
        real = fresh[name][..., :D_SAE]
        bound = fan_in**-0.5
        assert np.abs(real).max() < bound
        assert np.abs(real).max() > 0.93 * bound
        num = real.size
        # Standard errors of the mean, and of the variance, of `num` uniform numbers.
        assert abs(real.mean()) < 4 * bound / np.sqrt(3 * num)
        assert abs(real.var() / (bound**2 / 3) - 1) < 4 * np.sqrt(0.8 / num)


def test_decoder_rows_start_as_unit_vectors_in_uniform_proportions(fresh):
    rows = fresh["w_dec"][:D_SAE]
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1.0, rtol=1e-6)
    # Entries of scaled uniform vectors have kurtosis 9/5; those of normal vectors, 3.
    kurtosis = (rows**4).mean() / (rows**2).mean() ** 2
    assert abs(kurtosis - 1.8) < 0.1


def test_padding_latents_are_zero(fresh):
    assert fresh["w_enc"].shape == (D_IN, 200)
    assert not fresh["w_enc"][:, D_SAE:].any()
    assert not fresh["b_enc"][D_SAE:].any()
    assert not fresh["w_dec"][D_SAE:].any()


@pytest.mark.parametrize("width", [D_SAE, 512])
def test_the_draw_does_not_depend_on_the_width(fresh, width):
    other = init_params(jax.random.key(0), D_IN, D_SAE, width)
    np.testing.assert_array_equal(other["w_enc"][:, :D_SAE], fresh["w_enc"][:, :D_SAE])
    np.testing.assert_array_equal(other["b_enc"][:D_SAE], fresh["b_enc"][:D_SAE])
    np.testing.assert_array_equal(other["w_dec"][:D_SAE], fresh["w_dec"][:D_SAE])
    np.testing.assert_array_equal(other["b_dec"], fresh["b_dec"])


def test_seeds_and_parameters_are_drawn_independently(fresh):
    other = init_params(jax.random.key(1), D_IN, D_SAE, D_SAE)
    pairs = [
        (fresh["w_enc"][:, :D_SAE].T, fresh["w_dec"][:D_SAE]),
        (fresh["w_enc"][:, :D_SAE], np.asarray(other["w_enc"])),
        (fresh["w_dec"][: D_SAE - 1], fresh["w_dec"][1:D_SAE]),
    ]
    for a, b in pairs:
        correlation = np.corrcoef(a.ravel(), b.ravel())[0, 1]
        assert abs(correlation) < 4 / np.sqrt(a.size)


def test_hand_computed_forward_keeps_signs_and_does_not_center():
    params = {
        "w_enc": np.array([[1.0, 0.0, 2.0], [0.0, 1.0, 0.0]], np.float32),
        "b_enc": np.array([0.0, -5.0, 0.5], np.float32),
        "w_dec": np.array([[1.0, 1.0], [0.0, 2.0], [3.0, 0.0]], np.float32),
        "b_dec": np.array([10.0, 20.0], np.float32),
    }
    # pre = (1, 1 - 5, 2 + 0.5); the two largest magnitudes are those of latents 1 and 2.
    sae = TopKSAE(params, k=2)
    z = sae.encode(jnp.array([[1.0, 1.0]]))
    np.testing.assert_array_equal(z, [[0.0, -4.0, 2.5]])
    np.testing.assert_array_equal(sae.decode(z), [[7.5 + 10.0, -8.0 + 20.0]])


def test_forward_equals_float64_and_any_leading_axes():
    params, x = random_params(0), samples()
    sae = TopKSAE(params, k=5)

    def keep_5(pre):
        z = np.zeros_like(pre)
        kept = np.argsort(-np.abs(pre), axis=1, kind="stable")[:, :5]
        np.put_along_axis(z, kept, np.take_along_axis(pre, kept, 1), 1)
        return z

    z, x_hat = forward(params, x, keep_5)
    np.testing.assert_allclose(sae.encode(x), z, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(sae(x), x_hat, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sae(x.reshape(4, 16, 8)).reshape(64, 8), sae(x), rtol=1e-6)


def test_relu_rule_ranks_what_a_relu_leaves():
    pre = jnp.array([[-9.0, 1.0, 3.0, 2.0], [-1.0, -2.0, 5.0, -3.0]])
    z = random_topk(d_sae=4, k=2, rule="relu").activate(pre)
    np.testing.assert_array_equal(z, [[0, 0, 3, 2], [0, 0, 5, 0]])


def test_jump_relu_keeps_positive_latents_above_their_threshold():
    sae = JumpReLUSAE(random_params(0, d_sae=4), np.array([0.5, 0.5, -2.0, 1.0], np.float32))
    pre = jnp.array([[0.4, 0.6, -1.0, 1.0]])
    np.testing.assert_array_equal(sae.activate(pre), np.array([[0.0, 0.6, 0.0, 0.0]], np.float32))


def numpy_jacobian(params, x, z):
    """Of the reconstruction of one sample: the decoder rows that fire, times the encoder's."""
    fires = np.asarray(z) != 0
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    return p["w_dec"][fires].T @ p["w_enc"][:, fires].T


DERIVATIVES = {
    "jacfwd": lambda sae, x: jax.jacfwd(sae)(x),
    "jacrev": lambda sae, x: jax.jacrev(sae)(x),
    "jvp": lambda sae, x: jax.vmap(lambda t: jax.jvp(sae, (x,), (t,))[1])(jnp.eye(8)).T,
    "linearize": lambda sae, x: jax.vmap(jax.linearize(sae, x)[1])(jnp.eye(8)).T,
    "jit": lambda sae, x: jax.jit(jax.jacfwd(sae))(x),
    "vmap": lambda sae, x: jax.vmap(jax.jacfwd(sae))(jnp.stack([2 * x, x]))[1],
    "steps": lambda sae, x: jax.jacfwd(lambda x: sae.decode(sae.encode(x)))(x),
}


@pytest.mark.parametrize("derivative", DERIVATIVES.values(), ids=DERIVATIVES)
@pytest.mark.parametrize("rule", ["abs", "relu"])
def test_derivatives_in_the_samples_are_products_of_the_latents_that_fire(derivative, rule):
    params, x = random_params(0), samples()[0]
    sae = TopKSAE(params, k=5, rule=rule)
    expected = numpy_jacobian(params, x, sae.encode(x))
    np.testing.assert_allclose(derivative(sae, jnp.asarray(x)), expected, rtol=1e-4, atol=1e-4)


def test_derivatives_of_a_jump_relu():
    sae = random_jumprelu()
    x = jnp.asarray(samples()[0])
    expected = numpy_jacobian(sae.params, x, sae.encode(x))
    for derivative in (jax.jacfwd, jax.jacrev):
        np.testing.assert_allclose(derivative(sae)(x), expected, rtol=1e-4, atol=1e-4)


def test_second_derivatives_of_the_error():
    """Where the latents that fire do not change, |x_hat - x|^2 is quadratic: 2 (J - 1)' (J - 1)."""
    params, x = random_params(0), samples()[0]
    sae = TopKSAE(params, k=5)
    gap = numpy_jacobian(params, x, sae.encode(x)) - np.eye(8)

    def error(x):
        return jnp.sum((sae(x) - x) ** 2)

    for hessian in (jax.hessian(error), jax.jacfwd(jax.jacfwd(error)), jax.jacrev(jax.grad(error))):
        np.testing.assert_allclose(hessian(jnp.asarray(x)), 2 * gap.T @ gap, rtol=1e-3, atol=1e-3)


def test_bfloat16_derivatives_are_those_of_rounded_operands():
    params, x = random_params(0), samples()[0]
    sae = TopKSAE(params, k=5, dtype=jnp.bfloat16)
    expected = numpy_jacobian(params, x, sae.encode(x))
    for derivative in (jax.jacfwd, jax.jacrev):
        found = derivative(sae)(jnp.asarray(x))
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, rtol=0, atol=0.03 * np.abs(expected).max())


@pytest.mark.parametrize("dtype", ["tf32", "float32", np.float32, jnp.float32])
def test_on_a_cpu_every_name_of_float32_is_float32(dtype):
    params, x = random_params(0), samples()
    np.testing.assert_array_equal(TopKSAE(params, 5, dtype=dtype)(x), TopKSAE(params, 5)(x))


@pytest.mark.parametrize("dtype", ["float16", np.float64, "tensorfloat32"])
def test_refused_dtype(dtype):
    with pytest.raises(ValueError, match=r"dtype is '.*'; allowed are \('float32', 'tf32', 'bf"):
        TopKSAE(random_params(0), 5, dtype=dtype)


def test_params_are_returned_as_they_were_given():
    params = random_params(3)
    sae = TopKSAE(params, k=2)
    assert (sae.d_in, sae.d_sae, sae.k) == (8, 24, 2)
    for name, value in sae.params.items():
        np.testing.assert_array_equal(value, params[name])


def test_normalized_input_needs_the_samples_to_decode():
    sae = random_topk(normalize_input=True)
    with pytest.raises(ValueError, match="needs the samples x"):
        sae.decode(jnp.zeros((2, 24)))


def changed(**arrays):
    return {**random_params(0), **arrays}


@pytest.mark.parametrize(
    ("params", "k", "options", "message"),
    [
        (random_params(0), 25, {}, "k is 25; allowed is 1 to d_sae = 24"),
        (random_params(0), 0, {}, "k is 0; allowed is 1 to d_sae = 24"),
        (random_params(0), 3, {"rule": "max"}, "rule is 'max'; allowed are 'abs' and 'relu'"),
        (changed(b_dec=np.zeros(7)), 3, {}, r"'b_dec': \(7,\).*w_enc calls for.*'b_dec': \(8,\)"),
        (changed(w_enc=np.zeros(24)), 3, {}, r"w_enc has shape \(24,\); expected \[d_in, d_sae\]"),
        (changed(extra=np.zeros(1)), 3, {}, r"parameters are .*'extra'.*; expected"),
        ({"w_enc": np.zeros((8, 24))}, 3, {}, r"parameters are \['w_enc'\]; expected"),
    ],
)
def test_refused(params, k, options, message):
    with pytest.raises(ValueError, match=message):
        TopKSAE(params, k, **options)


def test_refused_threshold():
    with pytest.raises(ValueError, match=r"threshold has shape \(3,\); expected \(24,\)"):
        JumpReLUSAE(random_params(0), np.zeros(3))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (np.zeros((3, 5), np.float32), r"x has shape \(3, 5\); expected \[..., 8\], as d_in of"),
        (np.float32(1.0), r"x has shape \(\); expected \[..., 8\]"),
        (torch.zeros(3, 8), r"x is a torch.Tensor; expected an array .*, such as x.numpy\(\)"),
        ("runs/store", r"x is 'runs/store'; expected an array \[..., d_in\]"),
    ],
)
def test_what_is_no_sample_is_refused(x, message):
    with pytest.raises(ValueError, match=message):
        random_topk(0, 8, 12, 3).encode(x)


def test_what_is_no_latent_is_refused():
    with pytest.raises(ValueError, match=r"z has shape \(3, 8\); expected \[..., 12\], as d_sae"):
        random_topk(0, 8, 12, 3).decode(np.zeros((3, 8), np.float32))
