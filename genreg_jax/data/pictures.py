"""Picture files as arrays: upright, 8 bits a channel, grey or RGB, of one size.

Pictures come from anywhere, so what one claims is looked at before memory is taken, only decoders
of common formats are used, and whatever goes wrong in one of them is an `Unreadable` with a reason.
"""

import dataclasses
import math
import os
import stat
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from genreg_jax.data.cache import LEAST_PICTURES, cached, key_of
from genreg_jax.data.dataset import Dataset, note, printable
from genreg_jax.data.stored import Stored, looked_at
from genreg_jax.errors import UserError
from genreg_jax.logs import Progress

# Suffix to Pillow's name of the format; others, such as PostScript, are programs rather.
FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".jfif": "JPEG",
    ".bmp": "BMP",
    ".webp": "WEBP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".gif": "GIF",
    ".ppm": "PPM",
    ".pgm": "PPM",
    ".pnm": "PPM",
    ".tga": "TGA",
}
MOST_PIXELS = 10**8
RESIZE = ("crop", "pad")
MOST_NAMED = 50  # of what cannot be read


class Unreadable(ValueError):
    """A file is no picture that can be used; the message says why, without the file's name."""


def open_picture(path: Path, *, first_frame: bool = False) -> Any:
    """Opens a picture and brings it to one form.

    Upright as its EXIF entry says; a palette, CMYK and other colour spaces become RGB; what is
    transparent lies on white; 16 bits become 8, and floating point in [0, 1] too.

    Args:
      path: of the file.
      first_frame: of an animation take the first picture, and do not refuse it.

    Returns:
      A `PIL.Image.Image` of mode `L` or `RGB`.

    Raises:
      Unreadable: it is no regular file, empty, damaged, not of `FORMATS`, animated, of more than
        `MOST_PIXELS`, or its numbers have no meaning as grey levels.

    Example:
      >>> import tempfile
      >>> from PIL import Image
      >>> path = Path(tempfile.mkdtemp(), "a.png")
      >>> Image.new("RGBA", (3, 2), (0, 0, 0, 0)).save(path)
      >>> open_picture(path).getpixel((0, 0))
      (255, 255, 255)
    """
    from PIL import Image, ImageOps

    try:
        status = path.stat()
    except (OSError, ValueError) as error:  # the latter for a name with a NUL
        raise Unreadable(getattr(error, "strerror", None) or "it cannot be opened") from None
    if not stat.S_ISREG(status.st_mode):
        raise Unreadable("it is no regular file")
    if status.st_size == 0:
        raise Unreadable("it is empty")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pictures that are large, which is checked here
            with Image.open(path, formats=sorted(set(FORMATS.values()))) as picture:
                width, height = picture.size
                if width * height > MOST_PIXELS:
                    raise Unreadable(
                        f"it has {width} x {height} pixels, and at most {MOST_PIXELS:,} are read"
                    )
                frames = getattr(picture, "n_frames", 1)
                # The first frame of an MPO, a JPEG of a phone, is the photograph.
                if frames > 1 and not first_frame and picture.format != "MPO":
                    raise Unreadable(f"it has {frames} frames; save one of them")
                picture.load()
                upright = ImageOps.exif_transpose(picture)
                return _as_grey_or_rgb(upright if upright is not None else picture)
    except Unreadable:
        raise
    except Image.DecompressionBombError:
        raise Unreadable(f"it has more than {MOST_PIXELS:,} pixels") from None
    except Exception as error:  # a decoder can raise anything
        text = str(error).replace(f" {str(path)!r}", "").split("\n")[0][:100]
        raise Unreadable(text or type(error).__name__) from None


def _as_grey_or_rgb(picture: Any) -> Any:
    from PIL import Image

    mode, grey = picture.mode, picture.mode.startswith("L")
    if mode in ("LA", "La", "RGBA", "RGBa", "PA") or "transparency" in picture.info:
        over = picture.convert("RGBA")
        white = Image.new("RGBA", over.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, over).convert("L" if grey else "RGB")
    if mode.startswith("I"):
        values = np.asarray(picture).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            raise Unreadable("its whole numbers are not of 8 or 16 bits")
        return Image.fromarray(np.rint(values / 257).astype(np.uint8))
    if mode == "F":
        values = np.asarray(picture)
        if not (values.min() >= 0 and values.max() <= 1):
            raise Unreadable("its floating point numbers are not in [0, 1]")
        return Image.fromarray(np.rint(values * np.float32(255)).astype(np.uint8))
    return picture.convert("L" if mode in ("1", "L") else "RGB")


def fit(picture: Any, size: tuple[int, int], resize: str = "crop") -> Any:
    """A picture of a given size, its proportions kept.

    Args:
      picture: from `open_picture`.
      size: height and width.
      resize: `crop`: scaled to cover, the centre cut out; `pad`: scaled to fit in, on black.

    Returns:
      A `PIL.Image.Image`; the same one where it has the size.

    Example:
      >>> from PIL import Image
      >>> fit(Image.new("L", (40, 20), 200), (8, 8), "pad").getpixel((0, 0))
      0
    """
    from PIL import Image, ImageOps

    height, width = size
    if picture.size == (width, height):
        return picture
    method = Image.Resampling.BICUBIC
    if resize == "pad":
        return ImageOps.pad(picture, (width, height), method=method, color=0)
    return ImageOps.fit(picture, (width, height), method=method)


def as_array(picture: Any, channels: int) -> np.ndarray:
    """A picture as uint8 `[H, W, C]`, with 1 or 3 channels."""
    array = np.asarray(picture.convert("L" if channels == 1 else "RGB"))
    return array.reshape(*array.shape[:2], channels)


def fit_array(image: np.ndarray, image_shape: tuple[int, ...], resize: str = "crop") -> np.ndarray:
    """`fit` of an array: uint8 `[H, W, C]` with C = 1, 3, or 4 for RGB and alpha."""
    from PIL import Image

    if image.shape == tuple(image_shape):
        return image
    height, width, channels = image_shape
    if image.shape[-1] not in (1, 3, 4) or channels not in (1, 3):
        raise UserError(
            f"Images of {image.shape[-1]} channels cannot be brought to the shape {image_shape}, "
            "only those of 1 (grey), 3 (RGB) or 4 (RGB and alpha) to 1 or 3. Bring them to their "
            "size yourself; config.data.image_size = 0 leaves them as they are."
        )
    picture = _as_grey_or_rgb(Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image))
    return as_array(fit(picture, (height, width), resize), channels)


def fitted(images: Any, image_shape: tuple[int, ...], resize: str = "crop") -> Any:
    """`fit_array` of uint8 `[N, H, W, C]`, an array or `Stored`; the same where it has the size."""
    if images.shape[1:] == tuple(image_shape):
        return images
    if isinstance(images, Stored):
        name = f"{resize} to {tuple(image_shape)}"
        return images.map(lambda image: fit_array(image, image_shape, resize), image_shape, name)
    bytes_taken = len(images) * math.prod(image_shape)
    if bytes_taken > most_bytes():
        raise UserError(
            f"{len(images)} images of {image_shape[0]} x {image_shape[1]} take more than half of "
            "this machine's memory; lower config.data.image_size."
        )
    found = np.empty((len(images), *image_shape), np.uint8)
    for i, image in enumerate(images):
        found[i] = fit_array(image, image_shape, resize)
    return found


def resized(dataset: Dataset, size: int, resize: str = "crop") -> Dataset:
    """A data set whose images are squares of another size.

    What identifies it, `subset_hash` and `fingerprint`, stays that of the images as they were.

    Args:
      dataset: of any size.
      size: side of the square.
      resize: `crop` or `pad`, see `genreg_jax.data.pictures.fit`.

    Example:
      >>> import genreg_jax as gr
      >>> resized(gr.data.load("digits", per_class=1), 16).image_shape
      (16, 16, 1)
    """
    channels = dataset.image_shape[-1]
    shape = (size, size, 3 if channels == 4 else channels)  # what is transparent lies on white
    if dataset.image_shape == shape:
        return dataset
    split = lambda s: dataclasses.replace(s, images=fitted(s.images, shape, resize))
    return dataclasses.replace(
        dataset,
        train=split(dataset.train),
        validation=split(dataset.validation),
        test=split(dataset.test),
        _pool=dataset._pool and (*dataset._pool[:2], resize),
    )


def read_pictures(
    files: Sequence[Path],
    size: tuple[int, int] | None,
    resize: str = "crop",
    unreadable: str = "refuse",
    channels: int = 0,
    *,
    cut_bottom: int = 0,
    first_frame: bool = False,
) -> tuple[np.ndarray, list[int]]:
    """Reads pictures into one array, several at a time, or from `genreg_jax.data.cache`.

    Args:
      files: of the pictures.
      size: height and width that they are brought to; None for their own, which must be the same.
      resize: as in `fit`.
      unreadable: `refuse`, or `skip`.
      channels: 1 or 3; 0 for 1 where all are grey, else 3.
      cut_bottom: rows of pixels that are cut off below, before all else.
      first_frame: as in `open_picture`.

    Returns:
      uint8 `[N, H, W, C]`, and which of the files they are.

    Raises:
      UserError: some cannot be read and `unreadable` is `refuse`, or none can; their sizes differ
        and `size` is None; or the array would not fit.
    """
    policy: dict[str, Any] = {"size": size, "resize": resize, "channels": channels}
    if cut_bottom or first_frame:
        policy |= {"cut_bottom": cut_bottom, "first_frame": first_frame}

    def opened(file: Path) -> Any:
        return _without_bottom(open_picture(file, first_frame=first_frame), cut_bottom)

    return cached(files, policy, lambda: _decode(files, opened, size, resize, unreadable, channels))


def _without_bottom(picture: Any, rows: int) -> Any:
    width, height = picture.size
    if rows >= height:
        raise Unreadable(f"it has {height} rows of pixels, and the lowest {rows} are to be cut off")
    return picture.crop((0, 0, width, height - rows)) if rows else picture


def _decode(
    files: Sequence[Path],
    opened: Callable[[Path], Any],
    size: tuple[int, int] | None,
    resize: str,
    unreadable: str,
    channels: int,
) -> tuple[np.ndarray, list[int]]:
    def one(file: Path) -> Any:
        try:
            picture = opened(file)
            return np.asarray(picture if size is None else fit(picture, size, resize))
        except Unreadable as error:
            return error

    many = len(files) >= LEAST_PICTURES
    with (
        ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool,
        Progress(len(files), label="reading pictures", enabled=many) as progress,
    ):
        found, bad, taken = [], [], 0
        for file, result in zip(files, pool.map(one, files)):
            found.append(result)
            progress.update(len(found))
            if isinstance(result, Unreadable):
                bad.append(f"{file} ({result})")
                continue
            taken += result.nbytes
            if taken > most_bytes():
                pool.shutdown(cancel_futures=True)
                raise UserError(
                    "The pictures, one beside the other, take more than half of this machine's "
                    "memory; lower config.data.image_size, or leave the pictures where they lie "
                    "with config.data.stream = True."
                )
    kept = [i for i, result in enumerate(found) if not isinstance(result, Unreadable)]
    _check_read(bad, len(files), unreadable)
    arrays = [found[i] for i in kept]
    _check_sizes({array.shape[:2] for array in arrays})
    channels = channels or (1 if all(array.ndim == 2 for array in arrays) else 3)
    return np.stack([_with_channels(array, channels) for array in arrays]), kept


def _check_read(bad: list[str], count: int, unreadable: str) -> None:
    """Refuses or names the pictures that cannot be read."""
    if bad and (unreadable == "refuse" or len(bad) == count):
        raise UserError(
            f"{len(bad)} of {count} pictures cannot be read: {shown(bad, MOST_NAMED)}. Mend "
            "or remove them, or set config.data.unreadable to 'skip' to go on without them."
        )
    if bad:
        names = shown(bad, MOST_NAMED)
        note(f"{len(bad)} of {count} pictures cannot be read and are left out: {names}.")


def _check_sizes(sizes: set[Any]) -> None:
    """Refuses pictures of several sizes, each a height and a width."""
    if len(sizes) > 1:
        low, high = min(sizes, key=math.prod), max(sizes, key=math.prod)
        raise UserError(
            f"The pictures have {len(sizes)} sizes, from {low[0]} x {low[1]} to {high[0]} x "
            f"{high[1]} (height x width); set config.data.image_size, such as 32 or 64, to bring "
            "them to one."
        )


def stored_pictures(
    files: Sequence[Path], size: tuple[int, int] | None, resize: str, unreadable: str
) -> tuple[Stored, list[int]]:
    """What `read_pictures` reads into one array, left in the files.

    Each is decoded once to know that it can be, unless that is remembered.
    """
    key = key_of(files, {"size": size, "resize": resize, "stored": True}) or ""

    def decoded(i: int) -> np.ndarray:
        picture = open_picture(files[i])
        return np.asarray(picture if size is None else fit(picture, size, resize))

    def look(i: int) -> bytes:
        """Height, width and whether it has colours; zeros where it cannot be read."""
        try:
            array = decoded(i)
        except Unreadable:
            return bytes(12)
        return np.array([*array.shape[:2], array.ndim > 2], np.int32).tobytes()

    everything = lambda found: bool(np.all(found.copy().view(np.int32)[:, 0]))
    found = looked_at(len(files), look, key, everything).copy().view(np.int32)
    bad = []
    for i in np.flatnonzero(found[:, 0] == 0).tolist():
        try:
            array = decoded(i)  # again, for the reason, unless it has passed
            found[i] = *array.shape[:2], array.ndim > 2
        except Unreadable as error:
            bad.append(f"{files[i]} ({error})")
    _check_read(bad, len(files), unreadable)
    kept = np.flatnonzero(found[:, 0])
    _check_sizes({tuple(row) for row in found[kept, :2].tolist()})
    channels = 3 if found[kept, 2].any() else 1

    def read(i: int) -> np.ndarray:
        try:
            return _with_channels(decoded(i), channels)
        except Unreadable as error:
            raise UserError(f"{files[i]} cannot be read any more ({error}).") from None

    shape = (*found[kept[0], :2].tolist(), channels)
    return Stored(range(len(files)), read, rows=kept, key=key, shape=shape), kept.tolist()


def _with_channels(array: np.ndarray, channels: int) -> np.ndarray:
    if array.ndim == 2:
        return np.repeat(array[..., None], channels, axis=2)
    if channels == 3:
        return array
    from PIL import Image

    return as_array(Image.fromarray(array), 1)


def most_bytes() -> int:
    """Half of this machine's memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def shown(paths: Sequence[str], most: int = 5) -> str:
    """The first of some names, which may hold anything, and how many there are besides."""
    names = [name.encode("utf-8", "backslashreplace").decode() for name in paths[:most]]
    names = ["".join(c if printable(c) else repr(c)[1:-1] for c in name) for name in names]
    more = f" and {len(paths) - most} more" if len(paths) > most else ""
    return ", ".join(names) + more
