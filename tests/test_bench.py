"""tools/bench.py: what it measures, and how it compares. Nothing here depends on how fast this machine is."""

import json
import math
import os
import sys
from pathlib import Path

import pytest
import torch
from conftest import tool, without_packages
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[1] / "tools"))

import bench
import bench_rates

from dials_mpi.runs.clock import LEARNING

ONE_AND_FOUR = ("1 agent", "4 agents")
PUBLISHED_NETWORK = (", published network", ", published network, bfloat16 gradients")


def with_more(names, *more):
    return {name for figure in names for name in (figure, *(f"{figure}: {m}" for m in more))}


PROMISED = {
    "warehouse-learner": with_more(
        [
            "IALS + PPO, single copy, 1 agent",
            *(f"IALS + PPO{what}, {n}" for what in ("", *PUBLISHED_NETWORK) for n in ONE_AND_FOUR),
        ],
        *LEARNING,
    ),
    "traffic-learner": with_more([f"IALS + PPO, {n}" for n in ONE_AND_FOUR], *LEARNING, "SUMO's own step"),
    "warehouse-simulators": {
        f"{what}{copies}, 1 agent" for what in ("local simulator", "IALS") for copies in ("", ", single copy")
    },
    "traffic-simulators": {
        *with_more(["1 tile over libsumo"], "SUMO's own step"),
        *(f"IALS, {n}" for n in ONE_AND_FOUR),
    },
    "traffic-traci": with_more(["1 tile over traci"], "SUMO's own step"),
    "warehouse-gs": {
        f"{what}, 4 agents, {copies}"
        for what in ("GS", "GS + joint policy")
        for copies in ("1 copy", "10 copies", "50 copies")
    },
    "traffic-gs": {"GS, 4 lights", "GS + joint policy, 4 lights"},
    "aip-training": {"warehouse, 1 agent", "warehouse, 4 agents", "traffic, 1 agent"},
    "roofline": {
        "matrix product of 1024³",
        *with_more(
            [
                "PPO update, traffic, 1 agent",
                *(f"PPO update, warehouse{what}, 1 agent" for what in ("", *PUBLISHED_NETWORK)),
            ],
            "of the matrix product",
        ),
    },
    "aip-round": with_more(["AIP round, 4 warehouse agents"], "collection", "training"),
    "warehouse-weak-scaling": {"2 ranks", "2 ranks, by CPU time"},
    "traffic-weak-scaling": {"2 ranks", "2 ranks, by CPU time"}
    | with_more(["3 ranks", "3 ranks, by CPU time"], "to 2 ranks"),
    "start-up": {"warehouse, 2 ranks", "traffic, 2 ranks"},
    "memory": {
        f"{env}, 1 agent per rank: {kind}" for env in ("warehouse", "traffic") for kind in ("private", "resident")
    },
    "halo": with_more(
        [f"2 ranks, rows of {size} bytes" for size in ("20", "40,960")],
        "exchange alone",
        "exchange alone, received by a rank",
        "exchange alone, to Ineighbor_alltoallv",
    ),
    "checkpoint": with_more(
        [f"4 {env} agents" for env in ("warehouse", "traffic")],
        "size",
        "of the default interval",
        "to writing one file of that size",
    ),
}
"""Figures by part, with at most four agents, lights, tiles or ranks."""


def test_the_list_names_every_part_and_needs_neither_torch_nor_mpi(tmp_path):
    path = without_packages(tmp_path, "torch", "mpi4py")
    result = tool("bench.py", "--list", PYTHONPATH=path)
    assert result.returncode == 0, result.stderr
    assert [line.split()[0] for line in result.stdout.splitlines()] == list(bench.PARTS)
    assert set(PROMISED) == bench.PARTS.keys() - {"warehouse-training", "traffic-training"}, "those take minutes"
    assert tool("bench.py", "--help", PYTHONPATH=path).returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="CPU time and memory of other processes are read from /proc")
@pytest.mark.parametrize(
    "parts",
    [
        [name for name in PROMISED if bench.PARTS[name].module == "bench_rates"],
        *([name] for name in PROMISED if bench.PARTS[name].module == "bench_runs"),
    ],
    ids=lambda parts: parts[0] if len(parts) == 1 else "rates",
)
def test_every_part_gives_its_figures(tmp_path, parts):
    file = tmp_path / "figures.json"
    quick = ["--most=4", "--repeats=1", "--seconds=0.01", "--folder", tmp_path]
    result = tool("bench.py", *parts, *quick, "--json", file)
    assert result.returncode == 0, result.stderr
    results = json.loads(file.read_text())
    assert {"processor", "cores", "memory_gib"} <= results["machine"].keys()
    assert {"python", "torch", "numpy"} <= results["versions"].keys()
    waiting = "CPU use of waiting ranks"  # only of ranks that wait for longer than these runs take
    for part in parts:
        figures = [figure for figure in results["figures"] if figure["part"] == part]
        assert {figure["name"] for figure in figures if waiting not in figure["name"]} == PROMISED[part]
        for figure in figures:
            assert figure["unit"], figure
            assert math.isfinite(figure["median"]), figure
            assert figure["median"] > 0, figure
            assert figure["low"] <= figure["median"] <= figure["high"], figure
        for learner in {f["name"].removesuffix(": act") for f in figures if f["name"].endswith(": act")}:
            shares = [f["median"] for f in figures if f["name"] in {f"{learner}: {phase}" for phase in LEARNING}]
            assert 90 < sum(shares) <= 100.001
    assert not list(tmp_path.glob("bench-*")), "runs are removed"
    again = tool("bench.py", "--from", file, "--against", file)
    assert again.returncode == 0, again.stderr
    assert not any(word in again.stdout for word in ("WORSE", "better", "differs", "missing in", "no spread"))


def figures(**values):
    """What --json writes, with what `figure` gives by name."""
    return {
        "schema": "dials_mpi benchmark",
        "schema_version": 1,
        "date": "2026-01-01T00:00:00+0000",
        "commit": "abc",
        "machine": {"processor": "one"},
        "figures": [
            {
                "part": "warehouse-gs",
                "name": name,
                "unit": "s",
                "published": None,
                "target": None,
                "about": "",
                **figure,
            }
            for name, figure in values.items()
        ],
    }


def figure(*values, better="higher", **more):
    low, median, high = values
    return {"values": list(values), "low": low, "median": median, "high": high, "better": better, **more}


def compared(folder, old, new):
    """What the tool prints of the comparison."""
    files = []
    for name, content in (("old", old), ("new", new)):
        files.append(folder / f"{name}.json")
        files[-1].write_text(json.dumps(content))
    result = tool("bench.py", "--from", files[1], "--against", files[0])
    assert result.returncode == 0, result.stderr
    _, _, text = result.stdout.partition("\ncompared\n")
    return text


def test_only_differences_beyond_both_spreads_are_called_so(tmp_path):
    old = figures(
        noisy=figure(8, 10, 12),
        faster=figure(8, 10, 12),
        slower=figure(8, 10, 12),
        shorter=figure(8, 10, 12, better="lower"),
        share=figure(8, 10, 12, better="neither"),
        once={**figure(10, 10, 10), "values": [10]},
        gone=figure(1, 1, 1),
        moved=figure(8, 10, 12, about="B = 50"),
    )
    new = figures(
        noisy=figure(11, 13, 15),
        faster=figure(13, 14, 15),
        slower=figure(5, 6, 7),
        shorter=figure(5, 6, 7, better="lower"),
        share=figure(13, 14, 15, better="neither"),
        once={**figure(20, 20, 20), "values": [20]},
        fresh=figure(1, 1, 1),
        moved=figure(8, 10, 12, about="B = 10"),
    )
    text = compared(tmp_path, old, new)
    lines = [line.split() for line in text.splitlines() if line.startswith("    ") and "new/old" not in line]
    rows = {name: verdict for name, _, _, *verdict in lines}
    assert rows == {
        "noisy": ["1.300"],
        "faster": ["1.400", "better"],
        "slower": ["0.600", "WORSE"],
        "shorter": ["0.600", "better"],
        "share": ["1.400", "differs"],
        "once": ["2.000", "a", "single", "value:", "no", "spread"],
        "moved": ["1.000", "(B", "=", "50", "→", "B", "=", "10)"],
    }
    assert "  warehouse-gs: gone: missing in new\n" in text
    assert "  warehouse-gs: fresh: missing in old\n" in text
    assert "Two kinds of machine" not in text


def test_other_machines_and_parts_are_named(tmp_path):
    old, new = figures(a=figure(1, 2, 3)), figures(a=figure(1, 2, 3))
    new["machine"]["processor"] = "another"
    new["figures"][0]["part"] = "traffic-gs"
    text = compared(tmp_path, old, new)
    assert "Two kinds of machine" in text
    assert "  traffic-gs: missing in old, the whole part\n" in text
    assert "  warehouse-gs: missing in new, the whole part\n" in text


def test_bad_input_is_one_line(tmp_path):
    broken, other, partial = (tmp_path / f"{name}.json" for name in ("broken", "other", "partial"))
    broken.write_text('{"schema": "dials_mpi bench')
    other.write_text('{"figures": []}')
    lacking = figures(a=figure(1, 2, 3))
    del lacking["figures"][0]["low"]
    partial.write_text(json.dumps(lacking))
    for arguments, message in (
        (["warehouse"], "warehouse: no such part; choose among warehouse-learner, "),
        (["--from", broken], f"{broken}: damaged, or no JSON ("),
        (["roofline", "--against", broken], f"{broken}: damaged, or no JSON ("),
        (["--from", other], f"{other}: no benchmark figures; give a file that --json wrote\n"),
        (["--from", partial], f"{partial}: a figure has no 'low'; "),
        (["--from", tmp_path / "none.json"], f"{tmp_path / 'none.json'}: cannot be read (No such file or directory); "),
        (["--from", other, "roofline"], f"--from {other}: nothing is measured; "),
        (["roofline", "--json", tmp_path / "no" / "file.json"], f"{tmp_path / 'no'}: no such folder; make it first\n"),
        (["--seconds", "0"], "argument --seconds: 0 is no number of seconds above 0"),
    ):
        result = tool("bench.py", *arguments)
        assert result.returncode == 2
        assert result.stderr.startswith(f"bench: {message}"), result.stderr
        assert result.stderr.count("\n") == 1


def test_instructions_are_counted_by_perf_or_refused_in_one_line(tmp_path):
    """With a perf that counts nothing but says what the real one says."""
    perf = tmp_path / "perf"
    said = "12500000,,instructions:u,24714023,100.00,,"
    perf.write_text(
        "#!/bin/sh\n"
        f'[ "$5" = true ] && {{ echo "{said}" >&2; exit; }}\n'
        "trap : INT\n"
        "fifos=${10#fifo:}\n"
        'exec 3< "${fifos%,*}" 4> "${fifos#*,}"\n'
        "read -r order <&3; echo ack >&4; read -r order <&3; echo ack >&4\n"
        f"echo 'Events enabled' >&2; echo '{said}' >&2\n"
    )
    perf.chmod(0o755)
    quick = ["warehouse-simulators", "--most=1", "--repeats=1", "--seconds=0.01"]
    file = tmp_path / "figures.json"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    result = tool("bench.py", *quick, "--instructions", "--json", file, PATH=path)
    assert result.returncode == 0, result.stderr
    figures = {figure["name"]: figure["median"] for figure in json.loads(file.read_text())["figures"]}
    for name in PROMISED["warehouse-simulators"]:
        steps = 12_500_000 / figures[f"{name}: instructions"]
        assert steps == pytest.approx(round(steps))
        assert round(steps) % 100 == 0, "whole episodes"
    perf.write_text("#!/bin/sh\necho '<not supported>,,instructions:u,0,100.00,,' >&2\n")
    result = tool("bench.py", *quick, "--instructions", PATH=path)
    assert result.returncode == 2
    assert result.stderr == (
        "bench: --instructions: this machine has no counter of instructions (perf stat); leave it out\n"
    )


@pytest.mark.parametrize("env", ["warehouse", "traffic"])
def test_operations_of_an_update_are_those_that_torch_counts(env):
    """In the same network made of torch's own layers: forward and backward, without a gradient for the input."""
    c, domain = bench_rates._setting(env)
    samples, width, layers = 24, domain.observation_size, []
    cell = None
    if c.policy.recurrent_size:
        cell = torch.nn.GRUCell(width, c.policy.recurrent_size)
        width = c.policy.recurrent_size
    for size in (*c.policy.hidden_sizes, domain.n_actions + 1):
        layers += [torch.nn.Linear(width, size), torch.nn.Tanh()]
        width = size
    with FlopCounterMode(display=False) as counter:
        x = torch.rand(samples, domain.observation_size)
        if cell:  # the memory comes from a step before, so it has a gradient
            x = cell(x, torch.rand(samples, cell.hidden_size, requires_grad=True))
        torch.nn.Sequential(*layers)(x).sum().backward()
    per_sample = bench_rates.update_flops(c, domain) / (c.ppo.rollout_steps * c.ppo.epochs)
    assert counter.get_total_flops() == samples * per_sample
