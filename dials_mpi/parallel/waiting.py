"""Waiting politely.

MPI implementations spin in blocking calls: a waiting rank burns a core that a working one needs. Here a rank waits on
non-blocking operations and sleeps between looks.
"""

import time

SHORTEST_PAUSE = 20e-6
LONGEST_PAUSE = 10e-3
"""Seconds. A look costs some 50 µs, so a long wait costs half a per cent of a core."""


def wait(request, longest_pause: float = LONGEST_PAUSE) -> None:
    """Returns when `request` (an MPI request) is complete; pauses grow with the time waited, up to `longest_pause`."""
    pause = SHORTEST_PAUSE
    while not request.Test():
        time.sleep(pause)
        pause = min(1.5 * pause, longest_pause)
