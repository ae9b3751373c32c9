"""Flags that name a language model, for scripts that run one."""

from typing import TYPE_CHECKING

from absl import flags

if TYPE_CHECKING:
    from sae_jax.extraction.language_model import LanguageModel

_MODEL = flags.DEFINE_string("model", "packaged", "packaged (SmolLM2), hub id, folder or GGUF.")
_DTYPE = flags.DEFINE_enum("dtype", "float32", ["float32", "bfloat16"], "Compute dtype.")
_PROMPT_TEMPLATE = flags.DEFINE_string(
    "prompt_template",
    None,
    r"Text with {question} in it, \n for a new line; else the chat template.",
)
_CODI_CHECKPOINT = flags.DEFINE_string("codi_checkpoint", None, "Folder or hub id, over --model.")
_LORA_ALPHA = flags.DEFINE_float("lora_alpha", 32, "LoRA alpha of the CODI checkpoint.")
_EOS_BEFORE_THOUGHTS = flags.DEFINE_bool(
    "eos_before_thoughts", False, "Set the thoughts off by end-of-sequence tokens (CODI)."
)


def load(untrained_seed: int | None = None) -> "LanguageModel":
    """The model that the flags name, or one of its shapes with random weights of a seed."""
    # Imported here, since a script may need its model, and PyTorch, only for a part of its work.
    from sae_jax.extraction.codi import load_codi
    from sae_jax.extraction.models import load_model

    template = _PROMPT_TEMPLATE.value
    model = load_model(
        _MODEL.value,
        dtype=_DTYPE.value,
        prompt_template=template and template.replace("\\n", "\n"),
        untrained_seed=untrained_seed,
    )
    if _CODI_CHECKPOINT.value is None:
        return model
    return load_codi(
        model,
        _CODI_CHECKPOINT.value,
        lora_alpha=_LORA_ALPHA.value,
        eos_before_thoughts=_EOS_BEFORE_THOUGHTS.value,
    )
