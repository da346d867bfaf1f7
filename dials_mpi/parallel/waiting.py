"""Waiting politely.

MPI implementations spin in blocking calls: a waiting rank burns a core that a working one needs. Here a rank waits on
non-blocking operations and sleeps between looks.
"""

import time
from collections.abc import Callable

SHORTEST_PAUSE = 20e-6
LONGEST_PAUSE = 10e-3
"""Seconds. A look costs some 50 µs, so a long wait costs half a per cent of a core."""


def wait(request, longest_pause: float = LONGEST_PAUSE, meanwhile: Callable[[], None] | None = None) -> None:
    """Returns when `request` (an MPI request) is complete.

    Args:
        request: of a non-blocking operation.
        longest_pause: seconds; pauses grow with the time waited, up to this.
        meanwhile: called between two looks; has to be quick.
    """
    pause = SHORTEST_PAUSE
    while not request.Test():
        if meanwhile:
            meanwhile()
        time.sleep(pause)
        pause = min(2 * pause, longest_pause)
