"""Traffic signal control (paper, section 5.2): a grid of traffic lights in SUMO."""

import functools
import tempfile
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from dials_mpi.errors import UserError
from dials_mpi.simulators.grid import grid_graph, grid_side
from dials_mpi.simulators.interface import Domain, DomainSettings, Influence
from dials_mpi.simulators.traffic.global_simulator import TrafficGlobalSimulator
from dials_mpi.simulators.traffic.handcoded import CONTROLLERS
from dials_mpi.simulators.traffic.intersections import APPROACHES, N_ACTIONS, PHASES, Intersections
from dials_mpi.simulators.traffic.local_simulator import ENTRY_POSITION, TrafficLocalSimulator
from dials_mpi.simulators.traffic.network import RoadNetwork, build
from dials_mpi.simulators.traffic.sumo import installation

_MINIMUM_CLEARANCE = 10.0
"""m of an edge that junctions must leave."""


class TrafficSettings(DomainSettings):
    backend: Literal["libsumo", "traci"] = Field("libsumo", description="SUMO in this process, or a child each")
    rows: int | None = Field(None, ge=1, description="of the grid; null: a square")
    columns: int | None = Field(None, ge=1)
    horizon: int = Field(300, ge=1, le=100_000, description="steps of 1 s per episode")
    inflow_probability: float = Field(
        0.1, ge=0, le=1, description="chance per second of a vehicle at each street that comes in"
    )
    edge_length: float = Field(100.0, gt=0, description="m between intersections, and from the border to the first")
    cell_length: float = Field(10.0, gt=0, description="m; resolution of what agents see")
    lanes: int = Field(1, ge=1, le=4, description="per direction")
    speed_limit: float = Field(10.0, ge=1, le=50, description="m/s; at most a cell per second")
    junction_radius: float = Field(6.2, gt=0, description="m")
    yellow: int = Field(3, ge=1, description="s of yellow after a switch")
    outgoing_length: float = Field(100.0, ge=1, description="m of the local simulator's outgoing lanes")

    @model_validator(mode="after")
    def _geometry(self):
        for name in ("edge_length", "speed_limit", "junction_radius", "outgoing_length"):
            if round(getattr(self, name), 2) != getattr(self, name):
                raise ValueError(
                    f"{name} {getattr(self, name)} is finer than the 0.01 that road networks are written in"
                )
        cells = self.edge_length / self.cell_length
        if abs(cells - round(cells)) > 1e-9 or cells < 2:
            raise ValueError(
                f"edge_length {self.edge_length:g} must be two or more whole cells of cell_length {self.cell_length:g}"
            )
        if self.cell_length <= ENTRY_POSITION:
            raise ValueError(
                f"cell_length {self.cell_length:g} must be more than {ENTRY_POSITION:g} m, where vehicles enter the "
                "local simulator, or they would never be seen in the farthest cell"
            )
        if self.speed_limit > self.cell_length:
            raise ValueError(
                f"speed_limit {self.speed_limit:g} m/s is more than a cell of cell_length {self.cell_length:g} m per "
                "step: vehicles would jump over the farthest cell unseen"
            )
        clearance = self.edge_length - 2 * self.junction_radius - 2 * 1.6 * self.lanes
        if clearance < _MINIMUM_CLEARANCE:
            raise ValueError(
                f"edge_length {self.edge_length:g} leaves {clearance:.1f} m of road between junctions of radius "
                f"{self.junction_radius:g} with {self.lanes} lanes; at least {_MINIMUM_CLEARANCE:g} m are needed"
            )
        if (self.rows is None) != (self.columns is None):
            raise ValueError("give both rows and columns, or neither for a square grid")
        return self


class Traffic(Domain):
    """A grid of traffic lights, row by row from the north-west.

    Local state: the occupied cells of the incoming lanes but the farthest, approaches from north, east, south, west,
    each lane from the stop line on (36 bits with the published settings). Observation: these, then the light's phase
    as one of four: green for north and south, yellow after it, green for east and west, yellow after it. Actions: 0
    keep, 1 switch. Influence sources: the farthest cell of every incoming lane.
    """

    name = "traffic"
    Settings = TrafficSettings
    controllers = CONTROLLERS
    observation_range = (0.0, 1.0)
    replay_tolerance = 0.4
    """A vehicle enters the LS at 6 m and 9.5 m/s, wherever in the farthest cell and however fast it did in the GS, so
    bits are now and then a step early or late. Measured for the worst light of 1, 4 and 25, over 100 steps of random
    actions and 5 to 30 seeds: 0.02 to 0.17, and up to 0.36 with other settings (30 m edges, a limit of 5 m/s). An LS
    that ignores u comes to 1, one that is told a step late to 0.54 to 0.79."""

    n_actions = N_ACTIONS
    action_names = ("keep", "switch")

    def __init__(self, n_agents: int, settings: TrafficSettings):
        super().__init__(n_agents, settings)
        if settings.rows is None:
            self.grid_shape = (grid_side(n_agents),) * 2
        else:
            self.grid_shape = (settings.rows, settings.columns)
            if settings.rows * settings.columns != n_agents:
                raise ValueError(
                    f"{n_agents} agents are not domain.rows × domain.columns = {settings.rows} × {settings.columns}"
                )
        self._binaries, self._version = installation(settings.backend)
        lanes = APPROACHES * settings.lanes
        cells = round(settings.edge_length / settings.cell_length)
        self.horizon = settings.horizon
        self.influence = Influence(sources=lanes, classes=2, local_state_size=lanes * (cells - 1))
        self.observation_size = self.influence.local_state_size + PHASES
        self.observation_names = (
            *(
                f"{side}_lane{lane}_cell{cell}"  # cell 0 is at the stop line
                for side in ("north", "east", "south", "west")
                for lane in range(settings.lanes)
                for cell in range(cells - 1)
            ),
            *("green_north_south", "yellow_north_south", "green_east_west", "yellow_east_west"),
        )

    @functools.cached_property
    def graph(self):
        return grid_graph(self.grid_shape)

    def global_simulator(self, copies, controller=None):
        intersections = self._intersections(
            *self.grid_shape, copies, self.settings.edge_length, actuated=controller == "actuated"
        )
        return TrafficGlobalSimulator(intersections, self.settings.inflow_probability, controller)

    def local_simulator(self, agents, copies):
        intersections = self._intersections(1, 1, len(agents) * copies, self.settings.outgoing_length)
        return TrafficLocalSimulator(intersections, len(agents))

    def draw(self, simulator, axes, copy=0):
        from dials_mpi.simulators.traffic.render import draw  # matplotlib is optional

        return draw(simulator, axes, copy)

    def _intersections(self, rows, columns, copies, outgoing_length, actuated=False) -> Intersections:
        s = self.settings
        network = RoadNetwork(
            rows, columns, copies, s.edge_length, outgoing_length, s.lanes, s.speed_limit, s.junction_radius, actuated
        )
        files = build(network, self.scratch or _temporary_folder(), self._binaries / "netconvert", self._version)
        return Intersections(network, s.yellow, s.cell_length, s.backend, files)


@functools.cache
def _temporary_folder() -> Path:
    """For networks outside a run; gone with the process."""
    try:
        _temporary_folder.holder = tempfile.TemporaryDirectory(prefix="dials_mpi-traffic-")
    except OSError as error:
        raise UserError(f"no folder for temporary files ({error}); set TMPDIR to one that can be written") from error
    return Path(_temporary_folder.holder.name)
