from types import SimpleNamespace

import command
import pytest


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("6GiB", 6_442_450_944),
        ("1.5MiB", 1_572_864),
        ("2KiB", 2048),
        ("1000000", 10**6),
    ],
)
def test_bytes_have_units(text, expected):
    assert command.num_bytes(SimpleNamespace(name="memory_budget", value=text)) == expected


@pytest.mark.parametrize("text", ["6GB", "GiB", "much", "infGiB"])
def test_other_bytes_are_refused(text):
    with pytest.raises(
        ValueError, match=f"--memory_budget={text}; allowed are bytes, such as 6GiB"
    ):
        command.num_bytes(SimpleNamespace(name="memory_budget", value=text))
