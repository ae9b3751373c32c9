"""Where a sweep's activations came from, and how to find them again."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_jax.activations.live import LiveSelection
from sae_jax.activations.manifest import MANIFEST_NAME
from sae_jax.activations.selection import Selection, Split
from sae_jax.activations.slices import ActivationData, DataSlice
from sae_jax.activations.store import ActivationStore

_FROM_FOLDER = "activations_from_folder"


def described(train: ActivationData, val: ActivationData) -> dict[str, Any]:
    """What a sweep says of the activations that it trains on.

    Returns:
      `activations`, the folder of the store; `fingerprint`, the fingerprint of the store; and
      the settings of the selections, such as `train_fraction` and `split_seed`. It is empty for
      plain arrays, and for selections of several stores or with several settings. Where `train` is
      of a live store, which does not stay: the same of `val`, and `live`, the store's fingerprint.
    """
    parts: Sequence[Any] = train if isinstance(train, list | tuple) else [train]
    if parts and all(isinstance(part, LiveSelection) for part in parts):
        of_val = {} if val is train else described(val, val)
        return of_val | {"live": parts[0].store.fingerprint}
    if not parts or not all(isinstance(part, Selection) for part in parts):
        return {}
    sources = [
        {
            "activations": str(part.store.path.resolve()),
            "fingerprint": part.store.fingerprint,
            **part.settings,
        }
        for part in parts
    ]
    return sources[0] if all(source == sources[0] for source in sources) else {}


def as_saved(data: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """Adds the store's path relative to the sweep's folder, so that both can move together."""
    if not isinstance(data.get("activations"), str):
        return dict(data)
    path = os.path.relpath(Path(data["activations"]).resolve(), folder.resolve())
    return {**data, _FROM_FOLDER: path}


def samples_of(
    data: Mapping[str, Any],
    folder: str | Path,
    data_slice: DataSlice,
    *,
    activations: str | Path | None = None,
    train_fraction: float | None = None,
    split_seed: int | None = None,
) -> Split:
    """The samples of a data slice that a sweep was trained and scored on.

    Args:
      data: the sweep's own description of its activations.
      folder: the sweep's folder.
      data_slice: layer and position; one that is `None` is taken from `data`.
      activations: the store's folder, if the store is not where `data` says.
      train_fraction, split_seed: settings of the split, used where `data` lacks them.

    Raises:
      ValueError: if the store is not found, if it is not the one that the sweep was trained on,
        or if a setting is neither in `data` nor given.
    """
    path = Path(activations) if activations else _found(data, Path(folder))
    store = ActivationStore.open(path)
    if (known := data.get("fingerprint")) not in (None, store.fingerprint):
        raise ValueError(
            f"the store at {path} has fingerprint {store.fingerprint}, and the sweep in {folder}"
            f" was trained on {known}: those are other activations"
        )
    layer: Any = data.get("layer") if data_slice[0] is None else data_slice[0]
    position: Any = data.get("position") if data_slice[1] is None else data_slice[1]
    if isinstance(position, str):
        position = store.parse_position(position)
    if layer is None or position is None:
        raise ValueError(f"the sweep in {folder} does not say its layer and position; name them")
    given = {"train_fraction": train_fraction, "split_seed": split_seed}
    settings = {name: data.get(name, value) for name, value in given.items()}
    if missing := [name for name, value in settings.items() if value is None]:
        raise ValueError(
            f"the sweep in {folder} does not say its {' and '.join(missing)}; name them"
            f" ({', '.join(f'--{name}' for name in missing)})"
        )
    split = store.select(layer, position).split(*settings.values())
    ratio = data.get("max_norm_ratio")
    return split if ratio is None else split.within_norm(ratio)


def _found(data: Mapping[str, Any], folder: Path) -> Path:
    """The store's folder: relative to the sweep's folder, or where it was in training."""
    if not isinstance(data.get("activations"), str):
        raise ValueError(
            f"the sweep in {folder} does not say where its activations are; name their store"
            " (--activations)"
        )
    places = [folder / data.get(_FROM_FOLDER, data["activations"]), Path(data["activations"])]
    for place in places:
        if (place / MANIFEST_NAME).exists():
            return place
    raise ValueError(
        f"the activations of the sweep in {folder} are no longer at {places[-1]}; name their"
        " store's new place (--activations)"
    )
