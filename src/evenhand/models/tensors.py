"""Image arrays to tensors and back: (n,H,W) or (n,H,W,3) in [0,1] <-> (n,C,H,W) in [0,1]."""

import numpy as np
import torch


def to_tensor(images: np.ndarray, channels: int) -> torch.Tensor:
    """Arrays to a float tensor with ``channels`` channels; gray is repeated, colour is never averaged away.

    Raises:
        ValueError: colour images for a one-channel model.
    """
    array = images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2)
    if array.shape[1] == 1 and channels == 3:
        array = np.repeat(array, 3, axis=1)
    if array.shape[1] != channels:
        raise ValueError(f"images have {array.shape[1]} channels, the model wants {channels}")
    return torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32))


def to_array(images: torch.Tensor) -> np.ndarray:
    """Tensor (n,C,H,W) to an array (n,H,W) or (n,H,W,3), float32."""
    array = images.detach().float().cpu().numpy()
    return array[:, 0] if array.shape[1] == 1 else array.transpose(0, 2, 3, 1)
