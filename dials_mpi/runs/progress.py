"""Progress for people: a bar on a terminal, sparse lines with an ETA in a batch log."""

import sys
import time

from tqdm import tqdm

_QUIET_SECONDS = 60.0


class Progress:
    """Shows how far training is, or anything else that is made of steps.

    Args:
        total: training steps per agent.
        n_agents: N.
        start: steps done before, by the run that this one goes on from.
        what: the steps are, beside the bar.
    """

    def __init__(self, total: int, n_agents: int, start: int = 0, what: str = "steps per agent"):
        self._total = total
        self._step = self._start = start
        self._n_agents = n_agents
        self._begin = self._last_line = time.monotonic()
        self._bar = None
        if sys.stderr.isatty():
            self._bar = tqdm(
                total=total,
                initial=start,
                unit="step",
                unit_scale=True,
                dynamic_ncols=True,
                smoothing=0.1,
                desc=what,
            )

    def say(self, text: str) -> None:
        """A line of its own."""
        if self._bar is None:
            print(text, flush=True)
        else:
            self._bar.write(text)

    def reached(self, step: int, text: str = "") -> None:
        """Training has come to `step`; with a text, or after a quiet minute, a batch log gets a line.

        News may come late: progress stays where it is, and a text says of which step it is.
        """
        if self._bar is not None and text:
            self._bar.write(f"step {step:,}: {text}")
        if text and step < self._step:
            text += f" at step {step:,}"
        step = self._step = max(step, self._step)
        if self._bar is not None:
            self._bar.update(step - self._bar.n)
            return
        now = time.monotonic()
        if not text and now - self._last_line < _QUIET_SECONDS:
            return
        self._last_line = now
        elapsed = now - self._begin
        done = step - self._start
        speed = done * self._n_agents / elapsed if elapsed else 0.0
        left = clock_time(elapsed / done * (self._total - step)) if done else "?"
        print(
            f"[{clock_time(elapsed)}] step {step:,} of {self._total:,} {text} "
            f"({speed:,.0f} agent-steps/s, ETA {left})".replace("  ", " "),
            flush=True,
        )

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def clock_time(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02}"
