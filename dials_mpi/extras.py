"""Packages that are optional, and what is said where one of them is missing."""

import contextlib
from collections.abc import Iterator

from dials_mpi.errors import UserError


class MissingExtraError(UserError, ImportError):
    """A package that an extra of this one brings is not there. Bad input to programs, an ImportError to Python."""


@contextlib.contextmanager
def extra(name: str, needed_by: str, otherwise: str = "") -> Iterator[None]:
    """Around imports of packages that `pip install 'dials_mpi[name]'` brings.

    Args:
        name: of the extra.
        needed_by: who imports them; begins the message.
        otherwise: what else can be done; ends it.

    Raises:
        MissingExtraError: one of them is missing or cannot be loaded.
    """
    try:
        yield
    except ImportError as error:
        what = str(error).partition("\n")[0]
        raise MissingExtraError(f"{needed_by}: {what}; pip install 'dials_mpi[{name}]'{otherwise}") from error
