"""Reads torch files without running what is in them."""

from pathlib import Path
from typing import Any

import torch

# Before this version, weights_only=True could run code that a file held (CVE-2025-32434).
_SAFE_SINCE = "2.6"


def read_torch_file(file: Path) -> Any:
    """Reads a file of tensors and plain values.

    Raises:
      ValueError: if the file holds more than those or is damaged, or if the installed torch is
        one that might run code in it.
    """
    if torch.__version__ < _SAFE_SINCE:
        raise ValueError(
            f"{file} is left unread: torch {torch.__version__} may run code that a file holds; "
            f"torch {_SAFE_SINCE} or newer does not"
        )
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:
        raise ValueError(
            f"{file} is not a whole torch file of tensors and plain values alone: {error}"
        ) from error
