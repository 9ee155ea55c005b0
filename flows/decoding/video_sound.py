"""The sound of an untrusted video beside the pictures of a movie.

Only the child processes of `video_decoder.py` call this module.
"""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import av
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer

from dreamcore.errors import ImageError
from flows.decoding.video_frames import AUDIO_CODECS, PositionedFile, open_container

__all__ = ["Span", "add_sound"]

COPIED = ("aac", "mp3float", "mp3", "ac3", "eac3", "alac", "opus", "libopus", "flac")
"""Codecs whose packets are copied, because MP4 files may contain them. Others are encoded as AAC."""

_PRIMING = 0.1  # seconds before the start that decoders of AAC and Opus need
_AAC_RATES = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000, 64000, 88200, 96000)
_BIT_RATE = 160_000
_HEARTBEAT = 200  # packets between two signs of life


_Source = tuple[InputContainer, AudioStream]


@dataclass(frozen=True)
class Span:
    """A part of a video, in the time of its file."""

    start: float
    """In seconds."""
    seconds: float


class _MovieFile(io.BytesIO):
    """A movie in memory. FFmpeg opens it a second time, to move the index to the front."""

    name = "movie.mp4"

    def open_again(self, _url: str, _flags: int, _options: object) -> "_View":
        return _View(self)

    def close(self) -> None:
        """Keep the bytes."""


class _View(io.RawIOBase):
    """Reads a movie in memory at a position of its own."""

    def __init__(self, file: _MovieFile) -> None:
        self._file, self._position = file, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        with self._file.getbuffer() as data:
            end = len(data) if size < 0 else self._position + size
            found = bytes(data[self._position : end])
        self._position += len(found)
        return found

    def seek(self, offset: int, whence: int = 0) -> int:
        with self._file.getbuffer() as data:
            self._position = max(0, (0, self._position, len(data))[whence] + offset)
        return self._position

    def tell(self) -> int:
        return self._position


def add_sound(movie: int, source: int, span: Span) -> Iterator[bytes | None]:
    """Yield None from time to time, and at last the movie with the sound of the source.

    Args:
        movie: number of the open movie file, without sound.
        source: number of the open file with the sound.
        span: the part of the source that the movie shows.

    Raises:
        ImageError: the sound cannot be decoded.
    """
    container = open_container(source)
    sound = container.streams.audio[0]
    name = sound.codec_context.codec.name if sound.codec_context else "an unknown codec"
    if name not in AUDIO_CODECS:
        raise ImageError("unsupported", f"sound of {name} is not supported")
    pictures = av.open(PositionedFile(movie), "r")
    file = _MovieFile()
    output = av.open(file, "w", format="mp4", options={"movflags": "+faststart"}, io_open=file.open_again)
    out = output.add_stream_from_template(pictures.streams.video[0])
    make = _copied if name in COPIED else _encoded
    waiting = make(output, (container, sound), span)
    heard = next(waiting, None)
    for number, packet in enumerate(pictures.demux(video=0)):
        while heard is not None and packet.dts is not None and _time(heard) <= packet.dts * packet.time_base:
            output.mux(heard)
            heard = next(waiting, None)
        if packet.dts is not None:
            packet.stream = out
            output.mux(packet)
        if number % _HEARTBEAT == 0:
            yield None
    while heard is not None:
        output.mux(heard)
        heard = next(waiting, None)
    output.close()
    yield file.getvalue()


def _time(packet: "av.Packet[Any]") -> Fraction:
    return (packet.dts or 0) * (packet.time_base or Fraction(0))


def _copied(output: OutputContainer, source: _Source, span: Span) -> Iterator["av.Packet[Any]"]:
    """Yield the packets of a sound in a span, for a new stream of `output`."""
    container, sound = source
    out = output.add_stream_from_template(sound)
    last = None
    for packet in container.demux(sound):
        if packet.pts is None or packet.dts is None or packet.time_base is None:
            continue
        at = float(packet.pts * packet.time_base) - span.start
        if at >= span.seconds:
            return
        shift = round(span.start / packet.time_base)
        packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
        if at >= -_PRIMING and (last is None or packet.dts > last):
            last, packet.stream = packet.dts, out
            yield packet


def _encoded(output: OutputContainer, source: _Source, span: Span) -> Iterator["av.Packet[Any]"]:
    """Yield the sound in a span, encoded as AAC, for a new stream of `output`."""
    sound = source[1]
    rate = sound.codec_context.sample_rate
    rate = rate if rate in _AAC_RATES else 48_000
    layout = "mono" if sound.codec_context.layout.nb_channels == 1 else "stereo"
    out = output.add_stream("aac", rate=rate, layout=layout, bit_rate=_BIT_RATE)
    resampler = av.AudioResampler(format="fltp", layout=layout, rate=rate, frame_size=1024)
    for frame in _frames(source, span):
        for part in resampler.resample(frame):
            yield from out.encode(part)
    for part in resampler.resample(None):
        yield from out.encode(part)
    yield from out.encode(None)


def _frames(source: _Source, span: Span) -> Iterator[av.AudioFrame]:
    """Yield the decoded sound in a span, with its times. Damaged packets are left out."""
    container, sound = source
    for packet in container.demux(sound):
        try:
            frames = packet.decode()
        except (av.FFmpegError, ValueError):
            continue
        for frame in frames:
            if not isinstance(frame, av.AudioFrame) or frame.pts is None or frame.time_base is None:
                continue
            at = float(frame.pts * frame.time_base) - span.start
            if at >= span.seconds:
                return
            if at >= 0:
                frame.pts -= round(span.start / frame.time_base)
                yield frame
