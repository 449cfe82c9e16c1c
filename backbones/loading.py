"""Parts of pretrained models, from a hub or a local folder: what goes wrong is told in one line with its remedy."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from torch import nn
from transformers import AutoModel
from transformers.utils import cached_file

from backbones.catalogue import installed

P = TypeVar("P")


@dataclass(frozen=True)
class Source:
    """Where a model lies.

    Args:
        name: hub id or local folder. revision: branch, tag or commit on the hub. dtype: of the weights, such as "bfloat16".
        blocks: how many of the denoiser's blocks are loaded, from its first one; None for all.

    Raises:
        ValueError: an unknown dtype.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"
    blocks: int | None = None

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; choose float32, bfloat16 or float16")

    def first_blocks(self) -> dict[str, int]:
        """Options by which diffusers loads `blocks` blocks of a transformer."""
        return {} if self.blocks is None else {"num_layers": self.blocks}


class Config(dict[str, Any]):
    """The config of a part, or the index of a whole model, where it is needed before or without the part: by `load_part`."""

    @classmethod
    def from_pretrained(cls, name: str, *, subfolder: str, revision: str | None, file: str = "config.json") -> Self:
        path = Path(name, subfolder, file)
        if not Path(name).is_dir():
            try:
                path = Path(hf_hub_download(name, file, subfolder=subfolder or None, revision=revision))
            except HFValidationError as error:  # a mistyped folder is no hub id either
                raise OSError(str(error)) from error
        return cls(json.loads(path.read_text()))


def load_part(kind: type[P], source: Source, subfolder: str = "", **options: Any) -> P:
    """One part of a model, a module, a tokenizer or a scheduler, by the `from_pretrained` of its library; weights from safetensors.

    Raises:
        FileNotFoundError: it is nowhere, gated, or cannot be reached. ValueError: its files are damaged or of another kind.
        ImportError: it wants packages that are not installed.
    """
    where = f"{source.name}/{subfolder}".rstrip("/")
    if issubclass(kind, (nn.Module, AutoModel)):
        options = {"torch_dtype": getattr(torch, source.dtype), "use_safetensors": True, **options}
    try:
        _check_vocabulary(kind, source, subfolder)
        return kind.from_pretrained(  # type: ignore[attr-defined]  # of diffusers and transformers
            source.name, subfolder=subfolder, revision=source.revision, **options
        )
    except GatedRepoError as error:
        raise FileNotFoundError(f"{source.name} is gated: accept its licence on its page, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"there is no model {source.name} on the hub, nor a folder of that name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise FileNotFoundError(
            f"{where} is not on this machine and the hub cannot be reached: download it, or pass its folder"
        ) from error
    except OSError as error:
        absent = "" if Path(source.name).is_dir() else "; it is no local folder and the hub did not give it"
        raise FileNotFoundError(f"{where} has no usable {kind.__name__}{absent}: {str(error).splitlines()[0]}") from error
    except (RuntimeError, KeyError, TypeError, ValueError, ImportError) as error:
        told = str(error).lower()
        if any(name in told for name in ("tiktoken", "sentencepiece", "protobuf")) and not installed("text"):
            raise ImportError(f"{where} needs two more packages: pip install 'para_video[text]'") from error
        # transformers asks for tiktoken where sentencepiece cannot read a file
        if isinstance(error, ImportError) and "tiktoken" not in told:
            raise
        raise ValueError(f"{where} does not load as {kind.__name__}: {str(error).splitlines()[0]}; download it again") from error


def configs(module: nn.Module) -> dict[str, dict[str, str]]:
    """What the libraries' configs of a module's parts say, without notes on where they were loaded from."""
    found = {name: getattr(part, "config", {}) for name, part in module.named_children()}
    plain = {name: config.to_dict() if hasattr(config, "to_dict") else dict(config) for name, config in found.items()}
    return {name: {k: str(v) for k, v in config.items() if not k.startswith("_")} for name, config in plain.items()}


def _check_vocabulary(kind: type, source: Source, subfolder: str) -> None:
    """Without its files transformers quietly makes a tokenizer that knows no word."""
    files = sorted(set(getattr(kind, "vocab_files_names", {}).values()))
    place = {"subfolder": subfolder, "revision": source.revision, "_raise_exceptions_for_missing_entries": False}
    if files and all(cached_file(source.name, file, **place) is None for file in files):
        raise OSError(f"none of {files} is there")


def insert_lora(network: nn.Module, rank: int, layers: str | list[str]) -> None:
    """Freeze a network and put low-rank layers, which learn, beside some of its layers (Hu et al. 2022). They are float32 beside
    weights of any precision, and what they add is rounded to that of the layer.

    Args:
        layers: ends of their names, or a pattern of the whole names.

    Raises:
        ImportError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ImportError("LoRA needs the package peft: pip install peft") from error
    network.requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=layers), network)
    for name, parameter in network.named_parameters():
        if "lora_" in name:  # the package makes them in the layer's precision, in which small steps are lost
            parameter.data = parameter.data.float()
