"""Pictures for people: a batch of images as one readable grid, saved as PNG."""

from __future__ import annotations

import io
import math
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from genreg_jax.logs import write_atomically
from genreg_jax.report.fonts import font_for

_READABLE = 48  # pixels; smaller images are enlarged to about this size
_MARGIN = 6  # pixels around a label
_FONT_SIZE = 13
_THUMB = 112  # pixels
_CAPTION_WIDTH = 96  # pixels; an image with a caption is enlarged to about this width


def grid(
    images: np.ndarray,
    *,
    columns: int,
    scale: int | None = None,
    pad: int = 1,
    row_labels: Sequence[str] | None = None,
    title: str | None = None,
) -> np.ndarray:
    """Lays a batch of images out row by row in one picture.

    Args:
      images: [N, H, W, C]; uint8, or floats in [0, 1], which are clipped to it. Where C is not 1 or
        3, the first three channels are shown as RGB, or the first as grey.
      columns: Images in a row; the last row may stay unfinished.
      scale: Whole factor by which pixels are enlarged (nearest neighbour). None chooses one that
        makes an 8x8 digit readable and leaves large images as they are.
      pad: White space around each image, in pixels before enlargement.
      row_labels: One text a row, written to its left, such as the class names.
      title: A line above the picture.

    Returns:
      A picture [height, width, C] of uint8.

    Raises:
      ValueError: a shape, a type or a number is not as described.

    Example:
      >>> grid(np.zeros((6, 8, 8, 1)), columns=3).shape    # 6 times enlarged
      (114, 168, 1)
    """
    images = _as_uint8(images)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    if pad < 0:
        raise ValueError(f"pad must not be negative, got {pad}")
    n, height, width, channels = images.shape
    if scale is None:
        scale = max(1, math.ceil(_READABLE / max(height, width)))
    if scale < 1:
        raise ValueError(f"scale must be at least 1, got {scale}")
    rows = math.ceil(n / columns)
    if row_labels is not None and len(row_labels) != rows:
        raise ValueError(f"row_labels must have one text for each of {rows} rows: {row_labels!r}")

    tile = (height + pad, width + pad)
    picture = np.full((rows * tile[0] + pad, columns * tile[1] + pad, channels), 255, np.uint8)
    for i, image in enumerate(images):
        top, left = (i // columns) * tile[0] + pad, (i % columns) * tile[1] + pad
        picture[top : top + height, left : left + width] = image
    picture = picture.repeat(scale, axis=0).repeat(scale, axis=1)
    if row_labels is None and title is None:
        return picture
    centres = [scale * (row * tile[0] + pad + height / 2) for row in range(rows)]
    return _with_text(picture, row_labels or [], centres, title)


def captioned(
    images: np.ndarray, captions: Sequence[str], *, scale: int | None = None
) -> np.ndarray:
    """Enlarges images and writes a short text below each, for `grid(..., scale=1)`.

    Args:
      images: [N, H, W, C]; uint8, or floats in [0, 1], which are clipped to it. Where C is not 1 or
        3, the first three channels are shown as RGB, or the first as grey.
      captions: N texts; one that is wider than its image is cut off.
      scale: Whole factor by which pixels are enlarged. None chooses one that leaves room for some
        ten letters.

    Returns:
      Pictures [N, height, width, C] of uint8.

    Raises:
      ValueError: a shape or a type is not as described, or there is not one text for each image.

    Example:
      >>> captioned(np.zeros((2, 8, 8, 1)), ["7 98%", "1 60%"], scale=10).shape
      (2, 97, 80, 1)
    """
    from PIL import Image, ImageDraw, ImageFont

    images = _as_uint8(images)
    if len(captions) != len(images):
        raise ValueError(f"captions must have {len(images)} texts, got {len(captions)}")
    _, height, width, channels = images.shape
    scale = max(1, math.ceil(_CAPTION_WIDTH / width)) if scale is None else scale
    images = images.repeat(scale, axis=1).repeat(scale, axis=2)
    band = _FONT_SIZE + 4
    bands = []
    for text in captions:
        font = font_for(text, _FONT_SIZE - 2) or ImageFont.load_default(_FONT_SIZE - 2)
        while text and font.getlength(text) > width * scale:
            text = text[:-1]
        canvas = Image.new("L", (width * scale, band), 255)
        draw = ImageDraw.Draw(canvas)
        draw.text((width * scale / 2, band / 2), text, fill=0, font=font, anchor="mm")
        bands.append(np.asarray(canvas)[..., None].repeat(channels, axis=-1))
    return np.concatenate([images, np.stack(bands)], axis=1)


def save_png(path: str | os.PathLike, array: np.ndarray, *, caption: str | None = None) -> None:
    """Saves a picture as PNG, in one piece.

    Args:
      path: The file; its directory is made if missing.
      array: uint8, [H, W], [H, W, 1] or [H, W, 3].
      caption: Text kept inside the file, which the report shows below the picture.

    Raises:
      ValueError: `array` is not such a picture.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "samples", "real.png")
      >>> save_png(path, grid(np.zeros((4, 8, 8, 1)), columns=2), caption="Real digits")
      >>> path.exists()
      True
    """
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    if caption:
        text.add_itxt("Description", caption)
    data = io.BytesIO()
    _to_pil(array).save(data, format="PNG", pnginfo=text, optimize=True)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(Path(path), data.getvalue())


def small_png(image: np.ndarray) -> bytes:
    """An image [H, W, C] of uint8 as a PNG that is about as large as a thumb.

    Small images are enlarged by a whole factor, large ones made smaller.
    """
    scale = max(1, math.ceil(_THUMB / max(image.shape[:2])))
    picture = _to_pil(grid(image[None], columns=1, scale=scale, pad=0))
    picture.thumbnail((2 * _THUMB, 2 * _THUMB))
    data = io.BytesIO()
    picture.save(data, format="PNG")
    return data.getvalue()


def read_caption(path: str | os.PathLike) -> str | None:
    """Reads back the caption that `save_png` kept inside the file.

    Args:
      path: A PNG file.

    Returns:
      The caption, None if the file has none.

    Example:
      >>> import tempfile
      >>> path = Path(tempfile.mkdtemp(), "a.png")
      >>> save_png(path, np.zeros((2, 2), np.uint8), caption="Two by two")
      >>> read_caption(path)
      'Two by two'
    """
    from PIL import Image

    with Image.open(path) as image:
        caption = image.info.get("Description")
    return str(caption) if caption else None


def _as_uint8(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images)
    if images.ndim != 4 or 0 in images.shape:
        raise ValueError(f"images must be [N, H, W, C], got shape {images.shape}")
    images = images[..., : 3 if images.shape[-1] >= 3 else 1]
    if images.dtype == np.uint8:
        return images
    # bfloat16 is no subtype of np.floating, hence not np.issubdtype.
    if images.dtype.kind in "biuc":
        raise ValueError(f"images must be uint8 or floats in [0, 1], got {images.dtype}")
    images = np.nan_to_num(images.astype(np.float32), nan=0.0)
    return np.rint(255 * np.clip(images, 0.0, 1.0)).astype(np.uint8)


def _to_pil(array: np.ndarray):
    from PIL import Image

    array = np.asarray(array)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.dtype != np.uint8 or not (array.ndim == 2 or array.shape[2:] == (3,)):
        raise ValueError(
            "a picture must be uint8 of shape [H, W], [H, W, 1] or [H, W, 3], "
            f"got {array.dtype} of shape {array.shape}"
        )
    return Image.fromarray(array)


def _with_text(
    picture: np.ndarray, labels: Sequence[str], centres: Sequence[float], title: str | None
) -> np.ndarray:
    """Adds a left margin with one label a row and a line above."""
    from PIL import Image, ImageDraw, ImageFont

    font = ImageFont.load_default(_FONT_SIZE)
    fonts = [font_for(label, _FONT_SIZE) or font for label in labels]
    widths = [math.ceil(font.getlength(label)) for font, label in zip(fonts, labels)]
    margin = max(widths) + 2 * _MARGIN if widths else 0
    above = _FONT_SIZE + 2 * _MARGIN if title else 0
    body = _to_pil(picture)
    width = margin + body.width
    if title:  # a long title must not be cut off by a narrow grid
        width = max(width, margin + math.ceil(font.getlength(title)) + 2 * _MARGIN)
    white, black = (255, 0) if body.mode == "L" else ((255, 255, 255), (0, 0, 0))
    canvas = Image.new(body.mode, (width, above + body.height), white)
    canvas.paste(body, (margin, above))
    draw = ImageDraw.Draw(canvas)
    if title:
        draw.text((margin + _MARGIN, above / 2), title, fill=black, font=font, anchor="lm")
    for label, centre, font in zip(labels, centres, fonts, strict=True):
        draw.text((margin - _MARGIN, above + centre), label, fill=black, font=font, anchor="rm")
    array = np.asarray(canvas)
    return array[..., None] if body.mode == "L" else array
