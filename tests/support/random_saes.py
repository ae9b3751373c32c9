"""Random SAEs with what formats tend to lose, and what they compute, in NumPy."""

import numpy as np

from sae_jax.architectures.batch_topk import BatchTopKSAE
from sae_jax.architectures.gated import GatedSAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.matryoshka import MatryoshkaSAE
from sae_jax.architectures.relu import ReLUSAE
from sae_jax.architectures.topk import TopKSAE


def random_params(seed, d_in=8, d_sae=24):
    """Parameters with all biases set and decoder norms from 0.1 to 10."""
    rng = np.random.default_rng(seed)
    w_dec = rng.normal(size=(d_sae, d_in))
    norms = 10.0 ** rng.uniform(-1, 1, size=(d_sae, 1))
    params = {
        "w_enc": rng.normal(size=(d_in, d_sae)) / np.sqrt(d_in),
        "b_enc": rng.normal(size=d_sae) * 0.3,
        "w_dec": w_dec / np.linalg.norm(w_dec, axis=1, keepdims=True) * norms,
        "b_dec": rng.normal(size=d_in),
    }
    return {name: array.astype(np.float32) for name, array in params.items()}


def random_topk(seed=0, d_in=8, d_sae=24, k=5, **options):
    return TopKSAE(random_params(seed, d_in, d_sae), k, **options)


def random_jumprelu(seed=0, d_in=8, d_sae=24, **options):
    rng = np.random.default_rng(seed + 1000)
    threshold = rng.uniform(0.0, 0.5, size=d_sae).astype(np.float32)
    return JumpReLUSAE(random_params(seed, d_in, d_sae), threshold, **options)


def samples(seed=0, d_in=8, n=64):
    rng = np.random.default_rng(seed + 2000)
    return (rng.normal(size=(n, d_in)) * 2.0 + 0.5).astype(np.float32)


def forward(params, x, activate, *, center=False, normalize=False):
    """Latents and reconstructions in float64; `activate` maps pre-activations to latents."""
    p = {name: np.asarray(array, np.float64) for name, array in params.items()}
    x = np.asarray(x, np.float64)
    mean, std = np.mean(x, axis=1, keepdims=True), np.std(x, axis=1, ddof=1, keepdims=True)
    h = (x - mean) / (std + 1e-5) if normalize else x
    h = h - p["b_dec"] if center else h
    z = activate(h @ p["w_enc"] + p["b_enc"])
    x_hat = z @ p["w_dec"] + p["b_dec"]
    return z, x_hat * std + mean if normalize else x_hat


def keep_largest(k, rule):
    """The top-k activation of either rule, by sorting."""

    def activate(pre):
        ranked = np.abs(pre) if rule == "abs" else np.maximum(pre, 0.0)
        kept = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
        z = np.zeros_like(pre)
        np.put_along_axis(z, kept, np.take_along_axis(pre, kept, axis=1), axis=1)
        return z if rule == "abs" else np.maximum(z, 0.0)

    return activate


def jump(threshold):
    """The JumpReLU activation."""
    return lambda pre: np.where((pre > threshold) & (pre > 0.0), pre, 0.0)


def random_gates(seed=0, d_sae=24):
    """Gate and magnitude parameters of a gated SAE, by the names of SAELens."""
    rng = np.random.default_rng(seed + 3000)
    return {
        "b_gate": (rng.normal(size=d_sae) * 0.3).astype(np.float32),
        "b_mag": (rng.normal(size=d_sae) * 0.3).astype(np.float32),
        "r_mag": (rng.normal(size=d_sae) * 0.5).astype(np.float32),
    }


def gate(gates):
    """The gated activation, of pre-activations without a bias (arXiv:2404.16014, eq. 6 to 8)."""
    b_gate, b_mag, r_mag = (gates[name].astype(np.float64) for name in ("b_gate", "b_mag", "r_mag"))

    def activate(pre):
        return (pre + b_gate > 0.0) * np.maximum(pre * np.exp(r_mag) + b_mag, 0.0)

    return activate


def random_saes(seed=0, d_in=8, d_sae=24, d_out=None, **options):
    """One SAE of every kind that a penalty or a whole batch makes sparse, by its architecture."""
    params = random_params(seed, d_in, d_sae)
    if d_out is not None:
        params |= {name: random_params(seed, d_out, d_sae)[name] for name in ("w_dec", "b_dec")}
    gates, threshold = random_gates(seed, d_sae), random_jumprelu(seed, d_in, d_sae).threshold[...]
    prefixes = {"prefix_sizes": (d_sae // 4, d_sae)}
    return {
        "batch_topk": BatchTopKSAE(params, 0.7, k=5, **options),
        "matryoshka": MatryoshkaSAE(params, 0.7, k=5, **prefixes, **options),
        "jumprelu": JumpReLUSAE(params, threshold, **options),
        "gated": GatedSAE(
            params | {"b_enc": gates["b_gate"]}, gates["b_mag"], gates["r_mag"], **options
        ),
        "relu": ReLUSAE(params, **options),
    }


def activation_of(sae):
    """What an SAE makes of pre-activations, by its class and its own arrays; see `forward`."""
    if isinstance(sae, GatedSAE):
        # Pre-activations come with the gate's bias, which the magnitudes do without.
        b_gate = np.asarray(sae.b_enc[...], np.float64)
        own = {"b_mag": np.asarray(sae.b_mag[...]), "r_mag": np.asarray(sae.r_mag[...])}
        activate = gate(own | {"b_gate": b_gate})
        return lambda pre: activate(pre - b_gate)
    return jump(np.asarray(sae.threshold[...]) if hasattr(sae, "threshold") else 0.0)
