"""The road network: grids of crossing streets, written as SUMO's plain XML and built by netconvert.

A network holds K disjoint copies of a rows×columns grid. The GS is B copies of the whole grid; the LS is one copy of a
1×1 grid (a *tile*) for each agent and copy. Streets are straight, two-way, and run from border node to border node;
vehicles drive straight on.

Names: edge `e{k}_{i}_{j}_{heading}` of copy k leaves the node in row i, column j in the direction of `heading`. Row 0
and column 0 are border nodes, so the traffic light of agent r·columns + c is `n{k}_{r+1}_{c+1}`.
"""

import dataclasses
import errno
import hashlib
import itertools
import math
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import quoteattr

from dials_mpi.errors import UserError

HEADINGS = {"S": (1, 0), "W": (0, -1), "N": (-1, 0), "E": (0, 1)}
"""Row and column step of each heading, in the order of an intersection's approaches: a vehicle that heads south comes
from the north. SUMO counts the links of a traffic light in the same order, clockwise from the north."""
ACTUATED_PROGRAM = "actuated"
GREENS = ((1, 0, 1, 0), (0, 1, 0, 1))
"""Which approaches a light's two green phases serve: north and south, east and west."""
ACTUATED_PARAMETERS = {"max-gap": 3.0, "detector-gap": 0.8, "show-detectors": "false"}
VEHICLE = {
    "carFollowModel": "IDM",
    "minGap": 2.5,
    "accel": 2.6,
    "decel": 7.5,
    "tau": 1,
    "impatience": 0.5,
    "speedDev": 0,
}
"""SUMO's vType. The speed factor, the one thing about IDM drivers that is random, is drawn by the simulators."""


@dataclass(frozen=True)
class RoadNetwork:
    """What a network is made of; lengths in m, speeds in m/s."""

    rows: int
    columns: int
    copies: int
    """K."""
    edge_length: float
    """Of every edge, whatever space the junctions take."""
    outgoing_length: float
    """Of the edges that leave the grid; shorter ones cost less."""
    lanes: int
    """Per direction."""
    speed_limit: float
    junction_radius: float
    actuated: bool
    """Whether SUMO's actuated programs drive the lights."""

    @property
    def intersections(self) -> list[tuple[int, int, int]]:
        """Copy, row and column of each light; agents of one copy lie side by side."""
        return [
            (copy, row + 1, column + 1)
            for copy in range(self.copies)
            for row in range(self.rows)
            for column in range(self.columns)
        ]

    def light(self, copy: int, row: int, column: int) -> str:
        return f"n{copy}_{row}_{column}"

    def approaches(self, copy: int, row: int, column: int) -> list[str]:
        """The four edges that lead to an intersection, in the order of `HEADINGS`."""
        return [f"e{copy}_{row - down}_{column - right}_{heading}" for heading, (down, right) in HEADINGS.items()]

    def streets(self) -> list[list[str]]:
        """The edges of every street and direction from where vehicles enter, all of copy 0 first."""
        lines = []
        for heading, (down, right) in HEADINGS.items():
            along, across = (self.rows, self.columns) if down else (self.columns, self.rows)
            first = 0 if down + right > 0 else along + 1
            for k in range(1, across + 1):
                places = [first + step * (down + right) for step in range(along + 1)]
                lines.append([(i, k, heading) if down else (k, i, heading) for i in places])
        return [[f"e{copy}_{i}_{j}_{d}" for i, j, d in line] for copy in range(self.copies) for line in lines]

    def origin(self, copy: int) -> tuple[float, float]:
        """Where a copy's node in row 0, column 0 lies; copies are laid out in a square, clear of each other."""
        per_side = math.ceil(math.sqrt(self.copies))
        down, right = divmod(copy, per_side)
        return right * (self.columns + 2) * self.edge_length, -down * (self.rows + 2) * self.edge_length


def build(network: RoadNetwork, folder: Path, netconvert: Path, version: str) -> list[str]:
    """Writes the network, its routes and programs into `folder`, unless they are there already.

    The files are named by all that they are made of, so ranks can share them; each appears under its name only when it
    is whole.

    Args:
        folder: is created.
        netconvert: the program.
        version: of SUMO.

    Returns:
        SUMO's options that load the files. Route k is `streets()[k]`, named by its first edge.

    Raises:
        UserError: netconvert refuses the network, or the folder cannot be written.
    """
    key = repr((dataclasses.asdict(network), VEHICLE, ACTUATED_PARAMETERS, version))
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    net, extra = folder / f"{name}.net.xml", folder / f"{name}.add.xml"
    if any(character in str(folder) for character in ",$"):
        raise UserError(f"{folder}: SUMO cannot read files from a folder with a comma or $ in its name; choose another")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not net.is_file():
            with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as temporary:
                _netconvert(network, Path(temporary), netconvert)
                (Path(temporary) / "extra.xml").write_text(_additional(network), encoding="utf-8")
                (Path(temporary) / "extra.xml").replace(extra)
                (Path(temporary) / "net.xml").replace(net)  # last: where it is, the other is, too
    except OSError as error:
        raise UserError(
            f"the road network cannot be written to {folder}: {error.strerror}; make room there or choose another "
            "folder (--runs for a run, TMPDIR for anything else)"
        ) from error
    return ["--net-file", str(net), "--additional-files", str(extra)]


def _netconvert(network: RoadNetwork, folder: Path, program: Path) -> None:
    nodes, edges, connections = [], [], []
    for copy in range(network.copies):
        x0, y0 = network.origin(copy)
        for i in range(network.rows + 2):
            for j in range(network.columns + 2):
                border = (i in (0, network.rows + 1)) + (j in (0, network.columns + 1))
                if border < 2:
                    kind = (
                        {"type": "priority"} if border else {"type": "traffic_light", "radius": network.junction_radius}
                    )
                    x, y = x0 + j * network.edge_length, y0 - i * network.edge_length
                    nodes.append(_element("node", id=network.light(copy, i, j), x=x, y=y, **kind))
    for street in network.streets():
        for edge in street:
            copy, i, j, heading = edge[1:].split("_")
            down, right = HEADINGS[heading]
            edges.append(
                _element(
                    "edge",
                    id=edge,
                    **{"from": network.light(copy, i, j), "to": network.light(copy, int(i) + down, int(j) + right)},
                    numLanes=network.lanes,
                    speed=network.speed_limit,
                    length=network.outgoing_length if edge == street[-1] else network.edge_length,
                )
            )
        for before, after in itertools.pairwise(street):
            for lane in range(network.lanes):
                connections.append(_element("connection", **{"from": before, "to": after}, fromLane=lane, toLane=lane))
    for kind, elements in (("nodes", nodes), ("edges", edges), ("connections", connections)):
        text = "\n".join([f"<{kind}>", *elements, f"</{kind}>\n"])
        (folder / f"{kind}.xml").write_text(text, encoding="utf-8")
    options = {  # relative names: SUMO splits paths at commas
        "node-files": "nodes.xml",
        "edge-files": "edges.xml",
        "connection-files": "connections.xml",
        "output-file": "net.xml",
        "no-turnarounds": "true",
        "offset.disable-normalization": "true",  # coordinates stay those of `origin`
        "no-warnings": "true",
        "xml-validation": "never",
    }
    command = [str(program), *(text for key, value in options.items() for text in (f"--{key}", value))]
    try:
        result = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except OSError as error:
        raise UserError(f"env: {program} cannot be started: {error.strerror}; reinstall SUMO") from error
    if result.returncode:
        words = (result.stderr.strip() or f"it ended with {result.returncode}").splitlines()[0]
        raise UserError(f"domain: netconvert cannot build the road network: {words}")
    if not (folder / "net.xml").read_text(encoding="utf-8").rstrip().endswith("</net>"):  # nor does it say so
        raise OSError(errno.ENOSPC, "netconvert could not write the whole file")


def _additional(network: RoadNetwork) -> str:
    lines = ["<additional>", _element("vType", id="car", maxSpeed=network.speed_limit, **VEHICLE)]
    lines += [_element("route", id=street[0], edges=" ".join(street)) for street in network.streets()]
    if network.actuated:
        for place in network.intersections:
            light = _element("tlLogic", id=network.light(*place), type="actuated", programID=ACTUATED_PROGRAM, offset=0)
            lines.append(light.replace("/>", ">"))
            lines += [_element("param", key=key, value=value) for key, value in ACTUATED_PARAMETERS.items()]
            for green in GREENS:
                state = light_state(green, "G", network.lanes)
                lines.append(_element("phase", duration=31, minDur=8, maxDur=45, state=state))
                lines.append(_element("phase", duration=6, minDur=3, maxDur=6, state=state.replace("G", "y")))
            lines.append("</tlLogic>")
    return "\n".join([*lines, "</additional>\n"])


def light_state(green: tuple[int, ...], colour: str, lanes: int) -> str:
    """SUMO's state string of an intersection: `colour` for the approaches in `green`, red for the others."""
    return "".join((colour if served else "r") * lanes for served in green)


def _element(tag: str, **attributes) -> str:
    return f"<{tag} {' '.join(f'{key}={quoteattr(str(value))}' for key, value in attributes.items())}/>"
