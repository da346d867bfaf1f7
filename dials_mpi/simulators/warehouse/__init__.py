"""Warehouse commissioning (paper, section 5.2): robots fetch items from the shelves that they share with neighbours."""

from functools import cached_property
from typing import Literal

from pydantic import Field

from dials_mpi.simulators.grid import grid_graph, grid_side
from dials_mpi.simulators.interface import Domain, DomainSettings, Influence
from dials_mpi.simulators.warehouse.global_simulator import WarehouseGlobalSimulator
from dials_mpi.simulators.warehouse.handcoded import RULES
from dials_mpi.simulators.warehouse.local_simulator import WarehouseLocalSimulator
from dials_mpi.simulators.warehouse.regions import (
    N_ACTIONS,
    NEIGHBOURS,
    NOT_ON_SHARED_SHELF,
    OBSERVATION_SIZE,
    SHELVES,
    SIZE,
)


class WarehouseSettings(DomainSettings):
    border: Literal["scripted", "none"] = Field("scripted", description="what surrounds the learning block")
    horizon: int = Field(100, ge=1, le=10_000, description="steps per episode")
    item_probability: float = Field(0.02, ge=0, le=1, description="chance per step of a free shelf cell to get an item")


class Warehouse(Domain):
    """An m×m block of learning robots.

    Observation and local state are the same 37 bits: one-hot position in the 5×5 region (row-major), then an item bit
    for each of the 12 shelf cells. Actions: 0 up, 1 down, 2 left, 3 right. Influence sources: where the neighbours to
    the right, below, left and above stand on the shared shelf cells (0, 1, 2 along the side; 3: on none of them).
    """

    name = "warehouse"
    Settings = WarehouseSettings
    controllers = RULES
    observation_range = (0.0, 1.0)

    n_actions = N_ACTIONS
    action_names = ("up", "down", "left", "right")
    observation_size = OBSERVATION_SIZE
    observation_names = (
        *(f"robot_row{row}_column{column}" for row in range(SIZE) for column in range(SIZE)),
        *(f"item_row{row}_column{column}" for row, column in SHELVES.tolist()),
    )
    influence = Influence(sources=len(NEIGHBOURS), classes=NOT_ON_SHARED_SHELF + 1, local_state_size=OBSERVATION_SIZE)

    def __init__(self, n_agents: int, settings: WarehouseSettings):
        super().__init__(n_agents, settings)
        self.block = grid_side(n_agents)
        self.grid_shape = (self.block, self.block)
        self.horizon = settings.horizon

    @cached_property
    def graph(self):
        return grid_graph(self.grid_shape)

    def global_simulator(self, copies, controller=None):
        return WarehouseGlobalSimulator(
            self.block, self.settings.border, self.settings.item_probability, copies, controller
        )

    def local_simulator(self, agents, copies):
        return WarehouseLocalSimulator(len(agents), self.settings.item_probability, copies)

    def draw(self, simulator, axes, copy=0):
        from dials_mpi.simulators.warehouse.render import draw  # matplotlib is optional

        return draw(simulator, axes, copy)
