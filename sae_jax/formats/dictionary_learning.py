"""dictionary_learning: `ae.pt` and `config.json` (github.com/saprmarks/dictionary_learning).

All classes of SAEs are read, and all but `AutoEncoder` are written. Most subtract `b_dec`, two do
not, so that an SAE may be written with a changed bias of the same meaning. A top-k of magnitudes
is doubled, as the library ranks what a ReLU leaves.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sae_jax.architectures.base import SAE
from sae_jax.architectures.batch_topk import BatchTopKSAE
from sae_jax.architectures.jumprelu import JumpReLUSAE
from sae_jax.architectures.matryoshka import MatryoshkaSAE
from sae_jax.architectures.topk import TopKSAE
from sae_jax.formats import fields, files, kinds, names, rewriting, torch_files

WEIGHTS = "ae.pt"
CONFIG = "config.json"

# This value marks a threshold that was never estimated; the library then ranks by top-k.
_NO_THRESHOLD = -1.0
_LINEAR = ("encoder.weight", "encoder.bias", "decoder.weight")
_OWN = ("W_enc", "b_enc", "W_dec", "b_dec")
# The entries of a state dict tell the library's classes apart.
_CLASSES = {
    "AutoEncoder": (*_LINEAR, "bias"),
    "AutoEncoderNew": (*_LINEAR, "decoder.bias"),
    "AutoEncoderTopK": (*_LINEAR, "b_dec"),
    "BatchTopKSAE": (*_LINEAR, "b_dec", "k", "threshold"),
    "MatryoshkaBatchTopKSAE": (*_OWN, "k", "threshold", "group_sizes"),
    "JumpReluAutoEncoder": (*_OWN, "threshold"),
    "GatedAutoEncoder": (
        "encoder.weight",
        "decoder.weight",
        "decoder_bias",
        "gate_bias",
        "mag_bias",
        "r_mag",
    ),
}
# How an SAE of each kind is written, and whether that class subtracts `b_dec`. `AutoEncoder` would
# do for a ReLU, but the library scales its decoder, and its latents with it, on loading.
_WRITTEN = {
    "topk": ("AutoEncoderTopK", "TopKTrainer", True),
    "batch_topk": ("BatchTopKSAE", "BatchTopKTrainer", True),
    "matryoshka": ("MatryoshkaBatchTopKSAE", "MatryoshkaBatchTopKTrainer", True),
    "jumprelu": ("JumpReluAutoEncoder", "JumpReluTrainer", False),
    "gated": ("GatedAutoEncoder", "GatedSAETrainer", True),
    "relu": ("AutoEncoderNew", "StandardTrainerAprilUpdate", False),
}
# The first releases kept k in the config alone, and no threshold.
_OPTIONAL = {"AutoEncoderTopK": ("k", "threshold")}


def save(sae: SAE, folder: str | Path, metadata: Mapping[str, Any] | None = None) -> Path:
    """Writes an SAE for `dictionary_learning.utils.load_dictionary`.

    Args:
      sae: an SAE that does not normalize its input, and is no transcoder. A batch top-k that
        does not know its k is written as the JumpReLU that it is at inference.
      folder: where the two files go; neither may exist.
      metadata: JSON values to keep in the config.

    Returns:
      The folder.

    Raises:
      ValueError: if a file exists, the metadata is not JSON, or the format cannot hold
        the SAE.
    """
    folder = Path(folder)
    rewriting.check_plain(sae, "dictionary_learning")
    if isinstance(sae, BatchTopKSAE) and sae.k is None:
        sae = rewriting.to_jumprelu(sae)  # The library's own class needs k.
    dict_class, trainer_class, centered = _WRITTEN[kinds.kind_of(sae)]
    written, steps = rewriting.to_centering(sae, centered)
    counts: files.Arrays = {}
    if isinstance(written, TopKSAE):
        written, doubling = rewriting.to_relu_rule(written)
        steps += doubling
        counts = {"threshold": np.asarray(_NO_THRESHOLD, np.float32)}
    if isinstance(written, TopKSAE | BatchTopKSAE):
        counts["k"] = np.asarray(written.k, np.int32)
    if isinstance(written, MatryoshkaSAE):
        sizes = written.prefix_sizes or (written.d_sae,)
        counts["group_sizes"] = np.diff(np.asarray(sizes, np.int64), prepend=0)
    own = [name for name in _CLASSES[dict_class] if name not in counts]
    state = names.to_theirs(kinds.arrays_of(written), own) | counts
    config = {
        "trainer": {
            "trainer_class": trainer_class,
            "dict_class": dict_class,
            "activation_dim": written.d_in,
            "dict_size": written.d_sae,
        }
        | ({"k": written.k} if isinstance(written, TopKSAE | BatchTopKSAE) else {}),
        rewriting.NOTE: {"rewritten": steps, "metadata": dict(metadata or {})},
    }
    files.absent(folder / WEIGHTS)
    files.write_json(config, folder / CONFIG)
    torch_files.write(state, folder / WEIGHTS)
    return folder


def recognizes(content: Mapping[str, Any]) -> bool:
    """Tells whether a PyTorch file has the entries of one of the library's classes."""
    return bool(_fitting_classes(content))


def load(path: str | Path) -> TopKSAE | JumpReLUSAE:
    """Loads the SAE in a folder or a state dict of dictionary_learning, whoever wrote it.

    The config lies beside the state dict, or one folder up from `checkpoints`; where there is
    none, the entries of the state dict tell the class.

    A ReLU is a JumpReLU of threshold 0, a gated SAE is one too (`rewriting.gated_to_jumprelu`),
    and so is a batch top-k with its estimated threshold, by which the library encodes. The
    threshold that it estimates for a top-k is not used. Decoder rows are kept as they are,
    while `dictionary_learning.utils.load_dictionary` scales those of an `AutoEncoder`, and
    its latents with them, to norm 1.

    Raises:
      ValueError: if a file is missing or damaged, holds another class than those of the
        library, or does not tell which of two.
    """
    file, config_path = _places(Path(path))
    where = config_path or file
    config = files.read_json(config_path) if config_path else {}
    trainer = fields.mapping({"trainer": {}} | config, "trainer", where)
    state = torch_files.read(file)
    name = _class_of(state, trainer, where)
    k = state.pop("k", None)
    state.pop("group_sizes", None)
    if name == "AutoEncoderTopK":
        state.pop("threshold", None)
    files.check_names(state, set(_CLASSES[name]) - {"k", "group_sizes"}, file)
    params = names.to_ours(torch_files.to_arrays(state, file))
    if name == "AutoEncoderTopK":
        sae = TopKSAE(params, _k(k, trainer, where), rule="relu", center_input=True)
        return rewriting.undo(sae, config, where)
    if name == "GatedAutoEncoder":
        return rewriting.gated_to_jumprelu(params, center_input=True)
    threshold = params.pop("threshold", np.zeros((), np.float32))  # That of a ReLU is 0.
    if name != "JumpReluAutoEncoder":
        threshold = files.for_each_latent(threshold, params["b_enc"], f"threshold in {file}")
    centered = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    return JumpReLUSAE(params, threshold, center_input=centered)


def load_metadata(path: str | Path) -> dict[str, Any]:
    """Returns the metadata given to `save`, or the whole config, if any, where others wrote it.

    Raises:
      ValueError: if the config is damaged.
    """
    _, config_path = _places(Path(path))
    if config_path is None:
        return {}
    return rewriting.noted_metadata(files.read_json(config_path), config_path)


def _places(path: Path) -> tuple[Path, Path | None]:
    """Finds the state dict and the config by a path to the first or to the folder of both."""
    file = path / WEIGHTS if path.is_dir() else path
    config = file.with_name(CONFIG)
    if not config.is_file() and file.parent.name == "checkpoints":
        config = file.parent.with_name(CONFIG)
    return file, config if config.is_file() else None


def _class_of(state: Mapping[str, Any], trainer: Mapping[str, Any], where: Path) -> str:
    if "dict_class" in trainer:
        return fields.choice(trainer, "dict_class", tuple(_CLASSES), where)
    fitting = _fitting_classes(state)
    if len(fitting) == 1:
        return fitting[0]
    if not fitting:
        raise ValueError(
            f"{where} holds {sorted(state)}, which no class of dictionary_learning has"
        )
    raise ValueError(
        f"{where} is of one of {fitting}, whose files look alike; put the trainer's {CONFIG}"
        f' beside it, which has {{"trainer": {{"dict_class": ..., "k": ...}}}}'
    )


def _fitting_classes(content: Mapping[str, Any]) -> list[str]:
    return [
        name
        for name, required in _CLASSES.items()
        if set(required) <= content.keys() <= {*required, *_OPTIONAL.get(name, ())}
    ]


def _k(in_state: Any, trainer: Mapping[str, Any], where: Path) -> int:
    if in_state is None:
        return fields.integer(trainer, "k", where, minimum=1)
    k = torch_files.to_integer(in_state, f"k of the weights of {where}")
    if trainer:
        fields.equal(trainer, "k", k, where)
    return k
