"""Files that are whole before and after, whatever happens meanwhile."""

import os
from pathlib import Path


def replace_durably(temporary: Path, path: Path) -> None:
    """Renames `temporary` to `path` so that after a crash either the old or the new file is there, whole."""
    sync(temporary)
    temporary.replace(path)
    sync(path.parent)


def sync(path: Path) -> None:
    """What was written to a file, or renamed in a folder, survives a crash from here on."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
