"""The GS baseline: independent PPO on the global simulator (paper, section 5.1).

Rank 0 acts for all agents in copies of the GS, with separate weights and separate memories; the owners of the agents
update their policies on their rows of every rollout. So the update is parallel, the simulation is not: this is what
DIALS is compared with.
"""

import contextlib

from dials_mpi.learning.distributions import actions_of
from dials_mpi.learning.policy import Policy, policy_of_all
from dials_mpi.learning.ppo import PPO
from dials_mpi.learning.rollout import Actor, Rollout
from dials_mpi.streams import stream, streams
from dials_mpi.training.session import Session


def train(session: Session) -> None:
    """Runs the baseline on this rank, in step with all others."""
    c, domain, clock = session.configuration, session.domain, session.clock
    policy = Policy(session.agents, domain.observation_size, actions_of(domain), c.policy, c.seed, session.device)
    session.publish("policy", policy.parameters, policy.network.shapes)
    learner = None
    if session.agents:
        learner = PPO(policy, c.ppo, domain.horizon, session.mean, domain.absorbing_reward)

    def rollout(n_agents: int) -> Rollout:
        return Rollout.of_domain(domain, n_agents, c.ppo, c.policy.recurrent_size)

    mine = rollout(len(session.agents))
    joint = actor = None
    with contextlib.ExitStack() as stack:
        if session.published.rows:
            joint = rollout(domain.n_agents)
            joint_policy = policy_of_all(c.policy, domain, session.published.rows["policy"])
            with clock("start"):
                simulator = stack.enter_context(domain.global_simulator(c.ppo.copies))
            actor = Actor(joint_policy, simulator, c.ppo.copies, domain, clock)
        if learner:
            session.checkpoints.keep_optimiser(learner.optimiser)

        session.begin()
        for segment in session.segments():
            session.evaluator.finish()  # rank 0 has the GS to itself, and no time beside
            for number, steps in session.units(segment):
                if actor:
                    with clock("simulate"):
                        simulator.seed(streams(c.seed, "train/simulator", range(c.ppo.copies), number))
                        actor.start(streams(c.seed, "train/actions", range(domain.n_agents), number))
                permutations = stream(c.seed, "train/minibatches", round_=number)
                for done, step in enumerate(steps):
                    first_step = done * c.ppo.rollout_length % domain.horizon
                    if step > segment.start:  # `end_segment` has gathered those that a segment starts with
                        session.gather()
                    if actor:
                        actor.collect(joint, c.ppo.sequence_length)
                    joint_arrays = joint.arrays() if joint else {}
                    for name, rows in mine.arrays().items():
                        session.exchange.scatter_rows(joint_arrays.get(name), rows)
                    if learner:
                        with clock("ppo_update"):
                            statistics = learner.update(
                                mine.to(session.device), first_step, c.ppo.annealed(step), permutations
                            )
                            session.statistics.add(statistics)
                    if actor:
                        session.tick(step + c.ppo.rollout_steps)
            session.end_segment(segment)
