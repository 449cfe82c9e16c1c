"""Programs run in processes of their own, with one thread each."""

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent


def run_python(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, *map(str, arguments)], env=env, capture_output=True, text=True, timeout=300)


def run_twice(program: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """In two processes that train together. `accelerate launch --cpu` would start one alone, whatever it is told."""
    return run_python("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", program, *arguments)
