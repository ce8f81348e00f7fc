"""Arrays of the host on the device of a model."""

from __future__ import annotations

import numpy as np
import torch


def to_device(array: np.ndarray | torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """A copy on the device; the host does not wait for a GPU, which from pageable memory it would."""
    x = torch.from_numpy(array) if isinstance(array, np.ndarray) else array
    if torch.device(device).type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)
