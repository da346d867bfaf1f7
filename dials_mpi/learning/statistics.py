"""Running means of learning statistics."""

import numpy as np
import torch
from torch import Tensor


class Means:
    """Averages dictionaries of tensors, entry by entry."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums[name].to(value.device) + value if name in self._sums else value.clone()

    def rows(self) -> dict[str, np.ndarray]:
        """What has been added so far, as arrays [A]: the sums by name, and `count`. Empty if nothing has."""
        if not self._count:
            return {}
        sums = {name: total.cpu().numpy() for name, total in self._sums.items()}
        return {**sums, "count": np.full(len(next(iter(sums.values()))), self._count)}

    @classmethod
    def from_rows(cls, rows: dict[str, np.ndarray]) -> "Means":
        """The inverse of `rows`."""
        means = cls()
        if rows:
            means._count = int(rows["count"][0])
            means._sums = {name: torch.from_numpy(row) for name, row in rows.items() if name != "count"}
        return means

    def result(self) -> dict[str, Tensor]:
        return {name: total / self._count for name, total in self._sums.items()}
