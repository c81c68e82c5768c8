"""Opens videos; the only place that does, so that what holds here holds for every file.

FFmpeg by itself reads whatever a file names: playlists, session descriptions and scripts that join
files make it open addresses, ports and other files, whatever the suffix. So only containers that
name nothing else are read.
"""

from __future__ import annotations

import io
import re
import stat
import time
from pathlib import Path
from typing import Any, BinaryIO

import av

from mrmodel.errors import VideoError
from mrmodel.video.remote import RemoteVideo

LOST_INDEX = "its index is lost (a download that broke off?)"

# Demuxers of FFmpeg. Those of sound alone and of still images are here for the errors that say so.
_CONTAINERS = (
    *("mov", "matroska", "avi", "flv", "live_flv", "mpegts", "mpegtsraw", "mpeg", "asf", "asf_o"),
    *("ogg", "gif", "apng", "webp_pipe", "dv", "mxf", "gxf", "wtv", "rm", "nut", "nsv", "ivf"),
    *("swf", "av1", "obu", "h261", "h263", "h264", "hevc", "vvc", "evc", "m4v", "mpegvideo"),
    *("vc1", "vc1test", "dirac", "cavsvideo", "avs2", "avs3", "mjpeg", "mjpeg_2000", "mpjpeg"),
    *("smjpeg", "yuv4mpegpipe"),
    *("aac", "ac3", "aiff", "amr", "eac3", "flac", "mp3", "wav", "w64"),
    *("image2", "bmp_pipe", "dpx_pipe", "exr_pipe", "ico", "j2k_pipe", "jpeg_pipe", "jpegls_pipe"),
    *("jpegxl_pipe", "jpegxl_anim", "pam_pipe", "pbm_pipe", "pcx_pipe", "pgm_pipe", "png_pipe"),
    *("ppm_pipe", "psd_pipe", "qoi_pipe", "sgi_pipe", "sunrast_pipe", "tiff_pipe", "xbm_pipe"),
    *("xpm_pipe", "xwd_pipe"),
)
# Decoders count the rows and columns around a picture, too; `Decoder` checks what is displayed.
_WITH_EDGES = 1.25
_MOST_PIXELS = 2**31 - 1
# A header of QuickTime that is compressed: FFmpeg unpacks a megabyte of it to a gigabyte. The size
# of its box, if that is one of 64 bits, and that of the next stand between the names.
_PACKED_HEADER = re.compile(rb"cmov(.{4}|.{12})dcomzlib", re.DOTALL)
_PACKED_BYTES = 24
_PART_BYTES = 1 << 20


class TimeLimit:
    """The seconds that reading a video may take, by a clock that is started and stopped.

    Args:
        path: the video, for the error.
        limit_s: wall-clock seconds.
    """

    def __init__(self, path: Path, limit_s: float) -> None:
        self._path, self.limit_s = path, limit_s
        self._spent_s = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Start the clock, at first or again."""
        self._since = time.monotonic()

    def stop(self) -> None:
        """Stop the clock, which is running."""
        assert self._since is not None
        self._spent_s += time.monotonic() - self._since
        self._since = None

    def require(self) -> None:
        """Raise if the time is over.

        Raises:
            VideoError: ``timed_out``.
        """
        running_s = 0.0 if self._since is None else time.monotonic() - self._since
        if self._spent_s + running_s > self.limit_s:
            raise VideoError(self._path, "timed_out", f"not read within {self.limit_s:g} s")


def open_container(
    path: Path, remote: RemoteVideo | None, max_pixels: int, limit: TimeLimit
) -> Any:
    """Open a video with PyAV.

    Args:
        path: the file, or the pointer of `remote`.
        remote: the object to read in place of the file.
        max_pixels: larger pictures are not decoded.
        limit: its clock, which is stopped, runs meanwhile. Reading a packet takes no longer either.

    Raises:
        VideoError: ``not_found``, ``unreadable``, ``invalid_data``, ``unknown_container`` or
            ``timed_out``.
    """
    if remote is None:
        _require_file(path)
    decoding = {"max_pixels": str(min(round(max_pixels * _WITH_EDGES), _MOST_PIXELS))}
    demuxing = {
        "format_whitelist": ",".join(_CONTAINERS),
        # Of an object nothing is opened by FFmpeg itself.
        "protocol_whitelist": "file" if remote is None else "none",
        "pattern_type": "none",  # A % or * in the name of an image names no other images.
    }
    limit.start()
    try:
        _require_plain_header(path, remote, limit)
        container = av.open(
            # Absolute: FFmpeg takes what stands before a colon for a protocol, if no slash does.
            remote or str(path.absolute()),
            mode="r",
            options=decoding,
            container_options=demuxing,
            metadata_errors="replace",
            timeout=limit.limit_s,
        )
    except (av.error.FFmpegError, OSError) as error:
        limit.require()
        raise _not_opened(path, error) from error
    finally:
        limit.stop()
    limit.require()  # FFmpeg may take the interruption for the end of the file.
    for stream in container.streams.video:
        if stream.codec_context is not None:
            stream.codec_context.options = decoding
    return container


def _require_file(path: Path) -> None:
    """Raise for a pipe, a socket or a device: opening one may wait for ever."""
    try:
        kind = path.stat().st_mode
    except OSError:
        return  # Opening it gives the error.
    except ValueError as error:  # A null byte, at which FFmpeg would cut the name.
        raise VideoError(path, "not_found", "no such file") from error
    if not stat.S_ISREG(kind) and not stat.S_ISDIR(kind):
        detail = "a pipe or a device, and a video is read several times; save it as a file"
        raise VideoError(path, "unreadable", detail)


def _require_plain_header(path: Path, remote: RemoteVideo | None, limit: TimeLimit) -> None:
    """Raise for an MP4 or MOV file with a compressed header.

    Raises:
        OSError: it cannot be read.
        VideoError: ``unknown_container``, or ``timed_out``.
    """
    if remote is None and not path.is_file():
        return  # Opening it gives the error.
    file: Any = remote or path.open("rb")
    try:
        if _has_packed_header(file, limit):
            rule = "its header is compressed (cmov), which is not read; copy it into a new file"
            raise VideoError(path, "unknown_container", f"{rule}: ffmpeg -i OLD -c copy NEW.mp4")
    finally:
        if remote is None:
            file.close()
        else:
            file.seek(0)


def _has_packed_header(file: BinaryIO, limit: TimeLimit) -> bool:
    """Whether a box of an MP4 file, other than those with pictures and sound, holds a `cmov`.

    FFmpeg may take the first tag for a box, or skip the tags.
    """
    return any(_in_boxes(file, place, limit) for place in {0, _after_tags(file)})


def _in_boxes(file: BinaryIO, place: int, limit: TimeLimit) -> bool:
    """The same of the boxes from `place` on.

    Other files are hardly read: what stands in place of their first box is no name of one.
    """
    end = file.seek(0, io.SEEK_END)
    while place + 8 <= end:
        limit.require()
        file.seek(place)
        head = file.read(16)
        size, kind, least = int.from_bytes(head[:4]), head[4:8], 8
        if size == 1:
            size, least = int.from_bytes(head[8:]), 16
        elif size == 0:  # It ends with the file.
            size = end - place
        if size < least:
            return False  # FFmpeg reads no further.
        if kind != b"mdat" and all(0x20 <= char < 0x7F for char in kind):
            file.seek(place + 4)
            left, kept = min(place + size, end) - place - 4, b""
            while left > 0 and (part := file.read(min(left, _PART_BYTES))):
                limit.require()
                if _PACKED_HEADER.search(kept + part):
                    return True
                left, kept = left - len(part), (kept + part)[-_PACKED_BYTES:]
        place += size
    return False


def _after_tags(file: BinaryIO) -> int:
    """Where a file begins behind its ID3 tags, which FFmpeg skips."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(10)
        if len(head) < 10 or head[:3] != b"ID3":
            return place
        size = 0
        for part in head[6:]:
            size = size << 7 | part & 0x7F
        place += 10 + size + (10 if head[5] & 0x10 else 0)


def _not_opened(path: Path, error: Exception) -> VideoError:
    if isinstance(error, av.error.FileNotFoundError):
        return VideoError(path, "not_found", "no such file")
    if isinstance(error, av.error.InvalidDataError | av.error.EOFError):
        return VideoError(path, "invalid_data", f"not a video, or {LOST_INDEX}")
    if isinstance(error, av.error.ArgumentError):
        rule = (
            "a playlist or another file that names files, a container that is not read, or damaged"
        )
        return VideoError(path, "unknown_container", f"{rule}; MP4 and Matroska are read")
    return VideoError(path, "unreadable", getattr(error, "strerror", None) or str(error))
