"""What the page shows of every latent of one member."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse

from sae_jax.features import permutation, specialization
from sae_jax.features.ablation import fvu_without
from sae_jax.features.encoding import sparse_latents
from sae_jax.features.examples import examples, histograms
from sae_jax.features.firing import Firing
from sae_jax.features.logit_lens import Vocabulary, logit_lens
from sae_jax.features.matching import nearest_latents
from sae_jax.report.dashboard.pack import numbers
from sae_jax.report.samples import Samples
from sae_jax.sweep.result import Member

NUM_NEIGHBORS = 5
_BLOCK = 1024
# The strength of a sample beside the strongest of its latent, in one character.
_NUM_LEVELS = 9


class Described(NamedTuple):
    """What is known of a member's latents.

    Attributes:
      shown: columns for the page.
      labels: which latent is calibrated-specialized in which property, bool `[F, P]`.
      null_labels: the same in each of R shuffles of the problems, bool `[R, F, P]`.
      alive: which latent fires on some sample, bool `[F]`.
    """

    shown: dict[str, Any]
    labels: np.ndarray
    null_labels: np.ndarray
    alive: np.ndarray


def describe(
    member: Member,
    samples: Samples,
    *,
    vocabulary: Vocabulary | None = None,
    effect: Sequence[float] | np.ndarray | None = None,
) -> Described:
    """Everything that the page shows of a member's latents but their matches in other members.

    Args:
      member: a member that did not diverge.
      samples: the validation samples of its data slice.
      vocabulary: the model's, to show the tokens of a latent.
      effect: effect of each latent's ablation on the model, `[F]`, NaN where it was not measured.
    """
    sae = member.sae()
    z = sparse_latents(sae, samples.x)
    firing = Firing(z)
    w_dec = np.asarray(member.params["w_dec"])
    top, histogram = examples(firing.z, samples.problem_of_sample), histograms(firing.z)
    calibrated = specialization.calibrated_specialization(firing.fires, samples.properties)
    best = calibrated.p_value.argmin(axis=1)
    of_best = np.arange(len(best)), best
    near, near_cosine = nearest_latents(w_dec, firing.alive, NUM_NEIGHBORS)
    rise = fvu_without(sae, firing.z, samples.x, member.metrics["mse"])
    magnitude = firing.mean_magnitude / np.maximum(firing.firing_rate, 1e-30)
    shown: dict[str, Any] = {
        "support": firing.num_fired.tolist(),
        "mean": numbers(np.where(firing.alive, magnitude, np.nan)),
        "low": numbers(histogram.low),
        "high": numbers(histogram.high),
        "counts": histogram.counts.ravel().tolist(),
        "published": _published(firing, samples.texts),
        "labels": [np.flatnonzero(row).tolist() for row in calibrated.specialized],
        "best": best.tolist(),
        "p": numbers(calibrated.p_value[of_best], 3),
        "q": numbers(calibrated.q_value[of_best], 3),
        "lift": numbers(calibrated.lift[of_best], 3),
        "near": near.ravel().tolist(),
        "near_cosine": numbers(near_cosine.ravel(), 3),
        "fvu_rise": numbers(rise, 3),
        "start": top.start.tolist(),
        "sample": top.sample.tolist(),
        "z": numbers(top.activation, 3),
        "quantile": numbers(top.quantile),
    }
    if samples.are_tokens:
        shown["strips"] = _strips(firing.z, top.start, top.sample, samples.problem_of_sample)
    if effect is not None:
        shown["effect"] = numbers(np.asarray(effect, np.float64), 3)
    if vocabulary is not None:
        shown["lens"] = _lens(w_dec, firing.alive, vocabulary)
    return Described(
        shown,
        calibrated.specialized,
        permutation.calibrated_null_labels(firing, samples.properties),
        firing.alive,
    )


def _published(firing: Firing, texts: Sequence[str]) -> list[str]:
    """The published rule's description of each latent; empty where it says "general"."""
    top = firing.top_sample_matrix
    counts = specialization.count_hits(top, specialization.published_marks(texts))
    num_texts = np.asarray(top.sum(axis=0))
    found = specialization.published_specialized(counts, num_texts) & firing.alive
    descriptions = [""] * len(found)
    for latent in np.flatnonzero(found):
        scores = specialization.scores_of_counts(counts[latent], int(num_texts[latent]))
        descriptions[latent] = specialization.classify_published(scores)[1]
    return descriptions


def _strips(
    z: sparse.csc_array, start: np.ndarray, sample: np.ndarray, problem_of_sample: np.ndarray
) -> list[str]:
    """For each example the latent's strength on all samples of its problem, a digit each."""
    order = np.argsort(problem_of_sample, kind="stable")
    bounds = np.searchsorted(
        problem_of_sample[order], np.arange(problem_of_sample.max(initial=-1) + 2)
    )
    strips = []
    for latent in range(z.shape[1]):
        column = z[:, [latent]].toarray()[:, 0]
        largest = np.abs(column).max(initial=0) or 1.0
        levels = np.ceil(np.abs(column) / largest * _NUM_LEVELS).astype(int)
        for one in sample[start[latent] : start[latent + 1]]:
            problem = problem_of_sample[one]
            rows = order[bounds[problem] : bounds[problem + 1]]
            strips.append("".join(map(str, levels[rows])))
    return strips


def _lens(w_dec: np.ndarray, alive: np.ndarray, vocabulary: Vocabulary) -> Mapping[str, Any]:
    """Tokens of the latents that fire, each token's text once."""
    lens = logit_lens(w_dec[alive], vocabulary)
    used, index = np.unique(np.stack([lens.raised, lens.lowered]), return_inverse=True)
    raised, lowered = index.reshape(2, *lens.raised.shape)
    return {
        "tokens": [vocabulary.tokens[i] for i in used],
        "row": np.where(alive, np.cumsum(alive) - 1, -1).tolist(),
        "num": lens.raised.shape[1],
        "raised": raised.ravel().tolist(),
        "raised_by": numbers(lens.raised_by.ravel(), 3),
        "lowered": lowered.ravel().tolist(),
        "lowered_by": numbers(lens.lowered_by.ravel(), 3),
    }
