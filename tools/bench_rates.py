"""Benchmarks of what one process does on one core: simulators, learning, AIP training. Started by bench.py."""

import os
import time
from contextlib import ExitStack
from pathlib import Path

from dials_mpi.parallel.threads import keep_freed_memory, one_thread

one_thread(os.environ)
keep_freed_memory()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_measure import Figure, Measurement, Options, counted  # noqa: E402

from dials_mpi.algorithms.dials import LocalLearners  # noqa: E402
from dials_mpi.config import Configuration, load_yaml, resolve  # noqa: E402
from dials_mpi.extras import extra  # noqa: E402
from dials_mpi.influence.augmented_simulator import InfluenceAugmentedSimulator  # noqa: E402
from dials_mpi.influence.dataset import InfluenceDataset  # noqa: E402
from dials_mpi.influence.predictor import InfluencePredictor, train  # noqa: E402
from dials_mpi.learning.policy import Policy  # noqa: E402
from dials_mpi.learning.rollout import Player  # noqa: E402
from dials_mpi.learning.statistics import Means  # noqa: E402
from dials_mpi.runs.clock import LEARNING, PHASES, Clock  # noqa: E402
from dials_mpi.simulators.interface import Domain  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.streams import stream, streams  # noqa: E402
from dials_mpi.training.plan import unit_steps  # noqa: E402

torch.set_num_threads(1)

_LARGEST_BLOCK = 100
_WAREHOUSE_COPIES = (1, 10, 50)
_TRAFFIC_COPIES = 5
_INFLOW, _SWITCHES = 0.1, 0.08
"""About what a trained light sees and does."""
_INFLOW_LOGIT = -2.25
_WARM_UP = 60
"""Seconds until the roads are as full as they stay."""
_PEAK_SIZE = 1024


def warehouse_learner(options: Options, stack: ExitStack) -> list[Measurement]:
    def block(n: int, what: str = "", target: float | None = None, *layers: dict) -> Measurement:
        return _learner(options, stack, "warehouse", n, f"IALS + PPO{what}, {_agents(n)}", 1122.0, target, *layers)

    targets = {1: 30_000.0, 25: 80_000.0}
    return [
        block(1, ", single copy", None, _single_copy("warehouse")),
        *(block(n, "", targets.get(n)) for n in options.sizes(1, 4, 10, 25, 50)),
        *(
            block(n, what, 12_000.0, layer)
            for what, layer in _published_networks().items()
            for n in options.sizes(1, 4, 25)
        ),
    ]


def traffic_learner(options: Options, stack: ExitStack) -> list[Measurement]:
    """At the beginning of training, when the lights let few vehicles pass: later the roads are emptier, SUMO faster."""
    sumo, measurements = SumoTime(stack), []
    for n in options.sizes(1, 4, 25):
        name = f"IALS + PPO, {_agents(n)}"
        measurement = _learner(options, stack, "traffic", n, name, 1016.0, 15_000.0)
        measurements.append(sumo.share_during(measurement, name))
    return measurements


def warehouse_simulators(options: Options, stack: ExitStack) -> list[Measurement]:
    measurements = []
    for n, what, layer in (
        (1, ", single copy", _single_copy("warehouse")),
        *((n, "", {}) for n in options.sizes(1, 25)),
    ):
        c, domain = _setting("warehouse", layer)
        b = c.ppo.copies
        simulator = domain.local_simulator(range(n), b)
        simulator.seed(streams(0, "train/simulator", range(n)))
        generator = np.random.default_rng(0)
        actions = generator.integers(domain.n_actions, size=(n, b))
        sources = generator.integers(domain.influence.classes, size=(n, b, domain.influence.sources)).astype(np.uint8)
        alone = _episode(simulator, lambda s=simulator, a=actions, u=sources: s.step(a, u), domain.horizon)
        ials = _ials(domain, c, n, "warehouse")
        augmented = _episode(ials, lambda s=ials, a=actions: s.step(a), domain.horizon)
        for name, work, published in (("local simulator", alone, 13_390.0), ("IALS", augmented, None)):
            figure = Figure(f"{name}{what}, {_agents(n)}", "agent-steps/s", published, about=f"B = {b}")
            measurements.append(options.rate(figure, work, domain.horizon * n * b))
    return measurements


def traffic_simulators(options: Options, stack: ExitStack) -> list[Measurement]:
    measurements = _tiles(options, stack, "libsumo")
    for n in options.sizes(1, 4, 25):
        c, domain = _setting("traffic")
        simulator = _ials(domain, c, n, "traffic")
        stack.callback(simulator.close)
        rng, shape = np.random.default_rng(0), (n, c.ppo.copies)

        def work(simulator=simulator, rng=rng, shape=shape):
            simulator.step((rng.random(shape) < _SWITCHES) * 1)

        figure = Figure(f"IALS, {_agents(n)}", "agent-steps/s", about=f"B = {c.ppo.copies}")
        measurements.append(options.rate(figure, work, n * c.ppo.copies, _filled(simulator, work)))
    return measurements


def traffic_traci(options: Options, stack: ExitStack) -> list[Measurement]:
    return _tiles(options, stack, "traci")


def warehouse_gs(options: Options, stack: ExitStack) -> list[Measurement]:
    measurements = []
    published = {4: (841.0, 364.0), 25: (117.0, 61.0), 100: (15.0, 11.0)}
    targets = {4: 10_000.0, 25: 2_500.0, 100: 600.0}
    for n in options.sizes(*published):
        c, domain = _setting("warehouse", agents=n)
        for b in _WAREHOUSE_COPIES:
            simulator = domain.global_simulator(b)
            simulator.seed(streams(0, "evaluate/simulator", range(b)))
            actions = np.random.default_rng(0).integers(domain.n_actions, size=(n, b))
            alone = _episode(simulator, lambda s=simulator, a=actions: s.step(a), domain.horizon)
            together = _joint_episode(domain, c, simulator, b)
            for name, work, before, target in (
                ("GS", alone, published[n][0], None),
                ("GS + joint policy", together, published[n][1], targets[n] if b > 1 else None),
            ):
                label = f"{name}, {n} agents, {b} cop{'y' if b == 1 else 'ies'}"
                figure = Figure(label, "joint steps/s", before, target, about=f"B = {b}")
                measurements.append(options.rate(figure, work, domain.horizon * b))
    return measurements


def traffic_gs(options: Options, stack: ExitStack) -> list[Measurement]:
    measurements = []
    b = _TRAFFIC_COPIES
    for n in options.sizes(4, 25, 49, 100):
        c, domain = _setting("traffic", agents=n)
        simulator = domain.global_simulator(b)
        stack.callback(simulator.close)
        simulator.seed([np.random.default_rng(copy) for copy in range(b)])
        player = Player(_policy(domain, c, n))
        player.start(b, streams(0, "evaluate/actions", range(n)))
        rng, state = np.random.default_rng(1), {}

        # The policy's actions would be random: these lights let traffic flow.
        def alone(simulator=simulator, rng=rng, state=state, n=n):
            state["observations"] = simulator.step((rng.random((n, b)) < _SWITCHES) * 1).observations

        def together(alone=alone, player=player, state=state):
            player.act(state["observations"])
            alone()

        four = n == 4
        gs = Figure(f"GS, {n} lights", "joint steps/s", 1532.0 if four else None, about=f"B = {b}")
        joint = Figure(
            f"GS + joint policy, {n} lights",
            "joint steps/s",
            514.0 if four else None,
            3_000.0 if four else None,
            about=f"B = {b}; published: in training",
        )
        by_itself = options.rate(gs, alone, b, _filled(simulator, alone))
        with_policy = options.rate(joint, together, b, prepare=together)  # the roads are full of vehicles by then

        def once(by_itself=by_itself, with_policy=with_policy):
            yield from by_itself.once()
            yield from with_policy.once()

        measurements.append(Measurement([*by_itself.figures, *with_policy.figures], once))
    return measurements


def aip_training(options: Options, stack: ExitStack) -> list[Measurement]:
    measurements = []
    for env, blocks, published in (
        ("warehouse", (1, 4, 25, 100), 10_000 * 10 / 0.47),
        ("traffic", (1, 25), 10_000 * 100 / 2.66),
    ):
        for n in options.sizes(*blocks):
            c, domain = _setting(env, {"predictor": {"epochs": 1}})
            # How long it takes does not depend on what the datasets say.
            generator = np.random.default_rng(0)
            data = InfluenceDataset.empty(n, -(-c.dataset.steps // domain.horizon), domain.horizon, domain.influence)
            for array, classes in ((data.history, 2), (data.influence_sources, domain.influence.classes)):
                array[:] = generator.integers(classes, size=array.shape, dtype=np.uint8)

            def work(c=c, domain=domain, n=n, data=data):
                predictor = InfluencePredictor(range(n), domain.influence, c.predictor, 0, n_actions=domain.n_actions)
                train(predictor, data, c.dataset.test_fraction, stream(0, "predictor/minibatches"))

            samples = n * data.actions[0].size
            figure = Figure(f"{env}, {_agents(n)}", "samples × epochs/s", published, about=f"{samples // n:,} samples")
            measurements.append(options.rate(figure, work, samples))
    return measurements


def roofline(options: Options, stack: ExitStack) -> list[Measurement]:
    """Floating-point rate of the PPO update, beside that of a large matrix product on the same core."""
    matrix = torch.rand(_PEAK_SIZE, _PEAK_SIZE)
    product = torch.empty_like(matrix)
    peak = Figure(f"matrix product of {_PEAK_SIZE}³", "GFLOP/s", about=f"MKL_CBWR={os.environ['MKL_CBWR']}")

    def multiply():
        return torch.mm(matrix, matrix, out=product)

    peak_rate = options.rate(peak, multiply, 2 * _PEAK_SIZE**3)
    latest = {}

    def peak_once():
        for name, value in peak_rate.once():
            latest["peak"] = value
            yield name, value / 1e9

    measurements = [Measurement([peak], peak_once)]
    for env, what, layer in (
        ("warehouse", "", {}),
        *(("warehouse", what, layer) for what, layer in _published_networks().items()),
        ("traffic", "", {}),
    ):
        for n in options.sizes(1, 25):
            c, domain = _setting(env, layer)
            learning = Learning(stack, c, domain, env, n)
            name = f"PPO update, {env}{what}, {_agents(n)}"
            figures = Figure(name, "GFLOP/s"), Figure(f"{name}: of the matrix product", "%", better="neither")
            flops = update_flops(c, domain) * n

            def once(learning=learning, flops=flops, names=[figure.name for figure in figures]):  # noqa: B006
                updates, seconds, shares, _ = learning.timed(options)
                rate = updates * flops / (seconds * shares["ppo_update"])
                yield names[0], rate / 1e9
                yield names[1], 100 * rate / latest["peak"]

            measurements.append(Measurement(figures, once))
    return measurements


def update_flops(c: Configuration, domain: Domain) -> float:
    """Floating-point operations of the matrix products of one agent's PPO update, a product and a sum counting two.

    Backward costs twice the forward pass, but for the first matrix, whose input needs no gradient.
    """
    width, hidden = domain.observation_size, c.policy.recurrent_size
    products = []
    if hidden:
        products += [width * 3 * hidden, hidden * 3 * hidden]
        width = hidden
    for size in (*c.policy.hidden_sizes, domain.n_actions + 1):
        products.append(width * size)
        width = size
    per_sample = 2 * (3 * sum(products) - products[0])
    return per_sample * c.ppo.rollout_steps * c.ppo.epochs


class Learning:
    """Lines 7 to 12 of Algorithm 1 for a block of agents, a unit of whole episodes at a time."""

    def __init__(self, stack: ExitStack, c: Configuration, domain: Domain, env: str, n: int):
        self._clock = Clock()
        self._unit = range(0, unit_steps(c, domain.horizon), c.ppo.rollout_steps)
        self._learners = LocalLearners(
            c, domain, range(n), _policy(domain, c, n), _predictor(domain, c, n, env), self._clock
        )
        stack.callback(self._learners.close)

    def timed(self, options: Options) -> tuple[int, float, dict[str, float], dict[str, float]]:
        """Learns for a repeat's seconds.

        Returns:
            Updates done, CPU seconds, what share of them each phase had, and what `counted` counted.
        """
        self._learners.learn(0, self._unit[:1], Means())
        with counted(options.instructions) as count:
            before, begin, updates = self._clock.report(), time.process_time(), 0
            while (elapsed := time.process_time() - begin) < options.seconds or not updates:
                self._learners.learn(0, self._unit, Means())
                updates += len(self._unit)
        by_phase = dict(zip(PHASES, self._clock.report() - before, strict=False))
        total = sum(by_phase.values())
        return updates, elapsed, {phase: by_phase[phase] / total for phase in LEARNING}, count


class SumoTime:
    """Wall time inside SUMO's own simulation step, of all simulators of this process."""

    def __init__(self, stack: ExitStack):
        with extra("traffic", "SUMO"):
            import libsumo
            import traci.connection

        self.seconds = 0.0
        for owner in (libsumo, traci.connection.Connection):
            step = owner.simulationStep
            stack.callback(setattr, owner, "simulationStep", step)
            owner.simulationStep = self._timed(step)

    def _timed(self, step):
        def timed(*arguments):
            begin = time.perf_counter()
            result = step(*arguments)
            self.seconds += time.perf_counter() - begin
            return result

        return timed

    def share_during(self, measurement: Measurement, name: str) -> Measurement:
        """The same measurement with SUMO's share of its time as another figure; `name` is that of its first."""
        figure = Figure(f"{name}: SUMO's own step", "%", better="neither")

        def once():
            inside, begin = self.seconds, time.perf_counter()
            yield from measurement.once()
            yield figure.name, 100 * (self.seconds - inside) / (time.perf_counter() - begin)

        return Measurement([*measurement.figures, figure], once)


def _learner(options, stack, env, n, name, published, target, *layers) -> Measurement:
    c, domain = _setting(env, *layers)
    learning = Learning(stack, c, domain, env, n)
    about = f"B = {c.ppo.copies}, GRU {c.policy.recurrent_size}, layers {list(c.policy.hidden_sizes)}"
    rate = Figure(name, "agent-steps/s", published, target, about=f"{about}, {c.ppo.epochs} epochs")
    per_step = options.per_step(rate)
    figures = [
        rate,
        *per_step,
        *(Figure(f"{name}: {phase}", "%", better="neither") for phase in LEARNING),
    ]

    def once():
        updates, seconds, shares, count = learning.timed(options)
        steps = updates * c.ppo.rollout_steps * n
        yield name, steps / seconds
        for figure in per_step:
            yield figure.name, count["instructions"] / steps
        for phase, share in shares.items():
            yield f"{name}: {phase}", 100 * share

    return Measurement(figures, once)


def _published_networks() -> dict[str, dict]:
    """Layers of a configuration with sizes and epochs of the published learner in the warehouse, by what they are."""
    paper = load_yaml(Path(__file__).parents[1] / "configs" / "warehouse_paper.yaml")
    layer = {"policy": paper["policy"], "ppo": {"epochs": paper["ppo"]["epochs"]}}
    half = layer | {"policy": paper["policy"] | {"gradient_precision": "bfloat16"}}
    return {", published network": layer, ", published network, bfloat16 gradients": half}


def _tiles(options: Options, stack: ExitStack, backend: str) -> list[Measurement]:
    sumo, measurements = SumoTime(stack), []
    clock = time.process_time if backend == "libsumo" else time.perf_counter
    for n in options.sizes(1, 8, 64, 200):
        _, domain = _setting("traffic", {"domain": {"backend": backend}})
        simulator = domain.local_simulator([0], n)
        stack.callback(simulator.close)
        simulator.seed([np.random.default_rng(0)])
        rng = np.random.default_rng(1)

        def work(simulator=simulator, rng=rng, n=n):
            simulator.step((rng.random((1, n)) < _SWITCHES) * 1, (rng.random((1, n, 4)) < _INFLOW).astype(np.uint8))

        name = f"{n} tile{'s' if n > 1 else ''} over {backend}"
        figure = Figure(name, "tile-steps/s", 4743.0, about="" if backend == "libsumo" else "wall time")
        fill = _filled(simulator, work)
        timed = sumo.share_during(options.rate(figure, work, n, prepare=work, clock=clock), name)

        def once(fill=fill, timed=timed):
            fill()
            yield from timed.once()

        measurements.append(Measurement(timed.figures, once))
    return measurements


def _setting(env: str, *layers: dict, agents: int = _LARGEST_BLOCK) -> tuple[Configuration, Domain]:
    c = resolve([("bench", {"env": env, "agents": agents}), *(("bench", layer) for layer in layers)], agents)
    return c, make_domain(env, agents, c.domain)


def _single_copy(env: str) -> dict:
    """One copy of the simulator per agent, as the published code has it, and updates on whole rollouts."""
    c, _ = _setting(env)
    return {"ppo": {"copies": 1, "minibatch_size": c.ppo.rollout_length}}


def _policy(domain: Domain, c: Configuration, n: int) -> Policy:
    return Policy(range(n), domain.observation_size, domain.n_actions, c.policy, 0)


def _predictor(domain: Domain, c: Configuration, n: int, env: str) -> InfluencePredictor:
    predictor = InfluencePredictor(range(n), domain.influence, c.predictor, 0, n_actions=domain.n_actions)
    if env == "traffic":  # the last biases: sources as frequent as on the roads
        predictor.network.parameters[:, -domain.influence.sources :] = _INFLOW_LOGIT
    return predictor


def _ials(domain: Domain, c: Configuration, n: int, env: str) -> InfluenceAugmentedSimulator:
    b = c.ppo.copies
    simulator = InfluenceAugmentedSimulator(domain.local_simulator(range(n), b), _predictor(domain, c, n, env), b)
    simulator.seed(streams(0, "train/simulator", range(n)), streams(0, "train/influence", range(n)))
    return simulator


def _episode(simulator, step, horizon: int):
    def whole():
        simulator.reset()
        for _ in range(horizon):
            step()

    return whole


def _joint_episode(domain: Domain, c: Configuration, simulator, copies: int):
    player, generators = (
        Player(_policy(domain, c, domain.n_agents)),
        streams(0, "evaluate/actions", range(domain.n_agents)),
    )

    def whole():
        observations = simulator.reset()
        player.start(copies, generators)
        for _ in range(domain.horizon):
            observations = simulator.step(player.act(observations)).observations

    return whole


def _filled(simulator, step):
    """A new episode, until the roads are full; takes libsumo over from whoever had it."""

    def prepare():
        simulator.reset()
        for _ in range(_WARM_UP):
            step()

    return prepare


def _agents(n: int) -> str:
    return f"{n} agent{'s' if n > 1 else ''}"
