"""The demo's pictures: an animation of camera and maps, and a panel like the paper's Figure 3."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Rgb = NDArray[np.uint8]
MAPS = ("relevance", "region", "attention", "mask")
TITLES = {
    "motion": "workspace, path and target of the arm",
    "relevance": "relevance to the instruction",
    "region": "important region",
    "attention": "visual attention of the action",
    "mask": "pruning mask",
}
PAPER, INK, FAINT = (255, 255, 255), (25, 25, 25), (110, 110, 110)


@dataclass(frozen=True)
class Moment:
    """One step to be shown: the camera image, the overlays by map name and the arm's motion, RGB uint8, and what to
    write below.
    """

    camera: Rgb
    overlays: dict[str, Rgb]
    caption: str
    figures: str  # lines
    motion: Rgb | None = None


def fit(image: Rgb, width: int, height: int) -> Rgb:
    """The image scaled into width x height, aspect kept, on white."""
    scale = min(width / image.shape[1], height / image.shape[0])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    small = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
    canvas = np.full((height, width, 3), 255, np.uint8)
    top, left = (height - size[1]) // 2, (width - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = small
    return canvas


def animation_frame(moment: Moment) -> Image.Image:
    """Camera at the left, the four maps in a square at the right: 1000 x 430 pixels."""
    gap, head, wide, high = 8, 20, 236, 177
    page = Image.new("RGB", (1000, 430), PAPER)
    draw = ImageDraw.Draw(page)
    seen = moment.camera if moment.motion is None else moment.motion
    page.paste(Image.fromarray(fit(seen, 496, 372)), (gap, head))
    draw.text((gap, 3), "camera", fill=INK, font=_font(12))
    draw.text((gap, head + 377), moment.caption, fill=INK, font=_font(13))
    draw.text((gap, head + 394), moment.figures.replace("\n", ", "), fill=FAINT, font=_font(11))
    for i, name in enumerate(MAPS if moment.overlays else ()):
        left = 512 + (i % 2) * (wide + gap)
        top = head + (i // 2) * (high + head)
        draw.text((left, top - 17), TITLES[name], fill=INK, font=_font(12))
        page.paste(Image.fromarray(fit(moment.overlays[name], wide, high)), (left, top))
    return page


def write_animation(moments: Sequence[Moment], path: Path, milliseconds: int = 200) -> None:
    """Write an endless GIF, one picture a step."""
    # Few colours and no dithering: the maps stay clean and the file small enough for a README.
    frames = [animation_frame(m).quantize(128, dither=Image.Dither.NONE) for m in moments]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=milliseconds, loop=0, optimize=True)


def write_panel(moments: Sequence[Moment], title: str, path: Path) -> None:
    """Write a PNG with one column a moment, and as rows camera, motion and the four maps (the paper's Figure 3)."""
    wide, high, gap, left, top, foot = 256, 192, 8, 150, 40, 58
    moving = any(moment.motion is not None for moment in moments)
    rows = ("camera", *(("motion",) if moving else ()), *(MAPS if moments[0].overlays else ()))
    page = Image.new("RGB", (left + len(moments) * (wide + gap), top + len(rows) * (high + gap) + foot), PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((gap, 10), title, fill=INK, font=_font(16))
    for r, name in enumerate(rows):
        y = top + r * (high + gap)
        for i, line in enumerate(_wrapped(TITLES.get(name, name), 18)):
            draw.text((gap, y + high // 2 - 10 + 17 * i), line, fill=INK, font=_font(14))
        for c, moment in enumerate(moments):
            motion = moment.camera if moment.motion is None else moment.motion  # before the first markers came
            picture = {"camera": moment.camera, "motion": motion, **moment.overlays}[name]
            page.paste(Image.fromarray(fit(picture, wide, high)), (left + c * (wide + gap), y))
    for c, moment in enumerate(moments):
        x, y = left + c * (wide + gap), top + len(rows) * (high + gap)
        draw.text((x, y), moment.caption, fill=INK, font=_font(13))
        draw.text((x, y + 19), moment.figures, fill=FAINT, font=_font(11))
    page.save(path)


def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if len(lines[-1]) + len(word) < width else [*lines, word]
    return lines
