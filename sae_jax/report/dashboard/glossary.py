"""What each number of the page means: a title, a unit and a sentence or two."""

from collections.abc import Iterable
from typing import NamedTuple


class Meaning(NamedTuple):
    """What a column says.

    Attributes:
      title: heading of the column.
      unit: `"%"` for shares, which are shown as percentages; `""` for plain numbers; else a unit.
      better: `"up"` or `"down"` where one direction is better, else `""`.
      text: what it is and how to read it.
    """

    title: str
    unit: str
    better: str
    text: str


CHANCE = {
    "published_rate": "published_null",
    "calibrated_rate": "calibrated_null",
    "calibrated_rate_supported": "calibrated_null",
    "feature_stability": "stability_by_chance",
}
"""Columns, and the one that says what chance alone would give."""

MEANINGS = {
    "d_sae": Meaning("d", "", "", "Dictionary size: number of latents of the SAE."),
    "k": Meaning(
        "K", "", "", "Latents kept for each sample, where the architecture keeps so many."
    ),
    "seed": Meaning("seed", "", "", "Seed of the initialization. Seeds repeat one setting."),
    "learning_rate": Meaning("learning rate", "", "", "Learning rate of the optimizer."),
    "target_l0": Meaning(
        "target L0", "", "", "Mean number of latents that a penalized SAE was asked to fire."
    ),
    "explained_variance": Meaning(
        "EV",
        "%",
        "up",
        "Explained variance by the published definition, over all numbers of all samples at once."
        " It counts the offsets between the dimensions' means as explained; fvu does not.",
    ),
    "fvu": Meaning(
        "fvu",
        "%",
        "down",
        "Fraction of variance unexplained: squared error over the variance around each"
        " dimension's mean. 0 % is a perfect reconstruction; 100 % is no better than the mean.",
    ),
    "fvu_without_outliers": Meaning(
        "fvu, inliers", "%", "down", "fvu without the 1 % of samples of largest norm."
    ),
    "outlier_variance_share": Meaning(
        "outliers' variance", "%", "", "Share of the variance held by the 1 % of largest norm."
    ),
    "r2": Meaning("R²", "%", "up", "1 - fvu."),
    "mse": Meaning("MSE", "", "down", "Mean squared error of a number, in the samples' units."),
    "l0": Meaning("L0", "latents", "", "Mean number of latents that fire on a sample."),
    "cosine_similarity": Meaning(
        "cosine", "", "up", "Mean cosine between a sample and its reconstruction."
    ),
    "dead_fraction": Meaning(
        "dead",
        "%",
        "down",
        "Share of the latents that fire on no validation sample. It has no chance level.",
    ),
    "almost_dead_fraction": Meaning(
        "almost dead", "%", "down", "Share of the latents that fire, but hardly ever."
    ),
    "num_alive": Meaning("alive", "latents", "", "Latents that fire on some validation sample."),
    "mean_activation": Meaning(
        "mean |z|", "", "", "Mean absolute activation of a latent that fires, in samples' units."
    ),
    "published_rate": Meaning(
        "published rule",
        "%",
        "",
        "Share of the latents that fire which the published rule calls specialized. It looks at"
        " the texts of a latent's top samples alone, and calls most single problems specialized:"
        " compare it with its rate on shuffled problems.",
    ),
    "published_null": Meaning(
        "published, by chance", "%", "", "The published rule's rate after shuffling the problems."
    ),
    "calibrated_rate_supported": Meaning(
        "calibrated rule",
        "%",
        "",
        "Share, among the latents that fire on at least 5 samples, of those that fire more often"
        " on problems with some property (Fisher's test over all samples, false discovery rate"
        " 5 %, lift of at least 1.5).",
    ),
    "calibrated_rate": Meaning(
        "calibrated, of all alive", "%", "", "The calibrated rule's rate among all alive latents."
    ),
    "calibrated_null": Meaning(
        "calibrated, by chance", "%", "", "The calibrated rule's rate after shuffling the problems."
    ),
    "num_singletons": Meaning(
        "singletons", "latents", "", "Latents that fire on one validation sample alone."
    ),
    "feature_stability": Meaning(
        "stability",
        "",
        "up",
        "For each latent the largest absolute cosine of its decoder row with one of another seed,"
        " on average over latents and seeds. 1 means that seeds find the same latents; its chance"
        " level is that of random directions.",
    ),
    "feature_stability_matched": Meaning(
        "stability, one to one", "", "up", "The same with latents matched one to one."
    ),
    "decoder_coherence_max": Meaning(
        "coherence, max", "", "down", "Largest absolute cosine of two decoder rows."
    ),
    "decoder_coherence_mean": Meaning(
        "coherence, mean", "", "down", "Mean absolute cosine of two decoder rows."
    ),
    "offset_severity": Meaning(
        "offset", "", "", "Norm of the samples' mean over that of their standard deviations."
    ),
    "diverged_at": Meaning(
        "diverged at", "step", "", "First training step whose loss was not finite."
    ),
}


def glossary(names: Iterable[str]) -> dict[str, Meaning]:
    """The meaning of each column; one that is not known is shown as it is named."""
    return {name: MEANINGS.get(name, Meaning(name, "", "", "")) for name in names}
