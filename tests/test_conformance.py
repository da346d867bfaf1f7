"""What a domain of a user's own is told: whether its local simulator relives the global one, and where it does not."""

import re

import networkx
import numpy as np
import pytest
from ring import Ring, RingGlobalSimulator, RingLocalSimulator
from tabular import Tabular, TabularGlobalSimulator

from dials_mpi.errors import UserError
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.interface import DomainSettings, Step
from dials_mpi.simulators.registry import domain_class, make_domain

REMEDY = (
    "influence_sources must be the u_t of the last step, local_states x_t as it is now, and LocalSimulator must act on "
    "both; random draws are handed over by draws and take_draws; if LocalSimulator approximates, the domain "
    "has a replay_tolerance (dials_mpi/simulators/interface.py)"
)
COPIES = 10  # of the replay of an episode of ten steps


def ring(gs=RingGlobalSimulator, ls=RingLocalSimulator, **attributes) -> Ring:
    """Three agents, with simulators in the place of its own."""

    class Mine(Ring):
        def global_simulator(self, copies, controller=None):
            return gs(self.n_agents, copies)

        def local_simulator(self, agents, copies):
            simulator = ls(len(agents), copies)
            simulator.agents = list(agents)
            return simulator

    domain = Mine(3, DomainSettings())
    for name, value in attributes.items():
        setattr(domain, name, value)
    return domain


def complaint(domain) -> str:
    with pytest.raises(UserError) as error:
        check_domain(domain)
    return str(error.value)


def another_life(where: str, states: int, observations: int, rewards: int, disagreement="X", tolerance="0") -> str:
    return (
        "domain ring: LocalSimulator, given the actions and influence sources of an episode of GlobalSimulator, lives "
        f"another one: first at {where}; different are {states} of 330 local states, {observations} of 330 "
        f"observations, {rewards} of 300 rewards (disagreement {disagreement}, replay_tolerance {tolerance}); {REMEDY}"
    )


class IgnoresInfluence(RingLocalSimulator):
    def step(self, actions, influence_sources):
        return super().step(actions, 0 * influence_sources)


class LateSources(RingGlobalSimulator):
    def reset(self):
        self._sources = np.zeros((*self._shape, 2), np.uint8)
        return super().reset()

    def step(self, actions):
        self._before = self._sources
        return super().step(actions)

    def influence_sources(self):
        return self._before


class EarlySources(RingGlobalSimulator):
    """What a neighbour chooses acts a step later, but is reported at once."""

    def reset(self):
        self._coming = np.zeros(self._shape, np.uint8)
        return super().reset()

    def _step(self, actions, sources):
        sources, self._coming = self._coming, sources
        return super()._step(actions, sources)


class LateStates(RingGlobalSimulator):
    def local_states(self):
        return np.stack([self._late, 1 - self._late], axis=-1)

    def reset(self):
        self._late = np.zeros(self._shape, np.uint8)
        super().reset()
        self._late = self._bits
        return self.observations()

    def step(self, actions):
        late = self._bits
        rewards = super().step(actions).rewards
        self._late = late
        return Step(self.observations(), rewards)

    def observations(self):
        return np.stack([self._bits, 1 - self._bits], axis=-1)


def lived_through(steps=10):
    """Actions [T, 3, B] of the replay and the bits [T + 1, 3, B] that a ring's GS then has, by its definition."""
    generator = np.random.default_rng(0)
    actions = np.array([generator.integers(2, size=(3, COPIES)) for _ in range(steps)])
    first = np.stack([np.random.default_rng((0, 0, copy)).integers(2, size=3) for copy in range(COPIES)], axis=1)
    return actions, np.array([first, *(np.roll(a, 1, axis=0) for a in actions)])


def test_a_local_simulator_that_ignores_its_influence_is_refused_with_where_and_how_often():
    actions, bits = lived_through()
    wrong = bits.copy()
    wrong[1:] = 0
    differs = bits != wrong
    agent, copy = np.argwhere(differs[1])[0]
    paid, wrongly_paid = actions == bits[:-1], actions == wrong[:-1]
    worst = 0.0
    for i in range(3):
        # A bit is seen with its complement: of two that differ both entries do, of two that are equal one is set.
        apart = differs[:, i].sum()
        worst = max(worst, 2 * apart / (2 * apart + (~differs[:, i]).sum()))
        worst = max(worst, (paid[:, i] != wrongly_paid[:, i]).sum() / (paid[:, i] | wrongly_paid[:, i]).sum())
    assert differs.mean() > 0.4
    states, rewards = differs.sum(), (paid != wrongly_paid).sum()
    where = f"step 0, agent {agent}, copy {copy}, where the local state (entry 0) is 0 instead of 1"
    assert complaint(ring(ls=IgnoresInfluence)) == another_life(where, states, states, rewards, f"{worst:.2g}")


@pytest.mark.parametrize("gs", [LateSources, EarlySources, LateStates])
def test_a_global_simulator_whose_sources_or_states_belong_to_another_step_is_refused(gs):
    actions, bits = lived_through()
    zeros = np.zeros_like(bits[:1])
    if gs is LateSources:  # the LS lives a step behind
        lived, relived = bits, np.concatenate([bits[:1], zeros, bits[1:-1]])
    elif gs is EarlySources:  # the GS does
        lived, relived = np.concatenate([bits[:1], zeros, bits[1:-1]]), bits
    else:
        lived, relived = np.concatenate([bits[:1], bits[:-1]]), bits
    differs = lived != relived
    agent, copy = np.argwhere(differs[1])[0]
    was, is_ = lived[1, agent, copy], relived[1, agent, copy]
    line = complaint(ring(gs))
    where = f"step 0, agent {agent}, copy {copy}, where the local state (entry 0) is {is_} instead of {was}"
    states = differs.sum()
    if gs is LateStates:
        expected = another_life(where, states, 0, 0)
    else:
        rewards = (actions == lived[:-1]) != (actions == relived[:-1])
        expected = another_life(where, states, states, rewards.sum())
    assert re.sub(r"disagreement [\d.]+", "disagreement X", line) == expected


def tampered(kind, what, value, episode_step=4, agent=1, copy=2, horizon=10):
    """A ring whose simulator gives one wrong value in an episode."""

    class Tampered(kind):
        def reset(self):
            self._t = -1
            return super().reset()

        def step(self, actions, *sources):
            step = super().step(actions, *sources)
            self._t += 1
            arrays = {"reward": step.rewards, "observation": step.observations.astype(np.float32)}
            agents = getattr(self, "agents", [0, 1, 2])
            if self._t == episode_step and agent in agents and copy < self._shape[1]:
                arrays[what][agents.index(agent), copy] = value
            return Step(arrays["observation"], arrays["reward"])

    simulators = {"gs": Tampered} if kind is RingGlobalSimulator else {"ls": Tampered}
    return ring(**simulators, horizon=horizon)


SIMULATORS = {"GlobalSimulator": RingGlobalSimulator, "LocalSimulator": RingLocalSimulator}


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("what", ["reward", "observation"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("step", [4, 20])
def test_values_that_are_not_finite_are_refused_with_their_place(simulator, what, value, step):
    domain = tampered(SIMULATORS[simulator], what, value, step, horizon=30)
    expected = f"domain ring: {simulator}: {what} {value} at step {step}, agent 1, copy 2 is not finite"
    assert complaint(domain) == expected


@pytest.mark.parametrize("simulator", SIMULATORS)
@pytest.mark.parametrize("step", [4, 20])
@pytest.mark.parametrize("value", [1.5, -0.25])
def test_observations_out_of_their_range_are_refused_with_their_place(simulator, step, value):
    domain = tampered(SIMULATORS[simulator], "observation", value, step, horizon=30)
    domain.observation_range = (0.0, 1.0)
    assert complaint(domain) == (
        f"domain ring: {simulator}: observation {value} at step {step}, agent 1, copy 2 is outside observation_range, "
        "0 to 1"
    )


def test_a_reset_out_of_range_is_told_from_a_step():
    domain = ring()
    domain.observation_range = (0.0, 0.5)
    assert complaint(domain).startswith(
        "domain ring: GlobalSimulator: observation 1 at reset, agent 0, copy 0 is outside"
    )


@pytest.mark.parametrize(
    ("what", "words", "often"),
    [("reward", "reward", (0, 0, 1)), ("observation", "observation (entry 0)", (0, 1, 0))],
)
def test_a_single_wrong_reward_or_observation_is_found(what, words, often):
    actions, bits = lived_through()
    was = {"reward": actions[9, 2, 3] == bits[9, 2, 3], "observation": bits[10, 2, 3]}[what]
    line = complaint(tampered(RingLocalSimulator, what, 7, episode_step=9, agent=2, copy=3))
    place = f"step 9, agent 2, copy 3, where the {words} is 7 instead of {int(was)}"
    assert re.sub(r"disagreement [\d.]+", "disagreement X", line) == another_life(place, *often)


def test_the_first_difference_is_named_whatever_it_is_of():
    class Wrong(RingLocalSimulator):
        def reset(self):
            self._t = -1
            return super().reset()

        def step(self, actions, sources):
            self._t += 1
            rewards = super().step(actions, sources).rewards
            if self._t == 2 and 1 in self.agents:
                rewards[self.agents.index(1), 0] = 7
            if self._t == 5:
                self._bits = 1 - self._bits
            return Step(self.local_states(), rewards)

    assert "lives another one: first at step 2, agent 1, copy 0, where the reward is 7 instead of " in complaint(
        ring(ls=Wrong)
    )


@pytest.mark.parametrize(("kind", "place"), [("gs", "agent 0, copy 2"), ("ls", "agent 2, copy 0")])
def test_an_agent_or_a_copy_alone_is_called_by_its_own_number(kind, place):
    name, whole = {"gs": ("GlobalSimulator", RingGlobalSimulator), "ls": ("LocalSimulator", RingLocalSimulator)}[kind]

    class Alone(whole):
        def reset(self):
            observations = super().reset().astype(np.float32)
            if self._shape[0 if kind == "ls" else 1] == 1:
                observations[0, 0] = np.nan
            return observations

    assert complaint(ring(**{kind: Alone})) == f"domain ring: {name}: observation nan at reset, {place} is not finite"


def test_arrays_of_a_simulator_are_its_own_again_at_its_next_step():
    """As `Step` promises: one that fills the same arrays anew at every step is replayed like any other."""

    class Reusing(RingGlobalSimulator):
        def reset(self):
            self._kept = [np.zeros((*self._shape, 2), np.uint8) for _ in range(3)]
            self._rewards = np.zeros(self._shape, np.float32)
            return self._in_place(0, super().reset())

        def _in_place(self, number, values):
            self._kept[number][:] = values
            return self._kept[number]

        def step(self, actions):
            step = super().step(actions)
            observations, self._rewards[:] = step.observations, step.rewards
            return Step(self._in_place(0, observations), self._rewards)

        def local_states(self):
            return self._in_place(1, super().local_states())

        def influence_sources(self):
            return self._in_place(2, super().influence_sources())

    class ReusingDraws(TabularGlobalSimulator):
        def draws(self):
            self._kept = getattr(self, "_kept", np.empty(self._shape))
            self._kept[:] = super().draws()
            return self._kept

    class Draws(Tabular):
        def global_simulator(self, copies, controller=None):
            return ReusingDraws(self, range(2), copies)

    check_domain(ring(gs=Reusing))
    check_domain(Draws(2, DomainSettings()))


def test_what_a_region_draws_is_to_be_handed_over():
    class Silent(RingGlobalSimulator):
        def draws(self):
            return None

    class Deaf(RingLocalSimulator):
        def take_draws(self, draws):
            return super(RingLocalSimulator, self).take_draws(draws)

    line = complaint(ring(gs=Silent))
    assert line.startswith(another_life("reset, agent 0, copy ", 0, 0, 0).partition(";")[0])
    assert "handed over by draws and take_draws" in line
    assert complaint(ring(ls=Deaf)) == "domain ring: Deaf lacks take_draws, but its GlobalSimulator has draws"


@pytest.mark.parametrize(("draws", "what"), [(np.zeros((2, 3)), "(2, 3)"), ([1, 2], "list")])
def test_draws_that_are_no_array_by_agent_and_copy_are_refused(draws, what):
    class Odd(RingGlobalSimulator):
        def draws(self):
            return draws

    expected = f"domain ring: GlobalSimulator.draws returns {what}, neither None nor an array of shape (3, 3, …)"
    assert complaint(ring(gs=Odd)) == expected


class Approximate(RingLocalSimulator):
    """Misses every twentieth influence of each region."""

    def reset(self):
        self._t = 0
        return super().reset()

    def step(self, actions, influence_sources):
        self._t += 1
        return super().step(actions, influence_sources * (self._t % 5 != 0))


def test_a_local_simulator_may_approximate_as_far_as_its_domain_declares():
    domain = ring(ls=Approximate)
    line = complaint(domain)
    measured = float(re.search(r"disagreement ([\d.]+), replay_tolerance 0\)", line)[1])
    assert 0.05 < measured < 0.3
    domain.replay_tolerance = measured + 0.01
    check_domain(domain)
    domain.replay_tolerance = measured - 0.01
    assert f"disagreement {measured:g}, replay_tolerance {measured - 0.01:g})" in complaint(domain)


def test_one_agent_that_is_cut_off_shows_among_many():
    """The worst agent counts: means over all would hide it."""

    class CutOff(RingLocalSimulator):
        def step(self, actions, influence_sources):
            sources = influence_sources.copy()
            sources[[agent == 2 for agent in self.agents]] = 0
            return super().step(actions, sources)

    domain = ring(ls=CutOff, n_agents=40, grid_shape=(1, 40), replay_tolerance=0.4)
    assert "first at step 0, agent 2, copy" in complaint(domain)


def ending(simulator, change=lambda step, over, t: step, absorbing_reward=-2.0, last=3):
    """A ring in which the episode of agent 2 in copy 2 ends with step `last`; `change` is made to steps from 6 on."""

    def ends(kind):
        class Ends(kind):
            def reset(self):
                self._t, self._left = -1, None
                return super().reset()

            def step(self, actions, *sources):
                step = super().step(actions, *sources)
                self._t += 1
                over = np.zeros(self._shape, bool)
                if self._t >= last and self._shape == (3, 3):  # none where it is alone
                    over[2, 2] = True
                observations, rewards = step.observations, step.rewards
                if self._t > last:
                    observations[over], rewards[over] = self._left[over], -2
                self._left = observations.copy()
                step = Step(observations, rewards, over)
                return change(step, over, self._t) if self._t > 5 else step

        return Ends

    kind = {"gs": RingGlobalSimulator, "ls": RingLocalSimulator}[simulator]
    return ring(**{simulator: ends(kind)}, absorbing_reward=absorbing_reward, horizon=30)


GOES_ON = {
    "goes on": lambda step, over, t: step._replace(terminated=over & (t == 7)),
    "gets another reward than absorbing_reward, -2,": lambda step, over, t: step._replace(
        rewards=np.where(over, np.float32(1), step.rewards)
    ),
    "sees something else": lambda step, over, t: step._replace(observations=step.observations ^ over[..., None]),
}


@pytest.mark.parametrize("what", GOES_ON)
@pytest.mark.parametrize(("kind", "name"), [("gs", "GlobalSimulator"), ("ls", "LocalSimulator")])
def test_an_episode_that_is_over_stays_over(what, kind, name):
    where = f"domain ring: {name}: step 6, agent 2, copy 2"
    assert complaint(ending(kind, change=GOES_ON[what])) == f"{where} {what} although its episode was over before"


def test_ends_of_episodes_are_bits_and_come_from_seeds():
    assert complaint(ending("gs", change=lambda step, over, t: step._replace(terminated=over.astype(int)))) == (
        "domain ring: GlobalSimulator.step: terminated has dtype int64, not bool"
    )
    assert complaint(ending("gs", absorbing_reward=0.5)).startswith(
        "domain ring: GlobalSimulator: step 4, agent 2, copy 2 gets another reward than absorbing_reward, 0.5,"
    )
    for kind, alone in (("gs", "a copy alone"), ("ls", "an agent alone")):
        assert f"{alone} lives another episode than among others" in complaint(ending(kind, last=11))


@pytest.mark.parametrize("env", ["ring:Ring", "ring:Uninfluenced", "tabular:Tabular"])
def test_domains_that_keep_their_promises_pass(env):
    check_domain(make_domain(env, 2 if "tabular" in env else 5, domain_class(env).Settings()))
    assert Tabular.replay_tolerance == Ring.replay_tolerance == 0


@pytest.mark.parametrize(
    ("graph", "what"),
    [
        ([[1], [0, 2], [1]], "is no networkx graph but list"),
        (networkx.DiGraph([(0, 1), (1, 2)]), "is directed; give its to_undirected()"),
        (networkx.path_graph(4), "has a node 3, which is no agent"),
        (networkx.grid_2d_graph(1, 3), "has a node (0, 0), which is no agent"),
        (networkx.path_graph(2), "lacks agent 2; add it as a node, if need be without edges"),
        (networkx.Graph([(0, 1), (1, 2), (1, 1)]), "joins agent 1 with itself; leave that out"),
    ],
    ids=["lists", "directed", "too many", "other names", "too few", "loop"],
)
def test_a_graph_of_others_than_the_agents_is_refused(graph, what):
    assert complaint(ring(graph=graph)) == f"domain ring: graph {what} (its nodes are the agents, 0 to 2)"


@pytest.mark.parametrize("graph", [networkx.empty_graph(3), networkx.path_graph([2, 0, 1])], ids=["lonely", "line"])
def test_a_graph_of_the_agents_is_accepted(graph):
    check_domain(ring(graph=graph))
