"""How much of what a thought is worth to the answer do an SAE's reconstructions keep?

At each position of the layer, the thought is left alone, set to zero, replaced by the mean of the
training samples, and replaced by each SAE's reconstruction; then the model thinks on and reads
the gold answer of a validation problem. What counts is the answer's cross-entropy, in nats for
each token. `rise_zero`, `rise_mean` and `rise_sae` are how far it is above that of the thought
left alone, and below zero where the answer is likelier without the thought. `change_zero` and so
on are the mean absolute change of an answer's log-probability, in nats, whichever way it goes.

`loss_recovered` is (CE_zero - CE_sae) / (CE_zero - CE_clean): 1 for reconstructions as good as the
thoughts themselves and 0 for ones no better than zero. What chance gives is the mean, which tells
nothing of a problem: `loss_recovered_mean`, and `gain_over_mean` is what an SAE has above it.
Where `rise_zero` is not clearly above zero, the thought is worth nothing to the answer, these
three mean nothing, and rises and changes alone say how like the thought a reconstruction is.

Intervals are of a jackknife over problems, of the one SAE of the row. How much SAEs differ is
seen from the rows of the other seeds.
"""

from typing import Any

import numpy as np

from sae_jax.report.statistics import summarize_ratio
from stages import thoughts
from stages.study import Study

COLUMNS = ("layer", "position", "normalize", "seed")
"""Fields of a config that tell rows apart."""


def rows(study: Study) -> list[dict[str, Any]]:
    """One row for each position, arm and seed; half widths are of 95 % intervals.

    Raises:
      ValueError: if the study has no model of thoughts.
    """
    model = thoughts.load_model(study)
    result = thoughts.sweep(study)
    found = []
    for split in thoughts.splits_of(study):
        members = thoughts.members_at(result, split)
        answers = thoughts.scored_answers(study, model, split)
        x = thoughts.activations(split)
        mean = split.train.read().mean(axis=0, dtype=np.float64).astype(np.float32)
        reconstructions = [np.asarray(result.sae(i)(x)) for i in members]
        replacements = [np.zeros_like(x), np.broadcast_to(mean, x.shape), *reconstructions]
        zero, by_mean, *by_sae = answers.log_probabilities(np.stack(replacements))
        for i, scores in zip(members, by_sae, strict=True):
            found.append(
                {name: getattr(result.configs[i], name) for name in COLUMNS}
                | {"num_problems": len(x)}
                | _recovered(answers.unpatched, zero, by_mean, scores, answers.num_tokens)
            )
    return found


def _recovered(
    clean: np.ndarray,
    zero: np.ndarray,
    by_mean: np.ndarray,
    by_sae: np.ndarray,
    num_tokens: np.ndarray,
) -> dict[str, float]:
    """Cross-entropies and fractions, from log-probabilities of n answers, `[n]` each."""
    named = {"clean": clean, "zero": zero, "mean": by_mean, "sae": by_sae}
    replaced = {name: scores for name, scores in named.items() if name != "clean"}
    ratios = {f"rise_{name}": (clean - scores, num_tokens) for name, scores in replaced.items()}
    ratios |= {
        "loss_recovered": (by_sae - zero, clean - zero),
        "loss_recovered_mean": (by_mean - zero, clean - zero),
        "gain_over_mean": (by_sae - by_mean, clean - zero),
    }
    found = {f"ce_{name}": float(-of.sum() / num_tokens.sum()) for name, of in named.items()}
    for name, (above, below) in ratios.items():
        ratio = summarize_ratio(above, below)
        found |= {name: ratio.mean, f"{name}_half_width": ratio.half_width}
    changes = {f"change_{name}": np.abs(of - clean).mean() for name, of in replaced.items()}
    return found | {name: float(change) for name, change in changes.items()}
