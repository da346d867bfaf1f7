"""One SUMO simulation behind one adapter, in this process (libsumo) or in a child over a loopback socket (traci).

libsumo holds a single simulation per process. Simulators that share a process take turns: `restart` loads one's own in
place of whatever was there. With traci every simulator has a child of its own.
"""

import contextlib
import ctypes
import functools
import importlib
import importlib.metadata
import itertools
import os
import secrets
import socket
import subprocess
import sys
import tempfile
import time
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from dials_mpi.errors import UserError

_INSTALL = "pip install -c constraints.txt 'dials_mpi[traffic]'"
_OPTIONS = {
    "step-length": "1",
    "time-to-teleport": "-1",
    "collision.check-junctions": "true",
    "no-step-log": "true",
    "no-warnings": "true",
    "xml-validation": "never",
    "xml-validation.net": "never",
}
_SEED = "0"
"""Whatever; nothing random is left to SUMO."""
_PORTS_TRIED = 5
_SECONDS_TO_ANSWER = 60.0
_SECONDS_TO_INTRODUCE = 10.0


def installation(backend: str) -> tuple[Path, str]:
    """SUMO's folder of programs and its version.

    Raises:
        UserError: a part is missing, or the parts are of different versions.
    """
    versions = {}
    for distribution in ("eclipse-sumo", "sumolib", backend):
        try:
            versions[distribution] = importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            raise UserError(f"env: traffic needs SUMO, but {distribution} is not installed; {_INSTALL}") from None
    if len(set(versions.values())) > 1:
        found = ", ".join(f"{name} {version}" for name, version in versions.items())
        raise UserError(f"env: the parts of SUMO are of different versions ({found}); {_INSTALL}")
    try:
        folder = Path(importlib.import_module("sumo").SUMO_HOME) / "bin"
        importlib.import_module(backend)
    except ImportError as error:
        raise UserError(
            f"env: SUMO is installed but does not load ({error}); {_INSTALL}, and the system libraries that it names "
            "(Debian: apt-get install libgl1 libxrender1 libxext6)"
        ) from error
    return folder, versions["eclipse-sumo"]


@dataclass(frozen=True)
class Vehicles:
    """The vehicles on the watched lanes after a step."""

    lanes: np.ndarray
    """[V] int64, numbers of the lanes."""
    positions: np.ndarray
    """[V] float64, m from the lane's start to the front bumper."""
    speeds: np.ndarray
    """[V] float64, m/s."""


class Sumo:
    """A simulation of given files.

    Args:
        backend: `libsumo` or `traci`.
        files: SUMO's options that name the network and additional files.
        lanes: number of each lane to watch, by its id.
        watches_lights: read the lights' states after each step.
    """

    _in_process: ClassVar["Sumo | None"] = None
    """Whose simulation libsumo holds."""

    def __init__(self, backend: str, files: list[str], lanes: dict[str, int], watches_lights: bool = False):
        self._backend = backend
        self._files = [*files, *(text for key, value in _OPTIONS.items() for text in (f"--{key}", value))]
        self._options = [*self._files, "--seed", _SEED]
        self._constants = importlib.import_module(backend).constants
        self._lanes = lanes
        self._numbers = np.array([*lanes.values()])
        self._watches_lights = watches_lights
        self._loaded = None
        self._child: _Child | None = None

    @property
    def _api(self):
        """libsumo or the connection, which have the same functions; never somebody else's simulation."""
        if self._backend == "libsumo" and Sumo._in_process is not self:
            raise RuntimeError(
                "another simulator of this process has taken over libsumo since the last reset; play one episode to "
                "its end before the next begins, or set domain.backend=traci, which gives each simulator its own SUMO"
            )
        return self._loaded

    def restart(self) -> None:
        """Empty roads and nobody who waits to enter, whatever was before. SUMO's own programs of lights begin anew; a
        light that `set_light` set must be set again.

        Raises:
            UserError: SUMO does not start, or refuses the files.
        """
        mine = self._backend == "libsumo" and Sumo._in_process is self
        if not mine or self._watches_lights or not self._clear():
            self._load()
        self._entered = 0

    def _load(self) -> None:
        """The network from its files, at time 0."""
        if self._backend == "libsumo":
            import libsumo

            Sumo._in_process = None
            try:
                if libsumo.isLoaded():
                    libsumo.load(self._options)
                else:
                    libsumo.start(["sumo", *self._options])
            except (libsumo.TraCIException, libsumo.FatalTraCIError) as error:
                raise UserError(f"env: SUMO refuses its network ({error}): {' '.join(self._files[:4])}") from error
            Sumo._in_process = self
            self._loaded = libsumo
        else:
            if self._child is None:
                self._child = _Child(self._files)
            self._loaded = self._child.connection
            self._loaded.load(self._options)
            c = self._constants
            self._loaded.simulation.subscribe([c.VAR_DEPARTED_VEHICLES_IDS, c.VAR_PENDING_VEHICLES])
        if self._watches_lights:
            for light in self._api.trafficlight.getIDList():
                self._api.trafficlight.subscribe(light, [self._constants.TL_RED_YELLOW_GREEN_STATE])

    def _clear(self) -> bool:
        """Removes all vehicles, which takes a fraction of the time of `_load`; False if there is one it cannot reach.

        The network has no other memory but its lights, and its clock, which goes on: nothing depends on it.
        """
        api = self._loaded
        vehicles = [*api.vehicle.getIDList(), *api.simulation.getPendingVehicles()]
        if len(vehicles) != len(api.vehicle.getLoadedIDList()):  # SUMO is moving one on after a collision
            return False
        for vehicle in vehicles:
            api.vehicle.remove(vehicle)
        api.simulationStep()  # only now are they gone
        return True

    def enter(self, route: str, lane: str, position: str, speed: float, speed_factor: float = 1.0) -> None:
        """Lets a vehicle enter in the next step, or as soon as there is room.

        Args:
            route: it departs on its first edge.
            lane, position, speed: SUMO's departLane, departPos and departSpeed (m/s).
            speed_factor: of the speed limit that the driver keeps to.
        """
        vehicles = self._api.vehicle
        name = str(self._entered)
        self._entered += 1
        vehicles.add(name, route, "car", "now", lane, position, str(speed))
        if speed_factor != 1.0:
            vehicles.setSpeedFactor(name, speed_factor)

    def step(self, drop_pending: bool = False) -> Vehicles:
        """One second. With `drop_pending`, vehicles that found no room to enter are gone afterwards."""
        api = self._api
        api.simulationStep()
        return (self._asked if self._backend == "libsumo" else self._subscribed)(api, drop_pending)

    def _asked(self, api, drop_pending: bool) -> Vehicles:
        """By one call per figure: cheap within the process, where subscriptions made SUMO's step a third slower."""
        if drop_pending:
            for vehicle in api.simulation.getPendingVehicles():
                api.vehicle.remove(vehicle)
        by_lane = [*map(api.lane.getLastStepVehicleIDs, self._lanes)]
        vehicles = [*itertools.chain.from_iterable(by_lane)]
        return Vehicles(
            np.repeat(self._numbers, [*map(len, by_lane)]),
            np.fromiter(map(api.vehicle.getLanePosition, vehicles), np.float64, len(vehicles)),
            np.fromiter(map(api.vehicle.getSpeed, vehicles), np.float64, len(vehicles)),
        )

    def _subscribed(self, api, drop_pending: bool) -> Vehicles:
        """By what SUMO sends after the step: each question over the socket would cost a round trip."""
        c = self._constants
        events = api.simulation.getSubscriptionResults()
        for vehicle in events[c.VAR_DEPARTED_VEHICLES_IDS]:
            api.vehicle.subscribe(vehicle, [c.VAR_LANE_ID, c.VAR_LANEPOSITION, c.VAR_SPEED])
        if drop_pending:
            for vehicle in events[c.VAR_PENDING_VEHICLES]:
                api.vehicle.remove(vehicle)
        number, lane_id, position, speed = self._lanes.get, c.VAR_LANE_ID, c.VAR_LANEPOSITION, c.VAR_SPEED
        watched = [
            (lane, state[position], state[speed])
            for state in api.vehicle.getAllSubscriptionResults().values()
            if (lane := number(state[lane_id])) is not None
        ]
        lanes, positions, speeds = np.array(watched, np.float64).reshape(-1, 3).T
        return Vehicles(lanes.astype(np.int64), positions, speeds)

    def set_light(self, light: str, state: str) -> None:
        """Shows `state`, in SUMO's notation, from the next step on."""
        self._api.trafficlight.setRedYellowGreenState(light, state)

    def light_states(self) -> dict[str, str]:
        """The states shown, by light; only with `watches_lights`."""
        results = self._api.trafficlight.getAllSubscriptionResults()
        return {light: state[self._constants.TL_RED_YELLOW_GREEN_STATE] for light, state in results.items()}

    def poses(self) -> np.ndarray:
        """[V, 4] x and y (m) of the front bumper, heading (degrees clockwise from north) and speed (m/s) of all
        vehicles, for pictures; one call per vehicle and figure.
        """
        vehicle = self._api.vehicle
        ids = vehicle.getIDList()
        rows = [(*vehicle.getPosition(v), vehicle.getAngle(v), vehicle.getSpeed(v)) for v in ids]
        return np.array(rows, np.float64).reshape(-1, 4)

    def close(self) -> None:
        if self._child:
            self._child.close()
            self._child = None
        elif Sumo._in_process is self:
            self._loaded.close()
            Sumo._in_process = None
        self._loaded = None


class _Child:
    """SUMO as a child process that ends with this object, and with this process however that ends (on Linux even by
    SIGKILL; elsewhere SUMO ends when its socket closes). It belongs to the thread that made it.

    Raises:
        UserError: it refuses its files, or could not be reached on any of several ports.
    """

    def __init__(self, files: Sequence[str]):
        import sumolib

        folder, _ = installation("traci")
        for _ in range(_PORTS_TRIED):
            port = sumolib.miscutils.getFreeSocketPort()
            # Another process may take the port before SUMO does, another SUMO even, which would answer in its place.
            # The seed tells them apart; the simulation proper is loaded with its own.
            token = str(secrets.randbelow(2**31))
            options = [*files, "--seed", token, "--remote-port", str(port)]
            self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
            try:
                self._process = subprocess.Popen(
                    [str(folder / "sumo"), *options],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=self._errors,
                    preexec_fn=functools.partial(_end_with_parent, os.getpid()) if sys.platform == "linux" else None,
                )
            except OSError as error:
                raise UserError(f"env: {folder / 'sumo'} cannot be started: {error.strerror}; {_INSTALL}") from error
            self._finalizer = weakref.finalize(self, _end, self._process)
            self.connection = None
            if self._connect(port, token):
                return
            words = self._last_words()
            self.close()
            if self._process.returncode > 0 and "address" not in words.lower():
                raise UserError(f"env: SUMO ended at its start: {words}")
        raise UserError(
            f"env: SUMO could not be reached on {_PORTS_TRIED} ports of this machine, the last {port}: "
            f"{words or 'another program answers there'}; see what else takes ports here, or set "
            "domain.backend=libsumo, which needs none"
        )

    def _connect(self, port: int, token: str) -> bool:
        """Sets `connection`; False if SUMO is gone, or somebody else answers."""
        import traci

        failures = (traci.exceptions.FatalTraCIError, traci.exceptions.TraCIException, OSError)
        deadline = time.monotonic() + _SECONDS_TO_ANSWER
        while time.monotonic() < deadline and self._process.poll() is None:
            before = socket.getdefaulttimeout()
            socket.setdefaulttimeout(_SECONDS_TO_INTRODUCE)  # whoever listens there may never answer
            try:
                connection = traci.connect(port, numRetries=0, host="127.0.0.1")
            except failures:
                time.sleep(0.02)
                continue
            finally:
                socket.setdefaulttimeout(before)
            try:
                own = connection.simulation.getOption("seed") == token
            except failures:
                own = False
            if own:
                connection._socket.settimeout(None)  # from now on as long as it takes: jobs may be suspended
                self.connection = connection
                return True
            if connection._socket is not None:  # traci has not given up on it itself
                connection._socket.close()
        return False

    def _last_words(self) -> str:
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[0].removeprefix("Error: ") if lines else ""

    def close(self) -> None:
        if self.connection is not None and self._process.poll() is None:
            with contextlib.suppress(Exception):  # it is ended below in any case
                self.connection.close(wait=False)
        self.connection = None
        self._finalizer()
        self._errors.close()


def _end(process: subprocess.Popen) -> None:
    try:
        process.wait(timeout=0.5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def _end_with_parent(parent: int) -> None:
    """In the child, before SUMO starts: the kernel is to kill it when the parent's thread dies, by SIGKILL even."""
    pr_set_pdeathsig, sigkill = 1, 9
    _LIBC.prctl(pr_set_pdeathsig, sigkill)
    if os.getppid() != parent:  # gone already
        os._exit(1)
