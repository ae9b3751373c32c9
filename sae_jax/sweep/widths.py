"""Which dictionary sizes are worth a program of their own, and which are padded to a larger one."""

from collections import Counter
from collections.abc import Sequence


def cheapest_widths(
    sizes: Sequence[int],
    seconds_per_latent: float,
    seconds_per_program: float,
    at_once: int = 1,
    seconds_per_idle_latent: float = 0.0,
) -> dict[int, int]:
    """The width to which members of each size are padded, so that all take the least time.

    Sizes of one width lie beside each other: a size is never padded past another that has a program
    already. So the best division of the smallest sizes is found for ever more
    of them, each from those before, in time quadratic in the number of different sizes.

    Args:
      sizes: dictionary size of each member.
      seconds_per_latent: what training costs for each latent that only pads a member.
      seconds_per_program: what compiling costs for each width.
      at_once: how many members of a width train at a time; see `num_idle`.
      seconds_per_idle_latent: what a device that has nothing to do costs for each latent of those
        that the others train.

    Returns:
      The width by size, itself one of the sizes.
    """
    distinct = sorted(Counter(sizes).items())
    # By how many of the smallest sizes: the least seconds, and the sizes that have programs.
    best: list[tuple[float, tuple[int, ...]]] = [(0.0, ())]
    for last, (width, _) in enumerate(distinct):
        padding, num_members, choices = 0, 0, []
        for first in range(last, -1, -1):
            size, count = distinct[first]
            padding += count * (width - size)
            num_members += count
            idle = num_idle(num_members, at_once) * width
            before, widths = best[first]
            seconds = seconds_per_latent * padding + seconds_per_idle_latent * idle
            choices.append((before + seconds_per_program + seconds, (*widths, width)))
        best.append(min(choices))
    widths = best[-1][1]
    return {size: next(width for width in widths if width >= size) for size, _ in distinct}


def num_idle(num_members: int, at_once: int) -> int:
    """How many devices have nothing to do while others train the last members of a width.

    No more count than there are members, since those that are left over help the others.
    """
    return min(-num_members % at_once, num_members)
