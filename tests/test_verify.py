"""Every promise of the contract can be broken, and then the check of this promise says so; what `backbones.verify` writes."""

import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from backbones import contract, verify
from backbones.contract import Broken, Trial, checks_of
from backbones.mini import MiniVideo
from backbones.verify import VerifyConfig, bits_apart, failed, fingerprint, main, sides, verdicts
from para_video.features import FeatureSpec, VideoBackbone, VideoFeatures, capture, stride_affine

MINI = {"width": 8, "channels": 12, "depth": 1, "max_context": 4, "max_horizon": 6}


class Mended(MiniVideo):
    """Mini, whose features are changed on their way out."""

    def __init__(self, **options) -> None:
        super().__init__(**{**MINI, **options})
        self.eval()
        contract.leave_start(self)

    def mend(self, found: VideoFeatures, video: Tensor) -> VideoFeatures:
        return found

    def features(self, video, **options):
        return self.mend(super().features(video, **options), video)


class Narrow(Mended):
    def mend(self, found, video):
        return found.with_maps(found.maps[:, :, 1:])


class Late(Mended):
    """Times that are off by one."""

    def mend(self, found, video):
        return replace(found, times=found.times + 1, spans=found.spans + 1)


class Filled(Mended):
    """Keeps a map of copies of the first frame, which ends before that begins."""

    def mend(self, found, video):
        span = torch.tensor([[1.0, 0.0]]) - video.shape[1]
        maps = torch.cat([found.maps[:, :1], found.maps], 1)
        return replace(found, maps=maps, times=torch.cat([span.mean(-1), found.times]), spans=torch.cat([span, found.spans]))


class Forgetful(Mended):
    """Without the map of the present."""

    def mend(self, found, video):
        kept = found.times != 0
        return VideoFeatures(found.maps[:, kept], found.times[kept], found.spans[kept], found.image_to_map)


class Shuffled(Mended):
    """Tokens in another order, rows for columns."""

    def mend(self, found, video):
        return found.with_maps(found.maps.transpose(-1, -2).flip(-1))


class Backward(Mended):
    """Maps of observed frames from the last to the first."""

    def mend(self, found, video):
        seen = int((found.times <= 0).sum())
        return found.with_maps(torch.cat([found.maps[:, :seen].flip(1), found.maps[:, seen:]], 1))


class Askew(Mended):
    def mend(self, found, video):
        return replace(found, image_to_map=found.image_to_map * 2)


class Mixed(Mended):
    """Clips of a batch that know of each other."""

    def mend(self, found, video):
        return found.with_maps(found.maps - found.maps.mean(0, keepdim=True))


class Unseeded(Mended):
    def mend(self, found, video):
        return found.with_maps(found.maps + 1e-3 * torch.randn_like(found.maps))


class Careless(Mended):
    """Writes into its input."""

    def features(self, video, **options):
        found = super().features(video, **options)
        with torch.no_grad():
            video += 0.1
        return found


class Lenient(Mended):
    """Takes what it was not made for."""

    def features(self, video, **options):
        return super().features(video[:, -self.spec.contexts[1] :], **options)


class Restless(Mended):
    """Trains on when frozen."""

    def requires_grad_(self, requires_grad=True):
        return self


class Deaf(Mended):
    """No gradient reaches what comes before its features."""

    def joint(self, clip, observed, **options):
        found, loss = super().joint(clip, observed, **options)
        return found, loss.detach()


class Leaking(Mended):
    def joint(self, clip, observed, **options):
        found, loss = super().joint(clip, observed, **options)
        return found.with_maps(found.maps + 1e-6 * clip[:, observed:].mean()), loss


class Apart(Mended):
    """Features of `joint` that are not those of `features`."""

    def joint(self, clip, observed, **options):
        found, loss = super().joint(clip, observed, **options)
        return found.with_maps(found.maps * 1.1), loss


class Moody(Mended):
    """A loss that no generator reaches."""

    def joint(self, clip, observed, **options):
        return super().joint(clip, observed, **{**options, "generator": None})


class MoodyAlone(Mended):
    """Another that none reaches, where no features are wanted."""

    def generative_loss(self, clip, observed, *, generator=None):
        return super().generative_loss(clip, observed)


class InPlace(VideoBackbone):
    """An image model whose layer after the tap works in place: early stop gives other features than the whole forward."""

    def __init__(self) -> None:
        super().__init__()
        self.spec = FeatureSpec(8, 8, span=1, predicts=False, contexts=(1, 2), max_horizon=0, size_multiple=8)
        self.model = nn.Sequential(nn.Conv2d(3, 8, 8, 8), nn.ReLU(inplace=True))

    def features(self, video, *, horizon=0, since=None, prompts=None, generator=None) -> VideoFeatures:
        self.spec.check(video, horizon)
        with capture(self.model, "0", stop=True) as seen:
            self.model(video.flatten(0, 1))
        times = torch.arange(video.shape[1]) - (video.shape[1] - 1.0)
        maps = seen["0"].unflatten(0, video.shape[:2])
        return VideoFeatures(maps, times, times[:, None].expand(-1, 2), stride_affine(8.0))


BROKEN = {
    Narrow: ("outputs_as_declared", "declared 12 channels"),
    Late: ("frames_in_order", "the first map begins at 0, not -0|the first map begins at 1, not 0"),
    Filled: ("frames_in_order", "maps of no frame are among the spans"),
    Forgetful: ("earlier_maps_left_out", "no map describes frame 0"),
    Shuffled: ("changes_in_place", "should change cell"),
    Backward: ("changes_in_time", "frame -1 changes the map of frames -2 to -2 most"),
    Askew: ("places_as_declared", "has not the declared stride"),
    Mixed: ("rows_apart", "depend on its batch"),
    Unseeded: ("repeatable", "gave other features"),
    Careless: ("repeatable", "the input was changed"),
    Lenient: ("refusals", "not refused, which should be"),
    Restless: ("frozen", "these are trained"),
    Deaf: ("gradients_reach_all", "have no gradient"),
    Leaking: ("the_future_stays_out", "it leaks"),
    Apart: ("joint_gives_the_features", "not those of the observed frames"),
    Moody: ("the_loss_is_seeded", "gave the same loss|gave the losses"),
    MoodyAlone: ("the_loss_is_seeded", "gave the same loss|gave the losses"),
    InPlace: ("early_stop_is_exact", "the whole forward are others"),
}
"""The check that sees what is wrong, and what it says."""


def test_each_check_has_a_backbone_that_fails_it() -> None:
    assert {name for name, _ in BROKEN.values()} == {check.__name__ for check in contract.CHECKS}


@pytest.mark.parametrize("kind", BROKEN, ids=lambda kind: kind.__name__)
def test_what_is_broken_is_seen(kind: type[VideoBackbone]) -> None:
    name, message = BROKEN[kind]
    backbone = kind(tap="fine") if issubclass(kind, MiniVideo) else kind()
    with pytest.raises(Broken, match=message):
        getattr(contract, name)(Trial(backbone))


def test_a_sound_backbone_passes_and_a_broken_one_is_red_where_it_is_broken() -> None:
    sound = verdicts(Trial(Mended(tap="fine"), every=False))
    assert set(sound.values()) == {"ok"} and len(sound) == len(checks_of(Mended())) == len(contract.CHECKS)
    red = verdicts(Trial(Leaking(tap="fine"), every=False), gradients=False)
    assert failed(red) == ["the_future_stays_out"] and "gradients_reach_all" not in red


def test_what_a_model_raises_is_a_verdict(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(trial: Trial) -> None:
        raise torch.OutOfMemoryError("too large")

    def odd(trial: Trial) -> None:
        raise KeyError("blocks.3")

    monkeypatch.setattr(verify, "checks_of", lambda backbone: [full, odd])
    found = verdicts(Trial(Mended()))
    assert found == {"full": "not checked: out of memory", "odd": "KeyError: 'blocks.3'"} and failed(found) == ["odd"]


def test_frozen_leaves_what_was_trained_as_it_was() -> None:
    backbone = Mended(tap="fine")
    next(backbone.parameters()).requires_grad_(False)
    before = [parameter.requires_grad for parameter in backbone.parameters()]
    contract.frozen(Trial(backbone))
    assert [parameter.requires_grad for parameter in backbone.parameters()] == before


def test_fingerprints_stand_rounding_and_tell_models_apart() -> None:
    values = torch.randn(4, 12, 8, 8, generator=torch.Generator().manual_seed(1))
    other = torch.randn(4, 12, 8, 8, generator=torch.Generator().manual_seed(2))
    assert bits_apart(sides(values), sides(3 * values + 1e-4 * other + 2)) <= 1
    assert 16 < bits_apart(sides(values), sides(other)) < 48
    assert len(sides(values)) == 16 and bits_apart("0f", "f0") == 8
    found, again, another = (fingerprint(Trial(drawn(seed))) for seed in (0, 0, 1))
    assert found == again and found["shape"] == [2, 3, 12, 16, 16]
    assert bits_apart(found["bits"], another["bits"]) > 8


def drawn(seed: int) -> Mended:
    torch.manual_seed(seed)
    return Mended(tap="fine")


def test_the_command_keeps_a_row_and_fails_where_a_check_does(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(verify, "cost", lambda config: {"ms": 1.0})
    config = VerifyConfig("mini-random", json.dumps({**MINI, "tap": "fine"}), steps=2, clips=8, out=tmp_path / "rows.json")
    row = main(config)
    (kept,) = json.loads(config.out.read_text())["rows"]
    assert kept == json.loads(json.dumps(row)) and set(row["verdicts"].values()) == {"ok"}
    assert row["circles"]["px_seen"] > 0 and row["dtype"] == ["float32"] and len(row["weights"]) == 16
    assert "frames in order" in capsys.readouterr().out
    main(replace(config, steps=0))
    assert "0 of 64 bits from the row of cpu" in capsys.readouterr().out
    some = {"repeatable": "ok", "frozen": "not checked: no memory"}
    monkeypatch.setattr(verify, "verdicts", lambda trial, gradients: some)
    main(replace(config, steps=0))
    assert "1 of 2 promises kept, 1 not checked" in capsys.readouterr().out
    monkeypatch.setattr(verify, "verdicts", lambda trial, gradients: {"repeatable": "the input was changed"})
    with pytest.raises(RuntimeError, match="mini-random does not keep 1 of 1 promises: repeatable"):
        main(replace(config, steps=0))
    (kept,) = json.loads(config.out.read_text())["rows"]
    assert kept["verdicts"] == {"repeatable": "the input was changed"} and "fingerprint" not in kept


def test_paths_of_a_machine_stay_there(tmp_path) -> None:
    (tmp_path / "model").mkdir()
    assert verify.told({"source": str(tmp_path / "model"), "level": 0.3}) == {"source": "model", "level": 0.3}


def test_impossible_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 0 and clips at least 8"):
        VerifyConfig("mini", clips=0)
    with pytest.raises(ValueError, match="unknown backbone 'minni'"):
        VerifyConfig("minni")
