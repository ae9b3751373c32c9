"""Writes a sweep and its latents as one HTML file that needs neither server nor network."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.activations.selection import Selection
from sae_jax.activations.slices import DataSlice
from sae_jax.configs import SAEConfig
from sae_jax.features.logit_lens import Vocabulary
from sae_jax.features.matching import best_cosine_by_chance
from sae_jax.report.dashboard.glossary import LATENT_MEANINGS, SHARING_MEANINGS
from sae_jax.report.dashboard.latents import Described, describe
from sae_jax.report.dashboard.overview import overview
from sae_jax.report.dashboard.pack import numbers, packed
from sae_jax.report.dashboard.seeds import Relation, relations, shared_by_seeds
from sae_jax.report.samples import Samples
from sae_jax.report.statistics import Rows
from sae_jax.sweep.result import SweepResult

# Latents shown unless members are named: 10 MB of a file, which opens in 2 seconds.
MAX_LATENTS = 25_000

_ASSETS = files("sae_jax.report.dashboard") / "assets"
_LIBRARIES = ("d3.min.js", "plot.umd.min.js")
_SCRIPTS = ("elements.js", "data.js", "table.js", "plots.js", "sweep.js", "latents.js", "main.js")


def page(
    result: SweepResult,
    path: str | Path,
    *,
    val: Selection | Sequence[Selection] | None = None,
    rows: Rows | None = None,
    members: Sequence[int] | None = None,
    vocabulary: Vocabulary | None = None,
    tokens: Mapping[str, Sequence[str]] | None = None,
    effects: Mapping[int, np.ndarray] | None = None,
    title: str = "Sweep",
) -> Path:
    """Writes a page on which a reader compares the members of a sweep and looks at their latents.

    It is one HTML file. Its content-security policy forbids network, and scripts other than
    its own.

    Args:
      result: a trained sweep.
      path: the file to write, which is replaced.
      val: the validation samples of each data slice whose latents to show; none are shown without.
      rows: one row for each member, as `score_features` gives; `result.table()` unless given,
        which says nothing of specialization and stability.
      members: indices of the members whose latents to show. Unless named they are as many
        settings, all seeds of each, as have 25,000 latents together.
      vocabulary: tokens and unembedding of the model, to show which tokens a latent speaks for.
      tokens: for samples that are tokens, the text of each problem's, by its id; activations are
        then shown on them.
      effects: for members by index, the effect of each latent's ablation on the model, such as
        the mean of `patching.causal_effect` in nats, `[F]`; NaN where it was not measured.
      title: heading of the page.

    Returns:
      The path.

    Raises:
      ValueError: if the sweep has no members; rows are not one for each; `members` are not of
        the sweep, diverged, or have no validation samples; `effects` or tokens are of another
        length; or the vocabulary is of another width.
    """
    template = _template()
    rows = result.table() if rows is None else rows
    if not rows or len(rows) != len(result):
        raise ValueError(f"found {len(rows)} rows for {len(result)} members; expected one for each")
    selections = [val] if isinstance(val, Selection) else list(val or ())
    by_slice: dict[DataSlice, Selection] = {
        (part.layer, part.position): part for part in selections
    }
    chosen = _chosen(result, members, by_slice)
    _check_effects(result, effects or {})
    data = {"sweep": overview(result, rows)} | _latents(
        result, chosen, by_slice, vocabulary, tokens, effects or {}
    )
    text = _rendered(template, title, {name: packed(value) for name, value in data.items()})
    Path(path).write_text(text, encoding="utf-8")
    return Path(path)


def _chosen(
    result: SweepResult, members: Sequence[int] | None, by_slice: Mapping[DataSlice, Selection]
) -> list[int]:
    """The members whose latents to show."""
    able = [
        i
        for i, member in enumerate(result.members)
        if member.diverged_at is None and member.config.data_slice in by_slice
    ]
    if by_slice and not any(config.data_slice in by_slice for config in result.configs):
        raise ValueError(
            f"the validation samples are of {list(by_slice)}; the members were trained on"
            f" {list(dict.fromkeys(config.data_slice for config in result.configs))}"
        )
    if members is not None:
        if missing := [i for i in members if i not in able]:
            raise ValueError(
                f"members {missing} have no latents to show; those that did not diverge and have"
                f" validation samples are {able}"
            )
        return list(dict.fromkeys(members))
    settings: dict[SAEConfig, list[int]] = {}
    for i in able:
        settings.setdefault(result.configs[i].setting, []).append(i)
    chosen: list[int] = []
    num_latents = 0
    for setting, seeds in settings.items():
        num_latents += setting.d_sae * len(seeds)
        if chosen and num_latents > MAX_LATENTS:
            break
        chosen += seeds
    return sorted(chosen)


def _check_effects(result: SweepResult, effects: Mapping[int, np.ndarray]) -> None:
    for i, effect in effects.items():
        expected = result.configs[i].d_sae if 0 <= i < len(result) else None
        if np.shape(effect) != (expected,):
            raise ValueError(
                f"effects[{i}] has shape {np.shape(effect)}; expected one number for each of the"
                f" {expected} latents of member {i}"
            )


def _latents(
    result: SweepResult,
    chosen: Sequence[int],
    by_slice: Mapping[DataSlice, Selection],
    vocabulary: Vocabulary | None,
    tokens: Mapping[str, Sequence[str]] | None,
    effects: Mapping[int, np.ndarray],
) -> dict[str, Any]:
    """Data of the latents by name: the problems of each slice, each member, and the seeds."""
    slices = {
        data_slice: Samples(by_slice[data_slice], tokens)
        for data_slice in dict.fromkeys(result.configs[i].data_slice for i in chosen)
    }
    described: dict[int, Described] = {
        i: describe(
            result.members[i],
            slices[result.configs[i].data_slice],
            vocabulary=vocabulary,
            effect=effects.get(i),
        )
        for i in chosen
    }
    related = relations(result, chosen, {i: found.alive for i, found in described.items()})
    settings: dict[SAEConfig, list[int]] = {}
    for i in chosen:
        settings.setdefault(result.configs[i].setting, []).append(i)
    seeds: list[dict[str, Any]] = []
    shared: dict[int, np.ndarray] = {}
    for of_setting in settings.values():
        if len(of_setting) > 1:
            of_members, columns = shared_by_seeds(of_setting, described, related)
            shared |= of_members
            seeds.append(columns)
    names = list(slices)
    members = {
        f"member-{i}": described[i].shown
        | {
            "slice": names.index(result.configs[i].data_slice),
            "matches": [_shown(match) for match in related[i]],
            "shared": shared[i].max(axis=1).tolist() if i in shared else None,
        }
        for i in chosen
    }
    chance = {
        i: best_cosine_by_chance(
            int(described[i].alive.sum()), result.members[i].params["w_dec"].shape[1]
        )
        for i in chosen
    }
    index = {
        "members": list(chosen),
        "seeds": seeds,
        "glossary": {"latent": LATENT_MEANINGS, "sharing": SHARING_MEANINGS},
        "cosine_by_chance": dict(zip(chance, numbers(chance.values(), 3), strict=True)),
    }
    return (
        {"latents": index}
        | {f"slice-{n}": samples.shown() for n, samples in enumerate(slices.values())}
        | members
    )


def _shown(relation: Relation) -> dict[str, Any]:
    return {
        "member": relation.member,
        "kind": relation.kind,
        "latent": relation.matches.latent.tolist(),
        "cosine": numbers(relation.matches.cosine, 3),
    }


def _template() -> Any:
    """The page's template; asked for first, since Jinja may be missing."""
    # Of the report extra, which tables and statistics do without.
    import jinja2

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(_read("page.html.jinja"))


def _rendered(template: Any, title: str, blocks: Mapping[str, str]) -> str:
    libraries = [_read("vendor", name) for name in _LIBRARIES]
    script = "\n".join(["'use strict';", *(_read(name) for name in _SCRIPTS)])
    return template.render(
        title=title,
        style=_read("page.css"),
        scripts=[*libraries, script],
        hashes=" ".join(_hashes([*libraries, script])),
        blocks=blocks,
    )


def _hashes(scripts: Iterable[str]) -> Iterable[str]:
    """What the content-security policy allows: these scripts, letter by letter, and no others."""
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode("ascii")
        yield f"'sha256-{digest}'"


def _read(*names: str) -> str:
    return _ASSETS.joinpath(*names).read_text(encoding="utf-8")
