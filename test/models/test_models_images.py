from __future__ import annotations

import cv2
import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from dtp_ros.errors import ObservationError
from dtp_ros.models import images

MEAN = np.array([0.48145466, 0.4578275, 0.40821073], dtype=np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], dtype=np.float32)


def naive_lanczos3(row: np.ndarray, size: int) -> np.ndarray:
    """One row, sample by sample, straight from the definition of the kernel."""
    scale = len(row) / size
    stretch = max(scale, 1.0)
    result = []
    for i in range(size):
        centre, total, weight = (i + 0.5) * scale, 0.0, 0.0
        for j, value in enumerate(row):
            x = abs(j + 0.5 - centre) / stretch
            if x >= 3:
                continue
            w = 1.0 if x == 0 else 3 * np.sin(np.pi * x) * np.sin(np.pi * x / 3) / (np.pi * x) ** 2
            total, weight = total + w * float(value), weight + w
        result.append(total / weight)
    return np.array(result)


@pytest.mark.parametrize("shape", [(31, 47), (9, 5)])
def test_lanczos3_equals_its_definition(shape):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    rows = np.stack([[naive_lanczos3(line[:, c], 14) for c in range(3)] for line in image])  # [H, 3, 14]
    both = np.stack([[naive_lanczos3(rows[:, c, x], 14) for c in range(3)] for x in range(14)])  # [14 x, 3, 14 y]
    expected = np.clip(both.transpose(2, 0, 1), 0, 255)
    assert np.abs(images.lanczos3(image, 14) - expected).max() <= 0.5 + 1e-3


def test_lanczos3_is_within_one_of_pil(photo):
    pil = np.asarray(Image.fromarray(photo).resize((224, 224), Image.Resampling.LANCZOS)).astype(int)
    difference = np.abs(images.lanczos3(photo, 224).astype(int) - pil)
    assert difference.max() <= 1
    assert (difference == 0).mean() > 0.8


def test_lanczos3_keeps_a_constant_image():
    image = np.full((480, 640, 3), 137, dtype=np.uint8)
    assert (images.lanczos3(image, 224) == 137).all()


def test_jpeg_round_trip_is_within_four_of_opencv(photo):
    bgr = np.ascontiguousarray(photo[..., ::-1])
    quality = [cv2.IMWRITE_JPEG_QUALITY, 95]
    expected = cv2.imdecode(cv2.imencode(".jpg", bgr, quality)[1], cv2.IMREAD_COLOR)[..., ::-1]
    difference = np.abs(images.jpeg_round_trip(photo).astype(int) - expected)
    assert difference.max() <= 4
    assert np.abs(images.jpeg_round_trip(photo).astype(int) - photo).mean() > 0.5  # it is a lossy round trip


@pytest.mark.parametrize("shape", [(1, 65501, 3), (65501, 1, 3)])
def test_an_image_that_no_jpeg_can_hold_is_refused(shape):
    with pytest.raises(ObservationError, match="65500"):
        images.jpeg_round_trip(np.zeros(shape, np.uint8))
    longest = np.zeros((1, 65500, 3), np.uint8)
    assert images.jpeg_round_trip(longest).shape == longest.shape


def test_patches_equal_the_stock_processor(photo):
    small = images.bicubic(photo, 224)
    stock = Qwen2VLImageProcessorPil()(Image.fromarray(small), return_tensors="np")
    assert stock["image_grid_thw"].tolist() == [[1, 16, 16]]
    np.testing.assert_allclose(images.patches(small, MEAN, STD, 14, 2, 2), stock["pixel_values"], atol=2e-6)


def test_patches_of_a_block_come_before_the_next_block():
    """56 x 56, one level a patch: the 2 x 2 patches of the first block, then those of its right neighbour."""
    level = np.arange(16, dtype=np.uint8).reshape(4, 4)
    image = np.repeat(np.repeat(level, 14, axis=0), 14, axis=1)[..., None].repeat(3, axis=2)
    rows = images.patches(image, np.zeros(3, np.float32), np.ones(3, np.float32), 14, 2, 2)
    assert rows.shape == (16, 3 * 2 * 14 * 14)
    order = np.rint(rows[:, 0] * 255).astype(int).tolist()
    assert order == [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]


def test_bicubic_leaves_the_right_size_alone():
    image = np.random.default_rng(1).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    assert images.bicubic(image, 224) is image


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
    ],
)
def test_an_image_that_is_not_rgb8_is_refused(image):
    with pytest.raises(ObservationError, match="valid: uint8"):
        images.require_rgb(image)
