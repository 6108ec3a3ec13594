"""Camera image to model input: checks, and the resizes of the published models, without their image libraries."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import lru_cache

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from dtp_ros.errors import ObservationError

JPEG_QUALITY = 95
JPEG_MAX_SIDE = 65500  # of libjpeg


def require_rgb(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return `image`, or raise ObservationError unless it is uint8 [H, W, 3] with H, W >= 1."""
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
        raise ObservationError(f"image is {image.dtype} {list(image.shape)} (valid: uint8 [H, W, 3], H and W >= 1)")
    return image


def main_camera(images: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """The first image, checked; raises ObservationError where there is none or it is not RGB."""
    if not images:
        raise ObservationError("no image (needed: 1)")
    return require_rgb(images[0])


def bicubic(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """PIL's antialiased bicubic resize to [size, size, 3]; an image of that size is returned as it is."""
    if image.shape[:2] == (size, size):
        return image
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))


def area(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """OpenCV's INTER_AREA resize to [size, size, 3]: averages what a pixel covers, and enlarges in a way of its own."""
    return np.asarray(cv2.resize(image, (size, size), interpolation=cv2.INTER_AREA), dtype=np.uint8)


def jpeg_round_trip(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image after one JPEG (quality 95, 4:2:0), as RLDS data sets store theirs.

    TensorFlow decodes by the fast integer DCT, libjpeg here by the accurate one: single pixels differ by up to 12 of
    255 between the two decoders of the same file. Raises ObservationError for an image that no JPEG can hold.
    """
    height, width = image.shape[:2]
    if max(height, width) > JPEG_MAX_SIDE:
        raise ObservationError(f"image of {width} x {height} pixels (valid: sides of 1 ... {JPEG_MAX_SIDE})")
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
    buffer.seek(0)
    with Image.open(buffer) as decoded:
        pixels: NDArray[np.uint8] = np.asarray(decoded.convert("RGB"))
    return pixels


def lanczos3(image: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Antialiased Lanczos resize (radius 3) to [size, size, 3] in float32, rounded half to even.

    The arithmetic of TensorFlow's `tf.image.resize(method="lanczos3", antialias=True)`: separable, no rounding between
    the two passes (PIL's LANCZOS rounds there, and is up to 1 of 255 away).
    """
    height, width = image.shape[:2]
    rows, columns = _lanczos3_weights(height, size), _lanczos3_weights(width, size)
    pixels = image.astype(np.float32)
    narrow = np.tensordot(rows, pixels, axes=(1, 0))  # [size, W, 3]
    resized = np.tensordot(columns, narrow, axes=(1, 1)).transpose(1, 0, 2)
    return np.ascontiguousarray(np.clip(np.rint(resized), 0, 255).astype(np.uint8))


@lru_cache(maxsize=16)
def _lanczos3_weights(source: int, target: int) -> NDArray[np.float32]:
    """Weights float32 [target, source] of each output sample; rows sum to 1, half-pixel centres."""
    scale = source / target
    stretch = max(scale, 1.0)
    centres = (np.arange(target) + 0.5) * scale
    distance = (np.arange(source)[None, :] + 0.5 - centres[:, None]) / stretch
    kernel = np.where(np.abs(distance) < 3.0, np.sinc(distance) * np.sinc(distance / 3.0), 0.0)
    weights: NDArray[np.float32] = (kernel / kernel.sum(axis=1, keepdims=True)).astype(np.float32)
    return weights


def centre_crop(image: NDArray[np.uint8], share: float, size: int) -> NDArray[np.uint8]:
    """The middle of the image, `share` of its area, as [size, size, 3]: bilinear, without antialiasing.

    The arithmetic of TensorFlow's `crop_and_resize` and its conversions between uint8 and float32: the first and the
    last sample lie on the corners of the crop, and a level x in 0 ... 1 becomes floor(255.5 x).
    """
    side = np.sqrt(np.float32(share))
    levels: NDArray[np.float32] = image.astype(np.float32) / np.float32(255)
    for axis in (0, 1):
        last = image.shape[axis] - 1
        at = ((1 - side) / 2 * last + np.arange(size) * side * last / (size - 1)).astype(np.float32)
        low = np.floor(at).astype(np.int64).clip(0, max(last - 1, 0))
        part = (at - low).reshape([-1, 1, 1] if axis == 0 else [1, -1, 1])
        below, above = (np.take(levels, index, axis) for index in (low, np.minimum(low + 1, last)))
        levels = below + (above - below) * part
    pixels: NDArray[np.uint8] = np.clip(levels * np.float32(255.5), 0, 255).astype(np.uint8)
    return pixels


def normalised_planes(
    image: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Channels first, float32 [3, H, W]: levels 0 ... 1, less `mean` [3], over `std` [3]."""
    levels = (image.astype(np.float32) / np.float32(255) - mean) / std
    return np.ascontiguousarray(levels.transpose(2, 0, 1))


def patches(
    image: NDArray[np.uint8], mean: NDArray[np.float32], std: NDArray[np.float32], patch: int, merge: int, frames: int
) -> NDArray[np.float32]:
    """Normalised patches as Qwen2-VL's vision tower takes them, float32 [rows * columns, 3 * frames * patch * patch].

    image: uint8 [H, W, 3], H and W multiples of patch * merge. Order: merged blocks row-major, then the merge x merge
    patches within each; within a patch channel, frame (the image repeated), row, column.
    """
    height, width = image.shape[:2]
    pixels = (image.astype(np.float32) / np.float32(255) - mean) / std
    blocks = pixels.reshape(height // (patch * merge), merge, patch, width // (patch * merge), merge, patch, 3)
    blocks = blocks.transpose(0, 3, 1, 4, 6, 2, 5)
    repeated = np.broadcast_to(blocks[:, :, :, :, :, None], (*blocks.shape[:5], frames, patch, patch))
    return np.ascontiguousarray(repeated.reshape(-1, 3 * frames * patch * patch))


def letterbox_bilinear(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Fit into [size, size, 3] with black bars, float32 0 ... 1: torch's bilinear resize, which does not antialias.

    The arithmetic of LeRobot's `resize_with_pad_torch`. Raises ObservationError where a side shrinks to nothing.
    """
    height, width, top, left = _fit(image, size)
    fitted = np.zeros((size, size, 3), dtype=np.float32)
    pixels = torch.from_numpy(image.astype(np.float32) / np.float32(255)).permute(2, 0, 1)[None]
    if image.shape[:2] != (size, size):
        pixels = functional.interpolate(pixels, (height, width), mode="bilinear", align_corners=False).clamp(0.0, 1.0)
    fitted[top : top + height, left : left + width] = pixels[0].permute(1, 2, 0).numpy()
    return fitted


def letterbox_pil(image: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """The same by PIL's antialiased bilinear resize, in whole levels, as openpi's client."""
    height, width, top, left = _fit(image, size)
    fitted = np.zeros((size, size, 3), dtype=np.float32)
    resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
    fitted[top : top + height, left : left + width] = np.asarray(resized, dtype=np.float32) / np.float32(255)
    return fitted


def _fit(image: NDArray[np.uint8], size: int) -> tuple[int, int, int, int]:
    """Height, width, top and left of an image that is fitted into a square; raises ObservationError."""
    ratio = max(image.shape[0] / size, image.shape[1] / size)
    height, width = int(image.shape[0] / ratio), int(image.shape[1] / ratio)
    if min(height, width) < 1:
        raise ObservationError(
            f"image of {image.shape[1]} x {image.shape[0]} pixels (valid: no side over {size} times the other)"
        )
    return height, width, (size - height) // 2, (size - width) // 2
