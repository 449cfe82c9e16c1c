"""Parts of pretrained models, from a hub or a local folder: what goes wrong is told in one line with its remedy."""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from torch import nn
from transformers import AutoModel, PreTrainedModel
from transformers.utils import cached_file

from backbones.catalogue import installed

P = TypeVar("P")

DTYPES = ("float32", "bfloat16", "float16")
PLAIN_ATTENTION = (None, "sdpa", "eager")
"""What a config may say of attention: torch's own kernels, or nothing."""


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
        if self.dtype not in DTYPES:
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
        if not path.is_file():
            raise FileNotFoundError(_absence(file, source=name, subfolder=subfolder))
        return cls(json.loads(path.read_text()))


def load_part(kind: type[P], source: Source, subfolder: str = "", **options: Any) -> P:
    """One part of a model, a module, a tokenizer or a scheduler, by the `from_pretrained` of its library; weights from safetensors,
    all of them, unless the caller asks transformers for `output_loading_info` and so looks at what is missing itself.

    Raises:
        FileNotFoundError: it is nowhere, gated, or cannot be reached, or a folder is of another kind of model.
        ConnectionError, OSError: a download broke off, or the disk is full.
        ValueError: its files are damaged or of another kind, lack weights, or name kernels of attention from elsewhere.
        ImportError: it wants packages that are not installed.
    """
    where = f"{source.name}/{subfolder}".rstrip("/")
    local = Path(source.name).is_dir()
    if not local and (source.name.startswith((".", "/", "~")) or source.name.count("/") > 1):  # no id of a hub looks like that
        raise FileNotFoundError(f"there is no folder {source.name}: mend the path, or give a model's name on the hub")
    if issubclass(kind, AutoModel):
        options["trust_remote_code"] = False  # left out, it is asked for
    if issubclass(kind, (nn.Module, AutoModel)):
        options = {"torch_dtype": getattr(torch, source.dtype), "use_safetensors": True, **options}
    of_transformers = issubclass(kind, (PreTrainedModel, AutoModel))
    if of_transformers:
        _check_attention(_read_config(Path(source.name, subfolder)) if local else _hub_config(source, subfolder), where)
    if informed := of_transformers and "output_loading_info" not in options:
        options["output_loading_info"] = True  # what is missing is drawn at random, with no more than a warning
    try:
        _check_vocabulary(kind, source, subfolder)
        if local and issubclass(kind, (nn.Module, AutoModel)):
            _check_config(source, subfolder)
        loaded: Any = kind.from_pretrained(  # type: ignore[attr-defined]  # of diffusers and transformers
            source.name, subfolder=subfolder, revision=source.revision, **options
        )
    except SafetensorError as error:
        raise ValueError(f"the weights of {where} are damaged ({error}): download them again") from error
    except (OSError, HTTPError) as error:  # some of which are both
        if any(isinstance(cause, OSError) and cause.errno == errno.ENOSPC for cause in _causes(error)):
            raise OSError(
                errno.ENOSPC, f"no space left to download {where}: free some, or set HF_HOME to a folder on another disk"
            ) from error
        if "Unable to load weights" in str(error):  # so diffusers says that it cannot read a file that is there
            raise ValueError(f"the weights of {where} are damaged: download them again") from error
        if "cannot be loaded with `safetensors`" in str(error):  # so transformers says it, whose remedy would be to unpickle
            raise FileNotFoundError(
                f"{where} has its weights as a pickle alone, which is never loaded: name a `revision` that has model.safetensors, "
                "such as the hub's bot offers among its pull requests (refs/pr/1), or convert a copy"
            ) from error
        if not local and _because(error, GatedRepoError):  # which is a RepositoryNotFoundError too
            raise FileNotFoundError(f"{source.name} is gated: accept its licence on its page, then run `hf auth login`") from error
        if not local and _because(error, RepositoryNotFoundError):
            raise FileNotFoundError(f"there is no model {source.name} on the hub, nor a folder of that name") from error
        if not local and _because(error, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError):
            raise FileNotFoundError(
                f"{where} is not on this machine and the hub cannot be reached: download it, or pass its folder"
            ) from error
        if _because(error, HTTPError) and not _because(error, HfHubHTTPError):
            raise ConnectionError(
                f"the download of {where} broke off ({error!r}): run this again, it goes on from there"
            ) from error
        absent = "" if local else "; it is no local folder and the hub did not give it"
        raise FileNotFoundError(f"{where} has no usable {kind.__name__}{absent}: {str(error).splitlines()[0]}") from error
    except (RuntimeError, KeyError, TypeError, ValueError, ImportError) as error:
        told = str(error).lower()
        if "trust_remote_code" in told:
            raise ValueError(f"{where} brings code of its own, which is never run: take a model that its library knows") from error
        if any(name in told for name in ("tiktoken", "sentencepiece", "protobuf")) and not installed("text"):
            raise ImportError(f"{where} needs two more packages: pip install 'para_video[text]'") from error
        # transformers asks for tiktoken where sentencepiece cannot read a file
        if isinstance(error, ImportError) and "tiktoken" not in told:
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
        found = _read_config(Path(source.name, subfolder)).get("_class_name", kind.__name__)
        remedy = "download it again" if found == kind.__name__ else f"it is of another kind of model, of class {found}"
        raise ValueError(f"{where} does not load as {kind.__name__}: {reason}; {remedy}") from error
    part, missing = (loaded[0], sorted(loaded[1]["missing_keys"])) if informed else (loaded, [])
    if isinstance(part, nn.Module):  # diffusers leaves what is missing without memory
        missing += [name for name, parameter in part.named_parameters() if parameter.is_meta]
    if missing:
        raise ValueError(f"{where} has no weights for {missing[:2]}: it is another kind of model, or not whole; download it again")
    return part


def load_vae(kind: type[P], source: Source) -> P:
    """An autoencoder; in float32 where its config says that float16 is too narrow for it."""
    vae: Any = load_part(kind, source, "vae")
    return vae.float() if source.dtype == "float16" and vae.config.force_upcast else vae


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it: libraries wrap the hub's in words of their own."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _because(error: BaseException, *kinds: type[BaseException]) -> bool:
    """Whether an error, or one that led to it, is of these kinds."""
    return any(isinstance(cause, kinds) for cause in _causes(error))


def _hub_config(source: Source, subfolder: str) -> dict[str, Any]:
    """What config.json of a part on the hub says; nothing, where it cannot be had, which loading then tells."""
    try:
        return Config.from_pretrained(source.name, subfolder=subfolder, revision=source.revision)
    except (OSError, ValueError, HTTPError):
        return {}


def _read_config(folder: Path) -> dict[str, Any]:
    """What config.json of a local folder says; nothing, where there is none that can be read."""
    try:
        found = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _check_config(source: Source, subfolder: str) -> None:
    """Without the part's folder diffusers quietly reads the folder above, and transformers does not say what it misses."""
    if not Path(source.name, subfolder, "config.json").is_file():
        raise FileNotFoundError(_absence("config.json", source=source.name, subfolder=subfolder))


def _check_attention(config: dict[str, Any], where: str) -> None:
    """What else a config names transformers takes for a repository of kernels, whose code it would fetch and run, or for a package;
    configs of a model's parts lie within its own."""
    for name in ("attn_implementation", "_attn_implementation"):
        if (value := config.get(name)) not in PLAIN_ATTENTION:
            raise ValueError(
                f"the config.json of {where} names the attention {value!r}, which is not torch's own: take {name!r} out of it; "
                "`attention=` chooses it, where there is a choice"
            )
    for part in config.values():
        if isinstance(part, dict):
            _check_attention(part, where)


def _absence(file: str, *, source: str, subfolder: str) -> str:
    """What a local folder is, where it lacks a file."""
    folder, wanted = Path(source), f"{subfolder}/{file}".lstrip("/")
    if part := _read_config(folder).get("_class_name"):
        return f"{folder} is one part of a model, a {part}; pass the folder that holds it, such as {folder.resolve().parent}"
    if subfolder and (folder / subfolder).is_dir():
        return f"there is no {wanted}; download it again"
    held = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
    return f"{wanted} is expected there, and the folder holds {held}: it is of another kind of model, or not whole"


def check_loading(device: str | None, lora_rank: int, taps: Sequence[str] | None) -> None:
    """Refuse options of any `from_pretrained` before anything is loaded.

    Raises:
        ValueError: a device that is not there, a rank below 0, or taps that are no list of different names.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        there = ["cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(f'there is no device {device!r} here: pass another "device", one of {there}') from error
    if lora_rank < 0:
        raise ValueError(f"lora_rank must be 0 or more, got {lora_rank}")
    if isinstance(taps, str):
        raise ValueError(f"taps is a list of names, such as [{taps!r}]; got the text {taps!r}")
    if taps is not None and not (isinstance(taps, Sequence) and all(isinstance(tap, str) for tap in taps)):
        raise ValueError(f"taps is a list of names, as text; got {taps!r}")
    if taps is not None and len(set(taps)) < len(taps):
        raise ValueError(f"each tap is named once; got {list(taps)}")


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
