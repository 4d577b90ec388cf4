#!/usr/bin/env python3
"""Writes the spools beside this file anew: each is the sound one, damaged in one way.

Written from the description of the format in engine/src/spool/ (frame.rs, segment.rs, cursors.rs) and not
with the code there, so that the two check each other. What must become of each is in EXPECTED.toml.
A function's name is the spool's, its text says what happened to it.
"""

import json
import shutil
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
NOON_US = 1_769_860_800_000_000  # 2026-01-31T12:00:00Z
EPOCH = NOON_US
HEADER = 64
CASES = []


def identity(pipeline, source):
    return zlib.crc32(pipeline.encode()) << 32 | zlib.crc32(source.encode())


# By these names the spools are known even without a header: the last folders of their path.
OURS = identity("corpus", "spools")


def varint(value):
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def sliced(data):
    return varint(len(data)) + data


def sealed(body, who=OURS):
    """A frame of this content, with its length and checksum."""
    length = struct.pack("<I", len(body))
    crc = zlib.crc32(struct.pack("<Q", who) + length + body)
    return b"\xf5frm" + length + struct.pack("<I", crc) + body


def record(lsn):
    return f"devices/{lsn % 3}".encode(), json.dumps({"device_id": f"d{lsn % 3}", "n": lsn}).encode()


def body(first_lsn, payloads, count=None, topics=None):
    """What a frame's checksum covers; `payloads` are topics with payloads."""
    names = sorted({topic for topic, _ in payloads}) if topics is None else topics
    at_us = NOON_US + first_lsn % 1_000_000 * 1000
    out = struct.pack("<QIqI", first_lsn, len(payloads) if count is None else count, at_us, len(names))
    out += b"".join(sliced(name) for name in names)
    for number, (topic, payload) in enumerate(payloads):
        # Behind the time: flags and the source's mark.
        out += varint(1000 if number else 0) + b"\0\0" + varint(names.index(topic)) + sliced(payload)
    return out


def frame(first_lsn, count=2, who=OURS):
    return sealed(body(first_lsn, [record(lsn) for lsn in range(first_lsn, first_lsn + count)]), who)


def end(lsn):
    """The mark of a clean end."""
    return sealed(struct.pack("<QIqI", lsn + 1, 0, 0, 0))


def header(first_lsn, follows_lsn=None, who=OURS, epoch=EPOCH, version=1):
    follows_lsn = first_lsn - 1 if follows_lsn is None else follows_lsn
    head = b"pipespl\n" + struct.pack("<IQQQQq", version, who, epoch, first_lsn, follows_lsn, NOON_US + first_lsn % 1_000_000 * 1000)
    head += bytes(8)
    return head + struct.pack("<I", zlib.crc32(head))


def cursors(values, trimmed_lsn=0, next_lsn=19, epoch=EPOCH, form=1):
    file = {"format": form, "epoch": epoch, "trimmed_lsn": trimmed_lsn, "next_lsn": next_lsn, "cursors": values}
    text = json.dumps(file, separators=(",", ":"))
    return f"{text}\n{zlib.crc32(text.encode()):08x}\n".encode()


def name(first_lsn):
    return f"{first_lsn:020}.seg"


FIRST, SECOND, THIRD = name(1), name(7), name(13)


def sound_files():
    """Three segments of three frames of two records each; two sinks, one of them behind."""
    files = {name(start): header(start) + b"".join(frame(lsn) for lsn in range(start, start + 6, 2)) for start in (1, 7, 13)}
    files["cursors"] = cursors({"lake": 4, "table": 10})
    files["lock"] = b""
    return files


def start_of(number, first_lsn=7):
    """Where a frame starts in a segment, by default the second; counted from 0."""
    return HEADER + sum(len(frame(first_lsn + 2 * before)) for before in range(number))


def flip(files, segment, at, mask=1):
    data = bytearray(files[segment])
    data[at] ^= mask
    files[segment] = bytes(data)


def put(files, segment, at, data, instead_of=None):
    old = files[segment]
    instead_of = len(data) if instead_of is None else instead_of
    files[segment] = old[:at] + data + old[at + instead_of :]


def spool(make):
    CASES.append(make)
    return make


# --- nothing is damaged


@spool
def sound(files):
    """As a process leaves it that was killed."""


@spool
def sound_closed(files):
    """As a clean end leaves it."""
    files[THIRD] += end(18)


@spool
def sound_trimmed(files):
    """The first segment was trimmed: every sink is past it."""
    del files[FIRST]
    files["cursors"] = cursors({"lake": 6, "table": 10}, trimmed_lsn=6)


@spool
def sound_half_trimmed(files):
    """Killed between the cursors and the deletion: the segment is still there."""
    files["cursors"] = cursors({"lake": 6, "table": 10}, trimmed_lsn=6)


@spool
def sound_without_cursors(files):
    """No sink has come past a record yet."""
    del files["cursors"]


@spool
def sound_new(files):
    """Nothing was ever written."""
    for segment in (FIRST, SECOND, THIRD):
        del files[segment]
    files["cursors"] = cursors({}, next_lsn=1)


@spool
def sound_strangers(files):
    """Files that are none of the spool's lie beside it."""
    files["notes.txt"] = b"copied by hand\n"
    files["42.seg"] = b"not a segment's name"
    files[name(19) + ".tmp"] = header(19)[:40]


# --- torn at the end, as power cuts do


@spool
def torn_frame(files):
    """The last frame is cut off."""
    files[THIRD] = files[THIRD][:-10]


@spool
def torn_head(files):
    """Five bytes of a new frame."""
    files[THIRD] += frame(19)[:5]


@spool
def torn_zeros(files):
    """The file has grown, and its sectors are empty."""
    files[THIRD] += bytes(512)


@spool
def torn_sectors(files):
    """A new frame whose first sector is missing."""
    files[THIRD] += bytes(60) + frame(19)[60:]


@spool
def torn_segment(files):
    """A new segment with half a header."""
    files[name(19)] = header(19)[:30]


@spool
def torn_segment_empty(files):
    """A new segment without a byte."""
    files[name(19)] = b""


@spool
def torn_segment_header_only(files):
    """A new segment without a frame."""
    files[name(19)] = header(19)


@spool
def dead_tail(files):
    """A frame whose sync failed was written once more, into the next segment."""
    files[SECOND] += frame(13)


@spool
def dead_tail_torn(files):
    """The same, and the first writing of it was cut off."""
    files[SECOND] += frame(13)[:30]


# --- frames are damaged


@spool
def payload_bit(files):
    """A bit of a payload has flipped."""
    flip(files, SECOND, start_of(1) + 70)


@spool
def checksum_bit(files):
    """A bit of a checksum has flipped."""
    flip(files, SECOND, start_of(1) + 8)


@spool
def magic_bit(files):
    """A bit of the first byte of a frame has flipped."""
    flip(files, SECOND, start_of(1))


@spool
def length_longer(files):
    """A frame says that it goes beyond the file."""
    flip(files, SECOND, start_of(1) + 6, 0x40)


@spool
def length_into_next(files):
    """A frame says that it ends inside the next one."""
    flip(files, SECOND, start_of(1) + 4, 0x80)


@spool
def length_zero(files):
    """A frame says that it has no content."""
    put(files, SECOND, start_of(1) + 4, bytes(4))


@spool
def length_largest(files):
    """A frame says that it has 4 GiB."""
    put(files, SECOND, start_of(1) + 4, b"\xff" * 4)


@spool
def lsn_bit(files):
    """A bit of a frame's number has flipped."""
    flip(files, SECOND, start_of(1) + 12)


@spool
def frame_first(files):
    """The first frame of a segment is damaged."""
    flip(files, SECOND, start_of(0) + 50)


@spool
def frame_last(files):
    """The last frame of a segment is damaged; the next segment says that it was there."""
    flip(files, SECOND, start_of(2) + 50)


@spool
def frame_last_of_all(files):
    """The last frame of the last segment is damaged: nobody knows whether it was ever whole."""
    flip(files, THIRD, start_of(2, 13) + 50)


@spool
def frames_two(files):
    """Two frames side by side are damaged."""
    flip(files, SECOND, start_of(0) + 50)
    flip(files, SECOND, start_of(1) + 50)


@spool
def frames_apart(files):
    """A frame in each of two segments is damaged."""
    flip(files, FIRST, HEADER + 50)
    flip(files, SECOND, start_of(1) + 50)


@spool
def frames_all(files):
    """Every frame of a segment is damaged."""
    put(files, SECOND, HEADER, bytes(len(files[SECOND]) - HEADER))


@spool
def sector_zeroed(files):
    """A sector in the middle reads as zeros."""
    put(files, SECOND, start_of(1) - 10, bytes(100))


@spool
def frame_twice(files):
    """A frame stands there twice."""
    put(files, SECOND, start_of(1), frame(7), instead_of=0)


@spool
def frames_swapped(files):
    """Two frames are in the wrong order."""
    files[SECOND] = header(7) + frame(9) + frame(7) + frame(11)


@spool
def frame_missing(files):
    """A frame is gone, and nothing is in its place."""
    files[SECOND] = header(7) + frame(7) + frame(11)


@spool
def frame_of_another_spool(files):
    """A frame of another source is among ours."""
    put(files, SECOND, start_of(1), frame(9, who=identity("corpus", "other")))


@spool
def frame_far_ahead(files):
    """A whole frame of ours with a number that no record here can have."""
    put(files, SECOND, start_of(1), frame(1_000_000_000_000))


@spool
def frame_largest_number(files):
    """A whole frame of ours with the largest number there is."""
    put(files, SECOND, start_of(1), sealed(body((1 << 64) - 3, [record(9), record(10)])))


@spool
def frame_number_runs_over(files):
    """A whole frame of ours whose numbers run over."""
    put(files, SECOND, start_of(1), sealed(body((1 << 64) - 1, [record(9), record(10)])))


@spool
def frame_number_zero(files):
    """A whole frame of ours with the number that no record has."""
    put(files, SECOND, start_of(1), sealed(body(0, [record(9), record(10)])))


@spool
def frame_in_payload(files):
    """A device has sent a frame of ours as its payload, and the frame around it is damaged."""
    trojan = sealed(body(9, [(b"devices/0", frame(9)), record(10)]))
    broken = bytearray(trojan)
    broken[50] ^= 1
    put(files, SECOND, start_of(1), bytes(broken), instead_of=len(frame(9)))


@spool
def frame_in_payload_far_ahead(files):
    """The same, and the frame in the payload claims a number far ahead."""
    trojan = sealed(body(9, [(b"devices/0", frame(5000)), record(10)]))
    broken = bytearray(trojan)
    broken[50] ^= 1
    put(files, SECOND, start_of(1), bytes(broken), instead_of=len(frame(9)))


@spool
def frame_count_too_high(files):
    """A frame with the right checksum that announces more records than it holds."""
    put(files, SECOND, start_of(1), sealed(body(9, [record(9), record(10)], count=0xFFFFFFFF)))


@spool
def frame_count_too_low(files):
    """A frame with the right checksum that holds more records than it announces."""
    put(files, SECOND, start_of(1), sealed(body(9, [record(9), record(10)], count=1)))


@spool
def frame_topic_unknown(files):
    """A frame with the right checksum whose record names a topic that it does not have."""
    broken = body(9, [record(9), record(10)])
    broken = broken.replace(b"\xe8\x07\0\0\x01", b"\xe8\x07\0\0\x07")
    put(files, SECOND, start_of(1), sealed(broken))


@spool
def frame_topics_too_many(files):
    """A frame with the right checksum that announces four billion topics."""
    broken = bytearray(body(9, [record(9), record(10)]))
    broken[20:24] = b"\xff" * 4
    put(files, SECOND, start_of(1), sealed(bytes(broken)))


@spool
def frame_varint_endless(files):
    """A frame with the right checksum and a length that never ends."""
    broken = struct.pack("<QIqI", 9, 2, NOON_US, 1) + b"\xff" * 80
    put(files, SECOND, start_of(1), sealed(broken), instead_of=len(frame(9)))


@spool
def frame_times_run_over(files):
    """A frame with the right checksum whose times run over."""
    broken = bytearray(body(9, [record(9), record(10)]))
    broken[12:20] = struct.pack("<q", (1 << 63) - 1)
    put(files, SECOND, start_of(1), sealed(bytes(broken)))


# --- segments are damaged


@spool
def header_bit(files):
    """A bit of a header has flipped."""
    flip(files, SECOND, 30)


@spool
def header_zeroed(files):
    """A header reads as zeros."""
    put(files, SECOND, 0, bytes(HEADER))


@spool
def header_first(files):
    """The header of the first segment is damaged."""
    flip(files, FIRST, 0)


@spool
def header_last(files):
    """The header of the last segment is damaged."""
    flip(files, THIRD, 0)


@spool
def headers_all(files):
    """No header is left: the folder's own name says whose spool it is."""
    for segment in (FIRST, SECOND, THIRD):
        put(files, segment, 0, bytes(HEADER))


@spool
def header_version(files):
    """A segment of a later version of the format."""
    put(files, THIRD, 0, header(13, version=2))


@spool
def header_foreign(files):
    """A segment of another source."""
    files[SECOND] = header(7, who=identity("corpus", "other")) + b"".join(frame(lsn, who=identity("corpus", "other")) for lsn in (7, 9, 11))


@spool
def segment_renamed(files):
    """A segment was given another name by hand."""
    files[name(8)] = files.pop(SECOND)


@spool
def segment_missing(files):
    """A segment in the middle is gone."""
    del files[SECOND]


@spool
def segment_missing_first(files):
    """The first segment is gone, and was not trimmed."""
    del files[FIRST]


@spool
def segment_missing_first_unknown(files):
    """The first segment is gone, and there are no cursors to say whether it was trimmed."""
    del files[FIRST]
    del files["cursors"]


@spool
def segment_missing_last(files):
    """The last segment is gone: only the cursors know that it was there."""
    del files[THIRD]
    files["cursors"] = cursors({"lake": 4, "table": 15})


@spool
def segments_missing_all(files):
    """All segments are gone."""
    for segment in (FIRST, SECOND, THIRD):
        del files[segment]


@spool
def segment_cut_between_frames(files):
    """A segment in the middle ends a frame too early."""
    files[SECOND] = files[SECOND][: start_of(2)]


@spool
def segment_cut_in_frame(files):
    """A segment in the middle ends within a frame."""
    files[SECOND] = files[SECOND][: start_of(2) + 20]


@spool
def segment_cut_in_header(files):
    """A segment in the middle ends within its header."""
    files[SECOND] = files[SECOND][:20]


@spool
def segment_empty(files):
    """A segment in the middle has no bytes."""
    files[SECOND] = b""


@spool
def segment_random(files):
    """A segment in the middle holds something else altogether."""
    files[SECOND] = bytes(number * 167 % 251 for number in range(700))


@spool
def segment_largest_number(files):
    """A segment whose name and header have the largest number there is."""
    largest = (1 << 64) - 1
    files[name(largest)] = header(largest)


@spool
def segment_follows_more(files):
    """A segment says that it follows records which the one before it never had."""
    put(files, THIRD, 0, header(13, follows_lsn=13))


@spool
def segment_follows_less(files):
    """A segment says that it follows records from before the one before it, which is not empty."""
    put(files, THIRD, 0, header(13, follows_lsn=3))


# --- the cursors are damaged


@spool
def cursors_bit(files):
    """A bit of the cursors has flipped."""
    flip(files, "cursors", 30)


@spool
def cursors_cut_off(files):
    """The cursors are cut off."""
    files["cursors"] = files["cursors"][:40]


@spool
def cursors_empty(files):
    """The cursors' file has no bytes."""
    files["cursors"] = b""


@spool
def cursors_not_text(files):
    """The cursors are no text."""
    files["cursors"] = b"\xff\xfe\x00\x01"


@spool
def cursors_format(files):
    """The cursors are of a later version of the format."""
    files["cursors"] = cursors({"lake": 4, "table": 10}, form=2)


@spool
def cursors_ahead(files):
    """A cursor is beyond the last record."""
    files["cursors"] = cursors({"lake": 4, "table": 1_000})


@spool
def cursors_of_another_life(files):
    """The cursors are of another life of the folder, in which more was trimmed."""
    files["cursors"] = cursors({"lake": 400}, trimmed_lsn=300, epoch=EPOCH - 1)


@spool
def cursors_trimmed_too_far(files):
    """The cursors say that more was trimmed than was ever written."""
    files["cursors"] = cursors({"lake": 400}, trimmed_lsn=300)


@spool
def cursors_largest_numbers(files):
    """The cursors hold the largest numbers there are."""
    largest = (1 << 64) - 1
    files["cursors"] = cursors({"lake": largest}, trimmed_lsn=largest, next_lsn=largest)


@spool
def quarantined(files):
    """A frame was damaged when the spool was opened before: its copy is there already."""
    payload_bit(files)
    at, length = start_of(1), len(frame(9))
    files[f"quarantine/{SECOND}-{at:012}-{length}"] = files[SECOND][at : at + length]


def main():
    for make in CASES:
        folder = HERE / make.__name__
        shutil.rmtree(folder, ignore_errors=True)
        files = sound_files()
        make(files)
        for path, data in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_bytes(data)


main()
