"""Video files: round trips, bad files, folders and random crops."""

import importlib.util
import os
import struct
import wave
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
import torch

from para_video.video import VideoError, VideoFolder, count_frames, list_videos, read_video, resize, sample_clip, write_video

DECODERS = ["pyav", *(["decord"] if importlib.util.find_spec("decord") else [])]


def moving_square(frames: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A red square that moves 4 px right per frame over a grey ramp."""
    video = np.tile(np.linspace(40, 120, width).astype(np.uint8)[None, None, :, None], (frames, height, 1, 3))
    for t in range(frames):
        video[t, 12:28, 4 * t : 4 * t + 16] = (220, 30, 40)
    return video


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", moving_square(), fps=12.5)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("decoder", DECODERS)
def test_write_then_read_returns_the_frames(clip: Path, decoder: str):
    video = read_video(clip, decoder=decoder)
    assert video.frames.shape == (12, 48, 64, 3) and video.frames.dtype == np.uint8
    assert video.fps == pytest.approx(12.5)
    assert np.abs(video.frames.astype(int) - moving_square()).mean() < 4  # the colour planes have half the resolution


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_are_rgb_and_come_in_the_order_asked_for(clip: Path, decoder: str):
    frames = read_video(clip, [9, 0, 9, 4], decoder=decoder).frames.astype(int)
    left = [int((frame[20, :, 0] > 170).argmax()) for frame in frames]
    assert left == pytest.approx([36, 0, 36, 16], abs=1)
    assert frames[3, 20, 24] == pytest.approx([220, 30, 40], abs=25)


def test_odd_sizes_are_padded_by_repetition(tmp_path: Path):
    frames = moving_square(height=47, width=63)
    write_video(tmp_path / "odd.mp4", torch.from_numpy(frames))
    back = read_video(tmp_path / "odd.mp4").frames
    assert back.shape == (12, 48, 64, 3)
    assert np.abs(back[:, :47, :63].astype(int) - frames).mean() < 4
    assert np.abs(back[0, 47].astype(int) - back[0, 46]).mean() < 4


@pytest.mark.parametrize(
    "frames", [np.zeros((0, 8, 8, 3), np.uint8), np.zeros((2, 3, 8, 8), np.uint8), np.zeros((2, 8, 8, 3), np.float32)]
)
def test_write_refuses_what_is_not_a_clip(tmp_path: Path, frames: np.ndarray):
    with pytest.raises(ValueError, match=r"\(t, H, W, 3\) uint8"):
        write_video(tmp_path / "no.mp4", frames)


def index_first(path: Path, target: Path) -> None:
    """Rewrite an mp4 with its index before its data, as files for the web are: such a file opens even when it is cut."""
    with av.open(str(path)) as source, av.open(str(target), "w", options={"movflags": "faststart"}) as sink:
        stream = source.streams.video[0]
        copy = sink.add_stream_from_template(stream)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                sink.mux(packet)


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("index", ["last", "first"])
def test_truncated_files_are_named(tmp_path: Path, decoder: str, index: str, monkeypatch):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    whole, cut = tmp_path / "whole.mp4", tmp_path / "cut.mp4"
    write_video(whole, noise)
    if index == "first":
        index_first(whole, tmp_path / "web.mp4")
        whole = tmp_path / "web.mp4"
        assert len(read_video(whole, decoder=decoder).frames) == 20
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    if decoder == "pyav":
        monkeypatch.setattr("para_video.video.decord", None)
    for read in (count_frames, read_video):
        with pytest.raises(VideoError, match=r"cut\.mp4.*truncated"):
            read(cut)


def encoded(path: Path, frames: np.ndarray, codec: str, rate: Fraction = Fraction(10)) -> None:
    """So many frames a second in the container that the name says."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize(("suffix", "codec"), [(".avi", "mpeg4"), (".mkv", "libx264"), (".webm", "libvpx-vp9")])
def test_files_that_open_without_their_end_are_named(tmp_path: Path, decoder: str, suffix: str, codec: str, monkeypatch):
    if decoder == "pyav":
        monkeypatch.setattr("para_video.video.decord", None)
    noise = np.random.default_rng(0).integers(0, 255, (40, 64, 96, 3), dtype=np.uint8)
    whole, cut = tmp_path / f"whole{suffix}", tmp_path / f"cut{suffix}"
    encoded(whole, noise, codec)
    assert count_frames(whole) == len(read_video(whole).frames) == 40
    for share in (0.9, 0.6) if suffix == ".avi" else (0.6,):
        cut.write_bytes(whole.read_bytes()[: int(share * whole.stat().st_size)])
        for read in (count_frames, read_video, lambda path: sample_clip(path, np.random.default_rng(0), 2, 32)):
            with pytest.raises(VideoError, match=rf"cut\{suffix} cannot be decoded.*truncated"):
                read(cut)
    assert len(read_video(cut, [0, 5]).frames) == 2, "what is there can be asked for"


@pytest.mark.parametrize("decoder", DECODERS)
def test_an_avi_file_whose_frames_last_longer_is_whole(tmp_path: Path, decoder: str):
    """Its header counts them as several."""
    path = tmp_path / "gaps.avi"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.height, stream.width, stream.pix_fmt = 64, 96, "yuv420p"
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(np.full((64, 96, 3), 20 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = i if i < 5 else i + 6, Fraction(1, 10)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    assert av.open(str(path)).streams.video[0].frames > 10
    assert count_frames(path) >= 10 and len(read_video(path, decoder=decoder).frames) >= 10


@pytest.mark.parametrize("suffix", [".mkv", ".avi"])
def test_slow_files_are_whole(tmp_path: Path, suffix: str):
    encoded(tmp_path / f"slow{suffix}", np.zeros((10, 64, 96, 3), np.uint8), "mpeg4", Fraction(1, 2))
    assert count_frames(tmp_path / f"slow{suffix}") == 10


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_camera_that_was_held_sideways_gives_upright_frames(tmp_path: Path, decoder: str, turns: int):
    """Phones write how they were held, a quarter turn clockwise at a time, into the track header's matrix (ISO 14496-12, 8.3.2)."""
    write_video(tmp_path / "plain.mp4", moving_square(height=64, width=96))
    plain, data = read_video(tmp_path / "plain.mp4", decoder=decoder).frames, bytearray((tmp_path / "plain.mp4").read_bytes())
    cos, sin = ((0, 1), (-1, 0), (0, -1))[turns - 1]
    matrix = (cos << 16, sin << 16, 0, -sin << 16, cos << 16, 0, 0, 0, 1 << 30)
    at = data.index(b"tkhd") + 44
    data[at : at + 36] = struct.pack(">9i", *matrix)
    (tmp_path / "turned.mp4").write_bytes(data)
    turned = read_video(tmp_path / "turned.mp4", decoder=decoder).frames
    assert turned.shape == np.rot90(plain, -turns, (1, 2)).shape
    assert np.abs(turned.astype(int) - np.rot90(plain, -turns, (1, 2))).mean() < 3  # colours are scaled before or after the turn


def test_a_cut_file_still_gives_the_frames_before_the_cut(tmp_path: Path):
    noise = np.random.default_rng(0).integers(0, 255, (20, 48, 64, 3), dtype=np.uint8)
    write_video(tmp_path / "whole.mp4", noise)
    index_first(tmp_path / "whole.mp4", tmp_path / "web.mp4")
    data = (tmp_path / "web.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(data[: len(data) // 2])
    early = read_video(tmp_path / "cut.mp4", [0, 1], decoder="pyav").frames
    assert np.array_equal(early, read_video(tmp_path / "web.mp4", [0, 1], decoder="pyav").frames)


@pytest.mark.parametrize("decoder", DECODERS)
def test_files_that_are_no_video_are_named(tmp_path: Path, decoder: str):
    (tmp_path / "text.mp4").write_text("not a video\n" * 100)
    (tmp_path / "empty.mp4").touch()
    with wave.open(str(tmp_path / "sound.mp4"), "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", "NONE"))
        sound.writeframes(bytes(1600))
    for name, reason in (
        ("text.mp4", "no video"),
        ("empty.mp4", "is empty"),
        ("sound.mp4", "no video"),
        ("gone.mp4", "not a file"),
    ):
        with pytest.raises(VideoError, match=rf"{name}.*{reason}") as error:
            read_video(tmp_path / name, decoder=decoder)
        assert ".cc:" not in str(error.value), "where in a decoder's source"


@pytest.mark.parametrize("decoder", DECODERS)
@pytest.mark.parametrize("indices", [[12], [0, -1]])
def test_indices_outside_the_file_are_refused(clip: Path, decoder: str, indices: list[int]):
    with pytest.raises(VideoError, match=r"clip\.mp4 has frames 0 to 11"):
        read_video(clip, indices, decoder=decoder)


def test_reading_nothing_or_with_an_unknown_decoder_is_refused(clip: Path):
    with pytest.raises(ValueError, match=r"no indices for .*clip\.mp4"):
        read_video(clip, [])
    with pytest.raises(ValueError, match="'decord', 'pyav'"):
        read_video(clip, decoder="ffmpeg")


@pytest.mark.parametrize("decoder", DECODERS)
def test_frames_are_counted_without_decoding(clip: Path, decoder: str, monkeypatch: pytest.MonkeyPatch):
    if decoder == "pyav":
        monkeypatch.setattr("para_video.video.decord", None)
    assert count_frames(clip) == 12


def test_pyav_stands_in_for_a_missing_decord(clip: Path, monkeypatch: pytest.MonkeyPatch):
    by_pyav = read_video(clip, decoder="pyav").frames
    monkeypatch.setattr("para_video.video.decord", None)
    assert np.array_equal(read_video(clip).frames, by_pyav)
    with pytest.raises(ValueError, match="not installed"):
        read_video(clip, decoder="decord")


def test_listing_never_leaves_the_folder(tmp_path: Path):
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    (inside / "sub").mkdir(parents=True)
    outside.mkdir()
    for path in (
        outside / "secret.mp4",
        inside / "b.mp4",
        inside / "sub" / "A.MP4",
        inside / "notes.txt",
        inside / ".hidden.mp4",
    ):
        path.write_bytes(b"x")
    os.symlink(outside / "secret.mp4", inside / "link.mp4")
    os.symlink(outside, inside / "linked")
    os.symlink(inside / "gone.mp4", inside / "dangling.mp4")
    assert list_videos(inside) == [inside / "b.mp4", inside / "sub" / "A.MP4"]


def test_folders_without_video_are_named(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("no video here")
    with pytest.raises(VideoError, match=rf"{tmp_path.name} holds no video"):
        VideoFolder(tmp_path)
    with pytest.raises(VideoError, match="nowhere is not a folder"):
        VideoFolder(tmp_path / "nowhere")


def test_sampled_clips_follow_the_generator_alone(clip: Path):
    def draw(seed: int) -> torch.Tensor:
        return sample_clip(clip, np.random.default_rng(seed), 3, 32)

    assert draw(0).shape == (3, 3, 32, 32) and draw(0).dtype == torch.uint8
    assert torch.equal(draw(0), draw(0))
    assert not torch.equal(draw(0), draw(1))


def test_clips_are_drawn_from_files_that_decord_cannot_open(tmp_path: Path):
    encoded(tmp_path / "clip.mp4", moving_square(), "libsvtav1")
    assert count_frames(tmp_path / "clip.mp4") == len(moving_square())
    assert VideoFolder(tmp_path).frames(np.random.default_rng(0), 3, 32).shape == (3, 3, 32, 32)


def test_the_stride_of_a_sampled_clip_shows_in_the_motion(clip: Path):
    first = SimpleNamespace(integers=lambda count: 0, uniform=lambda low, high: high)  # the whole picture, from the first frame on
    drawn = sample_clip(clip, first, 3, 48, stride=3)
    left = [int((frame[0, 20] > 170).int().argmax()) for frame in drawn]
    assert np.diff(left) == pytest.approx([12, 12], abs=1)


def test_clips_longer_than_the_file_are_refused(clip: Path):
    with pytest.raises(VideoError, match="12 frames and the clip spans 13"):
        sample_clip(clip, np.random.default_rng(0), 5, 32, stride=3)


def test_folder_draws_from_every_file(tmp_path: Path):
    for name, tone in (("dark", 20), ("light", 220)):
        write_video(tmp_path / f"{name}.mp4", np.full((4, 32, 32, 3), tone, np.uint8))
    folder, rng = VideoFolder(tmp_path), np.random.default_rng(0)
    means = [float(folder.frames(rng, 2, 16).float().mean()) for _ in range(12)]
    assert len(folder) == 2 and min(means) < 40 and max(means) > 200


def test_shrinking_averages_instead_of_skipping():
    checker = np.indices((64, 64)).sum(0) % 2 * 255
    frames = torch.from_numpy(np.broadcast_to(checker, (1, 3, 64, 64)).astype(np.uint8).copy())
    assert resize(frames, 8).float().sub(127.5).abs().max() < 10  # skipping pixels gives 0 or 255


def test_what_decord_cannot_read_pyav_reads(tmp_path):
    frames = np.full((3, 48, 48, 3), 90, np.uint8)
    write_video(tmp_path / "narrow.mp4", frames)
    assert np.abs(read_video(tmp_path / "narrow.mp4", [0, 2]).frames.astype(int) - 90).max() <= 3
