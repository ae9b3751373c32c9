"""Which libraries can open this SAE? Converts one between the formats that the field uses.

    experiments/convert.py --input=runs/sweep/members/00000 --output=runs/saelens --format=saelens

The input is a folder of one SAE, in any format that `sae_jax.formats` reads, or its weights.
Takes seconds. Prints what was read and how far reconstructions of random samples moved,
relative to the largest of them: 0 where no arithmetic was needed, else about 1e-6.
`--layer` and `--position` tell what the file does not; the published format needs them.
"""

import command
import jax
import jax.numpy as jnp
from absl import flags

from sae_jax import formats

_INPUT = flags.DEFINE_string(
    "input", None, "Folder of one SAE, or its file of weights.", required=True
)
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write to.", required=True)
_FORMAT = flags.DEFINE_enum("format", "saelens", formats.WRITABLE, "Format to write.")
_LAYER = flags.DEFINE_integer("layer", None, "Layer of the activations.", lower_bound=0)
_POSITION = flags.DEFINE_integer("position", None, "Position of the activations.", lower_bound=0)


def work() -> None:
    """Reads, writes, reads back and compares."""
    sae = formats.load(_INPUT.value)
    metadata = formats.load_metadata(_INPUT.value)
    places = {"layer": _LAYER.value, "position": _POSITION.value}
    metadata |= {name: value for name, value in places.items() if value is not None}
    written = formats.save(sae, _OUTPUT.value, format=_FORMAT.value, metadata=metadata)

    x = jax.random.normal(jax.random.key(0), (256, sae.d_in))
    before, after = sae(x), formats.load(written)(x)
    moved = jnp.max(jnp.abs(after - before)) / jnp.max(jnp.abs(before))
    print(f"read    {type(sae).__name__}, d_in = {sae.d_in}, d_sae = {sae.d_sae}")
    print(f"written {_FORMAT.value}: {written}")
    print(f"reconstructions moved by {moved:.1e} of the largest")


if __name__ == "__main__":
    command.start(work)
