"""How an augmented image came from the original, by pixels."""

import numpy as np


def pixels(normalised_NHWC) -> np.ndarray:
    """Undoes the normalisation."""
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    return np.rint((np.asarray(normalised_NHWC, np.float64) * std + mean) * 255).astype(int)


def shifted(image_HWC, flip: bool, dy: int, dx: int) -> np.ndarray:
    """The image moved by (-dy, -dx), black where nothing came from."""
    height, width, _ = image_HWC.shape
    out = np.zeros(image_HWC.shape, int)
    for y in range(height):
        for x in range(width):
            if 0 <= y + dy < height and 0 <= x + dx < width:
                out[y, x] = image_HWC[y + dy, width - 1 - (x + dx) if flip else x + dx]
    return out


def choices(got_HWC, image_HWC, pad: int) -> list[tuple[bool, int, int]]:
    """Every (flip, dy, dx) that explains the augmented image."""
    moves = range(-pad, pad + 1)
    return [
        (flip, dy, dx)
        for flip in (False, True)
        for dy in moves
        for dx in moves
        if (shifted(image_HWC, flip, dy, dx) == got_HWC).all()
    ]
