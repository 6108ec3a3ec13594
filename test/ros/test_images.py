"""dtp_ros/ros/images.py: every encoding against pixels worked out by hand, and every kind of broken image."""

import sys
import types
from array import array

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from rclpy.logging import get_logger
from sensor_msgs.msg import CompressedImage, Image

from dtp_ros.ros import images
from dtp_ros.ros.images import (
    ImageError,
    compressed_image_from_ros,
    compressed_image_to_ros,
    image_from_ros,
    image_to_ros,
)

STAMP = Time(sec=12, nanosec=345)
# Two rows of four pixels, all different.
RGB = np.arange(24, dtype=np.uint8).reshape(2, 4, 3) * 10


def raw(encoding, pixels, padding=0, **changes):
    """The message of an array [H, W(, C)], rows padded with a value that must never show."""
    rows = np.ascontiguousarray(pixels, np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=255)
    message = Image(height=pixels.shape[0], width=pixels.shape[1], encoding=encoding, step=rows.shape[1])
    message.data = array("B", rows.tobytes())
    for name, value in changes.items():
        setattr(message, name, value)
    return message


def cause_of(convert, message):
    with pytest.raises(ImageError) as caught:
        convert(message)
    assert str(caught.value)
    return caught.value.cause


@pytest.mark.parametrize("padding", [0, 1, 13])
def test_colour_encodings(padding):
    alpha = np.full((2, 4, 1), 7, np.uint8)
    cases = {
        "rgb8": RGB,
        "bgr8": RGB[:, :, ::-1],
        "rgba8": np.concatenate([RGB, alpha], axis=2),
        "bgra8": np.concatenate([RGB[:, :, ::-1], alpha], axis=2),
    }
    for encoding, pixels in cases.items():
        np.testing.assert_array_equal(image_from_ros(raw(encoding, pixels, padding)), RGB, err_msg=encoding)
    grey = RGB[:, :, 0]
    np.testing.assert_array_equal(image_from_ros(raw("mono8", grey, padding)), np.stack([grey] * 3, axis=2))


@pytest.mark.parametrize(("encoding", "order"), [
    ("yuv422_yuy2", (0, 1, 2, 3)), ("yuyv", (0, 1, 2, 3)), ("yuv422", (1, 0, 3, 2)), ("uyvy", (1, 0, 3, 2)),
])  # fmt: skip
def test_yuv_422_is_bt601_limited_range(encoding, order):
    rng = np.random.default_rng(0)
    luma = rng.integers(16, 236, (6, 8))
    u, v = rng.integers(90, 166, (2, 6, 4))  # mild colours: nothing leaves 0 ... 255
    quads = np.stack([luma[:, 0::2], u, luma[:, 1::2], v], axis=2)[:, :, order]  # Y0 U Y1 V, or U Y0 V Y1
    message = raw(encoding, quads.reshape(6, 8, 2), padding=4)
    wide_u, wide_v = np.repeat(u, 2, axis=1) - 128.0, np.repeat(v, 2, axis=1) - 128.0
    scaled = 255 / 219 * (luma - 16.0)
    expected = np.stack(
        [scaled + 1.596 * wide_v, scaled - 0.391 * wide_u - 0.813 * wide_v, scaled + 2.018 * wide_u], axis=2
    )
    np.testing.assert_allclose(image_from_ros(message), np.clip(expected, 0, 255), atol=2.0)


@pytest.mark.parametrize("pattern", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_patterns(pattern):
    colour = {"r": 200, "g": 120, "b": 40}
    tile = np.array([[colour[pattern[0]], colour[pattern[1]]], [colour[pattern[2]], colour[pattern[3]]]], np.uint8)
    mosaic = np.tile(tile, (4, 5))  # of a scene of one colour: demosaicing must give that colour everywhere
    got = image_from_ros(raw(f"bayer_{pattern}8", mosaic, padding=2))
    np.testing.assert_array_equal(got, np.broadcast_to([200, 120, 40], (8, 10, 3)))


def test_smallest_images_of_each_encoding():
    for encoding, known in images._ENCODINGS.items():
        shape = (known.rows, known.multiple, known.channels)
        got = image_from_ros(raw(encoding, np.full(shape, 128)))
        assert got.shape == (known.rows, known.multiple, 3), encoding


@pytest.mark.parametrize(("message", "cause"), [
    (Image(encoding="rgb8"), "image_size"),
    (raw("rgb8", RGB, width=0), "image_size"),
    (raw("yuv422_yuy2", np.zeros((2, 3, 2))), "image_size"),
    (raw("bayer_rggb8", np.zeros((3, 4))), "image_size"),
    (raw("rgb8", RGB, step=11), "image_step"),
    (raw("rgb8", RGB, step=13), "image_data"),
    (raw("rgb8", RGB, height=3), "image_data"),
    (raw("rgb8", RGB, data=array("B")), "image_data"),
    (raw("rgb8", RGB, width=2**32 - 1, height=2**32 - 1), "image_step"),
    (raw("32FC1", RGB), "image_encoding"),
    (raw("", RGB), "image_encoding"),
    (raw("x" * 100_000, RGB), "image_encoding"),
])  # fmt: skip
def test_broken_raw_images(message, cause):
    assert cause_of(image_from_ros, message) == cause


def test_the_message_names_value_and_limit():
    with pytest.raises(ImageError, match=r"row step 11 .* at least 12"):
        image_from_ros(raw("rgb8", RGB, step=11))
    with pytest.raises(ImageError, match=r"'32FC1'.*valid: rgb8, bgr8"):
        image_from_ros(raw("32FC1", RGB))


def smooth_picture():
    y, x = np.mgrid[0:48, 0:64]
    return np.stack([4 * x, 5 * y, 255 - 2 * (x + y)], axis=2).astype(np.uint8)


def test_png_is_exact_and_jpeg_close():
    picture = smooth_picture()
    png = compressed_image_to_ros(picture, STAMP, "camera", "png")
    np.testing.assert_array_equal(compressed_image_from_ros(png), picture)
    jpeg = compressed_image_to_ros(picture, STAMP, "camera")
    assert np.abs(compressed_image_from_ros(jpeg).astype(int) - picture).mean() < 2.0
    for message, name in ((png, "png"), (jpeg, "jpeg")):
        assert message.format == f"rgb8; {name} compressed bgr8"
        assert (message.header.stamp, message.header.frame_id) == (STAMP, "camera")


def test_jpeg_padded_by_the_camera_is_whole():
    jpeg = compressed_image_to_ros(smooth_picture(), STAMP, "camera")
    jpeg.data.frombytes(bytes(100))
    assert compressed_image_from_ros(jpeg).shape == (48, 64, 3)


@pytest.mark.parametrize("kind", ["jpeg", "png"])
@pytest.mark.parametrize("kept", [0.999, 0.5, 0.05])
def test_truncated_files_are_refused(kind, kept):
    message = compressed_image_to_ros(smooth_picture(), STAMP, "camera", kind)
    message.data = message.data[: int(kept * len(message.data))]
    assert cause_of(compressed_image_from_ros, message) == "image_compression"


@pytest.mark.parametrize(("data", "cause"), [
    (b"", "image_size"),
    (b"GIF89a" + bytes(50), "image_encoding"),
    (bytes(12) + b"\x89PNG\r\n\x1a\n", "image_encoding"),  # compressedDepth: a PNG behind a header
    (b"\xff\xd8\xff\xe0" + b"nonsense" * 4 + b"\xff\xd9", "image_compression"),
    (b"\x89PNG\r\n\x1a\n" + b"nonsense" * 4 + b"IEND\xaeB`\x82", "image_compression"),
])  # fmt: skip
def test_broken_compressed_images(data, cause):
    assert cause_of(compressed_image_from_ros, CompressedImage(format="jpeg", data=array("B", data))) == cause


def test_round_trip_keeps_pixels_stamp_and_frame():
    message = image_to_ros(RGB, STAMP, "camera_color_optical_frame")
    assert (message.encoding, message.step, message.height, message.width) == ("rgb8", 12, 2, 4)
    assert (message.header.stamp, message.header.frame_id) == (STAMP, "camera_color_optical_frame")
    np.testing.assert_array_equal(image_from_ros(message), RGB)


def test_a_converted_image_is_the_callers_own():
    message = image_to_ros(RGB, STAMP, "camera")
    rgb = image_from_ros(message)
    rgb[:] = 0
    np.testing.assert_array_equal(image_from_ros(message), RGB)


class LikeCvBridge:
    """As cv_bridge: names of before `yuyv`, rows without padding whatever `step` says, a compiled part on demand."""

    def __init__(self):
        self.asked, self.compiled_part = [], True

    def imgmsg_to_cv2(self, message, desired_encoding):
        self.asked.append(message.encoding)
        if message.encoding in ("yuyv", "uyvy"):
            raise TypeError(f"Unrecognized image encoding [{message.encoding}]")
        if not self.compiled_part:
            raise ImportError("numpy.core.multiarray failed to import")
        channels = {"bgr8": 3, "mono8": 1}[message.encoding]
        pixels = np.frombuffer(message.data, np.uint8)[: message.height * message.width * channels]
        return pixels.reshape(message.height, message.width, channels)[:, :, ::-1] * np.ones(3 // channels, np.uint8)


@pytest.fixture
def bridge(monkeypatch):
    module = types.ModuleType("cv_bridge")
    bridge = LikeCvBridge()
    module.CvBridge = lambda: bridge
    monkeypatch.setitem(sys.modules, "cv_bridge", module)
    images._cv_bridge.cache_clear()
    yield bridge
    images._cv_bridge.cache_clear()


def test_cv_bridge_converts_what_it_can(bridge):
    np.testing.assert_array_equal(image_from_ros(raw("bgr8", RGB[:, :, ::-1])), RGB)
    np.testing.assert_array_equal(image_from_ros(raw("mono8", RGB[:, :, 0])), RGB[:, :, :1].repeat(3, axis=2))
    assert bridge.asked == ["bgr8", "mono8"]


def test_padded_rows_and_newer_names_are_not_for_cv_bridge(bridge):
    np.testing.assert_array_equal(image_from_ros(raw("bgr8", RGB[:, :, ::-1], padding=4)), RGB)
    for encoding, grey in (("yuyv", [126, 128]), ("uyvy", [128, 126])):
        got = image_from_ros(raw(encoding, np.tile(grey, (2, 4, 1))))
        np.testing.assert_allclose(got, 128, atol=1, err_msg=encoding)  # 255 / 219 * (126 - 16)
    assert bridge.asked == []


def test_a_cv_bridge_that_fails_is_named_once_and_done_without(bridge, monkeypatch, capfd):
    bridge.compiled_part = False
    monkeypatch.setattr(images, "_LOGGER", get_logger("images"))  # that has said nothing yet
    for _ in range(3):
        np.testing.assert_array_equal(image_from_ros(raw("bgr8", RGB[:, :, ::-1])), RGB)
    assert bridge.asked == ["bgr8"] * 3
    assert capfd.readouterr().err.count("numpy.core.multiarray failed to import") == 1


def test_own_conversion_equals_cv_bridge():
    pytest.importorskip("cv_bridge", reason="cv_bridge comes with a sourced ROS 2 only", exc_type=ImportError)
    rng = np.random.default_rng(1)
    for encoding in ("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuv422_yuy2", "bayer_rggb8"):
        channels = images._ENCODINGS[encoding].channels
        message = raw(encoding, rng.integers(0, 256, (8, 10, channels)))
        np.testing.assert_array_equal(image_from_ros(message), images.rgb_from_raw(message), err_msg=encoding)
