"""The metrics by their definitions, in float64 NumPy, and samples to try them on."""

import numpy as np


def largest_percent(x):
    """The rows that an evaluation leaves out of `fvu_without_outliers`."""
    order = np.argsort(-np.linalg.norm(np.asarray(x, np.float64), axis=1), kind="stable")
    return np.isin(np.arange(len(x)), order[: max(1, len(x) // 100)])


def oracle(x, z, x_hat, outliers=None):
    """The definitions, in float64 NumPy."""
    outliers = largest_percent(x) if outliers is None else outliers
    x, z, x_hat = (np.asarray(a, np.float64) for a in (x, z, x_hat))
    residual = x - x_hat
    active = z != 0
    firing_rate = active.mean(axis=0)
    deviation = (x - x.mean(axis=0)) ** 2
    unexplained = (residual**2).sum() / deviation.sum()
    inliers = x[~outliers]
    norms = np.linalg.norm(x, axis=1) * np.linalg.norm(x_hat, axis=1)
    return {
        "mse": (residual**2).mean(),
        "explained_variance": 1 - residual.var(ddof=1) / x.var(ddof=1),
        "fvu": unexplained,
        "r2": 1 - unexplained,
        "fvu_without_outliers": (residual[~outliers] ** 2).sum()
        / ((inliers - inliers.mean(axis=0)) ** 2).sum(),
        "outlier_variance_share": deviation[outliers].sum() / deviation.sum(),
        "cosine_similarity": ((x * x_hat).sum(axis=1) / norms).mean(),
        "l0": active.sum(axis=1).mean(),
        "dead_fraction": (firing_rate == 0).mean(),
        "num_alive": (firing_rate > 0).sum(),
        "almost_dead_fraction": ((firing_rate > 0) & (firing_rate < 0.005)).mean(),
        "mean_activation": np.abs(z[active]).mean(),
        "max_activation": np.abs(z).max(),
        "explained_variance_dictionary_learning": 1
        - residual.var(axis=0, ddof=1).sum() / x.var(axis=0, ddof=1).sum(),
        "firing_rate": firing_rate,
        "mean_magnitude": np.abs(z).mean(axis=0),
    }


def samples(seed=0, n=700, d_in=24, d_sae=40, k=4):
    """Activations with a large offset, and a made-up SAE's signed latents of them."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(n, d_in)) + rng.normal(scale=20, size=d_in)).astype(np.float32)
    z = rng.normal(size=(n, d_sae)).astype(np.float32)
    z *= np.argsort(np.argsort(-np.abs(z), axis=1), axis=1) < k
    z[:, 7] = 0  # dead
    z[:, 8] = 0
    z[3, 8] = -0.5  # almost dead: 1 of 700
    x_hat = (x + rng.normal(scale=0.3, size=x.shape) + 0.1).astype(np.float32)
    return x, z, x_hat
