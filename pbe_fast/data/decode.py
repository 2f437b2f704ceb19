"""One encoded image to RGB: JPEG and PNG, decided by their first bytes, never by a name.

Rules, the same on every machine:

- Grey is repeated to three channels. Alpha is dropped, not blended (as ``convert("RGB")`` of PIL
  does); for a palette with transparency that leaves the palette's colours.
- 16 bits a channel keep the high byte (``value // 256``).
- CMYK and YCCK become RGB by PIL's ``convert("RGB")``, read as Adobe writes them (inverted), which
  is what PIL assumes for every JPEG. Colour profiles are not applied.
- The EXIF orientation is applied, so the shape is that of the upright image.
- Width times height are checked in the header, before anything is decoded.
- What is not whole and undamaged is refused: a JPEG that libjpeg has a warning for, a PNG that
  lacks its end or has a chunk with a wrong CRC. Half an image would be trained on in silence.

JPEG is decoded by simplejpeg (libjpeg-turbo, accurate DCT and smooth upsampling). PNG is decoded
by PIL from its critical chunks alone, so no text, profile or animation chunk is ever parsed.
There is no state: the function may be called from any number of threads.

Sources: ITU-T T.81 (JPEG markers), Exif 2.3 section 4.5.4 (IFD0, tag 0x0112), PNG third edition.
"""

import io
import struct
import zlib

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image

from pbe_fast.data._magic import describe_bytes
from pbe_fast.errors import ImageError

__all__ = ["decode_rgb"]

_JPEG = b"\xff\xd8\xff"
_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CRITICAL = (b"IHDR", b"PLTE", b"IDAT", b"IEND")
_EXIF = b"Exif\0\0"
_SEGMENT = struct.Struct(">HH").unpack_from  # marker and length
_FRAME = struct.Struct(">HHB").unpack_from  # height, width and channels, after length and precision
_FRAMES = frozenset((0xFFC0, 0xFFC1, 0xFFC2))  # baseline, extended, progressive
_APP1, _SCAN = 0xFFE1, 0xFFDA
# Tables, the restart interval, comments and application data but EXIF's.
_SKIPPED = frozenset((0xFFC4, 0xFFDB, 0xFFDD, 0xFFFE, 0xFFE0, *range(0xFFE2, 0xFFF0)))

Rgb = npt.NDArray[np.uint8]


def decode_rgb(data: bytes, *, max_pixels: int = 64_000_000, out: Rgb | None = None) -> Rgb:
    """Decode an image.

    Args:
        data: the whole file.
        max_pixels: larger images are refused before they are decoded (decompression bombs).
        out: uint8, C-contiguous. A usual JPEG of exactly this shape is decoded into it, which
            saves a copy; what it holds after anything else is not defined.

    Returns:
        ``(H, W, 3)`` uint8, C-contiguous and writable; ``out`` itself where the image is there.

    Raises:
        ImageError: not a JPEG or PNG, damaged, truncated or too large. The caller knows the
            sample's name and should add it.
    """
    try:
        if data.startswith(_JPEG):
            return _decode_jpeg(data, max_pixels, out)
        if data.startswith(_PNG):
            return _decode_png(data, max_pixels)
    except ImageError:
        raise
    except Exception as error:
        kind = "JPEG" if data.startswith(_JPEG) else "PNG"
        raise ImageError(f"a damaged or unusual {kind} image ({error}).") from error
    if not data:
        raise ImageError("the image is empty (0 bytes).")
    kind = describe_bytes(data[:512], none=None) or f"of no known kind (begins {data[:8]!r})"
    raise ImageError(f"not a JPEG or PNG image: it is {kind}. Convert it to JPEG or PNG.")


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"the header gives the impossible size {width} x {height}.")
    if width * height > max_pixels:
        raise ImageError(
            f"the image is {width} x {height} pixels, more than {max_pixels} in all; "
            "make it smaller."
        )


def _decode_jpeg(data: bytes, max_pixels: int, out: Rgb | None) -> Rgb:
    size, orientation = _jpeg_header(data)
    colorspace = "RGB"
    if size is None:
        rows, columns, colorspace, _ = simplejpeg.decode_jpeg_header(data)
        size = int(rows), int(columns)
    height, width = size
    _check_size(width, height, max_pixels)
    if colorspace in ("CMYK", "YCCK"):
        inks = simplejpeg.decode_jpeg(data, colorspace="CMYK")  # (H, W, 4), inverted by Adobe
        cmyk = Image.frombytes("CMYK", (width, height), (255 - inks).tobytes())
        rgb = np.array(cmyk.convert("RGB"))
    elif out is not None and out.shape == (height, width, 3) and orientation == 1:
        simplejpeg.decode_jpeg(data, colorspace="RGB", buffer=out)
        return out
    else:
        rgb = simplejpeg.decode_jpeg(data, colorspace="RGB")  # (H, W, 3)
    return _upright(rgb, orientation)


def _jpeg_header(data: bytes) -> tuple[tuple[int, int] | None, int]:
    """Height and width, and the EXIF orientation, from the segments before the first scan.

    The header of simplejpeg costs a tenth of decoding 32x32 pixels, and a search for EXIF data in
    all bytes 4 % of decoding a photograph. This goes from segment to segment by their lengths, as
    libjpeg does, which refuses a segment that does not end where its length says, and a second
    frame. So the size is that of the image that libjpeg would decode, or None where anything but
    the usual segments or other than 1 or 3 channels are met: libjpeg must read that header.
    """
    size = None
    usual = True
    position = 2
    try:
        while True:
            marker, length = _SEGMENT(data, position)
            if marker in _SKIPPED:
                # A length below 2 makes the length itself the next marker, which it is not.
                position += 2 + length
                continue
            if marker == _SCAN:
                return size if usual else None, 1
            if marker in _FRAMES:
                height, width, channels = _FRAME(data, position + 5)
                size = height, width
                usual = usual and channels in (1, 3)
            elif marker == _APP1:
                if data.startswith(_EXIF, position + 4):
                    exif = data[position + 4 + len(_EXIF) : position + 2 + length]
                    return None, _exif_orientation(exif)
            else:
                usual = False
                if marker < 0xFF00:  # no marker
                    return None, 1
            position += 1 if marker == 0xFFFF else 2 + length  # a fill byte, or a segment
    except struct.error:  # the data end here
        return None, 1


def _exif_orientation(tiff: bytes) -> int:
    """Tag 0x0112 of the first directory of a TIFF block; 1 when absent or damaged.

    Damaged EXIF data is common and says nothing about the pixels, so it is no error.
    """
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(tiff[:4])
    if order is None:
        return 1
    try:
        (directory,) = struct.unpack_from(order + "I", tiff, 4)
        (count,) = struct.unpack_from(order + "H", tiff, directory)
        for entry in range(count):
            tag, kind, number, value = struct.unpack_from(
                order + "HHIH", tiff, directory + 2 + 12 * entry
            )
            if tag == 0x0112 and kind == 3 and number == 1:  # one 16-bit number
                return value if 1 <= value <= 8 else 1
    except struct.error:  # the block ends before the directory does
        return 1
    return 1


def _upright(rgb: Rgb, orientation: int) -> Rgb:
    """Undo the rotation and mirroring that an EXIF orientation describes."""
    if orientation == 1:
        return rgb
    if orientation in (5, 6, 7, 8):
        rgb = rgb.transpose(1, 0, 2)
    if orientation in (3, 4, 7, 8):
        rgb = rgb[::-1]
    if orientation in (2, 3, 6, 7):
        rgb = rgb[:, ::-1]
    return np.ascontiguousarray(rgb)


def _decode_png(data: bytes, max_pixels: int) -> Rgb:
    critical, orientation = _png_chunks(data, max_pixels)
    with Image.open(io.BytesIO(critical), formats=["PNG"]) as image:
        image.load()
        if image.mode.startswith("I"):  # 16-bit grey; PIL's convert would clip it at 255
            high = (np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)  # (H, W)
            rgb = np.repeat(high[..., None], 3, axis=2)
        else:
            rgb = np.array(image.convert("RGB"))
    return _upright(rgb, orientation)


def _png_chunks(data: bytes, max_pixels: int) -> tuple[bytes, int]:
    """The PNG without its ancillary chunks, and its EXIF orientation; CRCs are checked."""
    # PIL warns above its own limit, so that one holds too.
    max_pixels = min(max_pixels, Image.MAX_IMAGE_PIXELS or max_pixels)
    kept = [_PNG]
    orientation = 1
    position = len(_PNG)
    while True:
        header = data[position : position + 8]
        length, name = int.from_bytes(header[:4], "big"), header[4:]
        end = position + 12 + length
        if len(header) < 8 or end > len(data):
            raise ImageError("a truncated PNG image.")
        if position == len(_PNG):
            if name != b"IHDR" or length != 13:
                raise ImageError("a damaged PNG image: it does not begin with IHDR.")
            width, height = struct.unpack_from(">II", data, position + 8)
            _check_size(width, height, max_pixels)
        if name in _PNG_CRITICAL:
            crc = int.from_bytes(data[end - 4 : end], "big")
            if zlib.crc32(data[position + 4 : end - 4]) != crc:
                raise ImageError(f"a damaged PNG image: wrong CRC in {name.decode()}.")
            kept.append(data[position:end])
        elif name == b"eXIf":
            orientation = _exif_orientation(data[position + 8 : end - 4])
        if name == b"IEND":
            return b"".join(kept), orientation
        position = end
