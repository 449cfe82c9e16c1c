"""Read, sample and write video files, and draw random crops from a folder of them.

Files are decoded by decord where it is installed (it jumps to any frame), else by PyAV (which decodes what lies before).
Frames are RGB uint8. Whatever is wrong with a file, the error is a `VideoError` that names it and says what to do.
"""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

try:
    import decord
except ImportError:  # optional: wheels exist for few platforms
    decord = None

SUFFIXES = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
UNINDEXED = (".avi", ".mkv", ".webm")
"""Of these, which open as if nothing were missing when their end is: only reading to the end tells."""
MISSING_S = 1.0
"""Seconds that may be missing at the end of a Matroska file, whose last frame may last longer than it says."""


class VideoError(ValueError):
    """A video file or folder that cannot be used; the message names it and says what to do."""


@dataclass(frozen=True)
class Video:
    """Decoded frames (t, H, W, 3) uint8 RGB, and the file's average rate in frames per second."""

    frames: np.ndarray
    fps: float


def read_video(path: str | Path, indices: Sequence[int] | None = None, *, decoder: str | None = None) -> Video:
    """Decode frames of a file.

    Args:
        path: of the file.
        indices: of the frames wanted, in any order and not negative; None for all.
        decoder: "decord" or "pyav"; None takes decord where it is installed.

    Raises:
        VideoError: no such file, not a video, empty, truncated, or shorter than an index.
        ValueError: an unknown decoder or one that is not installed, or no indices.
    """
    if indices is not None and len(indices) == 0:
        raise ValueError(f"read_video: no indices for {path}; pass None for all frames")
    path = _existing(path)
    wanted = None if indices is None else [int(i) for i in indices]
    chosen = _choose(decoder)
    if wanted is None:
        _check_whole(path)
    if chosen == "pyav":
        return _read_pyav(path, wanted)
    try:
        return _read_decord(path, wanted)
    except VideoError:
        if decoder is not None:
            raise
        return _read_pyav(path, wanted)  # decord gives up on some good files, such as those 48 pixels wide


def write_video(path: str | Path, frames: np.ndarray | Tensor, fps: float = 10.0, *, quality: int = 18) -> None:
    """Write an H.264 (yuv420p) MP4 file; odd heights and widths are padded by repeating the last row or column.

    Args:
        frames: (t, H, W, 3) uint8 RGB, t >= 1.
        fps: frames per second, positive.
        quality: x264's constant rate factor, 0 (nearly lossless) to 51.

    Raises:
        ValueError: frames of another shape or type, or fps that is not positive.
    """
    frames = np.asarray(frames)
    if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape:
        raise ValueError(f"write_video wants frames (t, H, W, 3) uint8 with t >= 1, got {frames.shape} {frames.dtype}")
    if not fps > 0:
        raise ValueError(f"write_video: fps is {fps}; pass a positive rate")
    _, height, width, _ = frames.shape
    frames = np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        stream.options = {"crf": str(quality)}
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24")))
        container.mux(stream.encode())


def list_videos(folder: str | Path) -> list[Path]:
    """Video files (`SUFFIXES`) of a folder and its subfolders, sorted; links that lead out of the folder are left out.

    Raises:
        VideoError: no such folder, or no video in it.
    """
    root = Path(folder)
    if not root.is_dir():
        raise VideoError(f"{root} is not a folder; pass a folder that holds video files")
    inside = root.resolve()
    found: list[Path] = []
    for where, _, names in os.walk(root, followlinks=False):
        paths = (Path(where, name) for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        found.extend(path for path in paths if path.is_file() and path.resolve().is_relative_to(inside))
    if not found:
        raise VideoError(f"{root} holds no video; put files there that end in one of {', '.join(SUFFIXES)}")
    return sorted(found)


def sample_clip(path: str | Path, rng: np.random.Generator, frames: int, size: int, *, stride: int = 1) -> Tensor:
    """A random stretch of a file, cropped to a random square of half the shorter image side or more, and resized with antialiasing.

    Args:
        rng: decides the stretch and the crop.
        frames: of the clip. size: height and width in pixels. stride: file frames from one clip frame to the next.

    Returns:
        (frames, 3, size, size) uint8.

    Raises:
        VideoError: as `read_video`, or a file shorter than the stretch.
    """
    length, span = count_frames(path), (frames - 1) * stride + 1
    if length < span:
        raise VideoError(f"{path} has {length} frames and the clip spans {span}; ask for fewer frames or a smaller stride")
    first = int(rng.integers(length - span + 1))
    pixels = read_video(path, range(first, first + span, stride)).frames
    height, width = pixels.shape[1:3]
    side = max(1, round(min(height, width) * rng.uniform(0.5, 1.0)))
    top, left = int(rng.integers(height - side + 1)), int(rng.integers(width - side + 1))
    return resize(torch.from_numpy(pixels[:, top : top + side, left : left + side]).movedim(-1, 1), size)


def resize(frames: Tensor, size: int) -> Tensor:
    """(t, 3, H, W) uint8 to (t, 3, size, size) uint8, bilinear with antialiasing."""
    resized = torch.nn.functional.interpolate(frames.float(), (size, size), mode="bilinear", antialias=True)
    return resized.round_().clamp_(0, 255).byte()


class VideoFolder:
    """The videos of a folder as a source of random clips.

    Args:
        path: the folder; see `list_videos`.

    Raises:
        VideoError: no such folder, or no video in it.
    """

    def __init__(self, path: str | Path) -> None:
        self.paths = list_videos(path)

    def __len__(self) -> int:
        return len(self.paths)

    def require(self, frames: int, remedy: str) -> None:
        """Raise VideoError, as `read_video`, or where a file has fewer frames."""
        for path in tqdm(self.paths, desc="videos", unit="file", delay=2, leave=False):
            if (length := count_frames(path)) < frames:
                raise VideoError(f"{path} has {length} frames, clips span {frames}; {remedy}")

    def frames(self, rng: np.random.Generator, n: int, size: int, *, stride: int = 1) -> Tensor:
        """(n, 3, size, size) uint8: a random crop of a random stretch of a random file; see `sample_clip`."""
        return sample_clip(self.paths[int(rng.integers(len(self.paths)))], rng, n, size, stride=stride)


def count_frames(path: str | Path) -> int:
    """Frames in a file.

    Raises:
        VideoError: as `read_video`.
    """
    path = _existing(path)
    about = path.stat()
    return _counted(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=4096)  # clips are drawn from the same files again and again
def _counted(path: Path, *version: int) -> int:
    if decord is None:
        return _packets(path)
    _check_whole(path)
    try:
        return len(_open_decord(path))
    except VideoError:
        return _packets(path)  # as `read_video`: decord lacks some codecs, such as AV1's


# -------------------------------------------------------------------- decoders


def _existing(path: str | Path) -> Path:
    path = Path(path)
    if not path.is_file():
        raise VideoError(f"{path} is not a file; check the path")
    if path.stat().st_size == 0:
        raise VideoError(f"{path} is empty; its recording or download failed, so make it anew or remove it")
    return path


def _unreadable(path: Path, reason: object) -> VideoError:
    first_line = next(iter(str(reason).strip().splitlines()), "no reason given")
    told = re.sub(rf"^\[[\d:]+\] \S+:\d+: (\[{re.escape(str(path))}\] )?", "", first_line)  # where in decord's source, and when
    return VideoError(f"{path} cannot be decoded ({told}); it is truncated or no video: remove it, or copy or re-encode it")


def _choose(decoder: str | None) -> str:
    if decoder not in (None, "decord", "pyav"):
        raise ValueError(f"unknown decoder {decoder!r}; choose from 'decord', 'pyav'")
    if decoder == "decord" and decord is None:
        raise ValueError("decoder 'decord' is not installed; pip install decord, or pass 'pyav'")
    return decoder or ("pyav" if decord is None else "decord")


def _open_decord(path: Path):
    try:
        reader = decord.VideoReader(str(path), num_threads=1)
        if len(reader) == 0:
            raise _unreadable(path, "no frames")
    except (decord.DECORDError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    return reader


def _read_decord(path: Path, indices: list[int] | None) -> Video:
    reader = _open_decord(path)
    indices = list(range(len(reader))) if indices is None else indices
    _check_indices(path, indices, len(reader))
    try:
        frames = reader.get_batch(indices)
    except (decord.DECORDError, RuntimeError) as error:
        raise _unreadable(path, error) from error
    # decord's bridge is global: a program that set it to torch gets tensors here
    return Video(frames.asnumpy() if hasattr(frames, "asnumpy") else np.asarray(frames), float(reader.get_avg_fps()))


def _open_pyav(path: Path):
    try:
        container = av.open(str(path))
    except (av.FFmpegError, OSError) as error:
        raise _unreadable(path, error) from error
    if not container.streams.video:
        container.close()
        raise _unreadable(path, "no video stream")
    return container


def _check_whole(path: Path) -> None:
    """Raise VideoError where the end of a file is missing and no decoder would say so."""
    if path.suffix.lower() in UNINDEXED:
        _packets(path)


def _packets(path: Path) -> int:
    """Frames in a file, by its packets, of which none is decoded. Raises VideoError where the header promises more."""
    count = discarded = 0
    end = 0.0
    with _open_pyav(path) as container:
        stream = container.streams.video[0]
        try:
            for packet in container.demux(stream):
                # packets marked for discard lie outside what an edited file plays, though its header counts them
                discarded += packet.is_discard
                count += packet.size > 0 and not packet.is_discard
                if packet.pts is not None:
                    end = max(end, float((packet.pts + (packet.duration or 0)) * packet.time_base))
        except av.FFmpegError as error:
            raise _unreadable(path, error) from error
        # an AVI file counts frames that last longer as several
        there = round(end * float(stream.average_rate or 0)) if container.format.name == "avi" else count + discarded
        if count == 0 or there < stream.frames:
            raise _unreadable(path, f"{there} of {stream.frames} frames")
        if end < (told := _told_seconds(stream)) - MISSING_S:
            raise _unreadable(path, f"its frames end at {end:.1f} s of {told:.1f} s")
    return count


def _told_seconds(stream) -> float:
    """The duration that a Matroska or WebM file tells of a stream, h:m:s; 0 where it tells none, as recordings of browsers."""
    hours, minutes, seconds = (*stream.metadata.get("DURATION", "").split(":"), "", "")[:3]
    try:
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except ValueError:
        return 0.0


def _read_pyav(path: Path, indices: list[int] | None) -> Video:
    wanted = None if indices is None else set(indices)
    kept: dict[int, np.ndarray] = {}
    count = discarded = 0
    with _open_pyav(path) as container:
        stream = container.streams.video[0]
        try:
            for packet in container.demux(stream):
                discarded += packet.is_discard
                for frame in packet.decode():
                    if wanted is None or count in wanted:
                        # how the camera was held, which decord applies too
                        kept[count] = np.rot90(frame.to_ndarray(format="rgb24"), frame.rotation // 90)
                    count += 1
                if wanted is not None and len(kept) == len(wanted):
                    break
            else:  # read to the end; a file cut short ends early without an error
                if count == 0 or (container.format.name != "avi" and count + discarded < stream.frames):
                    raise _unreadable(path, f"{count} of {stream.frames} frames decoded")
        except av.FFmpegError as error:
            raise _unreadable(path, error) from error
        fps = float(stream.average_rate or 0)
    indices = sorted(kept) if indices is None else indices
    _check_indices(path, indices, count)
    return Video(np.stack([kept[i] for i in indices]), fps)


def _check_indices(path: Path, indices: list[int], length: int) -> None:
    if min(indices) < 0 or max(indices) >= length:
        raise VideoError(f"{path} has frames 0 to {length - 1}, asked for {min(indices)} to {max(indices)}; ask for fewer")
