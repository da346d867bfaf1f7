"""Running means of learning statistics."""

from torch import Tensor


class Means:
    """Averages dictionaries of tensors, entry by entry."""

    def __init__(self):
        self._sums: dict[str, Tensor] = {}
        self._count = 0

    def add(self, values: dict[str, Tensor]) -> None:
        self._count += 1
        for name, value in values.items():
            self._sums[name] = self._sums[name] + value if name in self._sums else value.clone()

    def result(self) -> dict[str, Tensor]:
        return {name: total / self._count for name, total in self._sums.items()}
