#!/usr/bin/env python3
"""How faithful the traffic local simulator is: GS episodes replayed in it with the recorded influence sources.

    python tools/fidelity_traffic.py                      random actions and two fixed-time plans, 4 lights
    python tools/fidelity_traffic.py runs/NAME            a run's policies on its own grid

A line per agent: share of the 36 bits that agree, of the GS's occupied cells found again, mean absolute difference per
step and correlation of queues (occupied cells per lane) and rewards, mean returns.
"""

import argparse
import os
import sys
from pathlib import Path

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import numpy as np  # noqa: E402

from dials_mpi.cli import at_least  # noqa: E402
from dials_mpi.config import load_yaml, resolve, stored_layer  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.simulators.replay import replay  # noqa: E402
from dials_mpi.simulators.traffic.fidelity import agreement  # noqa: E402
from dials_mpi.simulators.traffic.handcoded import FixedTime  # noqa: E402


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="run directory")
    parser.add_argument("--agents", type=at_least(1), help="lights, without a run (4)")
    parser.add_argument("--copies", type=at_least(1), default=6, help="episodes side by side (6)")
    parser.add_argument("--seed", type=at_least(0), default=0, help="(0)")
    arguments = parser.parse_args()
    try:
        report(arguments)
    except UserError as error:
        print(f"fidelity_traffic: {error}", file=sys.stderr)
        return 2
    return 0


def report(arguments: argparse.Namespace) -> None:
    file, layer = "--agents", {"env": "traffic", "agents": arguments.agents or 4}
    if arguments.run:
        if arguments.agents is not None:
            raise UserError("--agents: the run has its own number; leave it out")
        file = arguments.run / "config.yaml"
        layer = load_yaml(file)
    c = resolve([stored_layer(file, layer) if arguments.run else (file, layer)], 4, "traffic")
    domain = make_domain(c.env, c.agents, c.domain)
    shape = (c.agents, arguments.copies)
    generator = np.random.default_rng(arguments.seed)
    if arguments.run:
        from dials_mpi.training.evaluation import load_actor

        policies = {"the run's": load_actor(arguments.run, c, domain, arguments.copies, arguments.seed).act}
    else:
        policies = {"random": lambda *_: generator.integers(domain.n_actions, size=shape)}
        for cycle in (FixedTime.CYCLE, 60):
            plan = FixedTime(c.agents * arguments.copies, cycle)
            policies[f"fixed-time {cycle} s"] = lambda *_, plan=plan: plan.act().reshape(shape)
    for name, act in policies.items():
        figures = agreement(replay(domain, arguments.copies, act, arguments.seed), domain.influence.sources)
        print(f"{name} policies\nagent  " + "  ".join(figures))
        for agent, row in enumerate(np.stack(list(figures.values()), axis=1)):
            columns = (
                f"{value:{len(name)}.{1 if 'return' in name else 4}f}" for name, value in zip(figures, row, strict=True)
            )
            print(f"{agent:5}  " + "  ".join(columns))


if __name__ == "__main__":
    sys.exit(main())
