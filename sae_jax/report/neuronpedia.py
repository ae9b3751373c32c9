"""Latents as Neuronpedia takes them: the `batch-*.json` files of SAEDashboard 0.8.

Neuronpedia's `convert-saedashboard-to-neuronpedia-export.py` makes its import of them. The fields
are those of `sae_dashboard.neuronpedia.neuronpedia_dashboard`
(https://github.com/jbloomAus/SAEDashboard; https://github.com/hijohnnylin/neuronpedia,
`utils/neuronpedia-utils`).
"""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.activations.selection import Selection
from sae_jax.features.encoding import sparse_latents
from sae_jax.features.examples import Examples, examples, histograms
from sae_jax.features.firing import Firing
from sae_jax.features.logit_lens import LogitLens, Vocabulary, logit_lens
from sae_jax.report.samples import Samples
from sae_jax.sweep.result import Member, check_free

LATENTS_A_FILE = 128
SKIPPED_NAME = "skipped_indexes.json"

_NUM_ALIGNED = 3
_NUM_DIGITS = 3
_WORD = re.compile(r"\s*\S+")


def write_neuronpedia(
    member: Member,
    val: Selection,
    folder: str | Path,
    *,
    model_id: str,
    sae_set: str,
    dataset: str = "",
    vocabulary: Vocabulary | None = None,
    tokens: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Writes the latents that fire, and `skipped_indexes.json`, which names the others.

    A sample that is one thought or token of a problem is shown as the problem's words with the
    activation on a last token, named by the position; samples that are tokens, on themselves.
    A latent's correlations with neurons and other latents are left empty, as SAEDashboard does
    where it does not compute them.

    Args:
      member: a member that did not diverge.
      val: validation samples of its data slice.
      folder: a new or empty folder.
      model_id: Neuronpedia's name of the model, such as `"llama3.2-1b"`.
      sae_set: Neuronpedia's name of the set of SAEs.
      dataset: name of the data set that the problems are of.
      vocabulary: the model's, for the tokens that a latent raises and lowers; else none are named.
      tokens: for samples that are tokens, the text of each problem's, by its id.

    Returns:
      The files.

    Raises:
      ValueError: if the member diverged, `folder` holds something, samples are tokens of which
        the texts are missing, or the vocabulary is of another width.
    """
    folder = Path(folder)
    check_free(folder, overwrite=False)
    if member.diverged_at is not None:
        raise ValueError(f"{member.config} diverged at step {member.diverged_at}")
    samples = Samples(val, tokens)
    if samples.are_tokens and tokens is None:
        raise ValueError("problems have several samples, which are tokens; give their texts")
    w_dec = np.asarray(member.params["w_dec"])
    firing = Firing(sparse_latents(member.sae(), samples.x))
    shown, histogram = examples(firing.z, samples.problem_of_sample), histograms(firing.z)
    alive = np.flatnonzero(firing.alive)
    lens = None if vocabulary is None else logit_lens(w_dec[alive], vocabulary)
    texts = _Texts(samples, str(val.position))
    features = []
    for row, latent in enumerate(alive.tolist()):
        low, high, counts = (of[latent] for of in histogram)
        edges = np.linspace(low, high, len(counts) + 1)
        features.append(
            {
                "feature_index": latent,
                **_alignment(w_dec[latent]),
                **_tokens(lens, row, vocabulary),
                "frac_nonzero": float(firing.firing_rate[latent]),
                "freq_hist_data_bar_values": _rounded((edges[:-1] + edges[1:]) / 2),
                "freq_hist_data_bar_heights": counts.tolist(),
                "n_prompts_total": len(samples.problems),
                "n_tokens_in_prompt": texts.longest,
                "dataset": dataset,
                "activations": list(_activations(shown, latent, texts, firing)),
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    layer = val.layer
    paths = []
    for start in range(0, len(features), LATENTS_A_FILE):
        batch = {
            "model_id": model_id,
            "layer": layer,
            "sae_set": sae_set,
            "sae_id_suffix": None,
            "features": features[start : start + LATENTS_A_FILE],
        }
        paths.append(_written(batch, folder / f"batch-{start // LATENTS_A_FILE}.json"))
    skipped = {
        "model_id": model_id,
        "layer": str(layer),
        "sae_set": sae_set,
        "log_sparsity": 0,
        "skipped_indexes": np.flatnonzero(~firing.alive).tolist(),
    }
    return [*paths, _written(skipped, folder / SKIPPED_NAME)]


class _Texts:
    """The tokens of each problem, and a latent's values on them."""

    def __init__(self, samples: Samples, position: str):
        self._problem_of_sample = samples.problem_of_sample
        order = np.argsort(samples.problem_of_sample, kind="stable")
        bounds = np.searchsorted(
            samples.problem_of_sample[order], np.arange(len(samples.problems) + 1)
        )
        self._rows = [order[a:b] for a, b in zip(bounds, bounds[1:], strict=False)]
        self._tokens: Sequence[list[str]] = samples.tokens or [
            [*_WORD.findall(problem.question), f" [{position}]"] for problem in samples.problems
        ]
        self.longest = max(map(len, self._tokens))

    def of(self, sample: int, z: np.ndarray) -> tuple[list[str], np.ndarray]:
        """Tokens of a sample's problem, and a latent on each; `z` is that latent, `[n]`."""
        problem = self._problem_of_sample[sample]
        tokens = self._tokens[problem]
        values = np.zeros(len(tokens))
        rows = self._rows[problem]
        values[-len(rows) :] = z[rows]
        return tokens, values


def _activations(
    shown: Examples, latent: int, texts: _Texts, firing: Firing
) -> Iterator[dict[str, Any]]:
    """Examples of a latent: the strongest in a bin of their own, as SAEDashboard marks them."""
    own = slice(shown.start[latent], shown.start[latent + 1])
    quantiles, values = shown.quantile[own], shown.activation[own]
    z = firing.z[:, [latent]].toarray()[:, 0]
    fires = z[z != 0]
    for sample, quantile in zip(shown.sample[own].tolist(), quantiles, strict=True):
        in_bin = values[quantiles == quantile]
        low, high = float(in_bin.min()), float(in_bin.max())
        share = float(((fires >= low) & (fires <= high)).mean())
        tokens, on_tokens = texts.of(sample, z)
        top = quantile == 1
        yield {
            "bin_min": -1 if top else low,
            "bin_max": high,
            "bin_contains": -1 if top else share,
            "tokens": tokens,
            "values": _rounded(on_tokens),
            "qualifying_token_index": int(np.abs(on_tokens).argmax()),
        }


def _alignment(row: np.ndarray) -> dict[str, Any]:
    """The dimensions that a decoder row has most of, and nothing of what is not computed."""
    largest = np.argsort(-row, kind="stable")[:_NUM_ALIGNED]
    size = np.abs(row)
    empty = ("indices", "l1", "pearson")
    return {
        "neuron_alignment_indices": largest.tolist(),
        "neuron_alignment_values": _rounded(row[largest]),
        "neuron_alignment_l1": _rounded(size[largest] / (size.sum() or 1)),
        **{f"correlated_neurons_{name}": [] for name in empty},
        **{f"correlated_features_{name}": [] for name in empty},
        "decoder_weights_dist": [],
    }


def _tokens(lens: LogitLens | None, row: int, vocabulary: Vocabulary | None) -> dict[str, Any]:
    names = ("pos_str", "pos_values", "neg_str", "neg_values")
    histogram: dict[str, Any] = {
        "logits_hist_data_bar_heights": [],
        "logits_hist_data_bar_values": [],
    }
    if lens is None or vocabulary is None:
        return histogram | {name: [] for name in names}
    texts = [[vocabulary.tokens[i] for i in of[row]] for of in (lens.raised, lens.lowered)]
    values = [_rounded(of[row]) for of in (lens.raised_by, lens.lowered_by)]
    return histogram | dict(zip(names, (texts[0], values[0], texts[1], values[1]), strict=True))


def _rounded(values: np.ndarray) -> list[float]:
    return np.round(values.astype(np.float64), _NUM_DIGITS).tolist()


def _written(value: Any, path: Path) -> Path:
    path.write_text(json.dumps(value, allow_nan=False), encoding="utf-8")
    return path
