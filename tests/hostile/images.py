"""Image files: of formats that are not read, with odd orientations, damaged, and larger than they look."""

import base64
import io
import json
import struct
import zlib
from pathlib import Path

from PIL import Image

from hostile import Case, damaged
from vlm_r1.data.check import inspect_file
from vlm_r1.data.images import ImageFinder
from vlm_r1.data.show import show_file
from vlm_r1.errors import DataError
from vlm_r1.eval.api import _image as image_of_request
from vlm_r1.play.images import Images
from vlm_r1.records import Answer, Sample, SampleImage, Truth
from vlm_r1.report.images import data_uri
from vlm_r1.runtime.rows import answer_row, image_bytes

SIZE = (30, 20)


def encoded(kind: str, **options) -> bytes:
    sink = io.BytesIO()
    Image.linear_gradient("L").resize(SIZE).convert("RGB").save(sink, kind, **options)
    return sink.getvalue()


def exif(kind: int, count: int, value: bytes, tag: int = 0x0112) -> bytes:
    """An EXIF block with one tag: of type `kind` (2 text, 3 short, 5 rational), its value behind it if it is long."""
    place = value.ljust(4, b"\0") if len(value) <= 4 else struct.pack("<I", 26)
    entry = struct.pack("<HHI", tag, kind, count) + place
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, 1) + entry + bytes(4) + (value if len(value) > 4 else b"")


def png_with(*chunks: tuple[bytes, bytes], size: tuple[int, int] = SIZE, behind: bool = False) -> bytes:
    """A PNG with further chunks before its pixels, or `behind` them."""
    rows = (b"\0" + bytes(3 * SIZE[0])) * SIZE[1]
    head, body = (b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows))
    order = [head, body, *chunks] if behind else [head, *chunks, body]
    parts = [
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in [*order, (b"IEND", b"")]
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


SIX = exif(3, 1, struct.pack("<H", 6))
BLOCKS = {
    "99": (exif(3, 1, struct.pack("<H", 99)), False),
    "a text": (exif(2, 2, b"6\0"), False),
    "a rational": (exif(5, 1, struct.pack("<II", 6, 1)), False),
    "no rational": (exif(5, 1, struct.pack("<II", 6, 0)), False),
    "several": (exif(3, 3, struct.pack("<HHH", 6, 3, 1)), False),
    "garbage": (b"Exif\0\0" + b"\xff" * 40, False),
    "six": (SIX, True),
}
"""What an EXIF block says of the orientation: the block, and whether it turns the image on its side."""

BOMB = zlib.compress(bytes(80_000_000), 9)
NOT_READ = r"not a JPEG, PNG, WEBP, GIF, BMP, TIFF or PPM file"
DAMAGED = r"image .* cannot be read"
UNREAD = {
    "EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 30 20\n%%EndComments\nshowpage\n%%EOF\n",
    "EPS in DOS": struct.pack("<IIII", 0xC6D3D0C5, 30, 60, 0) + bytes(14) + b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "PDF": b"%PDF-1.4\n1 0 obj\n",
    "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>',
    "DDS": b"DDS " + struct.pack("<I", 124) + bytes(120),
    "QOI": b"qoif" + struct.pack(">IIBB", 30, 20, 3, 0),
    "AVIF": b"\0\0\0\x20ftypavif" + bytes(40),
    "ICNS": b"icns" + struct.pack(">I", 16) + b"ic07" + struct.pack(">I", 8),
    "IM": b"Image type: RGB image\r\nImage size (x*y): 30*20\r\n\x1a" + bytes(600),
    "FITS": b"SIMPLE  =                    T" + bytes(50),
    "MSP": b"DanM" + bytes(60),
    "text": b"no image at all",
    "nothing": b"\0",
    "a magic number alone": b"\x89PNG\r\n\x1a\n",
}
CASES = [
    *(Case(f"{name} content", content, NOT_READ) for name, content in UNREAD.items()),
    *(Case(f"JPEG turned by {name}", encoded("JPEG", exif=block), None) for name, (block, _) in BLOCKS.items()),
    *(Case(f"WEBP turned by {name}", encoded("WEBP", exif=block), None) for name, (block, _) in BLOCKS.items()),
    *(Case(f"PNG turned by {name}", png_with((b"eXIf", block[6:])), None) for name, (block, _) in BLOCKS.items()),
    Case("PNG turned behind its pixels", png_with((b"eXIf", SIX[6:]), behind=True), None),
    Case("PNG turned by text", png_with((b"tEXt", b"Raw profile type exif\0\nexif\n 8\nzz\n")), None),
    Case("PNG with an odd XMP", png_with((b"iTXt", b'XML:com.adobe.xmp\0\0\0\0\0tiff:Orientation="6"')), None),
    Case("TIFF on its side", encoded("TIFF", tiffinfo={0x0112: 6}), None),
    Case("TIFF on its side, packed", encoded("TIFF", tiffinfo={0x0112: 6}, compression="tiff_lzw"), None),
    Case("zTXt bomb", png_with((b"zTXt", b"a\0\0" + BOMB)), DAMAGED),
    Case("zTXt bomb behind the pixels", png_with((b"zTXt", b"a\0\0" + BOMB), behind=True), DAMAGED),
    Case("iCCP bomb", png_with((b"iCCP", b"a\0\0" + BOMB)), DAMAGED),
    Case("iTXt bomb", png_with((b"iTXt", b"a\0\1\0\0\0" + BOMB)), DAMAGED),
    Case("PNG of too many pixels", png_with(size=(10_001, 10_001)), "over the limit of 100000000 pixels"),
    Case("PNG of billions of pixels", png_with(size=(60_000, 60_000)), "over the limit of 100000000 pixels"),
    Case("PNG of no pixels", png_with(size=(0, 20)), NOT_READ),
    Case("PNG cut off", encoded("PNG")[:-40], DAMAGED),
    Case("JPEG cut off", encoded("JPEG")[:300], DAMAGED),
    Case("WEBP cut off", encoded("WEBP")[:-30], DAMAGED),
    Case("GIF cut off", encoded("GIF")[:60], DAMAGED),
    Case("TIFF cut off", encoded("TIFF")[:700], DAMAGED),
    Case("PPM that ends", b"P6 30 20 255\nabc", DAMAGED),
    Case("PPM of letters", b"P3 3 2 255\nab cd ef", DAMAGED),
]


def agree(image: SampleImage) -> None:
    """Its size from the header is that of the decoded image."""
    opened = image.open()
    assert image.size == opened.size
    assert opened.mode == "RGB"


def _file(content: bytes, folder: Path) -> Path:
    (folder / "image.png").write_bytes(content)
    return folder / "image.png"


def _row(content: bytes, folder: Path, image: str = "image.png") -> Path:
    _file(content, folder)
    row = {"image": image, "problem": "q", "solution": [0, 0, 1, 1]}
    (folder / "rows.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    return folder / "rows.jsonl"


def _check(content: bytes, folder: Path, image: str = "image.png") -> None:
    report = inspect_file(_row(content, folder, image))
    if report.faults:
        raise DataError("; ".join(report.messages()))
    assert report.table()


def _url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def _table(content: bytes, folder: Path) -> None:
    sample = Sample(id="0", images=(SampleImage(path=_file(content, folder)),), question="q", truth=Truth())
    sample.images[0].open()
    assert image_bytes(sample) == content
    assert answer_row(sample, Answer(raw=""))["image_width"]


def _playground(content: bytes, folder: Path) -> None:
    for name in ("private", "root"):
        (folder / name).mkdir(exist_ok=True)
    _file(content, folder / "root")
    images = Images((folder / "private").resolve(), folder / "root")
    assert images.listed() == ["image.png"]
    images.from_root("image.png")


DOORS = {
    "file": lambda content, folder: agree(SampleImage(path=_file(content, folder))),
    "bytes": lambda content, folder: agree(SampleImage(data=content)),
    "row": lambda content, folder: agree(ImageFinder(folder).find(_file(content, folder).name)),
    "data check": _check,
    "data check of a data URL": lambda content, folder: _check(content, folder, _url(content)),
    "data show": lambda content, folder: show_file(_row(content, folder), folder / "page.html"),
    "playground": _playground,
    "api": lambda content, folder: image_of_request(_url(content)),
    "report": lambda content, folder: data_uri(content),
    "table of answers": _table,
}
OTHERWISE = {"data show": "no row can be drawn"}

CONTENTS = damaged(
    [
        encoded("JPEG", exif=SIX),
        encoded("JPEG", progressive=True),
        encoded("PNG"),
        png_with((b"eXIf", SIX[6:]), (b"zTXt", b"a\0\0" + zlib.compress(b"text"))),
        encoded("WEBP", lossless=True),
        encoded("GIF"),
        encoded("BMP"),
        encoded("TIFF", tiffinfo={0x0112: 6}),
        encoded("TIFF", compression="tiff_lzw"),
        encoded("PPM"),
        b"P3 3 2 255\n" + b"9 " * 18,
        *UNREAD.values(),
    ]
)
EXAMPLES = 25
