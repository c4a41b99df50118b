"""Whether a file ends where one of its own units ends.

ffmpeg decodes a file that was cut short up to the cut, and for many containers it does not say so. Most containers state
lengths: of a page, a chunk, a box, a packet, a frame. A file that ends within such a unit was cut.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import BinaryIO


_MAX_PAGE = 65_307  # bytes of a page of Ogg
_TAIL_BYTES = 2**17  # of the end of a file, in which frames are looked for: more than 16 of the largest
_ASF_DATA = bytes.fromhex("3626b2758e66cf11a6d900aa0062ce6c")

# Kilobits per second of MPEG audio, by (version is 1, layer), and of AC-3.
_MPEG_KBITS = {
    (True, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (True, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (True, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (False, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (False, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (False, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
_AC3_KBITS = (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 640)


def ends_within_a_unit(file: BinaryIO, start: int, end: int, container: str) -> bool:
    """Whether a file was cut within a unit of its container.

    Args:
        file: The file, open for reading.
        start: Where its content begins, in bytes.
        end: Where its content ends.
        container: ffmpeg's name of the format, as in "mov,mp4,m4a,3gp,3g2,mj2".

    Returns:
        `False` if it ends between two units, or if the container states no lengths.
    """
    judge = _JUDGES.get(container.split(",")[0])
    return judge is not None and judge(file, start, end)


def _cut_page(file: BinaryIO, start: int, end: int) -> bool:
    """Ogg: the last page states the lengths of its segments."""
    tail = _read(file, max(start, end - _MAX_PAGE), end)
    page = tail[tail.rfind(b"OggS\0") :]
    return len(page) < 27 or len(page) < 27 + page[26] + sum(page[27 : 27 + page[26]])


def _cut_chunk(file: BinaryIO, start: int, end: int) -> bool:
    """AVI: chunks named RIFF. A recorder that was stopped leaves no length, or the greatest; some count their own 8 bytes."""

    def chunk(head: bytes) -> tuple[bool, int]:
        size = int.from_bytes(head[4:8], "little")
        return head[:4] == b"RIFF" and 0 < size < 0x7FFF_0000, size + size % 2 + 8

    return _cut_in_chain(file, start, end, chunk, slack=16)


def _cut_object(file: BinaryIO, start: int, end: int) -> bool:
    """WMV and WMA: top-level objects; the data object states how long the packets are together."""

    def asf_object(head: bytes) -> tuple[bool, int]:
        return head[:16] == _ASF_DATA, int.from_bytes(head[16:24], "little")

    return _cut_in_chain(file, start, end, asf_object)


def _cut_box(file: BinaryIO, start: int, end: int) -> bool:
    """MP4 and QuickTime: top-level boxes. A box of size 0 goes to the end of the file."""

    def box(head: bytes) -> tuple[bool, int]:
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:16], "big") if size == 1 else size
        return head[4:8] in (b"mdat", b"moov", b"moof"), size

    return _cut_in_chain(file, start, end, box)


def _cut_in_chain(
    file: BinaryIO, start: int, end: int, unit: Callable[[bytes], tuple[bool, int]], slack: int = 0
) -> bool:
    """Whether the last of a chain of units is cut. `unit` reads the head of one: whether its length counts, and the length."""
    while start < end:
        counts, size = unit(_read(file, start, min(start + 24, end)))
        if size < 8:
            return False
        start += size
        if start > end:
            return counts and start - end > slack
    return False


def _cut_transport_packet(file: BinaryIO, start: int, end: int) -> bool:
    """MPEG-TS: packets of 188 bytes, of 192 with a time in front, or of 204 with parity behind. It may begin within one."""
    head = _read(file, start, min(start + 4096, end))
    for size, before in ((188, 0), (192, 4), (204, 0)):
        for first in range(size):
            places = range(first, len(head), size)
            if len(places) > 2 and all(head[place] == 0x47 for place in places):
                return (end - start - first + before) % size != 0
    return False


def _cut_picture(file: BinaryIO, start: int, end: int) -> bool:
    """Y4M: frames of equal length, each behind a line; with parameters in that line they cannot be counted."""
    head = _read(file, start, min(start + 4096, end))
    line, _, rest = head.partition(b"\n")
    fields = {field[:1]: field[1:].decode(errors="replace") for field in line.split(b" ")[1:]}
    shape = _y4m_bytes(fields)
    if shape is None or not rest.startswith(b"FRAME\n"):
        return False
    return (end - start - len(line) - 1) % (6 + shape) != 0


def _y4m_bytes(fields: dict[bytes, str]) -> int | None:
    """Bytes of a frame, or `None` for a layout that is not known."""
    width, height, layout = int(fields[b"W"]), int(fields[b"H"]), fields.get(b"C", "420")
    layout, _, depth = layout.partition("p")
    if not depth.isdigit():  # "420jpeg", "420paldv", "420mpeg2"
        layout, depth = layout[:3], "8"
    if layout == "mon":
        layout, depth = "mono", layout[4:] or "8"
    half_width, half_height = (width + 1) // 2, (height + 1) // 2
    chroma = {
        "420": half_width * half_height,
        "422": half_width * height,
        "444": width * height,
        "411": (width + 3) // 4 * height,
        "mono": 0,
    }.get(layout)
    if chroma is None:
        return None
    return (width * height + 2 * chroma) * (2 if int(depth) > 8 else 1)


def _cut_tape(file: BinaryIO, start: int, end: int) -> bool:
    """DV: frames of 10 (525 lines) or 12 (625 lines) sequences of 12,000 bytes, or of multiples of them."""
    head = _read(file, start, min(start + 4, end))
    return (end - start) % (144_000 if head[3] & 0x80 else 120_000) != 0


def _cut_frame(file: BinaryIO, start: int, end: int, length: Callable[[bytes], int]) -> bool:
    """Frames of sound one after another. Those of the tail are followed from the first four in a row up to the last; tags may
    come behind it. `length` reads a frame's head: its bytes, 0 where none begins."""
    tail = _read(file, max(start, end - _TAIL_BYTES), end)
    for first in range(len(tail)):
        ends = list(_chain(tail, first, length))
        if len(ends) >= 4:
            return ends[-1] > len(tail)
    return False


def _chain(tail: bytes, at: int, length: Callable[[bytes], int]) -> Iterator[int]:
    while (size := length(tail[at : at + 6])) > 0:
        at += size
        yield at


def _mpeg_frame(head: bytes) -> int:
    """Bytes of a frame of MPEG audio."""
    if len(head) < 4:
        return 0
    bits = int.from_bytes(head[:4], "big")
    version, layer, kbits, rate = bits >> 19 & 3, 4 - (bits >> 17 & 3), bits >> 12 & 15, bits >> 10 & 3
    if bits >> 21 != 0x7FF or version == 1 or layer == 4 or kbits in (0, 15) or rate == 3:
        return 0
    first = version == 3
    bitrate = 1000 * _MPEG_KBITS[first, layer][kbits - 1]
    sampling_rate = (44_100, 48_000, 32_000)[rate] // {3: 1, 2: 2, 0: 4}[version]
    padding = bits >> 9 & 1
    if layer == 1:
        return 4 * (12 * bitrate // sampling_rate + padding)
    return (144 if first or layer == 2 else 72) * bitrate // sampling_rate + padding


def _ac3_frame(head: bytes) -> int:
    """Bytes of a frame of AC-3 or E-AC-3."""
    if len(head) < 6 or head[:2] != b"\x0b\x77":
        return 0
    if head[5] >> 3 > 10:
        return 2 * ((int.from_bytes(head[2:4], "big") & 0x7FF) + 1)
    rate, code = head[4] >> 6, head[4] & 63
    if rate == 3 or code >= 2 * len(_AC3_KBITS):
        return 0
    kbits = _AC3_KBITS[code // 2]
    return 2 * ((2 * kbits, kbits * 960 // 441 + code % 2, 3 * kbits)[rate])


def _read(file: BinaryIO, start: int, end: int) -> bytes:
    file.seek(start)
    return file.read(end - start)


_JUDGES: dict[str, Callable[[BinaryIO, int, int], bool]] = {
    "ogg": _cut_page,
    "avi": _cut_chunk,
    "asf": _cut_object,
    "mov": _cut_box,
    "mpegts": _cut_transport_packet,
    "yuv4mpegpipe": _cut_picture,
    "dv": _cut_tape,
    "mp3": lambda file, start, end: _cut_frame(file, start, end, _mpeg_frame),
    "ac3": lambda file, start, end: _cut_frame(file, start, end, _ac3_frame),
    "eac3": lambda file, start, end: _cut_frame(file, start, end, _ac3_frame),
}
