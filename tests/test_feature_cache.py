"""Features computed once: the same as computed anew, found again, and never taken for others."""

import importlib
import io
import sys
import weakref
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from backbones import build_backbone
from backbones.latent import Prompts
from para_video import feature_cache
from para_video.agent import VideoPolicy
from para_video.batches import Augmentation, DemoBatches
from para_video.camera import Camera, orbit
from para_video.checkpoint import PolicySpec
from para_video.demos import Demo
from para_video.feature_cache import CachedBatches, cache_features, cache_key
from para_video.hand import Hand
from para_video.heatmap import Bins
from para_video.precision import autocast
from para_video.readout import ReadoutSpec
from para_video.training import STATE_FILE, FitConfig, fit
from tests.tiny_models import TINY, saved, tiny


def demo(seed: int, steps: int = 11) -> Demo:
    rng = np.random.default_rng(seed)
    camera = Camera.from_fov(45.0, (64, 64), orbit(135, -40, 1.15, (0, 0.65, 0.08))).to(torch.float32)
    positions = (rng.uniform(-0.1, 0.1, (steps, 3)) + np.array([0, 0.65, 0.1])).astype(np.float32)
    turned = np.tile(np.eye(3, dtype=np.float32), (steps, 1, 1))
    frames = rng.integers(0, 256, (steps, 64, 64, 3), dtype=np.uint8)
    return Demo(frames, positions, turned, np.ones(steps, np.float32), np.ones(steps, np.float32), camera, "none", seed)


def make_policy(seed: int = 0) -> VideoPolicy:
    torch.manual_seed(seed)
    options = {"spec": ReadoutSpec(z=Bins(-0.3, 0.3, 8), relative=True), "grid": 16, "hidden": 16}
    small = {"width": 8, "channels": 8, "depth": 1, "max_horizon": 6}
    spec = PolicySpec("backbones.mini:MiniVideo", "para_video.heads:ParaHead", backbone_options=small, head_options=options)
    return spec.build(frozen=True)


def make_batches(**changes) -> DemoBatches:
    return DemoBatches([demo(0), demo(1)], **{"batch_size": 4, "chunk": 6, "stride": 3, **changes})


@pytest.mark.parametrize("hand", [None, Hand()], ids=["hand seen", "hand hidden"])
def test_a_cached_batch_has_the_features_and_labels_of_its_clip(tmp_path, hand):
    policy, batches = make_policy(), make_batches()
    policy.hand = hand
    cached = CachedBatches(cache_features(policy, batches, 1, tmp_path), batches[0], batch_size=5, seed=3)
    batch, whole = cached[7], batches.gather(batches.steps)
    with torch.no_grad(), autocast(torch.device("cpu")):
        features, query = policy.features(whole.clip, state=whole.state)
    used = features.nearest(query.times)[0].unique()
    for row in range(5):
        at = (whole.targets.positions - batch.targets.positions[row]).flatten(1).abs().sum(-1).argmin()
        torch.testing.assert_close(batch.features.maps[row].float(), features.maps[at, used].float(), atol=0.02, rtol=0.02)
        assert torch.equal(batch.targets.pixels[row], whole.targets.pixels[at])
        assert torch.equal(batch.targets.labelled[row], whole.targets.labelled[at])
        assert torch.equal(batch.state.camera.world_T_camera[row], whole.state.camera.world_T_camera[at])
        assert torch.equal(batch.state.opening[row], whole.state.opening[at])
    assert torch.equal(batch.features.times, features.times[used])
    assert batch.features.maps.dtype == torch.bfloat16
    for half in (True, False):  # also where nothing is calculated in bf16
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=half):
            assert set(policy.eval()(batch)) == {"heat", "z", "gripper"}


def test_copies_are_augmented_and_the_same_bytes_whenever_they_are_made(tmp_path):
    policy, batches = make_policy(), make_batches(augmentation=Augmentation())
    folders = [cache_features(policy, batches, 2, tmp_path / name) for name in ("one", "two")]
    files = [sorted(folder.glob("*.safetensors")) for folder in folders]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]] and len(files[0]) == 3
    assert files[0][0].read_bytes() != files[0][1].read_bytes()


def test_one_batch_of_maps_is_held_while_they_are_computed(tmp_path, monkeypatch):
    alive: list[weakref.ref] = []
    forwards = feature_cache._forwards

    def watched(*args):
        assert not any(maps() is not None for maps in alive), "a copy's last maps go before the next copy begins"
        for features, batch in forwards(*args):
            assert sum(maps() is not None for maps in alive) <= 1
            alive.append(weakref.ref(features.maps))
            yield features, batch

    monkeypatch.setattr(feature_cache, "_forwards", watched)
    cache_features(make_policy(), make_batches(), 2, tmp_path, batch_size=2)
    assert len(alive) > 10


def test_any_split_into_batches_gives_the_same_file(tmp_path):
    policy, batches = make_policy(), make_batches()
    whole, split = (load_file(cache_features(policy, batches, 1, tmp_path, batch_size=n) / "copy_000.safetensors") for n in (99, 5))
    assert whole.keys() == split.keys() and len(whole["maps"]) == len(batches.steps)
    for name, value in whole.items():
        torch.testing.assert_close(split[name], value, atol=0.02 if name == "maps" else 0, rtol=0.02 if name == "maps" else 0)


def test_what_is_there_is_not_computed_again(tmp_path, monkeypatch):
    policy, batches = make_policy(), make_batches()
    folder = cache_features(policy, batches, 1, tmp_path)
    monkeypatch.setattr("para_video.feature_cache._forwards", lambda *_: pytest.fail("computed again"))
    assert cache_features(policy, batches, 1, tmp_path) == folder
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == [folder]


def test_a_key_differs_whenever_the_features_would():
    policy, hides, batches = make_policy(), make_policy(), make_batches()
    hides.hand = Hand()
    one = batches.demos[1]
    camera = replace(one.camera, intrinsics=torch.diag(torch.tensor([1.1, 1.1, 1])) @ one.camera.intrinsics)
    others = []
    for change in ({"frames": 255 - one.frames}, {"moves": 0 * one.positions}, {"rotations": -one.rotations}, {"camera": camera}):
        others.append(make_batches())
        others[-1].demos[1] = replace(one, **change)
    keys = [
        cache_key(policy, batches, 1, 32),
        cache_key(make_policy(1), batches, 1, 32),
        cache_key(policy, batches, 2, 32),
        *(cache_key(policy, other, 1, 32) for other in others),
        cache_key(policy, batches, 1, 16),
        *(
            cache_key(policy, make_batches(**{name: value}), 1, 32)
            for name, value in {"stride": 2, "seed": 1, "context": 2}.items()
        ),
        cache_key(policy, make_batches(augmentation=Augmentation()), 1, 32),
        cache_key(policy, make_batches(augmentation=Augmentation(zoom=1.1)), 1, 32),
        cache_key(hides, make_batches(), 1, 32),
    ]
    assert len(set(keys)) == len(keys) and cache_key(make_policy(), make_batches(), 1, 32) == keys[0]


def test_a_key_tells_the_code_of_a_backbone(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("sys.dont_write_bytecode", True)
    keys = []
    for module, factor in (("once", 1), ("twice", 1), ("once", 2)):
        (tmp_path / f"{module}.py").write_text(
            f"from backbones.mini import MiniVideo\nclass Own(MiniVideo):\n    factor = {factor}\n"
        )
        monkeypatch.delitem(sys.modules, module, raising=False)
        importlib.invalidate_caches()
        torch.manual_seed(0)
        backbone = importlib.import_module(module).Own(width=8, channels=8, depth=1)
        assert backbone.factor == factor
        keys.append(cache_key(VideoPolicy(backbone, torch.nn.Identity(), (1.0,), frozen=True), make_batches(), 1, 32))
    assert len(set(keys)) == 3


def test_a_key_tells_the_code_that_a_backbone_is_built_on(monkeypatch):
    policy, batches, read = make_policy(), make_batches(), feature_cache._source
    keys = [cache_key(policy, batches, 1, 32)]
    for changed in ("backbones.mini", *feature_cache.MAKERS):
        monkeypatch.setattr(feature_cache, "_source", lambda name, changed=changed: "" if name == changed else read(name))
        keys.append(cache_key(policy, batches, 1, 32))
    assert len(set(keys)) == len(keys)


def test_a_key_tells_what_is_read_of_a_loaded_model_and_how():
    def key(name: str, **options) -> str:
        backbone = build_backbone(name, source=str(saved(name)), **{**TINY[name].options, **options})
        return cache_key(VideoPolicy(backbone, torch.nn.Identity(), (1.0,), frozen=True), make_batches(), 1, 32)

    layers = [f"encoder.layer.{i}" for i in range(3)]
    keys = [
        *(key("dinov2", **options) for options in ({}, {"scale": 2.0}, {"dtype": "bfloat16"})),
        *(key("dinov2", taps=[layers[i], layers[2]]) for i in (0, 1)),
        *(key("svd", **options) for options in ({}, {"level": 2.0}, {"level": 2.0, "denoising_steps": 2}, {"fps": 9})),
    ]
    assert len(set(keys)) == len(keys) and key("svd") == keys[5]
    # an offloaded model has no loss, but the same features
    assert key("svd", offload="model", device="cpu") == key("svd")


def test_a_key_tells_on_which_type_of_device(monkeypatch):
    policy, batches = make_policy(), make_batches()
    keys = []
    for device in ("cpu", "cuda", "cuda:1"):
        monkeypatch.setattr(type(policy.backbone), "device", torch.device(device))
        monkeypatch.setattr(feature_cache, "precision_of", lambda _: "float32")
        keys.append(cache_key(policy, batches, 1, 32))
    assert keys[0] != keys[1] == keys[2]


def test_a_key_tells_which_text_encoder_there_is():
    def key(value: float) -> str:
        backbone = tiny("cogvideox-2b")
        backbone.prompts = Prompts(lambda prompt: {"text": torch.full((6, 16), value)})
        return cache_key(VideoPolicy(backbone, torch.nn.Identity(), (1.0,), frozen=True), make_batches(), 1, 32)

    assert key(0.0) == key(0.0) != key(1.0)


def test_a_failed_computation_leaves_nothing(tmp_path, monkeypatch):
    def full(path: Path, content: bytes) -> None:
        raise OSError(28, f"cannot write {path}")

    monkeypatch.setattr("para_video.feature_cache.write_atomically", full)
    with pytest.raises(OSError, match="cannot write"):
        cache_features(make_policy(), make_batches(), 1, tmp_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


@pytest.mark.parametrize("after", [0, 3], ids=["opening", "writing"])
def test_a_full_disk_is_told_with_the_remedy(after, tmp_path, monkeypatch):
    """after: bytes that still find room; before them there is not even a file."""
    make = Path.open

    class Full(io.FileIO):
        def write(self, content) -> int:
            if self.tell() + len(content) > after:
                raise OSError(28, "No space left on device")
            return super().write(content)

    def opened(path: Path, mode: str = "r", *args, **named):
        if path.name != "copy_000.safetensors" or mode != "wb":
            return make(path, mode, *args, **named)
        if not after:
            raise OSError(28, "No space left on device")
        return io.BufferedWriter(Full(path, "w"), buffer_size=2**30)  # nothing is written before it has to be

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(
        OSError, match=r"cannot write .*copy_000.safetensors: No space left .*; free some space or choose another folder"
    ):
        cache_features(make_policy(), make_batches(), 1, tmp_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_what_goes_wrong_while_features_are_computed_is_not_told_as_a_full_disk(tmp_path, monkeypatch):
    def failing(*_):
        raise FileNotFoundError(2, "No such file", "kernel.cubin")
        yield

    monkeypatch.setattr(feature_cache, "_forwards", failing)
    with pytest.raises(FileNotFoundError) as told:
        cache_features(make_policy(), make_batches(), 1, tmp_path)
    assert "cannot write" not in str(told.value) and not any(path.is_dir() for path in tmp_path.iterdir())


def test_maps_that_are_no_numbers_are_told_and_not_kept(tmp_path):
    policy = make_policy()
    with torch.no_grad():
        policy.backbone.down1.conv1.weight.fill_(torch.nan)
    with pytest.raises(ValueError, match='MiniVideo gives maps that are not finite.*try "bfloat16" or "float32"'):
        cache_features(policy, make_batches(), 1, tmp_path)
    assert not any(path.is_dir() for path in tmp_path.iterdir())


def test_what_a_killed_computation_left_is_removed(tmp_path):
    policy, batches = make_policy(), make_batches()
    folder = tmp_path / cache_key(policy, batches, 1, 32)
    left, other = tmp_path / f".{folder.name}-x1y2", tmp_path / ".another-x1y2"
    left.mkdir()
    other.mkdir()
    assert cache_features(policy, batches, 1, tmp_path) == folder and not left.exists() and other.exists()


def test_damage_is_told(tmp_path):
    batches = make_batches()
    folder = cache_features(make_policy(), batches, 1, tmp_path)
    (folder / "copy_000.safetensors").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match="damaged.*remove .* to compute them again"):
        CachedBatches(folder, batches[0], batch_size=2)


def test_a_head_learns_from_the_cache_and_the_backbone_stays(tmp_path):
    policy, batches = make_policy(), make_batches()
    before = {name: value.clone() for name, value in policy.backbone.state_dict().items()}
    folder = cache_features(policy, batches, 1, tmp_path)
    result = fit(
        policy,
        lambda seed, rank, processes: CachedBatches(folder, batches[0], batch_size=4, seed=seed, rank=rank),
        FitConfig(80, 1e-2, warmup=5, ema=0.9),
        folder=tmp_path,
    )
    with safe_open(str(tmp_path / STATE_FILE), "pt") as state:
        assert not [name for name in state.keys() if "backbone." in name]  # noqa: SIM118
    assert result.losses[-1]["heat"] < 0.9 * result.losses[0]["heat"]
    assert all(torch.equal(value, before[name]) for name, value in policy.backbone.state_dict().items())


@pytest.mark.parametrize(("copies", "shown"), [(0, {}), (1, {"future": 3})])
def test_no_copies_and_future_frames_are_refused(copies, shown, tmp_path):
    with pytest.raises(ValueError, match="copies must be at least 1, .* must not show the future"):
        cache_features(make_policy(), make_batches(**shown), copies, tmp_path)
