"""Work that is done a step at a time, so that whoever does it can look after something else in between."""

from collections.abc import Generator
from typing import TypeVar

T = TypeVar("T")


def finish(work: Generator[None, None, T]) -> T:
    """Does all that is left of `work`, and returns what it comes to."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value
