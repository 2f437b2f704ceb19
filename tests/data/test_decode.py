import io
import pickle
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from pbe_fast.data import decode
from pbe_fast.data.decode import decode_rgb
from pbe_fast.errors import ImageError

H, W = 13, 22


def picture(channels: int = 3, dtype: str = "uint8") -> npt.NDArray[np.uint8]:
    """A smooth picture with a different value at every corner, so JPEG keeps it well."""
    y, x = np.mgrid[0:H, 0:W].astype(float)
    planes = [y / H, x / W, (x + y) / (H + W), 1 - y / (2 * H)][:channels]
    return np.round(np.stack(planes, -1) * np.iinfo(dtype).max).astype(dtype)


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def by_pil(data: bytes) -> npt.NDArray[np.int64]:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def chunk(name: bytes, content: bytes) -> bytes:
    crc = zlib.crc32(name + content)
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", crc)


def png(width: int, height: int, depth: int, color: int, raw: bytes, *extra: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            *extra,
            chunk(b"IDAT", zlib.compress(raw)),
            chunk(b"IEND", b""),
        ]
    )


JPEG = encode(Image.fromarray(picture()), "JPEG", quality=95)
PROGRESSIVE = encode(Image.fromarray(picture()), "JPEG", quality=95, progressive=True)
GREY_JPEG = encode(Image.fromarray(picture()).convert("L"), "JPEG")
CMYK_JPEG = encode(Image.fromarray(picture()).convert("CMYK"), "JPEG", quality=95)
PNG = encode(Image.fromarray(picture()), "PNG")


@pytest.mark.parametrize(
    "data",
    [
        JPEG,
        PROGRESSIVE,
        encode(Image.fromarray(picture()), "JPEG", quality=95, subsampling=0),
        encode(Image.fromarray(picture()), "JPEG", quality=95, keep_rgb=True),
    ],
    ids=["420", "progressive", "444", "rgb"],
)
def test_ordinary_jpeg(data: bytes) -> None:
    out = decode_rgb(data)
    assert out.shape == (H, W, 3)
    assert out.dtype == np.uint8
    assert out.flags.c_contiguous
    assert out.flags.writeable
    # Both are libjpeg-turbo with the accurate DCT; builds may round a unit apart.
    assert np.abs(out.astype(int) - by_pil(data)).max() <= 1
    assert np.abs(out.astype(int) - picture()).max() < 30


def test_grey_jpeg_is_repeated() -> None:
    out = decode_rgb(GREY_JPEG)
    assert out.shape == (H, W, 3)
    assert np.array_equal(out[..., 0], out[..., 1])
    assert np.array_equal(out[..., 0], out[..., 2])
    assert np.abs(out.astype(int) - by_pil(GREY_JPEG)).max() <= 1


def test_cmyk_and_ycck_jpeg() -> None:
    with Image.open(io.BytesIO(CMYK_JPEG)) as image:
        assert image.mode == "CMYK"
    out = decode_rgb(CMYK_JPEG)
    assert np.abs(out.astype(int) - by_pil(CMYK_JPEG)).max() <= 1
    assert np.abs(out.astype(int) - picture()).max() < 40  # and not its negative
    # Transform 2 in the Adobe segment says that the same four planes are YCCK.
    adobe = CMYK_JPEG.find(b"Adobe")
    ycck = CMYK_JPEG[: adobe + 11] + b"\x02" + CMYK_JPEG[adobe + 12 :]
    assert np.abs(decode_rgb(ycck).astype(int) - by_pil(ycck)).max() <= 1
    assert not np.array_equal(decode_rgb(ycck), out)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["JPEG", "PNG"])
def test_exif_orientation_is_applied(format: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x010E] = "a description before it"
    exif[0x0112] = orientation
    data = encode(Image.fromarray(picture()), format, exif=exif)
    with Image.open(io.BytesIO(data)) as image:
        upright = np.asarray(ImageOps.exif_transpose(image)).astype(int)
    out = decode_rgb(data)
    assert out.shape == upright.shape
    assert out.flags.c_contiguous
    assert out.flags.writeable
    assert np.abs(out.astype(int) - upright).max() <= 1


def test_exif_of_a_grey_and_a_cmyk_jpeg() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    for mode in ("L", "CMYK"):
        data = encode(Image.fromarray(picture()).convert(mode), "JPEG", exif=exif)
        assert np.array_equal(
            decode_rgb(data), np.rot90(decode_rgb(data.replace(b"Exif\0\0", b"Exit\0\0")), -1)
        )


def with_exif(tiff: bytes) -> bytes:
    body = b"Exif\0\0" + tiff
    return JPEG[:2] + b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body + JPEG[2:]


@pytest.mark.parametrize(
    "tiff",
    [
        b"",
        b"junk",
        b"II*\0",
        b"II*\0\xff\xff\xff\xff",
        b"II*\0\x08\0\0\0\xff\xff",
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x09\0\0",  # orientation 9
        b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x02\0\0\0\x01\0\x06\0\0",  # as text
    ],
)
def test_damaged_exif_says_nothing_about_the_pixels(tiff: bytes) -> None:
    assert np.array_equal(decode_rgb(with_exif(tiff)), decode_rgb(JPEG))


def test_big_endian_exif() -> None:
    tiff = b"MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    assert np.array_equal(decode_rgb(with_exif(tiff)), decode_rgb(JPEG)[::-1, ::-1])


def test_exif_bytes_outside_their_segment_mean_nothing() -> None:
    tail = b"\xff\xe1\x00\x22Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0"
    assert np.array_equal(decode_rgb(JPEG + tail), decode_rgb(JPEG))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA"])
def test_png_modes_are_as_pil_converts_them(mode: str) -> None:
    source = picture(4) if mode == "RGBA" else picture()
    data = encode(Image.fromarray(source).convert(mode), "PNG")
    out = decode_rgb(data)
    assert out.shape == (H, W, 3)
    assert np.array_equal(out, by_pil(data))


def test_alpha_is_dropped_not_blended() -> None:
    source = picture(4)
    source[..., 3] = 0
    out = decode_rgb(encode(Image.fromarray(source), "PNG"))
    assert np.array_equal(out, source[..., :3])


@pytest.mark.parametrize("transparency", [3, bytes(range(0, 200, 2))])
def test_palette_with_transparency_goes_as_through_rgba(transparency: int | bytes) -> None:
    palette = Image.fromarray(picture()).convert("P", palette=Image.Palette.ADAPTIVE, colors=100)
    data = encode(palette, "PNG", transparency=transparency)
    assert b"tRNS" in data
    with Image.open(io.BytesIO(data)) as image:
        expected = np.asarray(image.convert("RGBA").convert("RGB"))
    assert np.array_equal(decode_rgb(data), expected)


def test_16_bit_keeps_the_high_byte() -> None:
    grey = np.array([[0, 255, 256, 511], [512, 32767, 65279, 65535]], ">u2")
    raw = b"".join(b"\0" + row.tobytes() for row in grey)
    out = decode_rgb(png(4, 2, 16, 0, raw))
    assert np.array_equal(out, np.repeat((grey // 256)[..., None], 3, axis=2))
    colors = picture(3, "uint16")
    raw = b"".join(b"\0" + row.astype(">u2").tobytes() for row in colors)
    assert np.array_equal(decode_rgb(png(W, H, 16, 2, raw)), colors // 256)


def test_bombs_are_refused_by_their_header() -> None:
    with pytest.raises(ImageError, match=r"50000 x 50000.*more than 64000000"):
        decode_rgb(png(50000, 50000, 8, 2, b"\0" * 100))
    frame = JPEG.index(b"\xff\xc0") + 5
    huge = JPEG[:frame] + struct.pack(">HH", 60000, 65000) + JPEG[frame + 4 :]
    with pytest.raises(ImageError, match=r"65000 x 60000.*more than"):
        decode_rgb(huge)
    for data in (PNG, JPEG, GREY_JPEG, CMYK_JPEG):
        assert decode_rgb(data, max_pixels=H * W).shape == (H, W, 3)
        with pytest.raises(ImageError, match="more than 285 in all"):
            decode_rgb(data, max_pixels=H * W - 1)


def oriented(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encode(Image.fromarray(picture()), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("data", "in_place"),
    [
        (JPEG, True),
        (PROGRESSIVE, True),
        (GREY_JPEG, True),
        (oriented(1), True),
        (oriented(3), False),
        (oriented(6), False),
        (CMYK_JPEG, False),
        (PNG, False),
        (encode(Image.fromarray(picture()[:, :-1]), "JPEG"), False),
        (encode(Image.fromarray(np.tile(picture(), (2, 2, 1))), "JPEG"), False),
        (encode(Image.fromarray(picture().transpose(1, 0, 2)), "JPEG"), False),  # as many bytes
    ],
)
def test_only_what_fits_is_decoded_in_place_and_nothing_changes(
    data: bytes, in_place: bool
) -> None:
    memory = np.full((3, H, W, 3), 77, np.uint8)
    out = memory[1]
    image = decode_rgb(data, out=out)
    assert (image is out) == in_place
    assert np.array_equal(image, decode_rgb(data))
    assert (memory[[0, 2]] == 77).all()


def test_memory_to_decode_into_lets_no_error_pass() -> None:
    out = np.zeros((H, W, 3), np.uint8)
    for data in (JPEG, GREY_JPEG, PROGRESSIVE):
        for length in range(len(data)):
            with pytest.raises(ImageError):
                decode_rgb(data[:length], out=out)
        with pytest.raises(ImageError, match="more than 285 in all"):
            decode_rgb(data, out=out, max_pixels=H * W - 1)
    frame = JPEG.index(b"\xff\xc0") + 5
    for height, width in ((60000, 65000), (26756, 26756)):  # 3 times them is not 31 bits
        huge = JPEG[:frame] + struct.pack(">HH", height, width) + JPEG[frame + 4 :]
        with pytest.raises(ImageError, match=f"{width} x {height}.*more than"):
            decode_rgb(huge, out=out)


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


FRAME = JPEG[JPEG.index(b"\xff\xc0") :][:19]
BIG_FRAME = FRAME[:5] + struct.pack(">HH", 4000, 4000) + FRAME[9:]


@pytest.mark.parametrize("decoy", [FRAME, b"\xff\xda" + FRAME, b"Exif\0\0" + FRAME])
@pytest.mark.parametrize("marker", [0xFE, 0xE0, 0xE1, 0xE2, 0xEE])
def test_a_size_hidden_in_a_segment_does_not_pass_for_the_size(marker: int, decoy: bytes) -> None:
    data = JPEG[:2] + segment(marker, b"\0" + decoy) + JPEG[2:].replace(FRAME, BIG_FRAME)
    with pytest.raises(ImageError, match="4000 x 4000"):
        decode_rgb(data, max_pixels=1_000_000)


def test_a_marker_without_a_length_does_not_lead_to_a_decoy() -> None:
    """FFD0 has no length; who takes the next bytes for one comes to the second comment's inside."""
    start = JPEG[:2] + b"\xff\xd0" + segment(0xFE, bytes(60_000))
    decoy = bytes(2 + 2 + 0xFFFE - len(start) - 4) + FRAME + b"\xff\xda\0\2"
    data = start + segment(0xFE, decoy) + JPEG[2:].replace(FRAME, BIG_FRAME)
    with pytest.raises(ImageError, match="4000 x 4000"):
        decode_rgb(data, max_pixels=1_000_000)


def test_exif_is_found_after_fill_bytes_and_other_segments() -> None:
    data = oriented(6)
    at = data.index(b"\xff\xe1")
    for extra in (b"\xff\xff", segment(0xE2, b"ICC_PROFILE\0"), segment(0xE1, b"http://x\0")):
        moved = data[:at] + extra + data[at:]
        assert np.array_equal(decode_rgb(moved), decode_rgb(data))
        assert decode_rgb(moved).shape == (W, H, 3)


@pytest.mark.parametrize(
    "extra",
    [
        FRAME,  # a second frame, after and before the first
        b"\xff\xff\xff",  # fill bytes
        b"\xff\xfe\0\0",  # lengths that are too short for themselves
        b"\xff\xfe\0\1",
        b"\xff\xdb\0\5abc",  # a table that does not fill its segment
        b"\xff\xd8",
        b"\xff\xd0",
        b"junk",
        segment(0xC8, b"JPG"),
    ],
)
@pytest.mark.parametrize("max_pixels", [H * W, 10 * H * W])
def test_odd_headers_are_left_to_libjpeg(
    extra: bytes, max_pixels: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoding = simplejpeg.decode_jpeg

    def guarded(data: bytes, **options: object) -> object:
        height, width, *_ = simplejpeg.decode_jpeg_header(data)
        assert height * width <= max_pixels
        return decoding(data, **options)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", guarded)
    for at in (2, JPEG.index(FRAME), JPEG.index(FRAME) + len(FRAME)):
        for rest in (JPEG[at:], JPEG[at:].replace(FRAME, BIG_FRAME)):
            data = JPEG[:at] + extra + rest
            try:
                expected = simplejpeg.decode_jpeg_header(data)[:2]
            except ValueError:
                with pytest.raises(ImageError):
                    decode_rgb(data, max_pixels=max_pixels)
                continue
            if expected == (H, W):
                assert np.array_equal(decode_rgb(data, max_pixels=max_pixels), decode_rgb(JPEG))
            else:
                with pytest.raises(ImageError, match="more than"):
                    decode_rgb(data, max_pixels=max_pixels)


@settings(deadline=None, max_examples=300)
@given(
    data=st.sampled_from([JPEG, PROGRESSIVE, GREY_JPEG, CMYK_JPEG]),
    changes=st.lists(st.tuples(st.integers(2, 700), st.binary(min_size=1, max_size=3)), max_size=3),
)
def test_the_size_is_libjpegs_whatever_the_damage(
    data: bytes, changes: list[tuple[int, bytes]]
) -> None:
    damaged = bytearray(data)
    for position, content in changes:
        damaged[position : position + len(content)] = content
    size, _ = decode._jpeg_header(bytes(damaged))
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(bytes(damaged), strict=False)
    except (ValueError, KeyError):
        return
    assert size in (None, (height, width))
    assert size is None or colorspace not in ("CMYK", "YCCK")


def test_the_usual_headers_are_read_without_libjpeg() -> None:
    for data in (JPEG, PROGRESSIVE, GREY_JPEG):
        assert decode._jpeg_header(data) == ((H, W), 1)
    assert decode._jpeg_header(CMYK_JPEG) == (None, 1)
    assert decode._jpeg_header(oriented(6)) == (None, 6)


def test_pil_keeps_silent_above_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ImageError, match="more than 100"):
        decode_rgb(PNG)


@pytest.mark.parametrize("data", [JPEG, PROGRESSIVE, GREY_JPEG, CMYK_JPEG, PNG])
def test_every_truncation_is_an_error(data: bytes) -> None:
    for length in range(len(data)):
        with pytest.raises(ImageError):
            decode_rgb(data[:length])


def test_truncation_whatever_pil_was_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("PIL.ImageFile.LOAD_TRUNCATED_IMAGES", True)
    for data in (CMYK_JPEG, PNG):
        with pytest.raises(ImageError):
            decode_rgb(data[: len(data) * 2 // 3])


@settings(deadline=None, max_examples=60)
@given(position=st.integers(8, len(PNG) - 1), value=st.integers(1, 255))
def test_a_changed_png_byte_is_an_error(position: int, value: int) -> None:
    data = bytearray(PNG)
    data[position] ^= value
    with pytest.raises(ImageError):
        decode_rgb(bytes(data))


@settings(deadline=None, max_examples=150)
@given(
    data=st.sampled_from([JPEG, PROGRESSIVE, CMYK_JPEG, PNG, with_exif(b"II*\0\x08\0\0\0\x01\0")]),
    changes=st.lists(st.tuples(st.integers(3, 400), st.binary(min_size=1, max_size=4)), max_size=4),
)
def test_damage_gives_pixels_or_an_image_error(
    data: bytes, changes: list[tuple[int, bytes]]
) -> None:
    damaged = bytearray(data)
    for position, content in changes:
        damaged[position : position + len(content)] = content
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            out = decode_rgb(bytes(damaged), max_pixels=1_000_000)
        except ImageError:
            return
    assert out.ndim == 3
    assert out.shape[2] == 3
    assert out.dtype == np.uint8


def test_chunks_that_make_pil_warn_are_not_parsed() -> None:
    raw = b"\0\1\2\3"
    extra = (
        chunk(b"acTL", struct.pack(">II", 0, 0)),  # an animation of no frames
        chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(5_000_000))),
        chunk(b"zTXt", b"x\0\0" + zlib.compress(bytes(50_000_000))),
        chunk(b"eXIf", b"II*\0\xff\xff\xff\xff"),
    )
    with pytest.raises((Warning, ValueError)):
        by_pil(png(1, 1, 8, 2, raw, *extra))
    assert decode_rgb(png(1, 1, 8, 2, raw, *extra)).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(x) run\n", "PostScript"),
        (encode(Image.fromarray(picture()), "GIF"), "GIF"),
        (encode(Image.fromarray(picture()), "PPM"), "PNM"),
        (encode(Image.fromarray(picture()), "BMP"), "BMP"),
        (encode(Image.fromarray(picture()), "TIFF"), "TIFF"),
        (encode(Image.fromarray(picture()), "WEBP"), "WebP"),
        (b"<!DOCTYPE html><html></html>", "HTML"),
        (b'<?xml version="1.0"?><svg/>', "SVG"),
        (b"\0\0\0\x20ftypavif" + bytes(50), "AVIF"),
        (b"\x93NUMPY\x01\0", "NumPy"),
        (b"hello", "no known kind"),
        (bytes(100), "no known kind"),
    ],
)
def test_other_formats_are_named_and_never_opened(data: bytes, words: str) -> None:
    with pytest.raises(ImageError, match=words):
        decode_rgb(data)


class Canary:
    """Unpickling this creates a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return (open, (str(self.path), "w"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_pickle_is_never_loaded(tmp_path: Path, protocol: int) -> None:
    canary = tmp_path / "canary"
    data = pickle.dumps(Canary(canary), protocol=protocol)
    for attempt in (data, JPEG[:3] + data, PNG[:8] + data):
        with pytest.raises(ImageError):
            decode_rgb(attempt)
    assert not canary.exists()
