"""Sparse probing: how well one latent, or five, tells problems with a property apart."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import StratifiedKFold
from sklearn.preprocessing import StandardScaler

NUM_FEATURES = (1, 5)
NUM_FOLDS = 5
# Weak enough to drop most features of a thousand, strong enough to keep five.
_L1_INVERSE_STRENGTH = 0.1

Features: TypeAlias = np.ndarray | sparse.sparray


def sparse_probing(
    z: Features,
    x: np.ndarray,
    properties: np.ndarray,
    names: Sequence[str],
    *,
    num_features: Sequence[int] = NUM_FEATURES,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Probes each property with few latents, few activation dimensions, and shuffled labels.

    An L1-regularized logistic regression on standardized features orders them by
    absolute weight; a plain one on the first few is scored by the area under the ROC
    curve (0.5 is chance). Both are fitted within each training fold.

    Args:
      z: latents `[n, F]`.
      x: activations that they encode, `[n, D]`.
      properties: which sample has which property, bool `[n, P]`.
      names: of the properties.
      num_features: how many features a probe may use.
      num_folds: of the stratified cross-validation.
      seed: of the folds and of the shuffled labels.

    Returns:
      One mapping for each property and number of features: `property`, `num_features`,
      `auc_latents`, `auc_activations`, `auc_permuted` (latents, labels shuffled), and
      `latents`, the ones chosen on all samples, strongest first. Where the selection keeps
      fewer features than a probe may use, the probe uses those, and of none it says nothing:
      its area is 0.5. The areas are NaN for a property that fewer than `num_folds` samples
      have or lack.

    References:
      Gurnee et al. 2023, "Finding Neurons in a Haystack", https://arxiv.org/abs/2305.01610
    """
    rng = np.random.default_rng(seed)
    rows = []
    for name, labels in zip(names, properties.T, strict=True):
        shuffled = rng.permutation(labels)
        of_latents = cross_validated_auc(z, labels, num_features, num_folds, seed)
        of_activations = cross_validated_auc(x, labels, num_features, num_folds, seed)
        of_shuffled = cross_validated_auc(z, shuffled, num_features, num_folds, seed)
        chosen = _strongest(_scaler(z).fit_transform(z), labels, max(num_features))
        rows += [
            {
                "property": name,
                "num_features": count,
                "auc_latents": of_latents[i],
                "auc_activations": of_activations[i],
                "auc_permuted": of_shuffled[i],
                "latents": chosen[:count].tolist(),
            }
            for i, count in enumerate(num_features)
        ]
    return rows


def cross_validated_auc(
    features: Features,
    labels: np.ndarray,
    num_features: Sequence[int] = NUM_FEATURES,
    num_folds: int = NUM_FOLDS,
    seed: int = 0,
) -> list[float]:
    """Mean area under the ROC curve on held-out folds, one for each of `num_features`.

    See `sparse_probing`; `features` is `[n, F]` and `labels` bool `[n]`.
    """
    if min(labels.sum(), (~labels).sum()) < num_folds:
        return [float("nan")] * len(num_features)
    rows = sparse.csr_array(features) if sparse.issparse(features) else features
    folds = StratifiedKFold(num_folds, shuffle=True, random_state=seed)
    areas: list[list[float]] = []
    for train, test in folds.split(np.zeros(len(labels)), labels):
        scaler = _scaler(features)
        fitted, held_out = scaler.fit_transform(rows[train]), scaler.transform(rows[test])
        order = _strongest(fitted, labels[train], max(num_features))
        areas.append([])
        for count in num_features:
            if not order.size:
                areas[-1].append(0.5)
                continue
            probe = LogisticRegression().fit(fitted[:, order[:count]], labels[train])
            score = probe.decision_function(held_out[:, order[:count]])
            areas[-1].append(roc_auc_score(labels[test], score))
    return np.mean(areas, axis=0).tolist()


def _scaler(features: Features) -> StandardScaler:
    # Centering would fill a sparse matrix.
    return StandardScaler(with_mean=not sparse.issparse(features))


def _strongest(features: Features, labels: np.ndarray, count: int) -> np.ndarray:
    """At most `count` columns that an L1-regularized logistic regression keeps, strongest first."""
    if labels.all() or not labels.any():
        return np.empty(0, np.int64)
    selector = LogisticRegression(l1_ratio=1, C=_L1_INVERSE_STRENGTH, solver="liblinear")
    weights = selector.fit(features, labels).coef_[0]
    order = np.argsort(-np.abs(weights), kind="stable")[:count]
    return order[weights[order] != 0]
