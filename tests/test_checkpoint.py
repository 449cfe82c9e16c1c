"""Checkpoints: round trip, partial initialisation, and what is refused."""

import json

import pytest
import torch

from para_video.checkpoint import CONFIG_FILE, WEIGHTS_FILE, PolicySpec, initialise, load_policy, save_policy
from para_video.heatmap import Bins
from para_video.readout import ReadoutSpec


def spec(**head) -> PolicySpec:
    options = {"spec": ReadoutSpec(z=Bins(0.0, 0.5, 16)), "grid": 16, "hidden": 8, **head}
    return PolicySpec(
        "backbones.mini:MiniVideo", "para_video.heads:ParaHead", (1.0, 2.0), 2,
        backbone_options={"width": 8, "channels": 8, "depth": 1}, head_options=options,
    )  # fmt: skip


def test_a_policy_comes_back_with_its_weights_and_its_spec(tmp_path):
    torch.manual_seed(0)
    policy = spec().build().eval()
    save_policy(policy, spec(), tmp_path)
    again, read = load_policy(tmp_path)
    assert read == spec()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in policy.state_dict().items())
    clip = torch.rand(1, 2, 3, 32, 32)
    first, second = (p.head(p.features(clip)[0], times=torch.tensor([1.0]), size=(32, 32)).heat for p in (policy, again))
    assert torch.equal(first, second)


def test_initialise_takes_what_fits_and_says_how_much(tmp_path):
    torch.manual_seed(0)
    source = spec().build()
    save_policy(source, spec(), tmp_path)
    other = spec(spec=ReadoutSpec(z=Bins(0.0, 0.5, 20))).build()
    taken, own = initialise(other, tmp_path)
    assert own - taken == 2  # weight and bias of the last layer, which has other bins
    assert torch.equal(other.backbone.stem.weight, source.backbone.stem.weight)


def test_initialise_leaves_buffers(tmp_path):
    source, other = spec().build(), spec().build()
    for policy, value in ((source, 1.0), (other, 2.0)):
        policy.register_buffer("statistics", torch.tensor(value))
    save_policy(source, spec(), tmp_path)
    initialise(other, tmp_path)
    assert float(other.statistics) == 2.0
    assert torch.equal(other.backbone.stem.weight, source.backbone.stem.weight)


def test_initialise_refuses_a_checkpoint_of_another_shape(tmp_path):
    save_policy(spec().build(), spec(), tmp_path)
    policy = spec().build()
    for value in list(policy.parameters()):
        value.data = torch.zeros(value.numel() + 1)
    with pytest.raises(ValueError, match="nothing in .* fits"):
        initialise(policy, tmp_path)


@pytest.mark.parametrize("name", [CONFIG_FILE, WEIGHTS_FILE])
def test_truncated_files_are_named(tmp_path, name):
    save_policy(spec().build(), spec(), tmp_path)
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(ValueError, match=f"{name} is damaged"):
        load_policy(tmp_path)


def test_nan_weights_are_refused(tmp_path):
    policy = spec().build()
    with torch.no_grad():
        policy.head.trunk.start.fill_(torch.nan)
    save_policy(policy, spec(), tmp_path)
    with pytest.raises(ValueError, match="NaN.*head.trunk.start"):
        load_policy(tmp_path)


def test_a_checkpoint_leads_to_no_code_outside_the_project(tmp_path):
    save_policy(spec().build(), spec(), tmp_path)
    path = tmp_path / CONFIG_FILE
    config = json.loads(path.read_text())
    config["policy"]["backbone"] = "os:system"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="'os:system' is outside"):
        load_policy(tmp_path)
    config["policy"]["head_options"]["spec"]["class"] = "subprocess:Popen"
    path.write_text(json.dumps(config))
    with pytest.raises(ValueError, match="may not hold a 'subprocess:Popen'"):
        load_policy(tmp_path)


def test_a_folder_without_a_checkpoint_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no checkpoint"):
        load_policy(tmp_path)
