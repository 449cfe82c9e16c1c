"""Backbones by name. Modules are imported when asked for, so that one model family's packages are not needed by another."""

from __future__ import annotations

from para_video.features import VideoBackbone, import_class

CATALOGUE = {
    "mini": "backbones.mini:MiniVideo",
}


def import_string(name: str) -> str:
    """A catalogue name, or a "package.module:Class" string itself, as an import string.

    Raises:
        ValueError: an unknown name.
    """
    target = CATALOGUE.get(name, name)
    if ":" not in target:
        raise ValueError(f"unknown backbone {name!r}; choose from {sorted(CATALOGUE)} or 'package.module:Class'")
    return target


def backbone_class(name: str) -> type[VideoBackbone]:
    """The class behind a catalogue name or a "package.module:Class" string.

    Raises:
        ValueError: an unknown name, or an import string that leads to no VideoBackbone.
    """
    return import_class(import_string(name), VideoBackbone)


def build_backbone(name: str, **options) -> VideoBackbone:
    """A backbone from its catalogue name or import string, built with `options`."""
    return backbone_class(name)(**options)
