#!/usr/bin/env python3
"""Returns of hand-coded controllers and of uniformly random actions on a domain's global simulator.

python tools/reference_returns.py --env warehouse --agents 4 25 49 100 --episodes 400
"""

import argparse
import sys

from dials_mpi.config import resolve
from dials_mpi.errors import UserError
from dials_mpi.simulators.registry import make_domain
from dials_mpi.training.evaluation import evaluate_controller


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="warehouse", help="domain (warehouse)")
    parser.add_argument("--agents", type=int, nargs="+", default=[4, 25], help="numbers of agents (4 25)")
    parser.add_argument("--episodes", type=int, default=200, help="episodes of each (200)")
    parser.add_argument("--seed", type=int, default=0, help="(0)")
    arguments = parser.parse_args()
    try:
        for agents in arguments.agents:
            c = resolve([("--env", {"env": arguments.env, "agents": agents})], agents, arguments.env)
            domain = make_domain(c.env, c.agents, c.domain)
            for controller in (*domain.controllers, None):
                returns = evaluate_controller(domain, controller, arguments.episodes, arguments.seed)
                print(f"{domain.name}, {agents:3} agents, {controller or 'random':10} {returns}", flush=True)
    except UserError as error:
        print(f"reference_returns: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
