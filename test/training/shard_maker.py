"""What processes of their own are given to do; a file without transformers, which they would import first."""

from dtp_ros.training.demonstrations import Frames, demonstrations


def fails_at_4(seed: int) -> Frames:
    if seed == 4:
        raise ValueError("a full disk")
    return demonstrations(seed, frames=1, size=32)
