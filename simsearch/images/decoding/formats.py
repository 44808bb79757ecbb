"""Recognises image files by their names and first bytes, and names the formats that cannot be read."""

from __future__ import annotations

import os

_RAW = "3fr arw cr2 cr3 dng erf iiq kdc mrw nef nrw orf pef raf rw2 sr2 srf srw x3f"

EXTENSIONS = frozenset(
    "." + name
    for names in (
        "apng avif avifs bmp dib gif heic heif icns ico j2k jfif jp2 jpe jpeg jpf jpg jpx jxl mpo",
        "pbm pcx pgm png pnm ppm psd qoi tga tif tiff webp xbm xpm",
        _RAW,
    )
    for name in names.split()
)
"""Extensions of image files. A file with one of these extensions that cannot be decoded is reported as a failure."""

_LEFT_OUT = {
    "video": "3g2 3gp avi flv m2ts m4v mkv mov mp4 mpeg mpg mts ogv webm wmv",
    "SVG drawing": "svg svgz",
    "EPS drawing": "eps",
    "Windows metafile": "emf wmf",
    "JPEG XR image": "hdp jxr wdp",
    "OpenEXR image": "exr",
    "Radiance HDR image": "hdr",
    "Netpbm PAM image": "pam",
    "DICOM image": "dcm dicom",
}
_LEFT_OUT_BY_EXTENSION = {"." + name: kind for kind, names in _LEFT_OUT.items() for name in names.split()}

JPEG = b"\xff\xd8\xff"
"""The first bytes of every JPEG."""

_SIGNATURES = (
    JPEG,
    b"\x89PNG\r\n\x1a\n",
    b"GIF87a",
    b"GIF89a",
    b"BM",
    b"II*\x00",  # TIFF, little-endian
    b"MM\x00*",  # TIFF, big-endian
    b"II+\x00",  # BigTIFF
    b"MM\x00+",
    b"\x00\x00\x00\x0cjP  ",  # JPEG 2000
    b"\xff\x4f\xff\x51",
    b"8BPS",  # Photoshop
    b"qoif",
)
_JXL = (b"\xff\x0a", b"\x00\x00\x00\x0cJXL \r\n\x87\n")
_RAW_SIGNATURES = {
    b"FUJIFILMCCD-RAW": "Fujifilm RAF",
    b"IIU\x00": "Panasonic RW2",
    b"IIRO": "Olympus ORF",
    b"IIRS": "Olympus ORF",
    b"MMOR": "Olympus ORF",
    b"FOVb": "Sigma X3F",
    b"\x00MRM": "Minolta MRW",
}
_TIFFS = (b"II*\x00", b"MM\x00*", b"II+\x00", b"MM\x00+")
_BRANDS = (b"avif", b"avis", b"heic", b"heix", b"heif", b"hevc", b"mif1", b"msf1")
_VIDEO_BRANDS = (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"avc1", b"qt  ", b"M4V ", b"dash")
_NAMES = {
    b"\xff\xd8": "JPEG",
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"\xff\x4f\xff\x51": "JPEG 2000",
    b"8BPS": "Photoshop",
    b"qoif": "QOI",
}


def looks_like_image(head: bytes) -> bool:
    """Returns True if a file that begins with `head` (32 bytes suffice) is an image of a known format."""
    if head.startswith(b"BM"):
        return (
            len(head) >= 18
            and head[6:10] == b"\0\0\0\0"
            and head[14:18] in {b"\x28\0\0\0", b"\x6c\0\0\0", b"\x7c\0\0\0"}
        )
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return True
    if head[4:8] == b"ftyp":
        return head[8:12] in (*_BRANDS, b"crx ")
    return head.startswith(_SIGNATURES) or is_jxl(head) or camera_raw(head) is not None


def left_out(path: str, head: bytes = b"") -> str | None:
    """Returns the kind of a file that is never read, such as "video" or "SVG drawing"; None for all other files.

    head: the file's first bytes; without them, only the extension counts.
    """
    kind = _LEFT_OUT_BY_EXTENSION.get(os.path.splitext(path)[1].lower())
    if kind is not None or not head:
        return kind
    if head[4:8] == b"ftyp":
        return "video" if head[8:12] in _VIDEO_BRANDS else None
    if head.startswith(b"\x1a\x45\xdf\xa3") or (head[:4] == b"RIFF" and head[8:12] == b"AVI "):
        return "video"
    if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<svg"):
        return "SVG drawing"
    return "EPS drawing" if head.startswith(b"%!PS-Adobe") else None


def is_heif(head: bytes) -> bool:
    """Returns True for HEIC and related formats, which Pillow reads only with a plugin; False for AVIF.

    head: the file's first 256 bytes.
    """
    return head[4:8] == b"ftyp" and head[8:12] in _BRANDS and not {b"avif", b"avis"} & _brands(head)


def is_jxl(head: bytes) -> bool:
    """Returns True for JPEG XL, as a bare codestream or in a container."""
    return head.startswith(_JXL)


def is_tiff(head: bytes) -> bool:
    """Returns True for TIFF of either byte order, and BigTIFF."""
    return head.startswith(_TIFFS)


def camera_raw(head: bytes) -> str | None:
    """Returns the name of a camera's raw format; None for other files, and for raw formats that begin like TIFF."""
    if head[4:12] == b"ftypcrx ":
        return "Canon CR3"
    return next((name for start, name in _RAW_SIGNATURES.items() if head.startswith(start)), None)


def name_of(head: bytes) -> str | None:
    """Returns the name of the format that a file's first bytes show; None if they show no known format."""
    if is_tiff(head):
        return "TIFF"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    if head[4:8] == b"ftyp" and head[8:12] in _BRANDS:
        return "HEIC" if is_heif(head) else "AVIF"
    if is_jxl(head):
        return "JPEG XL"
    if head.startswith(b"BM") and looks_like_image(head):
        return "BMP"
    return camera_raw(head) or next((name for start, name in _NAMES.items() if head.startswith(start)), None)


def _brands(data: bytes) -> set[bytes]:
    """Returns all brands (format codes) of an ISO media file.

    The first brand is not enough to recognise AVIF: it can be the general brand mif1.
    """
    end = min(int.from_bytes(data[:4], "big"), 256)
    return {data[start : start + 4] for start in (8, *range(16, end, 4))}
