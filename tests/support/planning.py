"""The formulas of "Planning on paper" in docs/scale.md.

A member has `width` latents F and reads samples of width `d_in` D, `batch_size` b at a time. A mesh
is (members, data, latents), and what is counted is what one device of it does in a step.
"""

import dataclasses

# Shares of the peaks, as an H100 reached them (`gpu_step` in experiments/results/speed.md); taken
# to be those of other chips too.
SHARE_OF_ARITHMETIC = {"float32": 0.68, "tf32": 0.47, "bfloat16": 0.38}
SHARE_OF_MEMORY = 0.9
KERNELS_PER_STEP = 30  # Besides those of top-k.
KERNELS_PER_ROUND = 5
# Assumptions, not measurements; the first is what a kernel waits for the one before.
SECONDS_PER_KERNEL = 3e-6
SECONDS_PER_MESSAGE = 20e-6
SHARE_OF_LINK = 0.5
# Bits that an accelerator finds in a round of top-k, and rounds for the values and on a CPU.
DIGIT_BITS = 4
TOP_K_ROUNDS = 8
CPU_TOP_K_ROUNDS = 31
# Floating-point operations of Adam for one weight, as XLA counts them.
ADAM_FLOPS = 14
# Times that a weight is read or written in a step; see `memory_bytes`.
WEIGHT_PASSES = 9.5


@dataclasses.dataclass(frozen=True)
class Chip:
    """Peaks of an accelerator, as its maker states them.

    Attributes:
      flops: dense floating-point operations a second, by `compute_dtype`.
      memory_speed: bytes a second of its memory.
      link_speed: bytes a second that it sends to other chips.
      memory: bytes.
    """

    flops: dict[str, float]
    memory_speed: float
    link_speed: float
    memory: float


# https://www.nvidia.com/en-us/data-center/h100/ (2022), whose tensor figures are of sparse matrices
# and twice these.
H100 = Chip({"float32": 67e12, "tf32": 494.5e12, "bfloat16": 989.5e12}, 3.35e12, 450e9, 80e9)
# https://cloud.google.com/tpu/docs/v5p (2023); the link's 1,200 GB/s are both ways.
V5P = Chip({"bfloat16": 459e12}, 2.765e12, 600e9, 95 * 2**30)


def num_params(width, d_in):
    """Encoder, decoder and both biases."""
    return 2 * width * d_in + width + d_in


def flops(width, d_in, batch_size, kernel="dense", k=None, firing=1.0):
    """Of one member's five products: all latents are encoded, and then all, those that fire on
    some sample of the batch, as a share, or the k selected ones enter the other four."""
    decoded = {"dense": width, "firing_rows": firing * width, "selected_rows": k}[kernel]
    return 2 * batch_size * d_in * (width + 4 * decoded)


def adam_flops(width, d_in, mesh=(1, 1, 1)):
    """Of one member on one device: along `data` all do the same."""
    return ADAM_FLOPS * 2 * d_in * width / mesh[2]


def tie_rounds(width):
    """Rounds in which an accelerator finds the last of equal values."""
    return -(-width.bit_length() // DIGIT_BITS)


def memory_bytes(width, d_in, batch_size, mesh=(1, 1, 1), rounds=None):
    """Bytes of a member-step, dense kernel, float32, between a device and its memory.

    A weight is read by 1.5 products (the encoder by one, the decoder by two), its gradient written,
    and Adam reads four numbers and writes three. A sample is read or written 8 times, a latent 8
    times, and once more, in comparisons, in every round of top-k.
    """
    _, data, latents = mesh
    rounds = TOP_K_ROUNDS + tie_rounds(width) if rounds is None else rounds
    weights = 4 * WEIGHT_PASSES * 2 * d_in * width / latents
    samples = 4 * 8 * batch_size * d_in / data
    return weights + samples + 4 * (8 + rounds) * batch_size * width / (data * latents)


def reduced_numbers(width, d_in, batch_size, mesh):
    """Numbers of a member that devices along `data`, and along `latents`, add up in a step."""
    _, data, latents = mesh
    # With the loss.
    gradients = (2 * d_in * width + width) / latents + d_in + 1 if data > 1 else 0
    reconstructions = batch_size * d_in / data if latents > 1 else 0
    return gradients, reconstructions


def sent_bytes(width, d_in, batch_size, mesh):
    """Bytes of a member-step that a device sends, by ring all-reduces of float32."""
    _, data, latents = mesh
    gradients, reconstructions = reduced_numbers(width, d_in, batch_size, mesh)
    if latents > 1:
        counts = 2**DIGIT_BITS - 1
        reconstructions += counts * (TOP_K_ROUNDS + tie_rounds(width)) * batch_size / data
    return 8 * (gradients * (data - 1) / data + reconstructions * (latents - 1) / latents)


def step_seconds(chip, dtype, num_members, width, d_in, batch_size, mesh=(1, 1, 1)):
    """Seconds of a step of the members of one device, as a sum, as if nothing overlapped."""
    members, data, latents = mesh
    each = -(-num_members // members)
    # Adam's arithmetic hides behind its reading and writing.
    reached = SHARE_OF_ARITHMETIC[dtype] * chip.flops[dtype]
    arithmetic = flops(width, d_in, batch_size) / (data * latents) / reached
    memory = memory_bytes(width, d_in, batch_size, mesh) / (SHARE_OF_MEMORY * chip.memory_speed)
    links = sent_bytes(width, d_in, batch_size, mesh) / (SHARE_OF_LINK * chip.link_speed)
    rounds = TOP_K_ROUNDS + tie_rounds(width)
    messages = (latents > 1) * (rounds + 1) + (data > 1)
    kernels = KERNELS_PER_STEP + KERNELS_PER_ROUND * rounds
    waits = kernels * SECONDS_PER_KERNEL + messages * SECONDS_PER_MESSAGE
    return each * (arithmetic + memory + links) + waits


def balanced_batch_size(chip, dtype):
    """Samples a batch from which on products take longer than reading and writing the weights."""
    reached = SHARE_OF_ARITHMETIC[dtype] * chip.flops[dtype]
    return 4 * WEIGHT_PASSES * 2 / 10 * reached / (SHARE_OF_MEMORY * chip.memory_speed)


def num_steps(num_samples, batch_size, epochs=1):
    """Steps of a group; the last of an epoch may be smaller."""
    return epochs * -(-num_samples // batch_size)
