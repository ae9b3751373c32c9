"""The published taxonomy: the patterns that recur in a latent's top samples."""

from collections.abc import Sequence

from sae_jax.features.properties import NUMBERS, OPERATIONS
from sae_jax.features.specialization import published_marks

ROUND_NUMBERS = (100, 200, 500, 1000)
MIN_TEXTS_WITH_PATTERN = 3
MIN_TEXTS_WITH_NUMBER = 5


def detect_patterns(texts: Sequence[str]) -> list[str]:
    """Patterns that recur in the texts of a latent's top samples.

    Returns:
      The operations, and `round_numbers`, that at least 3 texts hold; and `number_12` and the
      like that at least 5 texts hold. They are found as substrings, as in the published rule.
    """
    counts = published_marks(texts).sum(axis=0)
    num_round = sum(any(str(number) in text for number in ROUND_NUMBERS) for text in texts)
    operations, numbers = counts[: len(OPERATIONS)], counts[len(OPERATIONS) :]
    recurring = dict(zip(OPERATIONS, operations, strict=True)) | {"round_numbers": num_round}
    patterns = [name for name, count in recurring.items() if count >= MIN_TEXTS_WITH_PATTERN]
    patterns += [
        f"number_{number}"
        for number, count in zip(NUMBERS, numbers, strict=True)
        if count >= MIN_TEXTS_WITH_NUMBER
    ]
    return patterns


def classify_patterns(patterns: Sequence[str]) -> tuple[str, str]:
    """The level and the confidence of a latent with these patterns.

    Returns:
      `mixed` and `medium` if there are patterns of both kinds; `unknown` and `unknown` if there
      are none; else `operation-level` or `value-level`, with `high` if there are two or more
      patterns and `medium` if there is one.
    """
    num_operations = len(set(OPERATIONS).intersection(patterns))
    num_values = len(patterns) - num_operations
    if num_operations and num_values:
        return "mixed", "medium"
    if not patterns:
        return "unknown", "unknown"
    level = "operation-level" if num_operations else "value-level"
    return level, "high" if len(patterns) >= 2 else "medium"
