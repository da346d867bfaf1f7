"""The job scripts, submitted as users submit them, to a real Slurm with two nodes on this machine."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from conftest import SMALL, TESTS, CommandLine
from test_command_line import one_line
from test_resume import AT_ONCE, EVERY_UNIT

from dials_mpi.analysis.equality import differences
from dials_mpi.runs.checkpoint import newest_whole
from dials_mpi.runs.metrics import read_metrics

CLUSTER = TESTS.parent / "tools" / "slurm_cluster.sh"
WAREHOUSE = "jobs/warehouse_2x2.slurm"
LONG = [*SMALL, "--steps=12000", "--set=predictor.interval=6000", "--set=evaluation.interval=600", EVERY_UNIT]
ENDLESS = [*SMALL, "--steps=100000000", "--set=predictor.interval=10000000", EVERY_UNIT]


class Cluster:
    """A Slurm, and a folder with the job scripts to submit them from.

    Args:
        configuration: of that Slurm.
        folder: gets the scripts, and what the jobs write.
    """

    def __init__(self, configuration: Path, folder: Path):
        shutil.copytree(TESTS.parent / "jobs", folder / "jobs")
        self.folder = folder
        self.runs = folder / "runs"
        self.command_line = CommandLine(folder)
        beside = str(Path(sys.executable).parent)  # where users have activated an environment
        self.command_line.environment |= {
            "SLURM_CONF": str(configuration),
            "PATH": os.pathsep.join([beside, os.environ["PATH"]]),
        }

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess:
        """Any command, to its end."""
        return subprocess.run(
            command,
            cwd=self.folder,
            env={**self.command_line.environment, **environment},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=120,
        )

    def __call__(self, *command: str, **environment: str) -> str:
        """What a command prints, which has to succeed."""
        result = self.run(*command, **environment)
        assert result.returncode == 0, result
        return result.stdout

    def submit(self, *arguments: str, **environment: str) -> str:
        """The id of a new job."""
        return self("sbatch", "--parsable", *arguments, **environment).strip()

    def jobs(self, job: str) -> list[dict[str, str]]:
        """What Slurm knows of a job, or of every job of an array."""
        lines = self("scontrol", "--oneliner", "show", "job", job).splitlines()
        return [dict(re.findall(r"(\S+?)=(\S*)", line)) for line in lines if line]

    def wait(self, job: str, condition: Callable[[dict[str, str]], bool], seconds: float = 120) -> dict[str, str]:
        """The job as soon as `condition` holds for it, and for the other jobs of its array. That long is a hang."""
        end = time.monotonic() + seconds
        while not all(map(condition, jobs := self.jobs(job))):
            assert time.monotonic() < end, (jobs, self.log(job))
            time.sleep(0.2)
        return jobs[0]

    def wait_for_the_end(self, job: str, seconds: float = 120) -> dict[str, str]:
        return self.wait(job, lambda facts: facts["JobState"] in {"COMPLETED", "FAILED", "CANCELLED"}, seconds)

    def wait_for_work(self, job: str, start: int = 0) -> None:
        """Returns when the run of the job `WAREHOUSE` has come further in the given one of its starts."""
        folder = self.runs / f"warehouse_2x2_{job}"

        def size() -> int:
            return (folder / "timing.jsonl").stat().st_size

        def started(_) -> bool:
            run = json.loads((folder / "run.json").read_text()) if (folder / "run.json").exists() else {}
            return run.get("state") == "running" and len(run.get("resumed", [])) == start

        self.wait(job, started)
        before = size() if start else 0
        self.wait(job, lambda _: (folder / "timing.jsonl").exists() and size() > before)

    def ranks(self, job: str) -> list[psutil.Process]:
        """The processes of the job `WAREHOUSE` that take part in its run."""
        words = {"dials_mpi", f"warehouse_2x2_{job}"}
        found = psutil.process_iter(["exe", "cmdline"])
        return [p for p in found if "python" in str(p.info["exe"]) and words <= set(p.info["cmdline"] or [])]

    def log(self, job: str) -> str:
        return "\n".join(file.read_text() for file in self.folder.glob(f"*_{job}*.log"))


@pytest.fixture(scope="module")
def slurm():
    """The configuration of a Slurm that is up; without one the tests are skipped, and the summary says so."""
    folder = Path(tempfile.mkdtemp(prefix="slurm_"))
    up = subprocess.run([CLUSTER, "up", folder], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    if up.returncode == 0:
        yield folder / "slurm.conf"
        subprocess.run([CLUSTER, "down", folder], check=True, timeout=120)
    shutil.rmtree(folder)
    if up.returncode:
        pytest.skip(up.stderr.strip())


@pytest.fixture(scope="module")
def cluster(slurm, tmp_path_factory):
    return Cluster(slurm, tmp_path_factory.mktemp("cluster"))


@pytest.fixture(scope="module")
def by_mpirun(cluster):
    """A run on three ranks without Slurm."""
    result = cluster.command_line("--env=warehouse", "--agents=4", *LONG, "--name=by_mpirun", ranks=3)
    assert result.returncode == 0, result.stderr
    return cluster.runs / "by_mpirun"


@pytest.mark.parametrize("launcher", [{}, {"DIALS_MPI_LAUNCHER": "mpirun"}], ids=["srun", "mpirun"])
def test_a_job_on_two_nodes_does_the_same_as_mpirun(cluster, by_mpirun, launcher):
    job = cluster.submit("--nodes=2", "--ntasks=3", WAREHOUSE, *LONG, **launcher)
    facts = cluster.wait_for_the_end(job)
    assert facts["JobState"] == "COMPLETED", cluster.log(job)
    assert facts["NodeList"] == "n[1-2]"
    run = cluster.runs / f"warehouse_2x2_{job}"
    facts = json.loads((run / "run.json").read_text())
    assert (facts["state"], facts["ranks"]) == ("finished", 3)
    assert differences(by_mpirun, run) == []


def test_a_job_that_is_stopped_in_every_way_goes_on_by_itself_to_the_same_end(cluster, by_mpirun):
    """Stopped by the signal that the scripts ask for, by one to the ranks, and by being put back into the queue."""
    job = cluster.submit("--nodes=2", "--ntasks=3", WAREHOUSE, *LONG)
    run = cluster.runs / f"warehouse_2x2_{job}"
    cluster.wait(job, lambda _: "started by" in cluster.log(job))
    assert not run.exists(), "the worst moment: the run is not there yet"
    cluster("scancel", "--signal=USR1", "--batch", job)
    cluster.wait_for_work(job, start=1)
    cluster("scancel", "--signal=USR1", job)
    cluster.wait_for_work(job, start=2)
    cluster("scontrol", "requeue", job)
    facts = cluster.wait_for_the_end(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "3"), cluster.log(job)
    assert cluster.log(job).count("dials_mpi: unfinished; back into the queue") == 2
    assert len(json.loads((run / "run.json").read_text())["resumed"]) == 3
    assert differences(by_mpirun, run) == []


def test_a_job_that_a_person_stops_stays_stopped_until_a_person_lets_it_go_on(cluster, by_mpirun):
    job = cluster.submit("--nodes=2", "--ntasks=3", WAREHOUSE, *LONG)
    run = cluster.runs / f"warehouse_2x2_{job}"
    cluster.wait_for_work(job)
    (run / "STOP").touch()
    for restarts in range(2):  # the second time as Slurm does by itself when a node has died
        facts = cluster.wait_for_the_end(job)
        assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "75:0"), cluster.log(job)
        assert facts["Restarts"] == str(restarts)
        assert json.loads((run / "run.json").read_text())["stopped_by"] == "the file STOP"
        assert cluster.log(job).count("unfinished, and stays so: stopped by the file STOP") == restarts + 1
        assert "back into the queue" not in cluster.log(job)
        if restarts:
            (run / "STOP").unlink()
        cluster("scontrol", "requeue", job)
    facts = cluster.wait_for_the_end(job)
    assert (facts["JobState"], facts["Restarts"]) == ("COMPLETED", "2"), cluster.log(job)
    assert differences(by_mpirun, run) == []


def test_a_job_ends_with_its_rank_and_when_it_is_cancelled_and_its_run_can_be_resumed(cluster):
    job = cluster.submit("--nodes=2", "--ntasks=3", WAREHOUSE, *ENDLESS)
    run = cluster.runs / f"warehouse_2x2_{job}"
    cluster.wait_for_work(job)
    cluster.ranks(job)[-1].kill()
    facts = cluster.wait_for_the_end(job, seconds=40)
    assert (facts["JobState"], facts["Restarts"]) == ("FAILED", "0"), cluster.log(job)
    assert not cluster.ranks(job)

    cluster("scontrol", "requeue", job)
    cluster.wait_for_work(job, start=1)
    cluster("scancel", job)
    assert cluster.wait_for_the_end(job, seconds=40)["JobState"] == "CANCELLED"
    assert cluster("squeue", "--noheader", "--jobs", job) == ""
    assert not cluster.ranks(job)
    assert json.loads((run / "run.json").read_text())["state"] == "stopped"
    step = newest_whole(run / "checkpoints")[1]["step"]
    result = cluster.command_line(f"--resume={run}", AT_ONCE, ranks=3)
    assert result.returncode == 75, result.stderr
    assert f"resumed at step {step:,}" in result.stdout


def test_an_array_of_seeds(cluster):
    """Each of the four stops and goes on by itself, and leaves the other three alone."""
    run = ["--env=warehouse", "--agents=4", *SMALL, EVERY_UNIT]
    array = cluster.submit("--ntasks=2", "jobs/seeds.slurm", *run, DIALS_MPI_FAULT="boundary:6:USR1")
    cluster.wait_for_the_end(array)
    jobs = cluster.jobs(array)
    assert [(job["JobState"], job["Restarts"]) for job in jobs] == 4 * [("COMPLETED", "1")], cluster.log(array)
    for seed in range(4):
        run = cluster.runs / f"seeds_{array}_F100000_seed{seed}"
        facts = json.loads((run / "run.json").read_text())
        assert (facts["state"], facts["seed"], facts["ranks"]) == ("finished", seed, 2)
        assert len(facts["resumed"]) == 1
        assert read_metrics(run)[-1]["step"] == 1600


def test_a_job_with_a_single_task_is_refused(cluster):
    job = cluster.submit("--ntasks=1", WAREHOUSE, *SMALL)
    facts = cluster.wait_for_the_end(job)
    assert (facts["JobState"], facts["ExitCode"]) == ("FAILED", "2:0")
    assert cluster.log(job) == "dials_mpi: --ntasks=1 leaves no rank for the agents; ask for at least 2\n"


def test_tasks_that_do_not_find_each_other_are_refused(cluster):
    """A srun that does not speak the MPI library's language starts N programs of one rank."""
    words = ["--mpi=none", "--ntasks=3", "python", "-m", "dials_mpi", "--env=warehouse", "--name=alone"]
    result = cluster.run("srun", "--quiet", *words)
    assert result.returncode == 2
    line = one_line(subprocess.CompletedProcess(words, 2, result.stdout, result.stderr))
    assert line.startswith("dials_mpi: the launcher started 3 processes (SLURM_STEP_NUM_TASKS) but MPI connects 1: ")
    assert not (cluster.runs / "alone").exists()
