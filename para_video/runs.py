"""Where a script writes: output folders that are never overwritten."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

RUNS = Path("runs")


def output_folder(wanted: Path | None, name: str, *, resume: bool, accelerator: Accelerator) -> Path:
    """A folder to write to, the same in every process.

    Args:
        wanted: the user's choice; None for the first free of runs/name, runs/name-2, ... name: of the kind of run.
        resume: whether to go on in a folder that has content.

    Raises:
        FileExistsError: the chosen folder has content and resume is off; nothing is touched.
        ValueError: resume without a folder, or one where there is nothing to resume.
    """
    if resume:
        if wanted is None or not wanted.is_dir():
            raise ValueError(f"--resume needs --out with the folder of the interrupted run, got {wanted}")
        return wanted
    chosen = [wanted]
    if wanted is None and accelerator.is_main_process:
        number = 1
        while (folder := RUNS / (name if number == 1 else f"{name}-{number}")).exists():
            number += 1
        chosen = [folder]
    folder = broadcast_object_list(chosen)[0]
    if accelerator.is_main_process:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise FileExistsError(f"{folder} exists already: add --resume to go on with it, or choose another --out")
        folder.mkdir(parents=True, exist_ok=True)
    accelerator.wait_for_everyone()
    return folder


def plain_settings(config: Any) -> dict[str, Any]:
    """A script's config dataclass as JSON values."""
    return {name: str(value) if isinstance(value, Path) else value for name, value in asdict(config).items()}
