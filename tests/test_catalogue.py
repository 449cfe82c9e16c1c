"""What the catalogue says of backbones is what models of the published sizes are, and docs/backbones.md says the same."""

import json
import runpy
from pathlib import Path

import pytest

from backbones import CATALOGUE, build_backbone, catalogue
from backbones import __main__ as listing
from backbones.__main__ import ListConfig, main
from backbones.catalogue import FACTS, billions, line, memory, remedy, rows, state
from para_video.runs import command_line
from tests.published import published, text_parameters

ROOT = Path(__file__).parent.parent

DENOISERS = {
    "svd": 1.525, "svd-xt": 1.525, "wan2.1-t2v-1.3b": 1.42, "wan2.1-t2v-14b": 14.3, "wan2.1-i2v-14b": 16.4, "wan2.2-ti2v-5b": 5.0,
    "cosmos-predict2-2b": 1.96, "cogvideox-2b": 1.69, "cogvideox-5b": 5.57, "cogvideox-5b-i2v": 5.57, "cogvideox1.5-5b": 5.57,
    "cogvideox1.5-5b-i2v": 5.57, "mochi": 10.03, "ltx": 1.92, "ltx-0.9.5": 1.92, "ltx-13b": 13.0, "hunyuan": 12.8,
    "hunyuan-i2v": 12.8, "hunyuan-1.5": 8.3, "hunyuan-1.5-i2v": 8.3,
}  # fmt: skip
"""Billions of parameters that the models are known to have: the configs that are built here are theirs."""


def test_every_backbone_has_its_facts() -> None:
    assert list(FACTS) == list(CATALOGUE)
    assert {facts.family for facts in FACTS.values()} == set(catalogue.FAMILIES)


@pytest.mark.parametrize("name", CATALOGUE)
def test_facts_are_those_of_the_published_model(name: str) -> None:
    backbone, facts = published(name), FACTS[name]
    assert facts.spec == backbone.spec
    assert facts.taps == (getattr(backbone, "taps", None) or (backbone.tap,))
    assert facts.parameters == sum(parameter.numel() for parameter in backbone.parameters())
    assert facts.text_parameters == text_parameters(name)
    assert facts.most_px == getattr(backbone, "most", None)
    if name in DENOISERS:
        billion = sum(parameter.numel() for parameter in backbone.denoiser.parameters()) / 1e9
        assert billion == pytest.approx(DENOISERS[name], rel=0.02)


def test_the_table_in_the_docs_is_that_of_the_catalogue(tmp_path: Path) -> None:
    script = runpy.run_path(str(ROOT / "benchmarks" / "catalogue_table.py"))
    kept = ROOT / "docs" / "backbones.md"
    page = tmp_path / kept.name
    page.write_text(kept.read_text())
    script["main"](script["Config"](page=page))
    assert page.read_text() == kept.read_text()


def test_numbers_are_told_to_three_digits_and_memory_by_part() -> None:
    assert [billions(n) for n in (2_254_442_729, 12_349_536, 1_059_334)] == ["2.25 B", "12.3 M", "1.06 M"]
    assert [memory(row) for row in rows(["svd", "wan2.1-t2v-1.3b", "mini"])] == ["4.5", "3.1 + 11.4", "< 0.1"]


def test_what_is_not_known_is_said_to_be_unknown() -> None:
    (row,) = rows(["vivit"])
    assert row["licence"] is None and line(row)[-2:] == ["unknown", "unknown"]
    assert line(rows(["dinov3"])[0])[-1] == "yes" and line(rows(["mini"])[0])[-1] == "no"


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(catalogue, "installed", lambda extra: False)
    assert (state("efficientnet-lite0"), state("ltx")) == ("[image]", "[text]")
    assert remedy("[image]") == "pip install 'para_video[image]'"
    monkeypatch.setattr(catalogue, "installed", lambda extra: True)
    monkeypatch.setattr(catalogue, "_downloaded", lambda source: source == "Lightricks/LTX-Video")
    states = [state(name) for name in ("mini", "efficientnet-lite0", "ltx", "ltx-13b", "dinov3")]
    assert states == ["yes", "yes", "yes", "hub", "login"]
    assert "hf auth login" in remedy("login")


def test_weights_on_this_machine_are_seen(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot = tmp_path / "snapshots" / "c0ffee"
    (snapshot / "vae").mkdir(parents=True)
    monkeypatch.setattr(catalogue, "snapshot_download", lambda source, local_files_only: str(snapshot))
    assert not catalogue._downloaded("a/b")
    (snapshot / "vae" / "model.safetensors").touch()
    assert catalogue._downloaded("a/b")


def test_a_download_that_was_cut_off_is_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    snapshot, shards = tmp_path / "snapshots" / "c0ffee", ("model-1-of-2.safetensors", "model-2-of-2.safetensors")
    snapshot.mkdir(parents=True)
    monkeypatch.setattr(catalogue, "snapshot_download", lambda source, local_files_only: str(snapshot))
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict(zip("ab", shards, strict=True))}))
    (snapshot / shards[0]).touch()
    assert not catalogue._downloaded("a/b"), "the second part is missing"
    (snapshot / shards[1]).symlink_to(tmp_path / "blobs" / "beef")
    assert not catalogue._downloaded("a/b"), "a link to nothing"
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "beef").touch()
    assert catalogue._downloaded("a/b")
    (tmp_path / "blobs" / "cafe.incomplete").touch()
    assert not catalogue._downloaded("a/b"), "of another file, a part"


def test_the_list_is_shown_whole_by_family_and_as_json(capsys: pytest.CaptureFixture) -> None:
    assert [row["name"] for row in main(ListConfig())] == list(CATALOGUE)
    shown = capsys.readouterr().out
    assert all(name in shown for name in CATALOGUE) and "pixels of a cell" in shown
    assert {row["family"] for row in main(ListConfig(family="image"))} == {"image model"}
    capsys.readouterr()
    main(ListConfig("svd", json=True))
    (row,) = json.loads(capsys.readouterr().out)
    assert row["spec"]["channels"] == 1920 and row["taps"] == ["up_blocks.1", "up_blocks.2"]


def test_one_backbone_is_told_with_its_options(capsys: pytest.CaptureFixture) -> None:
    main(ListConfig("mini"))
    main(ListConfig("dinov3"))
    shown = capsys.readouterr().out
    assert "denoising_steps=1" in shown and "revision=None" in shown and "facebook/dinov3-vitb16" in shown
    main(ListConfig("animatediff"))
    shown = capsys.readouterr().out
    assert "base='stable" in shown and "offload='none'" in shown, "its own and those of all that draw futures"
    assert "base: hub id" in shown and "offload: for frozen use" in shown
    main(ListConfig("efficientnet-lite0"))
    listed = told("options", capsys)
    assert "scale=1.0" in listed and "lora_rank" not in listed and "attention" not in listed, "which it refuses"


def told(title: str, capsys: pytest.CaptureFixture) -> str:
    return next(line for line in capsys.readouterr().out.splitlines() if line.startswith(f"{title}: "))


def test_options_that_a_model_refuses_are_not_listed(capsys: pytest.CaptureFixture) -> None:
    for name, option in (
        ("svd", "truncate"),
        ("svd", "text_device"),
        ("efficientnet-lite0", "gradient_checkpointing"),
        ("mochi", "truncate"),
    ):
        main(ListConfig(name))
        assert option not in told("options", capsys)
    for name, option in (("wan2.1-t2v-1.3b", "truncate=False"), ("dinov2", "gradient_checkpointing=False")):
        main(ListConfig(name))
        assert option in told("options", capsys)


def test_the_largest_frames_are_told_where_there_are_some(capsys: pytest.CaptureFixture) -> None:
    for name, sides in (("videomae", "sides up to 224 px (at scale 1)"), ("vjepa2-large", "up to 256 px"), ("dinov2", "any size")):
        main(ListConfig(name))
        assert sides in told("frames", capsys)


def test_help_shows_each_example_on_a_line_of_its_own(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setattr("sys.argv", ["backbones", "--help"])
    with pytest.raises(SystemExit):
        command_line(main, ListConfig, listing.__doc__ or "")
    lines = [line.strip() for line in capsys.readouterr().out.splitlines()]
    assert "python -m backbones" in lines and "python -m backbones svd" in lines


def test_unknown_names_and_families_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown backbone 'minni'"):
        ListConfig("minni")
    with pytest.raises(ValueError, match="is not in the catalogue"):
        ListConfig("a.b:C")
    with pytest.raises(ValueError, match="unknown family 'audio'; choose from video-diffusion"):
        ListConfig(family="audio")
    with pytest.raises(ValueError, match="svd is of the family 'video diffusion', not 'image-model'"):
        ListConfig("svd", family="image-model")


def test_unknown_options_are_told_before_anything_is_loaded() -> None:
    with pytest.raises(ValueError, match=r"options \['lora_ranks'\]; it knows .*'offload'.*; did you mean 'lora_rank'\?"):
        build_backbone("svd", source="nowhere", lora_ranks=4)
