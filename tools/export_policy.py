#!/usr/bin/env python3
"""Writes the policies of single agents as files that load without dials_mpi, each with a card that says what it is.

    python tools/export_policy.py runs/NAME --agent 3                             TorchScript: needs torch alone
    python tools/export_policy.py runs/NAME --all --best --format torchscript onnx --out policies

The card, agent_0003.json, names every entry of an observation and every action, shapes, dtypes and the memory's start,
and has two steps in a row with their outputs, to be compared with what the file gives where it is used.
"""

import argparse
import inspect
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from dials_mpi.parallel.threads import one_thread

one_thread(os.environ)

import numpy as np  # noqa: E402
from tqdm import tqdm  # noqa: E402

from dials_mpi.analysis.reading import Run, open_run  # noqa: E402
from dials_mpi.cli import add_env, at_least  # noqa: E402
from dials_mpi.config import Configuration, resolve, stored_layer  # noqa: E402
from dials_mpi.errors import UserError  # noqa: E402
from dials_mpi.learning.export import FORMATS, PolicyModule, check_format, to_bytes  # noqa: E402
from dials_mpi.learning.networks import as_features  # noqa: E402
from dials_mpi.runs.directory import versions  # noqa: E402
from dials_mpi.simulators.actions import available_actions, first_actions  # noqa: E402
from dials_mpi.simulators.interface import Domain  # noqa: E402
from dials_mpi.simulators.registry import make_domain  # noqa: E402
from dials_mpi.streams import streams  # noqa: E402
from dials_mpi.training.evaluation import load_policy  # noqa: E402

CARD_FORMAT = 1
_EXAMPLE_GAP = 20
"""Steps between the example's two observations: enough for vehicles and items to have appeared."""


def parser() -> argparse.ArgumentParser:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("run", type=Path, metavar="RUN", help="run directory; only read")
    add_env(p)
    who = p.add_mutually_exclusive_group(required=True)
    who.add_argument("--agent", type=at_least(0), action="append", metavar="I", help="whose policy; can be repeated")
    who.add_argument("--all", action="store_true", help="every agent's")
    which = p.add_mutually_exclusive_group()
    which.add_argument("--best", action="store_true", help="of the best evaluation, instead of the last")
    which.add_argument("--checkpoint", type=at_least(0), metavar="STEP", help="of the checkpoint of that training step")
    p.add_argument("--format", choices=FORMATS, nargs="+", default=["torchscript"], help="one or both (torchscript)")
    p.add_argument("--out", type=Path, metavar="FOLDER", help="is created (exported/NAME, beside the run's NAME)")
    return p


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        export(arguments)
    except UserError as error:
        print(f"export_policy: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"export_policy: {error.filename}: cannot be written ({error.strerror})", file=sys.stderr)
        return 2
    return 0


def export(arguments: argparse.Namespace) -> None:
    for form in arguments.format:
        check_format(form)
    run = open_run(arguments.run)
    c = resolve([stored_layer(run.path / "config.yaml", run.configuration)], 1, arguments.env)
    domain = make_domain(c.env, c.agents, c.domain)
    agents = range(c.agents) if arguments.all else arguments.agent
    if max(agents) >= c.agents:
        raise UserError(f"--agent: {max(agents)} is none of 0 to {c.agents - 1}")
    file, step, policy = load_policy(run.path, c, domain, arguments.best, arguments.checkpoint)
    folder = arguments.out or Path("exported") / run.path.resolve().name
    folder.mkdir(parents=True, exist_ok=True)
    observations = _example_observations(domain, c.seed)
    suffix = "_best" if arguments.best else "" if arguments.checkpoint is None else f"_step_{step}"
    for agent in tqdm(agents, "agents", disable=len(agents) == 1 or not sys.stderr.isatty()):
        module = PolicyModule(policy, agent, c.policy)
        name = f"agent_{agent:04d}{suffix}"
        files = {form: name + FORMATS[form] for form in arguments.format}
        for form, to in files.items():
            _write(folder / to, to_bytes(module, form))
        card = {
            "card_format": CARD_FORMAT,
            "files": files,
            "domain": _of_domain(domain, c),
            "agent": _of_agent(domain, agent),
            "training": {"policies": file.name, **_of_training(run, c, step, agent)},
            **_interface(module, domain),
            "example": _example(module, observations[:, agent]),
            "versions": versions(),
        }
        _write(
            folder / f"{name}.json", (json.dumps(card, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode()
        )
        print(folder / f"{name}.json")


def _of_domain(domain: Domain, c: Configuration) -> dict[str, Any]:
    return {
        "name": domain.name,
        "about": inspect.getdoc(type(domain)),
        "agents": domain.n_agents,
        "grid": list(domain.grid_shape),
        "steps_per_episode": domain.horizon,
        "settings": c.domain.model_dump(mode="json"),
    }


def _of_agent(domain: Domain, agent: int) -> dict[str, int]:
    row, column = divmod(agent, domain.grid_shape[1])
    kind = {} if domain.kinds is None else {"kind": domain.kinds[agent]}
    return {"id": agent, "row": row, "column": column, **kind}


def _of_training(run: Run, c: Configuration, step: int, agent: int) -> dict[str, Any]:
    """What the run says of the policies: their return is null if they were not evaluated at that very step."""
    found = [record for record in run.records if (record["phase"], record["step"]) == ("evaluate", step)]
    returns = None
    if found:
        returns = {
            "agent": found[0]["per_agent"]["mean_return"][agent],
            "mean_over_agents": found[0]["mean_return"],
            "standard_error": found[0]["standard_error"],
            "episodes": found[0]["episodes"],
        }
    return {
        "run": run.path.resolve().name,
        "mode": c.mode,
        "seed": c.seed,
        "step": step,
        "return": returns,
        "versions": run.facts.get("versions"),
        "git_revision": run.facts.get("git_revision"),
    }


_CHOICE = {
    "all": "sampled from softmax(logits), in training and evaluation alike",
    "masked": "sampled from softmax(logits) over the available actions, in training and evaluation alike; the logits "
    "are of all actions: take those of unavailable ones for -infinity",
    "continuous": "each number sampled from the normal distribution of mean and standard_deviation, then clipped to "
    "the range, in training and evaluation alike",
}
"""By what actions are like."""


def _interface(module: PolicyModule, domain: Domain) -> dict[str, Any]:
    lowest, highest = (bound if math.isfinite(bound) else None for bound in domain.observation_range)
    inputs = module.initial_inputs()

    def tensors(names, values):
        return [
            {"name": name, "shape": ["batch", value.shape[1]], "dtype": "float32"}
            for name, value in zip(names, values, strict=True)
        ]

    memory = None
    if module.gru:
        memory = {
            "size": module.gru.hidden_size,
            "start": "zeros at the start of every episode",
            "then": "next_memory of one step is the memory of the next",
        }
    return {
        "inputs": tensors(module.input_names, inputs),
        "outputs": tensors(module.output_names, module.outputs(*inputs)),
        "observation": {
            "entries": list(domain.observation_names),
            "range": [lowest, highest],
            "normalisation": "none: the entries as the domain gives them, as float32",
        },
        "action": {
            "names": list(domain.action_names),
            **({"range": list(domain.action_range)} if domain.action_size else {}),
            "choice": _CHOICE["continuous" if domain.action_size else "masked" if domain.masks_actions else "all"],
        },
        "memory": memory,
    }


def _example_observations(domain: Domain, seed: int) -> np.ndarray:
    """[2, N, O] of an episode on the GS in which everybody always takes the first action there is."""
    with domain.global_simulator(1) as simulator:
        simulator.seed(streams(seed, "evaluate/simulator", [0]))
        first = simulator.reset()[:, 0].copy()
        for _ in range(min(_EXAMPLE_GAP, domain.horizon)):
            actions = first_actions(domain, (domain.n_agents, 1), available_actions(domain, simulator))
            later = simulator.step(actions).observations[:, 0]
    return np.stack([first, later])


def _example(module: PolicyModule, observations: np.ndarray) -> list[dict[str, Any]]:
    """Inputs and outputs of two steps; `observations` [2, O]."""
    steps = []
    state = module.initial_inputs()[1:]
    for observation in as_features(observations)[:, None]:
        inputs = (observation, *state)
        outputs = module.outputs(*inputs)
        state = outputs[-1:] if module.gru else ()
        named = (zip(module.input_names, inputs, strict=True), zip(module.output_names, outputs, strict=True))
        before, after = ({name: _digits(tensor.numpy()) for name, tensor in pairs} for pairs in named)
        steps.append({"inputs": before, "outputs": after})
    return steps


def _digits(rows: np.ndarray) -> list[list[float]]:
    """As many as tell float32 numbers apart."""
    return [[float(str(value)) for value in row] for row in rows]


def _write(file: Path, content: bytes) -> None:
    temporary = file.with_name(file.name + ".tmp")
    temporary.write_bytes(content)
    temporary.replace(file)


if __name__ == "__main__":
    sys.exit(main())
