"""What each number of the page means: a title, a unit and a sentence or two."""

from collections.abc import Iterable
from typing import NamedTuple

# How often labels are dealt anew, which bounds their p-values.
NUM_DEALS = 200


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
    "architecture": Meaning(
        "architecture",
        "",
        "",
        "How the SAE chooses the latents that fire: topk keeps the K largest of a sample,"
        " abs_topk the K largest in absolute value, batch_topk as many over a whole batch;"
        " matryoshka also makes the first latents reconstruct alone; jumprelu, gated and"
        " relu have a penalty on firing in place of K.",
    ),
    "preset": Meaning(
        "preset", "", "", "The library whose latents, loss and constants the SAE has, if any."
    ),
    "layer": Meaning("layer", "", "", "Layer of the model that the samples come from."),
    "position": Meaning("position", "", "", "Position in the text that the samples come from."),
    "data_seed": Meaning("data seed", "", "", "Seed of the order of the training samples."),
    "aux_coefficient": Meaning(
        "AuxK weight", "", "", "Weight of the auxiliary loss by which dead latents are revived."
    ),
    "aux_k": Meaning("AuxK latents", "", "", "Dead latents that AuxK may revive at a time."),
    "dead_after": Meaning(
        "dead after", "samples", "", "Samples without firing after which a latent counts as dead."
    ),
    "sparsity_coefficient": Meaning(
        "penalty", "", "", "Weight of the penalty on firing; with a target L0 its first value."
    ),
    "sparsity_loss": Meaning(
        "penalty's kind",
        "",
        "",
        "What jumprelu penalizes: step counts the latents that fire, tanh adds up how"
        " strongly they do.",
    ),
    "sparsity_warmup_steps": Meaning(
        "penalty's warm-up", "steps", "", "Steps over which the penalty grows from zero."
    ),
    "bandwidth": Meaning(
        "bandwidth", "", "", "Width around a threshold in which jumprelu has a gradient."
    ),
    "threshold_init": Meaning(
        "first threshold", "", "", "Thresholds of jumprelu before the first step."
    ),
    "prefix_fractions": Meaning(
        "prefixes", "", "", "Shares of the dictionary that matryoshka makes reconstruct alone."
    ),
    "normalize": Meaning(
        "normalize",
        "",
        "",
        "What was done to the samples before training: center subtracts their mean,"
        " center_and_scale also makes their mean square 1, layer_norm standardizes each"
        " sample. All metrics are of raw samples.",
    ),
    "center_input": Meaning(
        "center input", "", "", "Whether b_dec is subtracted from a sample before encoding."
    ),
    "b_dec_init": Meaning("first b_dec", "", "", "What the decoder's bias started from."),
    "tied_init": Meaning(
        "tied init", "", "", "Whether the encoder started as the decoder's transpose."
    ),
    "unit_decoder": Meaning("unit decoder", "", "", "Whether decoder rows kept norm 1."),
    "warmup_steps": Meaning(
        "warm-up", "steps", "", "Steps over which the learning rate grew to its value."
    ),
    "decay_steps": Meaning(
        "decay", "steps", "", "Last steps, over which the learning rate fell to zero."
    ),
    "clip_norm": Meaning("clip norm", "", "", "Largest norm of a step's gradient."),
    "k_anneal_steps": Meaning(
        "K annealing", "steps", "", "Steps over which K fell from all latents to its value."
    ),
    "weight_average": Meaning(
        "weight average", "", "", "Decay of the mean of the parameters that was kept; 0 for none."
    ),
    "frozen": Meaning("frozen", "", "", "The matrix that was left as drawn, for a baseline."),
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
    "stability_by_chance": Meaning(
        "stability by chance", "", "", "The stability of as many random directions as are alive."
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

LATENT_MEANINGS = {
    "latent": Meaning("latent", "", "", "Index of the latent in its SAE, from 0."),
    "support": Meaning(
        "fires on", "", "", "Number of the validation samples on which the latent fires."
    ),
    "shared": Meaning(
        "seeds sharing it",
        "",
        "",
        "Number of other seeds in which the latent with the most similar decoder row has one of"
        " its labels too.",
    ),
    "labels": Meaning(
        "labels",
        "",
        "",
        "Properties that the calibrated rule calls the latent specialized in: Fisher's test over"
        " all samples, false discovery rate 5 % over all latents and properties, lift of at least"
        " 1.5, and at least 5 samples.",
    ),
    "lift": Meaning(
        "lift",
        "",
        "",
        "How much more often than average the samples on which the latent fires have the property"
        " of its strongest tie: P(property | fires) / P(property). 1 is no tie.",
    ),
    "q": Meaning(
        "q",
        "",
        "",
        "The p-value adjusted after Benjamini and Hochberg over all latents and properties: among"
        " latents with q below 5 %, at most 5 % are expected to be there by chance.",
    ),
    "cosine": Meaning(
        "cosine in seeds",
        "",
        "",
        "Largest absolute cosine of the decoder row with one of another seed. Chance is the best"
        " of as many random directions.",
    ),
    "rate": Meaning("rate", "%", "", "Share of the validation samples on which the latent fires."),
    "best": Meaning(
        "strongest tie", "", "", "The property with the smallest p-value, significant or not."
    ),
    "p": Meaning("p", "", "", "One-sided p-value of Fisher's test for the strongest tie."),
    "published": Meaning(
        "published rule",
        "",
        "",
        "What the published rule says of the texts of the latent's strongest samples. It calls"
        " most latents that fire once specialized.",
    ),
    "mean": Meaning(
        "mean |z|",
        "",
        "",
        "Mean absolute activation over the samples on which the latent fires, in samples' units.",
    ),
    "fvu_rise": Meaning(
        "fvu rise",
        "%",
        "",
        "By how much fvu rises if the latent is set to zero everywhere, in percentage points.",
    ),
    "effect": Meaning(
        "effect",
        "nats",
        "",
        "Mean change of the gold answer's log-probability when the latent is ablated in the model.",
    ),
}
"""Columns of the table of latents."""

SHARING_MEANINGS = {
    "labeled": Meaning("labeled", "", "", "Latents with the label, all seeds together."),
    "labeled_shuffled": Meaning(
        "labeled, if shuffled",
        "",
        "",
        "By chance: latents with the label after shuffling the problems, mean of 20.",
    ),
    "shared": Meaning(
        "shared by at least one other seed",
        "",
        "",
        "Labeled latents whose most similar latent, by the decoder row, in at least one other seed"
        " of the setting has the label too.",
    ),
    "shared_by_all": Meaning(
        "by all other seeds", "", "", "Those whose most similar latent in every other seed has it."
    ),
    "shared_shuffled": Meaning(
        "shared, if shuffled",
        "",
        "",
        "By chance: latents shared by at least one other seed after shuffling the problems, mean"
        " of 20.",
    ),
    "shared_dealt": Meaning(
        "shared, if dealt",
        "",
        "",
        "By chance: latents shared by at least one other seed if each seed's labels are dealt anew"
        " among its latents that fire, as cards are. It keeps how many labels there are, and asks"
        f" whether they sit on similar latents. Mean of {NUM_DEALS} deals.",
    ),
    "p_value": Meaning(
        f"p of {NUM_DEALS} deals",
        "",
        "",
        "Share of the deals that share as many latents as were found, or more, the found ones"
        f" counted as a deal. With {NUM_DEALS} deals it is at least"
        f" 1 / {NUM_DEALS + 1} = {1 / (NUM_DEALS + 1):.4f}. It is not corrected for the number of"
        " properties and settings.",
    ),
    "cosine": Meaning(
        "mean |cosine|",
        "",
        "",
        "Of the decoder rows of each shared latent and the most similar one of another seed.",
    ),
}
"""Columns of the labels that seeds share."""


def glossary(names: Iterable[str]) -> dict[str, Meaning]:
    """The meaning of each column; one that is not known is shown as it is named."""
    return {name: MEANINGS.get(name, Meaning(name, "", "", "")) for name in names}
