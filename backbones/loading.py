"""Parts of pretrained models, from a hub or a local folder: what goes wrong is told in one line with its remedy."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled, RepositoryNotFoundError
from torch import nn
from transformers.utils import cached_file

M = TypeVar("M", bound=nn.Module)
P = TypeVar("P")


@dataclass(frozen=True)
class Source:
    """Where a model lies.

    Args:
        name: hub id or local folder. revision: branch, tag or commit on the hub. dtype: of the weights, such as "bfloat16".

    Raises:
        ValueError: an unknown dtype.
    """

    name: str
    revision: str | None = None
    dtype: str = "float32"

    def __post_init__(self) -> None:
        if not isinstance(getattr(torch, self.dtype, None), torch.dtype):
            raise ValueError(f"unknown dtype {self.dtype!r}; choose float32, bfloat16 or float16")


def load_part(kind: type[M], source: Source, subfolder: str = "", **options: Any) -> M:
    """One part of a model by the `from_pretrained` of its library, from safetensors.

    Raises:
        FileNotFoundError: it is nowhere, gated, or cannot be reached. ValueError: its files are damaged or of another kind.
        ImportError: it needs a package that is not installed.
    """
    with _told_in_one_line(kind, source, subfolder):
        return kind.from_pretrained(  # type: ignore[attr-defined]  # of diffusers and transformers
            source.name, subfolder=subfolder, revision=source.revision, torch_dtype=getattr(torch, source.dtype),
            use_safetensors=True, **options,
        )  # fmt: skip


def load_processor(kind: type[P], source: Source, subfolder: str) -> P:
    """A tokenizer or an image processor, which has no weights. Errors as of `load_part`."""
    with _told_in_one_line(kind, source, subfolder):
        # without them transformers quietly makes a tokenizer that knows no word
        files = sorted(set(getattr(kind, "vocab_files_names", {}).values()))
        place = {"subfolder": subfolder, "revision": source.revision, "_raise_exceptions_for_missing_entries": False}
        if files and all(cached_file(source.name, file, **place) is None for file in files):
            raise OSError(f"none of {files} is there")
        return kind.from_pretrained(source.name, subfolder=subfolder, revision=source.revision)  # type: ignore[attr-defined]


@contextmanager
def _told_in_one_line(kind: type, source: Source, subfolder: str) -> Iterator[None]:
    where = f"{source.name}/{subfolder}".rstrip("/")
    try:
        yield
    except GatedRepoError as error:
        raise FileNotFoundError(f"{source.name} is gated: accept its licence on its page, then run `hf auth login`") from error
    except RepositoryNotFoundError as error:
        raise FileNotFoundError(f"there is no model {source.name} on the hub, nor a folder of that name") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError) as error:
        raise FileNotFoundError(
            f"{where} is not on this machine and the hub cannot be reached: download it, or pass its folder"
        ) from error
    except ImportError as error:
        raise ImportError(f"{where} needs another package: {str(error).strip().splitlines()[0]}") from error
    except OSError as error:
        absent = "" if Path(source.name).is_dir() else "; it is no local folder and the hub did not give it"
        raise FileNotFoundError(f"{where} has no usable {kind.__name__}{absent}: {str(error).splitlines()[0]}") from error
    except (RuntimeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{where} does not load as {kind.__name__}: {str(error).splitlines()[0]}; download it again") from error
