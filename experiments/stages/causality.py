"""Do latents that are tied to an operation carry it? What editing them does to the answer.

At each position of the layer the thought is replaced by an SAE's reconstruction, once as it is
and once with some latents edited; the model thinks on, and reads the gold answer. The effect of
an edit is how much the answer's log-probability changes, in nats, and is negative where it hurts.

The latents of an operation are those that the calibrated test ties to it on the *training*
problems: significant (q <= 0.05 over all latents and properties), on at least 5 problems, and
more strongly than to any other operation; of them the 5 with the smallest p-values. Effects are
measured on validation problems, which no latent was chosen on. `num_specialized` counts those of
them whose lift is 1.5 or more, as the rule asks of a specialized latent: few or none are.

An `ablate` edit sets the latents of one operation to zero. A `swap` edit exchanges the values of
the latents of an operation and its inverse, the strongest with the strongest and so on.

Each edit is repeated with random latents in the place of the chosen ones: as many, tied to no
operation, and about as frequent and as large (mean |z| times the norm of the decoder row), drawn
twice. `difference` is the effect of the chosen latents minus the mean of the two random edits.
Sizes, the mean L2 norm of an edit's change of the reconstruction, stand beside the effects, and
effects per size too, since a larger edit does more whatever it edits. `mean_abs_effect` is the
mean size of an effect whichever way it goes, as effects of both signs cancel in a mean.

Arms are raw and centered; scaling centered samples is left out, to have more problems instead.

Rows are of problems that have the operation (of a swap, one of the two), or have it not: latents
that carry an operation should matter to the first alone. Each row is over all seeds, each with
latents and random draws of its own, and all with the same problems. Means, intervals and p-values
are of `summarize_crossed`: they speak of other seeds, draws and problems of this arm and
position. `q_value` is the p-value of `difference` after Benjamini and Hochberg over all the rows'
tests, `num_tests` of them. What chance gives: `chance_p_value` is that of the same test between
the two random draws, and `seeds_agree` says in how many seeds `difference` has the sign of its
mean.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from scipy import stats

import sae_jax
from sae_jax.features import interventions
from sae_jax.features.encoding import sparse_latents
from sae_jax.features.firing import Firing
from sae_jax.features.matched_controls import matched_controls
from sae_jax.features.properties import OPERATIONS, property_matrix
from sae_jax.features.specialization import (
    FALSE_DISCOVERY_RATE,
    MIN_SUPPORT,
    calibrated_specialization,
)
from sae_jax.report.statistics import Rows, summarize_crossed
from stages import thoughts
from stages.study import RAW_AND_CENTERED, Study

NUM_LATENTS = 5
NUM_DRAWS = 2
INVERSES = ((0, 1), (2, 3))
"""Operations that undo each other: addition and subtraction, multiplication and division."""


class Chosen(NamedTuple):
    """Latents of one SAE, by operation: the chosen ones, and random ones in their place.

    Attributes:
      latents: the latents of each operation, the strongest first.
      draws: the random ones of each operation, for each draw.
      firing_rate: share of the training samples on which each latent fires, `[F]`.
      specialized: whether each latent is specialized in each operation, bool `[F, 4]`.
    """

    latents: list[np.ndarray]
    draws: list[list[np.ndarray]]
    firing_rate: np.ndarray
    specialized: np.ndarray


class Edit(NamedTuple):
    """An edit, with its operations as indices into `OPERATIONS`."""

    kind: str
    operations: tuple[int, ...]

    @property
    def target(self) -> str:
        """Names of the operations."""
        return " and ".join(OPERATIONS[i] for i in self.operations)


EDITS = (
    *(Edit("ablate", (i,)) for i in range(len(OPERATIONS))),
    *(Edit("swap", pair) for pair in INVERSES),
)


def rows(study: Study) -> Rows:
    """One row for each position, arm, edit, and problems with and without the operation.

    `num_latents`, `num_specialized` and `firing_rate` (on training samples) are means over
    seeds of what was edited; `changed` is the share of problems whose reconstruction an edit
    changes. Where no seed has a latent to edit, the rest is NaN. Half widths are of 95 % intervals.

    Raises:
      ValueError: if the study has no model of thoughts.
    """
    model = thoughts.load_model(study)
    result = thoughts.sweep(study)
    found: list[dict[str, Any]] = []
    for split in thoughts.splits_of(study):
        found += _of_position(study, model, result, split)
    tests = np.array([row["p_value"] for row in found])
    tested = np.isfinite(tests)
    q_values = np.full(len(found), np.nan)
    q_values[tested] = stats.false_discovery_control(tests[tested])
    return [
        row | {"q_value": float(q), "num_tests": int(tested.sum())}
        for row, q in zip(found, q_values, strict=True)
    ]


def _of_position(
    study: Study, model: Any, result: sae_jax.SweepResult, split: sae_jax.Split
) -> list[dict[str, Any]]:
    members = [
        i
        for i in thoughts.members_at(result, split)
        if result.configs[i].normalize in RAW_AND_CENTERED
    ]
    x_train, x = split.train.read(), thoughts.activations(split)
    properties, _ = property_matrix(split.train.problems)
    chosen, edited = {}, []
    for i in members:
        sae = result.sae(i)
        z = sparse_latents(sae, x_train)
        chosen[i] = _chosen(sae, z, properties, seed=result.configs[i].seed)
        edited.append(np.stack(list(_edited(sae, x, chosen[i]))))
    answers = thoughts.scored_answers(study, model, split)
    scores = answers.log_probabilities(np.concatenate(edited)).reshape(len(members), -1, len(x))
    # For each member, edit, and chosen or random latents: what it does to each problem.
    shape = (len(members), len(EDITS), 1 + NUM_DRAWS, len(x))
    effects = (scores[:, 1:] - scores[:, :1]).reshape(shape)
    sizes = np.stack([np.linalg.norm(of[1:] - of[0], axis=-1) for of in edited]).reshape(shape)
    has = property_matrix(answers.problems)[0][:, : len(OPERATIONS)]
    found = []
    for arm in RAW_AND_CENTERED:
        of_arm = [j for j, i in enumerate(members) if result.configs[i].normalize == arm]
        place = {"layer": split.val.layer, "position": split.val.position, "normalize": arm}
        for e, edit in enumerate(EDITS):
            # Seeds without a latent of each operation have nothing to edit.
            kept = [j for j in of_arm if _num_latents(chosen[members[j]], edit)]
            has_any = has[:, list(edit.operations)].any(axis=1)
            for group, problems in (("with", has_any), ("without", ~has_any)):
                shown = place | {"edit": edit.kind, "operation": edit.target, "problems": group}
                shown |= {"num_seeds": len(kept), "num_problems": int(problems.sum())}
                shown |= _what_was_edited([chosen[members[j]] for j in kept], edit)
                of_edit = (array[kept, e][..., problems] for array in (effects, sizes))
                found.append(shown | _row(*of_edit))
    return found


def _chosen(sae: Any, z: Any, properties: np.ndarray, *, seed: int) -> Chosen:
    """Chooses latents on training samples, whose latents are z."""
    firing = Firing(z)
    tested = calibrated_specialization(firing.fires, properties)
    p_value, q_value, specialized = (
        array[:, : len(OPERATIONS)]
        for array in (tested.p_value, tested.q_value, tested.specialized)
    )
    tied = (q_value <= FALSE_DISCOVERY_RATE) & (firing.num_fired >= MIN_SUPPORT)[:, None]
    latents = []
    for operation in range(len(OPERATIONS)):
        own = np.flatnonzero(tied[:, operation] & (p_value.argmin(axis=1) == operation))
        order = np.argsort(p_value[own, operation], kind="stable")
        latents.append(own[order[:NUM_LATENTS]])
    sizes = firing.mean_magnitude * np.linalg.norm(np.asarray(sae.params["w_dec"]), axis=1)
    with np.errstate(divide="ignore"):  # Dead latents are no candidates.
        traits = np.log(np.stack([firing.firing_rate, sizes], axis=1))
    candidates = firing.alive & ~tied.any(axis=1)
    together = np.concatenate(latents)
    drawn = matched_controls(together, traits, candidates, NUM_DRAWS, seed=seed)
    ends = np.cumsum([len(of) for of in latents])[:-1]
    draws = [np.split(of_draw, ends) for of_draw in drawn]
    return Chosen(latents, draws, firing.firing_rate, specialized)


def _edited(sae: Any, x: np.ndarray, chosen: Chosen) -> Iterator[np.ndarray]:
    """The reconstructions, then those of every edit with the chosen and the random latents."""
    z = sae.encode(x)
    yield np.asarray(sae.decode(z))
    for edit in EDITS:
        for latents in (chosen.latents, *chosen.draws):
            sets = _edited_latents(latents, edit)
            yield np.asarray(sae.decode(_apply(z, edit.kind, sets)))


def _edited_latents(latents: Sequence[np.ndarray], edit: Edit) -> list[np.ndarray]:
    """The latents of each operation of an edit, as many of one as of the other."""
    sets = [latents[i] for i in edit.operations]
    return [of[: min(map(len, sets))] for of in sets]


def _apply(z: jax.Array, kind: str, sets: Sequence[np.ndarray]) -> jax.Array:
    if kind == "ablate":
        return interventions.ablate(z, sets[0].tolist())
    for a, b in zip(*(of.tolist() for of in sets), strict=True):
        z = interventions.swap(z, a, b)
    return z


def _num_latents(chosen: Chosen, edit: Edit) -> int:
    return sum(map(len, _edited_latents(chosen.latents, edit)))


def _what_was_edited(of_seeds: Sequence[Chosen], edit: Edit) -> dict[str, float]:
    """Means over seeds of the number and the firing rates of the edited latents."""
    found = []
    for chosen in of_seeds:
        sets = _edited_latents(chosen.latents, edit)
        latents = np.concatenate(sets)
        random = np.concatenate([_edited_latents(of, edit) for of in chosen.draws], axis=None)
        specialized = [
            chosen.specialized[of, i].sum() for of, i in zip(sets, edit.operations, strict=True)
        ]
        rates = [chosen.firing_rate[of].mean() for of in (latents, random)]
        found.append([len(latents), sum(specialized), *rates])
    names = ("num_latents", "num_specialized", "firing_rate", "firing_rate_random")
    means = np.mean(found, axis=0) if found else (0.0, 0.0, np.nan, np.nan)
    return dict(zip(names, map(float, means), strict=True))


def _row(effects: np.ndarray, sizes: np.ndarray) -> dict[str, Any]:
    """Summary of effects and sizes, each `[num_seeds, 1 + NUM_DRAWS, n]`, the chosen ones first.

    It is of NaN where there is no seed or no problem.
    """
    if not effects.size:
        effects = sizes = np.full((1, 1 + NUM_DRAWS, 1), np.nan)
    chosen, random = effects[:, 0], effects[:, 1:].mean(axis=1)
    effect, effect_random = summarize_crossed(chosen), summarize_crossed(random)
    difference = summarize_crossed(chosen - random)
    of_seeds = (chosen - random).mean(axis=1)
    size, size_random = float(sizes[:, 0].mean()), float(sizes[:, 1:].mean())
    return {
        "changed": float((sizes[:, 0] > 0).mean()),
        "changed_random": float((sizes[:, 1:] > 0).mean()),
        "size": size,
        "size_random": size_random,
        "effect": effect.mean,
        "effect_half_width": effect.half_width,
        "effect_random": effect_random.mean,
        "effect_random_half_width": effect_random.half_width,
        "mean_abs_effect": float(np.abs(chosen).mean()),
        "mean_abs_effect_random": float(np.abs(effects[:, 1:]).mean()),
        "effect_per_size": effect.mean / size if size else float("nan"),
        "effect_per_size_random": effect_random.mean / size_random if size_random else float("nan"),
        "difference": difference.mean,
        "difference_half_width": difference.half_width,
        "seeds_agree": int((np.sign(of_seeds) == np.sign(difference.mean)).sum()),
        "p_value": difference.p_value,
        "chance_p_value": summarize_crossed(effects[:, 1] - effects[:, 2]).p_value,
    }
