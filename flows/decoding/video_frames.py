"""Frames of an untrusted video as pixels: rotation, pixel shape, colors, transparency, and a constant frame rate.

Only the child processes of `video_decoder.py` call this module. FFmpeg decodes through PyAV, in one thread.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import RawIOBase
from typing import NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import ColorPrimaries, ColorTrc, Interpolation, VideoReformatter
from av.video.stream import VideoStream
from numpy.typing import NDArray

from dreamcore.errors import ImageError
from dreamcore.images import MAX_SOURCE_PIXELS
from flows.decoding.video_selection import Selection, VideoInfo

__all__ = ["OpenVideo", "PositionedFile", "frames_at", "measure", "open_container"]

FORMATS = ("mov", "matroska", "avi", "mpegts", "mpeg", "ogg", "flv", "asf", "mxf", "gif")
"""Demuxers that may read a file. None of them opens other files, as those of playlists do."""
VIDEO_CODECS = (
    *("h264", "hevc", "av1", "libdav1d", "vp8", "vp9", "mpeg4", "mpeg2video", "mpeg1video", "h263", "mjpeg", "gif"),
    *("prores", "dnxhd", "ffv1", "huffyuv", "ffvhuff", "utvideo", "qtrle", "png", "rawvideo", "theora", "flv", "vc1"),
    *("wmv1", "wmv2", "wmv3", "msmpeg4v1", "msmpeg4v2", "msmpeg4", "dvvideo", "cinepak"),
)
AUDIO_CODECS = (
    *("aac", "mp3float", "mp3", "ac3", "eac3", "alac", "opus", "libopus", "flac", "vorbis", "libvorbis", "mp2float"),
    *("mp2", "wmav1", "wmav2", "pcm_s16le", "pcm_s16be", "pcm_s24le", "pcm_s24be", "pcm_s32le", "pcm_f32le", "pcm_u8"),
    *("pcm_mulaw", "pcm_alaw", "amrnb", "amrwb", "adpcm_ms", "adpcm_ima_wav"),
)

_UNKNOWN_MATRIX, _BT601, _BT709, _BT2020 = 2, 5, 1, 9  # color spaces as FFmpeg numbers them
_HDR = (ColorTrc.SMPTE2084, ColorTrc.ARIB_STD_B67)  # PQ and HLG
_RATES = (1.0, 120.0)
_PIXEL_SHAPES = (0.25, 4.0)  # width of a pixel by its height; beyond, the value is regarded as wrong
_HEARTBEAT = 500  # packets between two signs of life while a file is measured

Pixels = NDArray[np.uint8]


class PositionedFile(RawIOBase):
    """A file that is read by its number at a position of its own. Processes that share the number do not disturb it.

    Args:
        descriptor: the number of an open regular file.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._position = descriptor, 0
        self._size = os.fstat(descriptor).st_size

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        data = os.pread(self._descriptor, self._size if size < 0 else size, self._position)
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, and return it."""
        start = (0, self._position, self._size)[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        """Return the position."""
        return self._position


def open_container(descriptor: int) -> InputContainer:
    """Open a file.

    Raises:
        ImageError: `not_an_image`: the file is empty, or none of `FORMATS`.
    """
    options = {"format_whitelist": ",".join(FORMATS), "codec_whitelist": ",".join((*VIDEO_CODECS, *AUDIO_CODECS))}
    try:
        return av.open(PositionedFile(descriptor), "r", container_options=options, metadata_errors="replace")
    except av.FFmpegError as error:
        known = ", ".join(("MP4 and MOV", "MKV and WebM", *(name.upper() for name in FORMATS[2:])))
        raise ImageError("not_an_image", f"not a video, or damaged; videos may be {known}") from error


@dataclass
class OpenVideo:
    """The video stream of an open file."""

    container: InputContainer
    stream: VideoStream
    damaged: int = 0
    """How many packets could not be decoded so far."""

    @classmethod
    def open(cls, descriptor: int) -> "OpenVideo":
        """Open a file and find its video.

        Raises:
            ImageError: the file is not a video, contains none, or its codec is unsupported or its frames too large.
        """
        container = open_container(descriptor)
        streams = [each for each in container.streams.video if not each.disposition & Disposition.attached_pic]
        if not streams:
            raise ImageError("unsupported", "the file contains no video")
        stream, context = streams[0], streams[0].codec_context
        if context is None or context.codec.name not in VIDEO_CODECS:
            name = context.codec.name if context else "its codec"
            raise ImageError("unsupported", f"videos of {name} are not decoded: convert it to H.264 in MP4")
        if context.width * context.height > MAX_SOURCE_PIXELS:
            raise ImageError("too_large", f"its frames have more than {MAX_SOURCE_PIXELS:,} pixels")
        context.thread_count = 1
        return cls(container, stream)

    def packets(self) -> Iterator["av.Packet[VideoStream]"]:
        """Yield the packets of the video. If the file is damaged, the rest is left out."""
        try:
            yield from self.container.demux(self.stream)
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):
            self.damaged += 1

    def decode(self, packet: "av.Packet[VideoStream]") -> list[av.VideoFrame]:
        """Return the frames that a packet completes; none if it is damaged."""
        try:
            return [frame for frame in packet.decode() if isinstance(frame, av.VideoFrame)]
        except MemoryError:
            raise
        except (av.FFmpegError, ValueError):
            self.damaged += 1
            return []

    def frames(self, selection: Selection) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield frames with their times in seconds, counted as those of the selection."""
        if selection.start > 0:
            self._seek(selection.origin + selection.start)
        time = -1 / selection.fps
        for packet in self.packets():
            for frame in self.decode(packet):
                known = frame.pts is not None and frame.time_base is not None
                time = frame.time - selection.origin - selection.start if known else time + 1 / selection.fps
                yield time, frame

    def _seek(self, seconds: float) -> None:
        """Go to the last key frame before a time. A file that cannot do so is decoded from its beginning."""
        try:
            self.container.seek(int(seconds / float(self.stream.time_base or 1)), stream=self.stream)
        except (av.FFmpegError, ValueError, OverflowError):
            self.container.seek(0)


def measure(descriptor: int) -> Iterator[VideoInfo | None]:
    """Yield None from time to time while the file is read, and at last what is known of its video.

    Raises:
        ImageError: as `OpenVideo.open`; also `damaged` if no frame can be decoded.
    """
    video = OpenVideo.open(descriptor)
    stream, first, end, count = video.stream, None, 0.0, 0
    start = float(stream.start_time * stream.time_base) if stream.start_time and stream.time_base else 0.0
    for packet in video.packets():
        count += packet.size > 0
        if packet.pts is not None:
            end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base) - start)
        if first is None:
            first = next(iter(video.decode(packet)), None)
        if first is None or count % _HEARTBEAT == 0:
            yield None
    if first is None:
        raise ImageError("damaged", "no frame of the video can be decoded")
    rates = (stream.average_rate, stream.guessed_rate, count / end if end else None)
    fps = next((float(rate) for rate in rates if rate and _RATES[0] <= rate <= _RATES[1]), 25.0)
    width, height = _display_size(first, stream)
    seconds = max(end, 1 / fps) if end else count / fps  # AVI files may have no times
    yield VideoInfo(width, height, fps, seconds, start, bool(video.container.streams.audio))


def frames_at(video: OpenVideo, selection: Selection) -> Iterator[tuple[int, Pixels] | None]:
    """Yield the frames of a selection with their numbers, and None for each frame of the file that is left out.

    Frame `k` shows what the video shows at the time `k / fps`, rounded to the nearest frame. So the rate may vary in
    the file. If the file is damaged, the last frames may be missing.

    Yields:
        Number and pixels (H, W, 3), sRGB.
    """
    number, current, pixels = 0, None, None
    convert = _Converter(selection.width, selection.height)
    last = 0.0
    for time, frame in video.frames(selection):
        last = time + float((frame.duration or 0) * (frame.time_base or 0))
        emitted = False
        while current is not None and number < selection.frames and (number + 0.5) / selection.fps < time:
            if number >= selection.first:
                pixels = convert(current) if pixels is None else pixels
                yield number, pixels
                emitted = True
            number += 1
        if number == selection.frames:
            return
        if not emitted:
            yield None
        current, pixels = frame, None
    end = max(last, (number + 0.5) / selection.fps)
    while current is not None and number < selection.frames and number / selection.fps < end:
        if number >= selection.first:
            pixels = convert(current) if pixels is None else pixels
            yield number, pixels
        number += 1


def _display_size(frame: av.VideoFrame, stream: VideoStream) -> tuple[int, int]:
    """Return width and height as displayed: with square pixels, and upright."""
    shape = float(stream.sample_aspect_ratio or 1)
    width = round(frame.width * shape) if _PIXEL_SHAPES[0] <= shape <= _PIXEL_SHAPES[1] else frame.width
    return (frame.height, width) if _Turn.of(frame).transpose else (width, frame.height)


class _Turn(NamedTuple):
    """How the stored pixels of a frame are turned to be upright."""

    transpose: bool
    mirror_x: bool
    mirror_y: bool

    @classmethod
    def of(cls, frame: av.VideoFrame) -> "_Turn":
        """Read the display matrix of a frame: x' = a x + c y, y' = b x + d y. Angles are rounded to right angles."""
        data = frame.side_data.get(SideData.DISPLAYMATRIX)  # type: ignore[call-overload]
        if data is None or len(matrix := np.frombuffer(bytes(data), np.int32)) != 9:
            return cls(False, False, False)
        a, b, c, d = (int(matrix[place]) for place in (0, 1, 3, 4))
        if abs(b) > abs(a):
            return cls(True, c < 0, b < 0)
        return cls(False, a < 0, d < 0)

    def apply(self, pixels: Pixels) -> Pixels:
        """Return the upright pixels of a frame (H, W, 3)."""
        pixels = pixels.transpose(1, 0, 2) if self.transpose else pixels
        pixels = pixels[:, ::-1] if self.mirror_x else pixels
        return np.ascontiguousarray(pixels[::-1] if self.mirror_y else pixels)


class _Converter:
    """Converts frames to upright pixels in sRGB.

    HDR is mapped to sRGB, with 203 nits as white, as ITU-R BT.2408 recommends. FFmpeg computes a table for it once,
    which takes seconds. Transparency is composited over white.

    Args:
        width: width of the pixels.
        height: height of the pixels.
    """

    def __init__(self, width: int, height: int) -> None:
        self._size, self._reformatter = (width, height), VideoReformatter()

    def __call__(self, frame: av.VideoFrame) -> Pixels:
        """Return the pixels (H, W, 3) of a frame."""
        turn = _Turn.of(frame)
        width, height = self._size[::-1] if turn.transpose else self._size
        alpha = any(component.is_alpha for component in frame.format.components)
        hdr = frame.color_trc in _HDR
        converted = self._reformatter.reformat(
            frame,
            width,
            height,
            format="rgba" if alpha else "rgb24",
            src_colorspace=_matrix(frame),
            dst_color_trc=ColorTrc.IEC61966_2_1 if hdr else None,
            dst_color_primaries=ColorPrimaries.BT709 if hdr else None,
            interpolation=Interpolation.LANCZOS,
            threads=1,
        )
        pixels = np.asarray(converted.to_ndarray(), np.uint8)
        if alpha:
            share = pixels[..., 3:].astype(np.uint16)
            pixels = ((pixels[..., :3] * share + 255 * (255 - share) + 127) // 255).astype(np.uint8)
        return turn.apply(pixels)


def _matrix(frame: av.VideoFrame) -> int | None:
    """Return the color space of a frame that does not name its own: as players do, by its height."""
    if frame.colorspace != _UNKNOWN_MATRIX or frame.format.is_rgb:
        return None
    if frame.color_primaries == ColorPrimaries.BT2020:
        return _BT2020
    return _BT709 if frame.height >= 720 else _BT601
