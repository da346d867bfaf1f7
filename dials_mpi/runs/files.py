"""Files that are whole before and after, whatever happens meanwhile."""

import os
from pathlib import Path


def replace_durably(temporary: Path, path: Path) -> None:
    """Renames `temporary` to `path` so that after a crash either the old or the new file is there, whole."""
    _sync(temporary)
    temporary.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
