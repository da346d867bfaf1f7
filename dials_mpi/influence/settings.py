"""The sections of a configuration that say how influence is collected and predicted. Imports no torch."""

from pydantic import Field

from dials_mpi.errors import UserError
from dials_mpi.learning.settings import NetworkSettings
from dials_mpi.settings import Settings


class DatasetSettings(Settings):
    steps: int = Field(
        10_000, ge=1, le=10**9, description="joint steps on the GS per retraining, rounded up to whole episodes"
    )
    copies: int = Field(10, ge=1, le=100_000, description="episodes per batch, in copies of the GS side by side")
    test_fraction: float = Field(0.1, gt=0, lt=1, description="share of the episodes held out for the test loss")
    keep_rounds: int = Field(0, ge=0, description="newest rounds kept in the HDF5 files; 0: all")

    def check(self, domain) -> None:
        if self.steps <= domain.horizon:
            raise UserError(
                f"dataset.steps: {self.steps} is one episode of {domain.horizon} steps; take at least "
                f"{2 * domain.horizon}, so that one can be held out"
            )


class PredictorSettings(NetworkSettings):
    interval: int = Field(1_000_000, ge=1, description="F: steps per agent between two trainings of the AIPs")
    learning_rate: float = Field(1e-3, gt=0, le=1)
    epochs: int = Field(100, ge=1, description="at most; see patience")
    minibatch_size: int = Field(1_600, ge=1, description="samples per gradient step (whole episodes for a GRU)")
    patience: int = Field(5, ge=1, description="epochs without a better test loss before an agent's training stops")
    sees_actions: bool = Field(False, description="the agent's last action is an input beside the local state")

    def check(self, domain) -> None:
        if self.sees_actions and domain.action_size:
            raise UserError(
                f"predictor.sees_actions: a predictor can see discrete actions only, and those of domain {domain.name} "
                "are continuous; leave it out"
            )
