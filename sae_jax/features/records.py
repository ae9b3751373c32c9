"""One SAE's features in one record a latent, and in one row of rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import sparse

from sae_jax.features import permutation, specialization, taxonomy
from sae_jax.features.firing import Firing
from sae_jax.features.properties import property_matrix
from sae_jax.problems import Problem

NUM_TOP_SAMPLES_LISTED = 10


def solution_text(problem: Problem) -> str:
    """The text of a sample that the published rule reads."""
    return " | ".join(problem.steps)


def feature_summary(
    z: np.ndarray | sparse.sparray,
    problems: Sequence[Problem],
    *,
    num_permutations: int = permutation.NUM_PERMUTATIONS,
    seed: int = 0,
) -> dict[str, float]:
    """Rates of both specialization rules over the alive latents of one SAE.

    Args:
      z: latents of the n validation samples, `[n, F]`, dense or sparse.
      problems: the samples' problems.
      num_permutations: shuffles behind the null rates.
      seed: of the shuffles.

    Returns:
      `published_rate`, over all alive latents; `published_rate_rarer_half`, over the
      rarer half of them, about the published ranges of ranks; `published_rate_supported`,
      over those that fire on at least 5 samples; `published_null`, the mean over
      shuffled problems; `num_singletons`, latents that fire on one sample, and
      `published_singleton_share`, their share of the specialized ones (NaN if none);
      `calibrated_rate`, `calibrated_rate_supported` and `calibrated_null` likewise;
      `num_supported`.

    Raises:
      ValueError: if there are not as many problems as samples.
    """
    firing = _firing_over(z, problems)
    texts = [solution_text(problem) for problem in problems]
    properties, _ = property_matrix(problems)

    top = firing.top_sample_matrix()
    counts = specialization.count_hits(top, specialization.published_marks(texts))
    published = specialization.published_specialized(counts, np.asarray(top.sum(axis=0)))
    published &= firing.alive
    calibrated = specialization.calibrated_specialization(firing.fires, properties)
    calibrated_any = np.any(calibrated.specialized, axis=1)

    supported = firing.num_fired >= specialization.MIN_SUPPORT
    singletons = firing.num_fired == 1
    alive_ranking = firing.ranking[: firing.alive.sum()]
    rarer_half = alive_ranking[len(alive_ranking) // 2 :]
    shuffles = {"num_permutations": num_permutations, "seed": seed}
    return {
        "published_rate": _mean(published[firing.alive]),
        "published_rate_rarer_half": _mean(published[rarer_half]),
        "published_rate_supported": _mean(published[supported]),
        "published_null": _mean(permutation.published_null_rates(firing, texts, **shuffles)),
        "published_singleton_share": _mean(singletons[published]),
        "num_singletons": int(singletons.sum()),
        "calibrated_rate": _mean(calibrated_any[firing.alive]),
        "calibrated_rate_supported": _mean(calibrated_any[supported]),
        "calibrated_null": _mean(permutation.calibrated_null_rates(firing, properties, **shuffles)),
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
    """What is known of each alive latent in a range of ranks.

    Args:
      z: latents of n samples, `[n, F]`, dense or sparse.
      problems: the samples' problems.
      start_rank: first rank, from 1, by firing rate.
      end_rank: last rank, included; the last latent's if `None`.
      frequent_numbers: whether the calibrated rule also tests every number found in
        1-50 % of the problems.

    Returns:
      One mapping a latent, in order of rank. As in the recorded files: `rank`,
      `feature_id`, `activation_freq`, `mean_magnitude`, `scores`, `type`, `description`.
      Besides: `support`; `calibrated`, with the names of the properties that the latent
      is `specialized` in (over all latents of the SAE) and, for each `best_property`,
      `p_value`, `q_value` and `lift` of the smallest p-value; `taxonomy`; `top_samples`.

    Raises:
      ValueError: if there are not as many problems as samples, or no such ranks.
    """
    firing = _firing_over(z, problems)
    end_rank = firing.d_sae if end_rank is None else end_rank
    if not 1 <= start_rank <= end_rank <= firing.d_sae:
        raise ValueError(
            f"ranks {start_rank} to {end_rank} are not within 1 to {firing.d_sae}, "
            "the number of latents"
        )
    texts = [solution_text(problem) for problem in problems]
    properties, names = property_matrix(problems, frequent_numbers=frequent_numbers)
    calibrated = specialization.calibrated_specialization(firing.fires, properties)
    firing_rate, mean_magnitude = firing.firing_rate, firing.mean_magnitude

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
                "activation_freq": float(firing_rate[latent]),
                "mean_magnitude": float(mean_magnitude[latent]),
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


def _firing_over(z: np.ndarray | sparse.sparray, problems: Sequence[Problem]) -> Firing:
    if z.shape[0] != len(problems):
        raise ValueError(f"latents of {z.shape[0]} samples do not fit {len(problems)} problems")
    return Firing.of(z)


def _mean(values: np.ndarray) -> float:
    """Mean, NaN of nothing."""
    return float(values.mean()) if values.size else float("nan")
