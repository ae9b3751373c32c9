"""Constants that were tuned to processors; results do not depend on them.

`python experiments/benchmark.py --sections=d_sae,k` times the kernels by size on the machine that
it runs on. The crossings here are from CPUs, where alone a kernel other than the dense one is
chosen unasked; `experiments/results/kernels.md` has the measurements.
"""

# What a member costs on selected rows where the loops in C++ are built: so many latents of the
# dense kernel for each of its own, which are all encoded and updated, and for each that it keeps.
# It is the faster kernel from 3.4 latents for each kept on, in bfloat16 from 10 on.
NATIVE_SELECTED_COST = {"float32": (0.42, 2.0), "tf32": (0.42, 2.0), "bfloat16": (0.55, 4.4)}

# From how many rows and columns of its result on a product is faster on a CPU's tiles of bfloat16
# than as XLA compiles it: float32 takes six products of those.
TILES_MIN_SIZE = {"float32": 256, "tf32": 1, "bfloat16": 1}

# The same without those loops: from how many latents on, and how many for each one kept.
SELECTED_MIN_D_SAE = 1024
SELECTED_MIN_RATIO = {"float32": 64, "tf32": 64, "bfloat16": 80}

# From how many weights of an encoder on the kernel on firing rows is faster than the dense one in
# float32, on real activations. bfloat16 products leave less to save: there a step gained up to
# 1.3 times at d_sae / k = 20 and lost a tenth at 5, so it is chosen only by name.
FIRING_MIN_WEIGHTS = 200_000

# The share of a dense step that the kernel on firing rows spares such members, between a third at
# small k and nothing at the largest.
FIRING_GAIN = 0.2

# From how many full batches an epoch on the step of its last, smaller one is left to the dense
# kernel, so that the one on firing rows is compiled once.
FIRING_MIN_STEPS = 8

# What a padding latent costs the kernel on firing rows in relation to others: it never fires, but
# is encoded and optimized, which takes about a third of the time of a step.
FIRING_PADDING_COST = 1 / 3

# Into how many equal steps the widths of the kernel on firing rows divide the dictionary: more
# waste less, and compile longer. A width is a multiple of the rows that a product takes at a time.
FIRING_NUM_WIDTHS = 8
FIRING_WIDTH_MULTIPLE = 16

# Samples of a latent whose share of its gradient the kernel on selected rows gathers. A dense
# product adds the samples that a latent has beyond these.
SELECTED_NUM_SLOTS = 8

# Gathers that XLA fuses into one pass over the sums: one each reads and writes these as often as
# the rows themselves.
SELECTED_UNROLL = 8

# Samples whose selected rows are gathered before they are multiplied.
SELECTED_SAMPLES_AT_ONCE = 16

# Bits of the k-th largest value that an accelerator finds in one pass, comparing with all values
# that they may have. On an H100 12 selections take 0.77 ms with 1, 0.47 with 2, and 0.34 with 4.
TOP_K_DIGIT_BITS = 4

# Latents of a row that `top_k_indices` takes for a block.
TOP_K_BLOCK = 16

# Seconds that the programs which train members of another width take to compile on a CPU, by
# kernel, without and with the loops in C++; those which score members, and that which encodes
# samples for the scores of latents; floating-point operations a second that a step of the dense
# kernel reaches there with all else it does, and that one core reaches while it scores. What
# padding costs is weighed against what it spares. Of two cores; constants, since a plan by the
# clock would change results.
CPU_SECONDS_PER_PROGRAM = {"dense": 3.5, "firing_rows": 4.8, "selected_rows": 4.8}
NATIVE_SECONDS_PER_PROGRAM = {"dense": 1.6, "firing_rows": 2.9, "selected_rows": 1.3}
CPU_SECONDS_PER_SCORING = 1.6
CPU_SECONDS_PER_ENCODER = 0.6
CPU_FLOPS = {"float32": 1.6e11, "tf32": 1.6e11, "bfloat16": 4e11}
CORE_SCORING_FLOPS = 2.3e10

# Largest share of a group's arithmetic that padding may take on an accelerator unless the user says
# otherwise. Small members leave it idle, so it should bear some; a judgment.
ACCELERATOR_MAX_PADDING = 0.5

# Seconds of each kind of work of `sae_jax.sweep.estimate.Work` without loops in C++, fitted by
# `experiments/scaling.py` to thirty sweeps of random sizes on two cores of a Xeon with AMX, each of
# which was within 22 % of what the others gave for it. The fit gave 4.9 seconds a group, when each
# compiled its own scoring; it is divided here by the processor time that both kinds of programs
# take to compile. By that time the first three are corrected since less is compiled, and that of an
# activation since columns are counted.
CPU_SECONDS_OF_WORK = (2.3, 1.3, 1.3, 6.3e-4, 7.6e-12, 3.7e-12, 7.6e-12, 1.5e-8, 2.0e-9, 4.3e-11)

# The same with loops in C++, of 24 sweeps, each within 22 % of what the others gave for it but for
# one, whose estimate was a third too short. They are held near what profiles of a step gave. The
# first is scaled by the processor time that programs take since random numbers are drawn in C++.
NATIVE_SECONDS_OF_WORK = (1.7, 3.0, 1.9, 2.1e-4, 5.1e-12, 3.1e-12, 3.2e-11, 2e-9, 2.8e-9, 2.4e-11)

# How many times as fast products are by all cores as by one, and the share of latents that fire in
# a batch of real activations; for estimates of time alone.
CPU_HELP = 1.5
CPU_FIRING_SHARE = 0.65
