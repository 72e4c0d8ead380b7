"""Whether decord delivers the right frames of a video: exact rules on what the index pass has seen.

decord 0.6 takes positions in decoding order for positions in presentation order, seeks to the next key instead
of the last, counts packets that are not shown, and pads a short file with its last frame, all without a word.
The rules name the files where none of that matters. A file outside the rules goes to PyAV, and the reason is
kept with its frames. Damage inside a picture that a decoder does not notice cannot be seen here.
"""

from __future__ import annotations

import numpy as np

from panoptile.pipeline.magic import shields_from_text_probes
from panoptile.pipeline.video_packets import NO_TIME, Packets
from panoptile.pipeline.video_probe import Probe

CONTAINERS = frozenset({"mov", "matroska"})
"""Where decord's FFmpeg of 2018 counts, cuts and times packets as they are."""
CODECS = frozenset({"h264", "hevc", "vp9"})
PIXEL_FORMATS = frozenset({"yuv420p", "yuvj420p"})
"""Where both decoders give the same bytes; 10 bits are brought to 8 by another dither in each."""

CHUNK = 32
"""Most frames asked of decord at once."""
CHUNK_BYTES = 13 << 20
"""Most bytes of pictures in a chunk, two frames of 1080p; decord takes about ten times as much, the more the busier
the machine is (measured for a slow consumer: 262 MB at three frames a chunk)."""
FAR_TICKS = 1 << 27
"""decord's FFmpeg drops all composition times of a file in which one reaches 2^28 ticks (a time-lapse with 10 minutes
between frames on a 90 kHz clock), and then gives other frames; from half of that on it is not trusted."""
MOST_DECODINGS = 4
"""Where decord would decode each frame more often than this, on average, to keep to the chunks, it is not chosen."""


def chunk_frames(height: int, width: int) -> int:
    """Frames asked of decord at once: as many as keep its memory bounded, one at least."""
    return max(1, min(CHUNK, CHUNK_BYTES // (3 * height * width)))


def decodings_per_frame(frames: int, keys: int, height: int, width: int) -> float:
    """How often decord decodes a frame of a sequential read: each chunk begins anew at the last key before it."""
    chunks_per_group = frames / keys / chunk_frames(height, width)
    return max(1.0, (chunks_per_group + 1) / 2)


def objections_to_decord(path: str, probe: Probe, packets: Packets) -> tuple[str, ...]:
    """Why decord may not be used for a file, one clause each; none means that it may."""
    shown, pts = packets.shown, packets.pts
    timed = pts[shown]
    rules = (
        (probe.container not in CONTAINERS, f"container {probe.container}"),
        (probe.codec not in CODECS, f"codec {probe.codec}"),
        (probe.pixel_format not in PIXEL_FORMATS, f"pixel format {probe.pixel_format}"),
        (probe.interlaced, "interlaced"),
        (probe.video_streams != 1, f"{probe.video_streams} video streams"),
        (bool(packets.discard.any()), "packets that are not shown (edit list)"),
        (bool(packets.hidden.any()), "packets without a picture"),
        (bool((pts == NO_TIME).any()), "frames without a time"),
        (len(np.unique(timed)) != len(timed), "frames with equal times"),
        (_reaches_far(packets), "frames far apart in ticks"),
        (not packets.key[0], "the first packet is no key"),
        (has_leading_pictures(packets), "open GOP (frames shown before the key that they follow)"),
        (packets.parameters_change, "coding parameters change"),
        (bool(packets.problems or probe.problems), "damaged or cut off"),
        (probe.mirrored, "mirrored"),
        (not shields_from_text_probes(path), "it could be taken for a playlist"),
    )
    return tuple(reason for broken, reason in rules if broken)


def _reaches_far(packets: Packets) -> bool:
    """Whether a packet is shown long after it is decoded, or decoded long after the one before it."""
    timed = (packets.pts != NO_TIME) & (packets.dts != NO_TIME)
    pts, dts = packets.pts[timed], packets.dts[timed]
    return bool((np.abs(pts - dts) >= FAR_TICKS).any() or (np.abs(np.diff(dts)) >= FAR_TICKS).any())


def has_leading_pictures(packets: Packets) -> bool:
    """Whether any packet is shown before the last key that stands before it in the file."""
    position = np.arange(len(packets.key))
    last_key = np.maximum.accumulate(np.where(packets.key, position, 0))
    return bool((packets.pts < packets.pts[last_key]).any())
