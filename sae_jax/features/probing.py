"""Sparse probing: how well one latent, or five, tell whether a problem has a property."""

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
# Drops most of a thousand features, and still keeps five.
_L1_INVERSE_STRENGTH = 0.1

Features: TypeAlias = np.ndarray | sparse.sparray


def sparse_probing(
    z: Features,
    x: np.ndarray,
    properties: np.ndarray,
    names: Sequence[str],
    *,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """Probes each property with few latents, few activation dimensions, and shuffled labels.

    An L1-regularized logistic regression on standardized features orders them by absolute
    weight. A plain one on the first few is scored by the area under the ROC curve (0.5 is
    chance), averaged over the held-out folds of a stratified cross-validation with 5 folds. Both
    are fitted within each training fold.

    Args:
      z: latents, `[n, F]`.
      x: activations that they encode, `[n, D]`.
      properties: which sample has which property, bool `[n, P]`.
      names: names of the properties, P of them.
      seed: PRNG seed of the folds and of the shuffled labels.

    Returns:
      One mapping for each property and number of features (1 and 5): `property`, `num_features`,
      `auc_latents`, `auc_activations`, `auc_permuted` (on latents, with shuffled labels), and
      `latents`, the ones chosen on all samples, strongest first. If the selection keeps fewer
      features than a probe may use, the probe uses those; if it keeps none, the area is 0.5. The
      areas are NaN for a property that fewer than 5 samples have, or fewer than 5 lack.

    References:
      Gurnee et al. 2023, "Finding Neurons in a Haystack", https://arxiv.org/abs/2305.01610
    """
    rng = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for name, labels in zip(names, properties.T, strict=True):
        shuffled = rng.permutation(labels)
        areas = {
            "auc_latents": cross_validated_auc(z, labels, seed),
            "auc_activations": cross_validated_auc(x, labels, seed),
            "auc_permuted": cross_validated_auc(z, shuffled, seed),
        }
        chosen = _strongest(_scaler(z).fit_transform(z), labels)
        rows += [
            {"property": name, "num_features": count}
            | {column: area[i] for column, area in areas.items()}
            | {"latents": chosen[:count].tolist()}
            for i, count in enumerate(NUM_FEATURES)
        ]
    return rows


def cross_validated_auc(features: Features, labels: np.ndarray, seed: int = 0) -> list[float]:
    """Mean area under the ROC curve on held-out folds, of probes as in `sparse_probing`.

    Args:
      features: latents or activations, `[n, F]`.
      labels: whether each sample has the property, bool `[n]`.
      seed: PRNG seed of the folds.

    Returns:
      The area with one feature, and that with five.
    """
    if min(labels.sum(), (~labels).sum()) < NUM_FOLDS:
        return [float("nan")] * len(NUM_FEATURES)
    rows = sparse.csr_array(features) if sparse.issparse(features) else features
    folds = StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed)
    areas: list[list[float]] = []
    for train, test in folds.split(np.zeros(len(labels)), labels):
        scaler = _scaler(features)
        fitted, held_out = scaler.fit_transform(rows[train]), scaler.transform(rows[test])
        order = _strongest(fitted, labels[train])
        areas.append([])
        for count in NUM_FEATURES:
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


def _strongest(features: Features, labels: np.ndarray) -> np.ndarray:
    """The columns that an L1-regularized logistic regression keeps, strongest first, at most 5."""
    if labels.all() or not labels.any():
        return np.empty(0, np.int64)
    selector = LogisticRegression(l1_ratio=1, C=_L1_INVERSE_STRENGTH, solver="liblinear")
    weights = selector.fit(features, labels).coef_[0]
    order = np.argsort(-np.abs(weights), kind="stable")[: max(NUM_FEATURES)]
    return order[weights[order] != 0]
