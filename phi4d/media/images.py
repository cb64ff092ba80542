"""Pictures: from an open file to RGB samples, by content and whatever the extension says.

Runs in a decode process. It must not write, follow names, or start programs; that is why the
formats are a list of ours (Pillow's EPS reader starts Ghostscript).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import BinaryIO

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import AvifImagePlugin, ExifTags, Image, UnidentifiedImageError

from phi4d.errors import FileError
from phi4d.job import Kind
from phi4d.media.files import above, cause, millions
from phi4d.media.probe import HEAD_BYTES, describe, identify

# One thread: the pool of processes is the parallelism, and threads cost address space.
pillow_heif.register_heif_opener(decode_threads=1)
AvifImagePlugin.DEFAULT_MAX_THREADS = 1
Image.MAX_IMAGE_PIXELS = None  # the cap is ours, below: Pillow only warns at 89 MP

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "DIB", "TIFF", "WEBP", "AVIF", "HEIF", "JPEG2000", "PPM")
MAX_PIXELS = 200_000_000
"""default cap: the 200 MP of today's largest phone sensors; about 2.5 GB while it is decoded"""
MAX_FRAMES = 10_000
"""default cap on the frames of an animation and the pages of a TIFF"""
MODEL_PIXELS = 36 * 448 * 448
"""the most that Phi-4-multimodal looks at: 36 crops of 448 pixels square (its processor's
``dynamic_hd`` and crop size)"""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation to what undoes it (EXIF 2.32, tag 0x0112)"""


def picture(
    file: BinaryIO,
    *,
    max_pixels: int = MAX_PIXELS,
    max_frames: int = MAX_FRAMES,
    looked_at: Callable[[int, int], int] | None = None,
) -> tuple[Image.Image, dict[str, float]]:
    """Decode a picture, upright, the first frame of an animation, transparency laid on white.

    Args:
        file: open for reading and seekable, at its beginning.
        max_pixels: a picture whose header promises more is refused before it is decoded.
        max_frames: an animation with more frames, or a TIFF with more pages, is refused.
        looked_at: how many pixels the model looks at of a picture of some height and width; None:
            as many as it ever does.

    Returns:
        The picture in RGB, and the facts ``width`` and ``height``: the upright picture's own size
        in pixels. Pictures beyond what is looked at several times over come reduced, so there may
        be fewer than the facts say.

    Raises:
        FileError: not a picture, damaged, cut off, too large, or of too many frames.
        MemoryError: the process's limit was reached.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of odd metadata; the picture is what counts
        image = _opened(file, head)
        if _has_more(image, max_frames):
            raise FileError(
                f"is a {image.format} of more than {max_frames:,} frames or pages, the most that "
                "are read: keep the first, or raise max_frames"
            )
        if image.format in _WALKED:
            image = _opened(file, head)  # the walk left it at another frame
        with image:
            width, height = image.size
            if width * height > max_pixels:
                raise FileError(
                    f"is a picture of {width} x {height} = {above(width * height)} "
                    f"megapixels; at most {millions(max_pixels)} are read: make it smaller, or "
                    "raise max_megapixels"
                )
            kind = f"{image.format} "
            try:
                # Read before loading: TIFF turns itself while it loads, and tells the turned size
                # from the start.
                turned = image.format != "TIFF" and _orientation(image) >= 5
                most = looked_at(height, width) if looked_at else MODEL_PIXELS
                found = _decoded(image, most)
            except MemoryError:
                raise
            except Exception as error:
                raise FileError(_damaged(kind, error)) from error
    if turned:
        width, height = height, width
    return found, {"width": float(width), "height": float(height)}


def samples(picture: Image.Image) -> NDArray[np.uint8]:
    """(height, width, 3) uint8 of a picture in RGB."""
    return np.asarray(picture, np.uint8)


def _opened(file: BinaryIO, head: bytes) -> Image.Image:
    file.seek(0)
    try:
        return Image.open(file, formats=FORMATS)
    except MemoryError:
        raise
    except UnidentifiedImageError:
        raise FileError(_unidentified(head)) from None
    except Exception as error:
        raise FileError(_damaged("", error)) from error


_WALKED = ("GIF", "TIFF")
"""formats whose header does not tell how many frames there are"""


def _has_more(image: Image.Image, frames: int) -> bool:
    """Whether there are more than so many frames. Damage behind the first is no fault of it.

    A TIFF's directories are walked no further than so many, 10,000 in 0.6 s; all blocks of a GIF
    are, some seconds for a gigabyte, within the limits of the process.
    """
    with suppress(Exception):
        if image.format != "TIFF":
            return int(getattr(image, "n_frames", 1)) > frames
        image.seek(frames)
        return True
    return False


def _decoded(image: Image.Image, looked_at: int) -> Image.Image:
    """Decode, reduce, convert and turn upright."""
    if factor := _reduction(image.size, looked_at):
        # Only JPEG knows draft; it decodes at 1/2, 1/4 or 1/8, never smaller than what is asked.
        image.draft("RGB", (image.width // factor, image.height // factor))
    image.load()
    orientation = _orientation(image)  # after loading: TIFF has forgotten it by then
    rgb = _rgb(image)
    if factor := _reduction(rgb.size, looked_at):
        rgb = rgb.reduce(factor)
    return rgb.transpose(_TURNS[orientation]) if orientation in _TURNS else rgb


def _reduction(size: tuple[int, int], looked_at: int) -> int:
    """The whole number to divide a picture's sides by, or 0.

    What is left has at least four times the pixels that are looked at, twice in each direction, so
    the model's own resampling still decides what it sees; it only saves the decoding, resampling
    and carrying of what the model cannot use.
    """
    factor = math.isqrt(size[0] * size[1] // (4 * looked_at))
    return factor if factor > 1 else 0


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8. Damaged EXIF in a sound picture is no reason to refuse it."""
    try:
        value = int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:
        return 1
    return value if 1 <= value <= 8 else 1


def _rgb(image: Image.Image) -> Image.Image:
    """Any of Pillow's modes as RGB: deep samples scaled to eight bits, transparency on white."""
    if image.mode.startswith("I;16"):
        # Exact rounding of v / 257, without floats twice the picture's size.
        deep = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((deep + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        return Image.fromarray(_scaled(np.asarray(image))).convert("RGB")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        below = Image.new("RGB", above.size, "white")
        below.paste(above, mask=above.getchannel("A"))
        return below
    return image if image.mode == "RGB" else image.convert("RGB")


def _scaled(values: NDArray[np.int32] | NDArray[np.float32]) -> NDArray[np.uint8]:
    """Samples of unknown range as eight bits.

    Those that fit 16 bits are taken for 16 bits (so PGM and some PNG arrive), floats within 0..1
    for a fraction of white; anything else is stretched from its least to its greatest value.
    """
    finite = np.nan_to_num(np.asarray(values, np.float32), posinf=0.0, neginf=0.0)
    low, high = float(finite.min()), float(finite.max())
    if low >= 0 and high <= (65535 if values.dtype.kind == "i" else 1.0):
        low, high = 0.0, 65535.0 if values.dtype.kind == "i" else 1.0
    scaled: NDArray[np.float32] = (finite - low) * (255.0 / max(high - low, 1e-30))
    return np.rint(scaled).astype(np.uint8)


def _unidentified(head: bytes) -> str:
    found = identify(head)
    if found and found.kind is Kind.IMAGE:
        return f"begins as {found.words} but is damaged or cut off: copy it again from its source"
    return (
        f"is not a picture that can be read: it holds {describe(head)}. "
        "Give it its right name, convert it to JPEG or PNG, or remove it"
    )


def _damaged(kind: str, error: Exception) -> str:
    reason = cause(error)
    if "truncated" in reason:
        return f"is a {kind}picture that is cut off ({reason}): copy it again from its source"
    return f"is a damaged {kind}picture ({reason}): copy it again from its source"
