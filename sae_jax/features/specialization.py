"""Whether a latent responds to one operation or number: the published and a calibrated rule.

The published rule looks only at the samples on which a latent is strongest. A latent that fires
on one sample passes it as often as a single text does, which is most of the time. The rule is
here for comparison with published numbers. The calibrated rule tests firing against having a
property over all samples, and controls false discoveries.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import sparse, stats

from sae_jax.features.properties import NUMBERS, OPERATIONS

_OPERATION_MARKS = {
    "addition": ("+", "sum"),
    "subtraction": ("-", "difference"),
    "multiplication": ("*", "multiply", "×"),
    "division": ("/", "divide", "÷"),
}
_VALUES = tuple(str(number) for number in NUMBERS)
OPERATION_PERCENT = (70, 30)
VALUE_PERCENT = (50, 20)
GENERAL = ("general", "mixed patterns")

FALSE_DISCOVERY_RATE = 0.05
MIN_LIFT = 1.5
MIN_SUPPORT = 5


def published_marks(texts: Sequence[str]) -> np.ndarray:
    """What the published rule sees in n texts: four operations, then five numbers, bool `[n, 9]`.

    It looks for substrings, as published: it finds "12" in "3120", and takes the sign of a
    negative number for a subtraction.
    """
    marks = [
        [any(mark in text.lower() for mark in _OPERATION_MARKS[name]) for name in OPERATIONS]
        + [value in text for value in _VALUES]
        for text in texts
    ]
    return np.array(marks, dtype=bool).reshape(len(texts), len(OPERATIONS) + len(_VALUES))


def published_scores(texts: Sequence[str]) -> dict[str, Any]:
    """The published rule's counts over the texts of a latent's top samples.

    Args:
      texts: one text for each sample: its steps, joined by " | ".

    Returns:
      `operations`: percentage of texts with each operation; `values`: *number* of texts
      with each of 12, 20, 30, 50 and 100, by its digits; `total_samples`: number of texts.
    """
    return scores_of_counts(published_marks(texts).sum(axis=0), len(texts))


def scores_of_counts(counts: np.ndarray, num_texts: int) -> dict[str, Any]:
    """`published_scores` from counts of `published_marks` over the texts, int `[9]`."""
    operations, values = np.split(counts, [len(OPERATIONS)])
    percent = _percent(operations, num_texts)
    return {
        "operations": dict(zip(OPERATIONS, percent.tolist(), strict=True)),
        "values": dict(zip(_VALUES, values.tolist(), strict=True)),
        "total_samples": num_texts,
    }


def classify_published(scores: Mapping[str, Any]) -> tuple[str, str]:
    """Applies the published rule, ties and all, to `published_scores` of a latent.

    A latent is operation-specialized if the largest percentage exceeds 70 and all that *differ
    from it* are below 30. It is value-specialized likewise, with 50 and 20. Operations that tie
    at the maximum therefore pass, and the first of them is reported.

    Returns:
      The type (`highly-specialized`, `operation-specialized`, `value-specialized` or
      `general`) and a description such as "addition + number 20".
    """
    operations = np.array([scores["operations"][name] for name in OPERATIONS])
    counts = np.array([scores["values"][value] for value in _VALUES])
    values = _percent(counts, scores["total_samples"])
    operation = OPERATIONS[operations.argmax()]
    value = f"number {_VALUES[values.argmax()]}"
    by_operation = _one_dominates(operations, *OPERATION_PERCENT)
    by_value = _one_dominates(values, *VALUE_PERCENT)
    if by_operation and by_value:
        return "highly-specialized", f"{operation} + {value}"
    if by_operation:
        return "operation-specialized", operation
    if by_value:
        return "value-specialized", value
    return GENERAL


def published_specialized(counts: np.ndarray, num_texts: np.ndarray) -> np.ndarray:
    """Whether the published rule calls latents anything but general, for many latents at once.

    Args:
      counts: counts of `published_marks` over each latent's top samples, `[..., 9]`.
      num_texts: number of each latent's top samples, `[...]`.

    Returns:
      Whether `classify_published` says something else than `general`, bool `[...]`.
    """
    percent = _percent(counts, num_texts[..., None])
    operations, values = np.split(percent, [len(OPERATIONS)], axis=-1)
    return _one_dominates(operations, *OPERATION_PERCENT) | _one_dominates(values, *VALUE_PERCENT)


def _percent(counts: np.ndarray, total: np.ndarray | int) -> np.ndarray:
    # The published arithmetic, bit for bit, multiplies before it divides.
    return 100.0 * counts / np.maximum(total, 1)


def _one_dominates(percent: np.ndarray, above: float, below: float) -> np.ndarray:
    largest = percent.max(axis=-1, keepdims=True)
    return (largest[..., 0] > above) & ((percent == largest) | (percent < below)).all(axis=-1)


@dataclass(frozen=True, eq=False)
class CalibratedSpecialization:
    """Which of F latents are specialized in which of P properties.

    Attributes:
      specialized: whether the tie is significant and strong enough and the latent fires on
        enough samples, bool `[F, P]`.
      p_value: one-sided hypergeometric p-value, `[F, P]`; 1 for latents that never fire.
      q_value: p-value adjusted after Benjamini and Hochberg over all alive latents, `[F, P]`.
      lift: P(property | fires) / P(property), `[F, P]`; NaN where either is undefined.
    """

    specialized: np.ndarray
    p_value: np.ndarray
    q_value: np.ndarray
    lift: np.ndarray


def calibrated_specialization(
    fires: np.ndarray | sparse.sparray, properties: np.ndarray
) -> CalibratedSpecialization:
    """Tests every latent for firing more often on samples that have a property.

    The 2 x 2 table of a latent and a property over all samples gives a one-sided hypergeometric
    (Fisher) p-value. The adjustment after Benjamini and Hochberg over all pairs of an alive
    latent and a property keeps the false discovery rate of the significant pairs at 0.05.
    Specialized is a latent that also fires on at least 5 samples, and at least 1.5 times as often
    on those with the property as on all: no latent can do so for a property that more than two
    thirds of the samples have, such as multiplication on GSM8K (72 %).

    Args:
      fires: which latent fires on which sample, bool `[n, F]`, dense or sparse.
      properties: which sample has which property, bool `[n, P]`.

    Raises:
      ValueError: on arrays that are not boolean matrices over the same samples.

    References:
      Benjamini and Hochberg 1995, "Controlling the false discovery rate",
      https://doi.org/10.1111/j.2517-6161.1995.tb02031.x
    """
    _check_tables(fires, properties)
    support = np.asarray(fires.sum(axis=0))
    return calibrated_from_hits(count_hits(fires, properties), support, properties)


def calibrated_from_hits(
    hits: np.ndarray, support: np.ndarray, properties: np.ndarray
) -> CalibratedSpecialization:
    """`calibrated_specialization` from counts, for several shuffles of the properties at once.

    Args:
      hits: how often each latent fires on samples with each property, int `[..., F, P]`. Each
        leading index is a family of tests of its own.
      support: number of samples on which each latent fires, int `[F]`.
      properties: which sample has which property, bool `[n, P]`, in any order of the samples.

    Returns:
      The result, whose arrays are `[..., F, P]`.
    """
    num_samples, num_with_property = len(properties), properties.sum(axis=0)
    p_value = _enrichment_p_value(hits, support[:, None], num_with_property, num_samples)
    alive = support > 0
    q_value = np.ones_like(p_value)
    if alive.any() and hits.shape[-1]:
        tests = p_value[..., alive, :]
        families = tests.reshape(*hits.shape[:-2], -1)
        adjusted = stats.false_discovery_control(families, axis=-1)
        q_value[..., alive, :] = adjusted.reshape(tests.shape)
    with np.errstate(divide="ignore", invalid="ignore"):
        lift = (hits / support[:, None]) / (num_with_property / num_samples)
        specialized = (q_value <= FALSE_DISCOVERY_RATE) & (lift >= MIN_LIFT)
    specialized &= (support >= MIN_SUPPORT)[:, None]
    return CalibratedSpecialization(specialized, p_value, q_value, lift)


def _enrichment_p_value(
    hits: np.ndarray, support: np.ndarray, num_with_property: np.ndarray, num_samples: int
) -> np.ndarray:
    """P(at least `hits` of `support` draws have the property), drawing without replacement."""
    # Each distinct table is computed once, since most latents fire on few samples. The rank of
    # a margin stands for it: codes of three counts up to n overflow 64 bits from n = 2.1 million.
    draws, draws_rank = np.unique(support, return_inverse=True)
    successes, successes_rank = np.unique(num_with_property, return_inverse=True)
    shape = (num_samples + 1, len(draws), len(successes))
    tables = np.broadcast_arrays(
        hits, draws_rank.reshape(support.shape), successes_rank.reshape(num_with_property.shape)
    )
    codes, inverse = np.unique(np.ravel_multi_index(tables, shape), return_inverse=True)
    k, i, j = np.unravel_index(codes, shape)
    p_value = stats.hypergeom.sf(k - 1, num_samples, successes[j], draws[i])
    return p_value[inverse].reshape(hits.shape)


def count_hits(fires: np.ndarray | sparse.sparray, properties: np.ndarray) -> np.ndarray:
    """How often each latent fires on samples with each property, int `[F, P]`."""
    # float32 products are fast, and exact for counts up to 2^24.
    dtype = np.float32 if len(properties) <= 2**24 else np.float64
    return np.rint(fires.astype(dtype).T @ properties.astype(dtype)).astype(np.int64)


def _check_tables(fires: np.ndarray | sparse.sparray, properties: np.ndarray) -> None:
    for name, array in (("fires", fires), ("properties", properties)):
        if array.ndim != 2 or array.dtype != np.bool_:
            raise ValueError(
                f"{name} must be a boolean matrix over samples, "
                f"found {array.dtype} of shape {array.shape}"
            )
    if fires.shape[0] != properties.shape[0]:
        raise ValueError(
            f"fires has {fires.shape[0]} samples and properties has {properties.shape[0]}"
        )
