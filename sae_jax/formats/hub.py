"""SAEs on the Hugging Face Hub, in a layout that SAELens opens too.

An SAE lies in a folder of its repository, as SAELens 6 writes it, and a model card lies at the
top. That one copy serves both libraries, since it keeps all that an SAE computes.
"""

import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, ModelCard, ModelCardData, snapshot_download

from sae_jax import formats
from sae_jax.architectures.base import SAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import kinds
from sae_jax.markdown import markdown_table

DEFAULT_FOLDER = "sae"
_SUFFIXES = ("safetensors", "json", "npz", "pt")


def push_to_hub(
    sae: SAE,
    repo_id: str,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data: str,
    folder: str = DEFAULT_FOLDER,
    license: str | None = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Uploads an SAE and its model card to a repository, created where absent.

    Args:
      sae: an SAE that `formats.saelens` can write.
      repo_id: `owner/name` on the Hub.
      config: JSON values that tell how the SAE was trained.
      metrics: numbers measured on the validation split.
      data: one or two sentences on the activations that it was trained and scored on.
      folder: where in the repository the SAE goes; several SAEs may share a repository,
        whose card tells of the last one.
      license: identifier of the card's license, such as `mit`; the card states none if None.
      private: whether a repository that is created is private; the account decides if None.
      token: access token; None takes the one that `hf auth login` stored.

    Returns:
      The URL of the commit.

    Raises:
      ValueError: if the SAE or the metadata cannot be written, or `folder` leaves the
        repository.
    """
    _check_folder(folder)
    if not folder:
        raise ValueError("folder is empty; SAELens opens an SAE by the name of its folder")
    about: dict[str, Any] = {"config": dict(config), "metrics": dict(metrics), "data": data}
    with tempfile.TemporaryDirectory() as staging:
        formats.save(sae, Path(staging, folder), format="saelens", metadata=about)
        card = model_card(sae, repo_id, **about, folder=folder, license=license)
        card.save(Path(staging, "README.md"))
        api = HfApi(token=token)
        api.create_repo(repo_id, private=private, exist_ok=True)
        commit = api.upload_folder(
            repo_id=repo_id, folder_path=staging, commit_message=f"Add the SAE in {folder}"
        )
    return commit.commit_url


def from_pretrained(
    source: str | Path,
    *,
    folder: str = DEFAULT_FOLDER,
    revision: str | None = None,
    token: str | None = None,
) -> SAE:
    """Loads an SAE from a repository on the Hub, or from a local copy of one.

    It reads any layout that `formats.load` knows, so `folder` also names an SAE in
    repositories of SAELens, sparsify or Gemma Scope.

    Args:
      source: a local folder if there is one of that name, else `owner/name` on the Hub.
      folder: where in the repository the SAE is; an empty name is its top.
      revision: branch, tag or commit; None takes the default branch.
      token: access token; None takes the one that `hf auth login` stored.

    Raises:
      ValueError: if there is no SAE, or `folder` leaves the repository.
    """
    _check_folder(folder)
    root = Path(source)
    if not root.is_dir():
        prefix = f"{folder}/" if folder else ""
        snapshot = snapshot_download(
            str(source),
            revision=revision,
            allow_patterns=[f"{prefix}*.{suffix}" for suffix in _SUFFIXES],
            ignore_patterns=[f"{prefix}*/*"],  # A star matches slashes too.
            token=token,
        )
        root = Path(snapshot)
    return formats.load(root / folder)


def model_card(
    sae: SAE,
    repo_id: str,
    *,
    config: Mapping[str, Any],
    metrics: Mapping[str, Any],
    data: str,
    folder: str = DEFAULT_FOLDER,
    license: str | None = None,
) -> ModelCard:
    """Writes the card that `push_to_hub` uploads; see there for the arguments."""
    header = ModelCardData(
        license=license,
        library_name="sae_jax",
        tags=["sparse-autoencoder", "mechanistic-interpretability", "jax", "saelens"],
    )
    doubled = isinstance(sae, TopKSAE) and sae.rule == "abs"
    return ModelCard(f"""---
{header.to_yaml()}
---

# {repo_id.split("/")[-1]}

{_summary(sae)}

## Data

{data}

## Config

{_table(config)}

## Metrics

On the validation split.

{_table(metrics)}

## Use

```python
from sae_jax import hub

sae = hub.from_pretrained("{repo_id}", folder="{folder}")
latents = sae.encode(activations)  # [n, {sae.d_in}] -> [n, {sae.d_sae}]
reconstructions = sae.decode(latents{", activations" if sae.normalize_input else ""})
```

In [SAELens](https://github.com/decoderesearch/SAELens) 6:

```python
from sae_lens import SAE

sae = SAE.from_pretrained("{repo_id}", "{folder}")
```
{_DOUBLED.format(d_sae=sae.d_sae, d_doubled=2 * sae.d_sae) if doubled else ""}""")


_DOUBLED = """
This SAE keeps the sign of its latents, which SAELens' top-k does not. The files hold each
latent twice, the second time negated: SAELens sees {d_doubled} non-negative latents, and latent
`i` here is `i` minus `i + {d_sae}` there. Reconstructions are the same.
"""


_NAMES = {
    "topk": "TopK",
    "batch_topk": "BatchTopK",
    "matryoshka": "Matryoshka BatchTopK",
    "jumprelu": "JumpReLU",
    "gated": "gated",
    "relu": "ReLU",
}


def _summary(sae: SAE) -> str:
    transcodes = sae.d_out != sae.d_in
    kind = f"A {_NAMES[kinds.kind_of(sae)]} {'transcoder' if transcodes else 'sparse autoencoder'}"
    if isinstance(sae, TopKSAE):
        ranked = "magnitude, sign kept" if sae.rule == "abs" else "value after a ReLU"
        kind += f" (the {sae.k} latents of largest {ranked})"
    to = f", which predicts others of width {sae.d_out}" if transcodes else ""
    steps = {
        "each sample is standardized": sae.normalize_input,
        "the decoder bias is subtracted": sae.center_input,
    }
    before = " and ".join(step for step in steps if steps[step]) or "samples enter as they are"
    return (
        f"{kind} of {sae.d_sae} latents on activations of width {sae.d_in}{to}, trained with"
        f" sae_jax. Before encoding, {before}."
    )


def _table(entries: Mapping[str, Any]) -> str:
    values = {k: f"{v:.4g}" if isinstance(v, float) else str(v) for k, v in entries.items()}
    return markdown_table(["name", "value"], list(values.items()))


def _check_folder(folder: str) -> None:
    parts = PurePosixPath(folder).parts
    if PurePosixPath(folder).is_absolute() or ".." in parts or "\\" in folder:
        raise ValueError(f"folder is {folder!r}; allowed is a path inside the repository")
