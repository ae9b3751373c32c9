"""Which labels several seeds of a setting share, beside what chance would give."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, NamedTuple

import numpy as np

from sae_jax.configs import SAEConfig
from sae_jax.features.matching import Matches, best_matches, shared_labels
from sae_jax.report.dashboard.glossary import NUM_DEALS
from sae_jax.report.dashboard.latents import Described
from sae_jax.report.dashboard.pack import numbers
from sae_jax.sweep.result import SweepResult


class Relation(NamedTuple):
    """Matches of one member's latents in another.

    Attributes:
      member: index of the other member.
      kind: `"seed"` if it is another seed of the setting, `"size"` if it has another d_sae.
      matches: where each latent is found there.
    """

    member: int
    kind: Literal["seed", "size"]
    matches: Matches


def relations(
    result: SweepResult, chosen: Sequence[int], alive: Mapping[int, np.ndarray]
) -> dict[int, list[Relation]]:
    """Finds the latents of each chosen member in its other seeds, and in its other sizes.

    Of another size it takes a member with another seed, if there is one.

    Args:
      result: the sweep.
      chosen: indices of members.
      alive: which latent of each fires on some sample, bool `[F]`.
    """
    families: dict[tuple[Any, ...], list[int]] = {}
    for a in chosen:
        families.setdefault(_but_size(result.configs[a]), []).append(a)
    found: dict[int, list[Relation]] = {}
    for family in families.values():
        for a in family:
            w_dec, found[a] = np.asarray(result.members[a].params["w_dec"]), []
            for b, kind in _relatives(result.configs, family, a):
                other = np.asarray(result.members[b].params["w_dec"])
                found[a].append(Relation(b, kind, best_matches(w_dec, other, alive[a], alive[b])))
    return found


def shared_by_seeds(
    members: Sequence[int],
    described: Mapping[int, Described],
    related: Mapping[int, Sequence[Relation]],
) -> tuple[dict[int, np.ndarray], dict[str, Any]]:
    """Counts, for each property, the latents whose match in another seed has the label too.

    Args:
      members: the chosen seeds of one setting, two or more.
      described: their latents.
      related: their matches.

    Returns:
      For each member the number of other seeds that share a label, int `[F, P]`; and the page's
      columns, one number for each property: `labeled`, latents with the label in all seeds
      together; `shared`, those among them whose match in another seed has it too;
      `shared_by_all`, those whose matches in all other seeds have it;
      `labeled_shuffled` and `shared_shuffled`, the same after shuffling the problems, means of
      20; `shared_dealt`, the shared ones if each seed's labels are dealt anew among its latents
      that fire, the mean of 200; `p_value`, the share of deals that reach `shared`, itself
      counted; and `cosine`, the mean over the shared ones of the largest absolute cosine of a
      match, NaN if there are none. `labeled_of` and `shared_of` are lists of `labeled` and
      `shared`, one for each member alone.
    """
    matches = [
        [{r.member: r.matches for r in related[a]}.get(b, _NOTHING) for b in members]
        for a in members
    ]
    labels = [described[a].labels for a in members]
    shared = shared_labels(labels, matches)
    null_labels = [described[a].null_labels for a in members]
    shared_null = shared_labels(null_labels, matches)
    counted = _count(shared)
    rng = np.random.default_rng(0)
    deals = np.array(
        [
            _count(
                shared_labels(_dealt(labels, [described[a].alive for a in members], rng), matches)
            )
            for _ in range(NUM_DEALS)
        ]
    )
    columns = {
        "labeled": _sum(labels),
        "shared": counted,
        "shared_by_all": _sum([own == len(members) - 1 for own in shared]),
        "labeled_shuffled": _sum(null_labels) / len(null_labels[0]),
        "shared_shuffled": _count(shared_null) / len(null_labels[0]),
        "shared_dealt": deals.mean(axis=0),
        "cosine": _mean_cosine(shared, matches),
        "p_value": (1 + (deals >= counted).sum(axis=0)) / (1 + NUM_DEALS),
    }
    return (
        dict(zip(members, shared, strict=True)),
        {
            "members": list(members),
            "labeled_of": [_sum([own]).tolist() for own in labels],
            "shared_of": [_count([own]).tolist() for own in shared],
        }
        | {name: numbers(of) for name, of in columns.items()},
    )


_NOTHING = Matches(np.empty(0, np.int64), np.empty(0))


def _relatives(
    configs: Sequence[SAEConfig], family: Sequence[int], a: int
) -> Iterator[tuple[int, Literal["seed", "size"]]]:
    """The other seeds of a member's setting, and one member of each other size."""
    sizes: dict[int, list[int]] = {}
    for b in family:
        if configs[b].d_sae != configs[a].d_sae:
            sizes.setdefault(configs[b].d_sae, []).append(b)
        elif a != b:
            yield b, "seed"
    for of_size in sizes.values():
        # Members of one seed start from the same rows, so that another seed says more.
        yield min(of_size, key=lambda b: configs[b].seed == configs[a].seed), "size"


def _but_size(config: SAEConfig) -> tuple[Any, ...]:
    """What members of one family agree in: every field but d_sae and the seeds."""
    fields = asdict(config.setting) | {"d_sae": None}
    return tuple(fields.values())


def _dealt(
    labels: Sequence[np.ndarray], alive: Sequence[np.ndarray], rng: np.random.Generator
) -> list[np.ndarray]:
    dealt = []
    for own, fires in zip(labels, alive, strict=True):
        new = own.copy()
        new[fires] = own[rng.permutation(np.flatnonzero(fires))]
        dealt.append(new)
    return dealt


def _mean_cosine(shared: Sequence[np.ndarray], matches: Sequence[Sequence[Matches]]) -> np.ndarray:
    """Mean over the shared latents of each property of their largest absolute cosine, `[P]`."""
    total = np.zeros(shared[0].shape[-1])
    for a, own in enumerate(shared):
        cosines = [np.abs(of.cosine) for b, of in enumerate(matches[a]) if b != a]
        total += np.where(own > 0, np.max(np.nan_to_num(cosines), axis=0)[:, None], 0).sum(axis=0)
    count = _count(shared)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def _sum(labels: Sequence[np.ndarray]) -> np.ndarray:
    """Number of labels of each property, `[P]`."""
    return np.sum([own.sum(axis=tuple(range(own.ndim - 1))) for own in labels], axis=0)


def _count(shared: Sequence[np.ndarray]) -> np.ndarray:
    return _sum([own > 0 for own in shared])
