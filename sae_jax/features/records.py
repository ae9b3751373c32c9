"""One SAE's features: a record for each latent, and one row of rates."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from scipy import sparse

from sae_jax.features import permutation, specialization, taxonomy
from sae_jax.features.firing import Firing
from sae_jax.features.properties import property_matrix
from sae_jax.problems import Problem

NUM_TOP_SAMPLES_LISTED = 10


class Contents(NamedTuple):
    """What is in the problems of n samples.

    Attributes:
      marks: `published_marks` of their solutions, bool `[n, 9]`.
      properties: `property_matrix` of them, bool `[n, P]`.
    """

    marks: np.ndarray
    properties: np.ndarray

    @classmethod
    def of(cls, problems: Sequence[Problem]) -> Self:
        """Reads the problem of each sample."""
        marks = specialization.published_marks(_texts(problems))
        return cls(marks, property_matrix(problems)[0])


def feature_summary(
    z: np.ndarray | sparse.sparray, problems: Sequence[Problem]
) -> dict[str, float]:
    """Rates of both specialization rules over the alive latents of one SAE.

    Args:
      z: latents of the n validation samples, `[n, F]`, dense or sparse.
      problems: the problem of each sample, n of them.

    Returns:
      `published_rate`: share of the alive latents that the published rule calls specialized;
      `published_rate_rarer_half`: the same over the rarer half of them, which is about the
      published ranges of ranks; `published_rate_supported`: the same over those that fire on at
      least 5 samples; `published_null`: the mean rate over shuffles of the problems;
      `published_singleton_share`: share of latents that fire on one sample alone among the
      specialized ones (NaN if there are none); `num_singletons`: the number of such latents;
      `calibrated_rate`, `calibrated_rate_supported` and `calibrated_null`: the same rates of the
      calibrated rule; `num_supported`: number of latents that fire on at least 5 samples.

    Raises:
      ValueError: if there are not as many problems as samples.
    """
    return summary_of(z, Contents.of(problems))


def summary_of(z: np.ndarray | sparse.sparray, contents: Contents) -> dict[str, float]:
    """`feature_summary` from what is in the problems, which all members of a slice share."""
    firing = _firing(z, len(contents.marks))
    marks, properties = contents
    top = firing.top_sample_matrix
    counts = specialization.count_hits(top, marks)
    published = specialization.published_specialized(counts, np.asarray(top.sum(axis=0)))
    published &= firing.alive
    calibrated = specialization.calibrated_specialization(firing.fires, properties)
    calibrated_any = np.any(calibrated.specialized, axis=1)

    supported = firing.num_fired >= specialization.MIN_SUPPORT
    singletons = firing.num_fired == 1
    alive_ranking = firing.ranking[: firing.alive.sum()]
    rarer_half = alive_ranking[len(alive_ranking) // 2 :]
    return {
        "published_rate": _mean(published[firing.alive]),
        "published_rate_rarer_half": _mean(published[rarer_half]),
        "published_rate_supported": _mean(published[supported]),
        "published_null": _mean(permutation.published_null_rates(firing, marks)),
        "published_singleton_share": _mean(singletons[published]),
        "num_singletons": int(singletons.sum()),
        "calibrated_rate": _mean(calibrated_any[firing.alive]),
        "calibrated_rate_supported": _mean(calibrated_any[supported]),
        "calibrated_null": _mean(permutation.calibrated_null_rates(firing, properties)),
        "num_supported": int(supported.sum()),
    }


def feature_records(
    z: np.ndarray | sparse.sparray,
    problems: Sequence[Problem],
    *,
    start_rank: int = 1,
    end_rank: int | None = None,
    frequent_numbers: bool = False,
) -> list[dict[str, Any]]:
    """Describes each alive latent in a range of ranks.

    Args:
      z: latents of n samples, `[n, F]`, dense or sparse.
      problems: the problem of each sample, n of them.
      start_rank: first rank by firing rate; ranks count from 1.
      end_rank: last rank, included; F if `None`.
      frequent_numbers: whether the calibrated rule also tests every number found in
        1-50 % of the problems.

    Returns:
      One mapping for each latent, in order of rank. It holds the fields of the recorded files:
      `rank`, `feature_id`, `activation_freq`, `mean_magnitude`, `scores`, `type`, `description`;
      and `support`, the number of samples on which the latent fires; `calibrated`, with the
      names of the properties that it is `specialized` in (tested over all latents of the SAE),
      the `best_property`, which has the smallest p-value, and its `p_value`, `q_value` and
      `lift`; `taxonomy`; and `top_samples`.

    Raises:
      ValueError: if there are not as many problems as samples, or no such ranks.
    """
    firing, texts = _firing(z, len(problems)), _texts(problems)
    d_sae = z.shape[1]
    end_rank = d_sae if end_rank is None else end_rank
    if not 1 <= start_rank <= end_rank <= d_sae:
        raise ValueError(
            f"ranks {start_rank} to {end_rank} are not within 1 to {d_sae}, the number of latents"
        )
    properties, names = property_matrix(problems, frequent_numbers=frequent_numbers)
    calibrated = specialization.calibrated_specialization(firing.fires, properties)
    records = []
    for rank in range(start_rank, end_rank + 1):
        latent = int(firing.ranking[rank - 1])
        if not firing.alive[latent]:
            continue
        top = firing.top_samples(latent)
        top_texts = [texts[sample] for sample in top]
        scores = specialization.published_scores(top_texts)
        kind, description = specialization.classify_published(scores)
        patterns = taxonomy.detect_patterns(top_texts)
        level, confidence = taxonomy.classify_patterns(patterns)
        records.append(
            {
                "rank": rank,
                "feature_id": latent,
                "activation_freq": float(firing.firing_rate[latent]),
                "mean_magnitude": float(firing.mean_magnitude[latent]),
                "scores": scores,
                "type": kind,
                "description": description,
                "support": int(firing.num_fired[latent]),
                "calibrated": _calibrated_record(calibrated, latent, names),
                "taxonomy": {"type": level, "confidence": confidence, "patterns": patterns},
                "top_samples": [
                    {
                        "problem_id": problems[sample].id,
                        "text": texts[sample],
                        "activation": float(firing.z[sample, latent]),
                    }
                    for sample in top[:NUM_TOP_SAMPLES_LISTED]
                ],
            }
        )
    return records


def _calibrated_record(
    calibrated: specialization.CalibratedSpecialization, latent: int, names: Sequence[str]
) -> dict[str, Any]:
    best = int(calibrated.p_value[latent].argmin())
    lift = float(calibrated.lift[latent, best])
    return {
        "specialized": [
            name for name, found in zip(names, calibrated.specialized[latent], strict=True) if found
        ],
        "best_property": names[best],
        "p_value": float(calibrated.p_value[latent, best]),
        "q_value": float(calibrated.q_value[latent, best]),
        "lift": lift if np.isfinite(lift) else None,
    }


def _firing(z: np.ndarray | sparse.sparray, num_problems: int) -> Firing:
    if z.shape[0] != num_problems:
        raise ValueError(f"latents of {z.shape[0]} samples do not fit {num_problems} problems")
    return Firing(z)


def _texts(problems: Sequence[Problem]) -> list[str]:
    """Of each problem what the published rule reads."""
    return [" | ".join(problem.steps) for problem in problems]


def _mean(values: np.ndarray) -> float:
    """The mean of the values; NaN if there are none."""
    return float(values.mean()) if values.size else float("nan")
