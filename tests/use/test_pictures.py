"""Against Pillow's own steps one by one, and against NumPy where these could be wrong together."""

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cifar_jax.errors import InputError
from cifar_jax.use.pictures import UnknownFormatError, read_picture


def picture(width, height):
    """A drawing without any symmetry: two gradients, and a chequered corner."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([255 * x / width, 255 * y / height, 128 * ((x // 3 + y // 3) % 2) * (x < y)], -1)
    return Image.fromarray(pixels.astype(np.uint8))


def small(image):
    """What should become of an RGB image, by plain Pillow."""
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((32, 32), Image.Resampling.BICUBIC))


def read(image, path, **options):
    image.save(path, **options)
    return read_picture(path)


@pytest.mark.parametrize("size", [(32, 32), (33, 32), (640, 427), (200, 301), (5, 9), (1, 70), (1, 1)])
def test_the_centre_square_is_resized(tmp_path, size):
    found = read(picture(*size), tmp_path / "p.png")
    assert (found.dtype, found.shape) == (np.uint8, (32, 32, 3))
    np.testing.assert_array_equal(found, small(picture(*size)))


def test_a_picture_of_the_right_size_keeps_every_bit(tmp_path, rng):
    pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
    np.testing.assert_array_equal(read(Image.fromarray(pixels), tmp_path / "p.png"), pixels)


@pytest.mark.parametrize(
    ("name", "options"),
    [("p.bmp", {}), ("p.gif", {}), ("p.jpg", {"quality": 95}), ("p.ppm", {}), ("p.tga", {}), ("p.tif", {}),
     ("p.webp", {"lossless": True}), ("no_suffix", {"format": "PNG"})],
)  # fmt: skip
def test_formats(tmp_path, name, options):
    found = read(picture(90, 60), tmp_path / name, **options).astype(int)
    # A palette of 256 colours and JPEG lose a few levels on average; two unlike pictures are 50 and more apart.
    lossy = {"p.gif": 6, "p.jpg": 6}.get(name, 0)
    assert np.abs(found - small(picture(90, 60))).mean() <= lossy


def test_greys_and_black_and_white(tmp_path):
    grey = picture(90, 60).convert("L")
    np.testing.assert_array_equal(read(grey, tmp_path / "l.png"), small(grey.convert("RGB")))
    sharp = grey.convert("1")
    np.testing.assert_array_equal(read(sharp, tmp_path / "1.png"), small(sharp.convert("RGB")))


@pytest.mark.parametrize("name", ["p.png", "p.tif", "p.pgm"])
def test_16_bits_are_scaled(tmp_path, name):
    grey = picture(90, 60).convert("L")
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    found = read(deep, tmp_path / name)
    np.testing.assert_array_equal(found, small(grey.convert("RGB")))
    assert np.asarray(deep.convert("RGB")).mean() > 250  # Pillow alone: all but the blackest is white


def test_what_is_transparent_is_white(tmp_path, rng):
    color, alpha = rng.integers(0, 256, (32, 32, 3), np.uint8), rng.integers(0, 256, (32, 32, 1), np.uint8)
    alpha[:8] = 0
    on_white = (color * (alpha / 255.0) + 255 - alpha).round()
    found = read(Image.fromarray(np.concatenate([color, alpha], -1)), tmp_path / "rgba.png")
    assert np.abs(found - on_white).max() <= 1  # Pillow rounds in fixed point
    assert (found[:8] == 255).all()
    grey = Image.fromarray(np.concatenate([color[..., :1], alpha], -1))
    found = read(grey, tmp_path / "la.png")
    assert np.abs(found - (color[..., :1] * (alpha / 255.0) + 255 - alpha).round()).max() <= 1


def test_a_transparent_colour_of_a_palette_is_white(tmp_path):
    paletted = Image.new("P", (64, 40), 1)
    paletted.putpalette([255, 0, 0, 0, 0, 255])
    paletted.paste(0, (0, 0, 32, 40))
    found = read(paletted, tmp_path / "p.png", transparency=0)
    assert (found[:, :14] == 255).all()
    assert (found[:, 18:] == (0, 0, 255)).all()


def test_cmyk(tmp_path):
    found = read(picture(90, 60).convert("CMYK"), tmp_path / "p.tif")
    np.testing.assert_array_equal(found, small(picture(90, 60).convert("CMYK").convert("RGB")))


# How the pixels of an upright picture are stored under each value of EXIF's orientation.
STORED = {
    1: lambda p: p,
    2: lambda p: p[:, ::-1],
    3: lambda p: p[::-1, ::-1],
    4: lambda p: p[::-1],
    5: lambda p: p.transpose(1, 0, 2),
    6: lambda p: np.rot90(p, 1),
    7: lambda p: np.rot90(p, 2).transpose(1, 0, 2),
    8: lambda p: np.rot90(p, -1),
}


@pytest.mark.parametrize("orientation", STORED)
def test_exif_turns_the_picture(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](np.asarray(picture(91, 60)))))
    np.testing.assert_array_equal(read(stored, tmp_path / "p.png", exif=exif), small(picture(91, 60)))


@pytest.mark.parametrize(
    "exif", [b"Exif\0\0", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0MM\0*\0\0\0\x08\0\x02\x01\x12"]
)
def test_broken_exif_does_not_matter(tmp_path, exif):
    picture(90, 60).save(tmp_path / "p.jpg")
    np.testing.assert_array_equal(
        read(picture(90, 60), tmp_path / "q.jpg", exif=exif), read_picture(tmp_path / "p.jpg")
    )


@pytest.mark.parametrize(("name", "options"), [("p.gif", {}), ("p.png", {}), ("p.webp", {"lossless": True})])
def test_the_first_frame_of_an_animation(tmp_path, name, options):
    frames = [Image.new("RGB", (40, 40), color) for color in ("red", "blue")]
    found = read(frames[0], tmp_path / name, save_all=True, append_images=frames[1:], **options)
    assert (found == (255, 0, 0)).all()


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def declared(width, height):
    """A PNG that says it is so large, with nothing in it."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(60_000, 60_000), (10_000, 10_000)])
def test_a_bomb_is_refused_before_it_is_decoded(tmp_path, size, recwarn):
    """Above twice Pillow's limit, where it raises by itself, and between, where it only warns."""
    (tmp_path / "p.png").write_bytes(declared(*size))
    with pytest.raises(
        InputError, match=r"^IMAGE must have at most 89,478,485 pixels, got '.*p.png', which has more\.$"
    ):
        read_picture(tmp_path / "p.png")
    assert not recwarn


@pytest.mark.parametrize("name", ["p.bmp", "p.gif", "p.jpg", "p.png", "p.tif", "p.webp"])
def test_a_truncated_picture_is_refused(tmp_path, name):
    """And not filled up with grey."""
    picture(90, 60).save(tmp_path / name)
    content = (tmp_path / name).read_bytes()
    for length in (len(content) // 2, 9, 0):
        (tmp_path / name).write_bytes(content[:length])
        with pytest.raises(InputError, match=r"^IMAGE must be [^\n]*, got '[^\n]*'[^\n]*\.$") as raised:
            read_picture(tmp_path / name)
        assert not isinstance(raised.value, UnknownFormatError)  # its name is a picture's


@pytest.mark.parametrize("mode", ["I", "F"])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode):
    with pytest.raises(InputError, match="its pixels have 32 bits and no known range"):
        read(picture(90, 60).convert("L").convert(mode), tmp_path / "p.tif")


def test_what_is_no_picture_is_told_apart(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(UnknownFormatError, match="which it does not recognise"):
        read_picture(tmp_path / "notes.txt")
    for path, what in ((tmp_path / "none.png", "not there"), (tmp_path, "a folder"), (Path("/dev/zero"), "no regular")):
        with pytest.raises(InputError, match=f"which is {what}"):
            read_picture(path)
