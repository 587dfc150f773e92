"""A user's pictures, of any size and format that Pillow reads, as the 32x32 images that the networks here take."""

import warnings
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps, UnidentifiedImageError

from cifar_jax.errors import InputError

SIZE = 32


class UnknownFormatError(InputError):
    """A file that is no picture, neither by its content nor by its name."""


def read_picture(path: Path) -> UInt8[np.ndarray, "32 32 3"]:
    """The picture in a file, as the networks here were trained on: RGB, 32x32.

    What a viewer shows is what counts: the first frame, turned as EXIF says, on white where it is transparent. Its
    centre square is resized by Pillow's bicubic. Colour profiles are not applied. A 32x32 RGB picture stays as it is.

    Raises:
      UnknownFormatError: it is no picture, neither by its content nor by its name.
      InputError: it is no file, damaged, of more pixels than Pillow's limit, or of pixels that have no known range.
    """
    if not path.is_file():  # a pipe would be waited for
        what = "a folder" if path.is_dir() else "no regular file" if path.exists() else "not there"
        raise InputError(f"IMAGE must be a picture that Pillow reads, got {str(path)!r}, which is {what}.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's about metadata that does not matter here
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                # Pillow gives greys of 16 bits as integers in these formats.
                deep = image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM"))
                square = _centre_square(ImageOps.exif_transpose(image))
            rgb = _to_rgb(_from_16_bits(square) if deep else square)
            return np.asarray(rgb.resize((SIZE, SIZE), Image.Resampling.BICUBIC))
    except InputError:
        raise
    except UnidentifiedImageError as error:
        raise (InputError if _has_name_of_picture(path) else UnknownFormatError)(
            f"IMAGE must be a picture that Pillow reads, got {str(path)!r}, which it does not recognise."
        ) from error
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise InputError(
            f"IMAGE must have at most {Image.MAX_IMAGE_PIXELS:,} pixels, got {str(path)!r}, which has more."
        ) from error
    except Exception as error:  # Pillow's plugins raise anything for a damaged file
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"IMAGE must be a picture that can be read whole, got {str(path)!r}: {reason}.") from error


def _has_name_of_picture(path: Path) -> bool:
    Image.init()  # knows all of them only then
    return Image.registered_extensions().get(path.suffix.lower()) in Image.OPEN


def _centre_square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def _from_16_bits(image: Image.Image) -> Image.Image:
    """In greys of 8 bits. Pillow's own conversion takes all above 255 for white."""
    return Image.fromarray(((np.asarray(image).astype(np.int32) + 128) // 257).astype(np.uint8))


def _to_rgb(image: Image.Image) -> Image.Image:
    """In RGB, on white where it is transparent."""
    if image.mode in ("I", "F"):
        raise ValueError("its pixels have 32 bits and no known range, save it with 8 or 16")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
