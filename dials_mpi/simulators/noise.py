"""Random numbers for many agents or copies at once, each from its own stream."""

from collections.abc import Callable, Sequence

import numpy as np

_BLOCK_ELEMENTS = 1 << 15


class NoiseBuffer:
    """Draws ahead in blocks of steps, so that no step loops over streams in Python.

    What stream i yields does not depend on the block length or on the other streams: the numbers of an agent are the
    same whether it shares the buffer with 99 others or has it alone.

    Args:
        generators: K streams.
        shape: shape of one stream's noise for one step.
        draw: `draw(generator, shape)` → float32 array; uniform on [0, 1) by default. It must take its random numbers in
            the order of the array's elements, so that two short blocks are one long one.
    """

    def __init__(
        self,
        generators: Sequence[np.random.Generator],
        shape: tuple[int, ...],
        draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray] | None = None,
    ):
        self._generators = list(generators)
        self._draw = draw or uniform
        elements = max(1, len(self._generators) * int(np.prod(shape)))
        self._block = int(np.clip(_BLOCK_ELEMENTS // elements, 1, 128))
        self._buffer = np.empty((self._block, len(self._generators), *shape), np.float32)
        self._next = self._block

    def next(self) -> np.ndarray:
        """[K, *shape] float32; valid until the block is used up, so copy what must last."""
        if self._next == self._block:
            for i, generator in enumerate(self._generators):
                self._buffer[:, i] = self._draw(generator, (self._block, *self._buffer.shape[2:]))
            self._next = 0
        noise = self._buffer[self._next]
        self._next += 1
        return noise


def uniform(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Uniform on [0, 1), float32."""
    return generator.random(shape, dtype=np.float32)


def gumbel(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard Gumbel noise: argmax(logits + gumbel) is a sample of softmax(logits)."""
    return -np.log(np.maximum(generator.standard_exponential(shape, dtype=np.float32), np.finfo(np.float32).tiny))


def normal(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard normal noise."""
    return generator.standard_normal(shape, dtype=np.float32)


def logistic(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Standard logistic noise: logistic < z is true with probability sigmoid(z)."""
    u = np.maximum(generator.random(shape, dtype=np.float32), np.finfo(np.float32).tiny)
    return np.log(u) - np.log1p(-u)
