"""sensor_msgs/Image and CompressedImage to and from RGB arrays; the only place that knows encodings.

A sourced ROS 2 brings cv_bridge, and then raw images that it knows are converted by it; without it, or where it fails,
numpy and OpenCV do. What is accepted is decided here in both cases.
"""

from __future__ import annotations

import functools
from array import array
from typing import TYPE_CHECKING, NamedTuple

import cv2
import numpy as np
from builtin_interfaces.msg import Time
from numpy.typing import NDArray
from rclpy.logging import get_logger
from sensor_msgs.msg import CompressedImage, Image

from dtp_ros.errors import ObservationError

if TYPE_CHECKING:
    from cv_bridge import CvBridge

Rgb = NDArray[np.uint8]

JPEG_QUALITY = 90
_LOGGER = get_logger("images")  # one for all: it knows what was said once
_JPEG_START, _JPEG_END = b"\xff\xd8\xff", b"\xff\xd9"
_PNG_START, _PNG_END = b"\x89PNG\r\n\x1a\n", b"IEND\xaeB`\x82"


class ImageError(ObservationError):
    """An image message that cannot be used; `cause` is one of IMAGE_CAUSES."""

    def __init__(self, cause: str, message: str) -> None:
        super().__init__(message)
        self.cause = cause


IMAGE_CAUSES = ("image_size", "image_step", "image_data", "image_encoding", "image_compression")


class _Encoding(NamedTuple):
    channels: int  # bytes per pixel
    code: int | None  # of cv2.cvtColor to RGB; None where it is RGB already
    multiple: int = 1  # width and height come in groups of this many pixels: (width)
    rows: int = 1  # and (height)


# OpenCV names a Bayer pattern by its second row and column, ROS by its first: rggb is OpenCV's BG.
_ENCODINGS = {
    "rgb8": _Encoding(3, None),
    "bgr8": _Encoding(3, cv2.COLOR_BGR2RGB),
    "rgba8": _Encoding(4, cv2.COLOR_RGBA2RGB),
    "bgra8": _Encoding(4, cv2.COLOR_BGRA2RGB),
    "mono8": _Encoding(1, cv2.COLOR_GRAY2RGB),
    "yuv422": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY, 2),
    "uyvy": _Encoding(2, cv2.COLOR_YUV2RGB_UYVY, 2),
    "yuv422_yuy2": _Encoding(2, cv2.COLOR_YUV2RGB_YUY2, 2),
    "yuyv": _Encoding(2, cv2.COLOR_YUV2RGB_YUY2, 2),
    "bayer_rggb8": _Encoding(1, cv2.COLOR_BayerBG2RGB, 2, 2),
    "bayer_bggr8": _Encoding(1, cv2.COLOR_BayerRG2RGB, 2, 2),
    "bayer_gbrg8": _Encoding(1, cv2.COLOR_BayerGR2RGB, 2, 2),
    "bayer_grbg8": _Encoding(1, cv2.COLOR_BayerGB2RGB, 2, 2),
}
ENCODINGS = tuple(_ENCODINGS)
# What cv_bridge knows in every release since Humble: yuyv and uyvy are names that came later.
_BRIDGED = frozenset(
    {
        *("rgb8", "bgr8", "rgba8", "bgra8", "mono8", "yuv422", "yuv422_yuy2"),
        *("bayer_rggb8", "bayer_bggr8", "bayer_gbrg8", "bayer_grbg8"),
    }
)


def check_image(message: Image) -> None:
    """Raise ImageError unless size, encoding, row step and data of the message fit together (reads no pixel)."""
    encoding = _ENCODINGS.get(message.encoding)
    if encoding is None:
        raise ImageError(
            "image_encoding", f"encoding {message.encoding[:40]!r} is not known (valid: {', '.join(ENCODINGS)})"
        )
    width, height = message.width, message.height
    if width < 1 or height < 1 or width % encoding.multiple or height % encoding.rows:
        unit = f"multiples of {encoding.multiple} x {encoding.rows}, at least one"
        raise ImageError("image_size", f"image of {width} x {height} pixels as {message.encoding} (valid: {unit})")
    if message.step < width * encoding.channels:
        raise ImageError(
            "image_step",
            f"row step {message.step} does not fit {width} pixels of {message.encoding} "
            f"(valid: at least {width * encoding.channels} bytes)",
        )
    if len(message.data) != message.step * height:
        raise ImageError(
            "image_data", f"{len(message.data)} bytes of data (valid: step x height = {message.step * height})"
        )


def image_from_ros(message: Image) -> Rgb:
    """RGB uint8 [height, width, 3] of a raw image, rows unpadded; raises ImageError."""
    check_image(message)
    # cv_bridge does not look at `step`: where rows are padded, it shears the image.
    unpadded = message.step == message.width * _ENCODINGS[message.encoding].channels
    bridge = _cv_bridge() if unpadded and message.encoding in _BRIDGED else None
    if bridge is not None:
        try:
            converted: Rgb = np.ascontiguousarray(bridge.imgmsg_to_cv2(message, "rgb8"), dtype=np.uint8)
            return converted
        except Exception as error:  # also ImportError: its compiled half is loaded here, and may not fit numpy
            _LOGGER.warning(f"cv_bridge failed, images are converted without it: {error!r}", once=True)
    return rgb_from_raw(message)


def rgb_from_raw(message: Image) -> Rgb:
    """What image_from_ros does without cv_bridge; the message must have passed check_image."""
    encoding = _ENCODINGS[message.encoding]
    rows = np.frombuffer(message.data, np.uint8).reshape(message.height, message.step)
    pixels = rows[:, : message.width * encoding.channels]
    if encoding.channels > 1:
        pixels = pixels.reshape(message.height, message.width, encoding.channels)
    if encoding.code is None:
        return np.array(pixels, order="C")
    rgb: Rgb = np.asarray(cv2.cvtColor(np.ascontiguousarray(pixels), encoding.code), dtype=np.uint8)
    return rgb


def check_compressed_image(message: CompressedImage) -> None:
    """Raise ImageError unless the data begins and ends as a JPEG or PNG file does.

    Many versions of OpenCV decode a truncated JPEG to a picture whose lower part is grey; only the missing end marker
    gives it away.
    """
    data = memoryview(message.data)
    head = bytes(data[: len(_PNG_START)])
    # Some cameras pad the file with zeros up to a block.
    tail = bytes(data[-256:]).rstrip(b"\0")
    if head.startswith(_JPEG_START):
        whole = tail.endswith(_JPEG_END)
    elif head == _PNG_START:
        whole = tail.endswith(_PNG_END)
    elif len(data) == 0:
        raise ImageError("image_size", "compressed image without data (valid: a JPEG or PNG file)")
    else:
        raise ImageError(
            "image_encoding", f"compressed image of format {message.format[:40]!r} is neither JPEG nor PNG"
        )
    if not whole:
        raise ImageError("image_compression", f"compressed image of {len(data)} bytes is cut off before its end")


def compressed_image_from_ros(message: CompressedImage) -> Rgb:
    """RGB uint8 [height, width, 3] of a JPEG or PNG, told apart by the data; raises ImageError."""
    check_compressed_image(message)
    # The orientation in a camera's EXIF is not applied: a compressed topic shows what the raw one shows.
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        bgr = cv2.imdecode(np.frombuffer(message.data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError("image_compression", f"compressed image does not decode: {error.err}") from error
    if bgr is None:
        raise ImageError("image_compression", f"compressed image of {len(message.data)} bytes does not decode")
    rgb: Rgb = np.asarray(cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB), dtype=np.uint8)
    return rgb


def image_to_ros(rgb: Rgb, stamp: Time, frame_id: str) -> Image:
    """The rgb8 message of an RGB uint8 [height, width, 3] array."""
    message = Image(height=rgb.shape[0], width=rgb.shape[1], encoding="rgb8", step=3 * rgb.shape[1])
    message.header.stamp, message.header.frame_id = stamp, frame_id
    # rclpy checks each element of any other sequence, one by one: seconds for one image.
    message.data = array("B", rgb.tobytes())
    return message


def compressed_image_to_ros(rgb: Rgb, stamp: Time, frame_id: str, kind: str = "jpeg") -> CompressedImage:
    """The CompressedImage (`jpeg` or `png`) of an RGB uint8 [height, width, 3] array, named as image_transport does."""
    options = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY] if kind == "jpeg" else []
    done, data = cv2.imencode(f".{kind}", cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR), options)
    if not done:
        raise ImageError("image_compression", f"OpenCV does not write {kind!r} (valid: jpeg, png)")
    message = CompressedImage(format=f"rgb8; {kind} compressed bgr8")
    message.header.stamp, message.header.frame_id = stamp, frame_id
    message.data = array("B", data.tobytes())
    return message


@functools.cache  # an import that fails is sought anew each time
def _cv_bridge() -> CvBridge | None:
    """A bridge where cv_bridge is installed and fits this numpy, else None."""
    try:
        from cv_bridge import CvBridge
    except (ImportError, AttributeError):
        return None
    return CvBridge()
