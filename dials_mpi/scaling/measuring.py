"""What a run's work costs on one core of this machine: `Costs`, from some seconds of it.

Every size is measured in a process of its own, which starts as a rank does. So its peak memory is that size's, a
simulator of one size does not stand in the way of the next, and the time until it has loaded its libraries is a rank's.
Learning is timed under AIPs trained a little on episodes of the smallest system: under untrained ones traffic jams, and
costs many times as much.

The processes end with this one, however that ends, and so does all that they have started: each leads a group of its
own, has its temporary files in this one's folder, and ends its group when its input does.
"""

import contextlib
import json
import math
import os
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from dials_mpi.parallel.threads import keep_freed_memory, one_thread

if __name__ == "__main__":
    one_thread(os.environ)
    keep_freed_memory()

from dials_mpi.config import Configuration, from_values
from dials_mpi.errors import UserError
from dials_mpi.runs.clock import Clock, peak_memory
from dials_mpi.scaling.model import MIB, Costs, Curve, costly_settings
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.interface import Domain
from dials_mpi.simulators.registry import make_domain
from dials_mpi.streams import stream, streams
from dials_mpi.training.plan import batch_sizes, unit_steps

_SECONDS = 0.5
"""For which short work is repeated; the quickest time counts, as others may use the machine, too."""
_MOST_UPDATES, _FEWEST_UPDATES = 10, 2
_LEARNING_SECONDS = 10.0
"""For which updates are repeated, the fewest apart: one of a hundred traffic lights on one rank takes as long."""
_MOST_EPISODES = 40
"""Of the dataset on which AIP training is timed."""
_EPOCHS = 5


class Unmeasured(UserError):  # noqa: N818 - smaller sizes may stand for this one
    """A measurement that did not come to its end; says why."""


class Budget:
    """Time that some measurements may take together: each gets an equal share of what is left.

    Args:
        seconds: of a machine that has nothing else to do; a busy one is given more. None: no limit.
        measurements: how many there are to be.
    """

    def __init__(self, seconds: float | None = None, measurements: int = 1):
        self._seconds = math.inf if seconds is None else seconds
        self._measurements = measurements

    @contextlib.contextmanager
    def share(self) -> Iterator[float | None]:
        """Seconds by the clock for the next measurement, which is made inside."""
        busy = max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
        begin = time.monotonic()
        try:
            yield None if self._seconds == math.inf else busy * max(0.0, self._seconds) / self._measurements
        finally:
            self._seconds -= (time.monotonic() - begin) / busy
            self._measurements -= 1


def measure(
    configuration: Configuration,
    domain: Domain,
    agents: Iterable[int],
    blocks: Iterable[int],
    say: Callable[[str], None],
    seconds: float | None = None,
) -> Costs:
    """What the work of a configuration costs here.

    Args:
        configuration: whose number of agents is at least as large as any block.
        domain: of the configuration.
        agents: N of the systems to be measured.
        blocks: A of the blocks to be measured.
        say: told what is measured, and which sizes are left out because they, or smaller ones, took too long.
        seconds: as of `Budget`, for all together.

    Raises:
        UserError: a number of agents that the domain cannot have; or what the domain complains of.
        Unmeasured: not even the smallest sizes came to their end.
    """
    systems = [configuration.model_copy(update={"agents": n}) for n in sorted(set(agents))]
    for system in systems:
        make_domain(system.env, system.agents, system.domain)
    blocks = sorted(set(blocks))
    budget = Budget(seconds, len(systems) + len(blocks))
    with _folder() as folder:

        def series(kind: str, words: str, questions: list[tuple[Configuration, int]]) -> list[dict[str, Any]]:
            answers = []
            for asked, size in questions:
                what = f"{words} of {size:,} agents"
                say(f"measuring {what}")
                try:
                    with budget.share() as limit:
                        answers.append(_ask(asked, kind, size, folder, limit))
                except Unmeasured as reason:
                    if not answers:
                        raise Unmeasured(f"{what}: {reason}") from None
                    say(f"{what}: {reason}; left out")
                    break
            return answers

        joint = series("joint", "joint steps", [(system, system.agents) for system in systems])
        block = series("block", "a block", [(configuration, size) for size in blocks])

    def curve(answers: list[dict[str, Any]], name: str) -> Curve:
        return Curve(tuple((answer["size"], max(0.0, answer[name])) for answer in answers if name in answer))

    influence = domain.influence
    return Costs(
        settings=costly_settings(configuration),
        horizon=domain.horizon,
        controllers=len(domain.controllers),
        start=min(answer["start"] for answer in (*joint, *block)),
        block_start=curve(block, "block_start"),
        learn=curve(block, "learn"),
        act=curve(joint, "act"),
        epoch=curve(block, "epoch"),
        setup=curve(joint, "setup"),
        collect=curve(joint, "collect"),
        evaluate=curve(joint, "evaluate"),
        reference=curve(joint, "reference"),
        policy_bytes=joint[0]["policy_bytes"],
        dataset_bytes=influence.local_state_size + influence.sources + 1 if influence else 0,
        rollout_bytes=block[0]["rollout_bytes"],
        memory=min(answer["memory"] for answer in (*joint, *block)),
        block_memory=curve(block, "more_memory"),
        joint_memory=curve(joint, "more_memory"),
    )


def check_in_time(configuration: Configuration, seconds: float) -> None:
    """`check_domain` in a process of its own, for which there are so many seconds of a machine with nothing else to do.

    Raises:
        UserError: the first promise that the domain breaks.
        Unmeasured: it took too long.
    """
    with _folder() as folder, Budget(seconds).share() as limit:
        _ask(configuration, "check", configuration.agents, folder, limit)


def _folder() -> tempfile.TemporaryDirectory:
    try:
        return tempfile.TemporaryDirectory(prefix="dials_mpi-", ignore_cleanup_errors=True)
    except OSError as error:
        raise UserError(f"no folder for temporary files ({error}); set TMPDIR to one that can be written") from error


def _ask(
    configuration: Configuration, kind: str, size: int, folder: str, seconds: float | None = None
) -> dict[str, Any]:
    """Has a process measure one size; see `_answer`.

    Args:
        folder: for all files, among them the first joint episodes, which are left for the blocks.
        seconds: after which the process is ended; None: never.

    Raises:
        UserError: from the process.
        Unmeasured: it had to be ended, or was ended by others.
    """
    question = {"configuration": configuration.model_dump(mode="json"), "kind": kind, "size": size, "folder": folder}
    with (
        (Path(folder) / "answer").open("w+", encoding="utf-8") as answer,
        (Path(folder) / "errors").open("w+", encoding="utf-8", errors="replace") as errors,
        subprocess.Popen(
            [sys.executable, "-m", __name__],
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(path or os.curdir for path in sys.path),
                "TMPDIR": folder,
            },
            stdin=subprocess.PIPE,
            stdout=answer,
            stderr=errors,
            text=True,
            start_new_session=True,
        ) as process,
    ):
        try:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.write(json.dumps(question) + "\n")
                process.stdin.flush()
            process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise Unmeasured(f"ended after {seconds:.0f} s") from None
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
        if process.returncode == -signal.SIGKILL:
            raise Unmeasured("killed, as happens to processes that need more memory than there is")
        answer.seek(0)
        errors.seek(0)
        if process.returncode:
            raise RuntimeError(f"measuring {size} agents ({kind}) failed:\n{errors.read()}")
        found = json.loads(answer.read().splitlines()[-1])
    if "error" in found:
        raise UserError(found["error"])
    return found


def _end_with_input() -> None:
    """The process that asks holds the other end of the input until it has the answer; gone is gone."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    os.killpg(os.getpid(), signal.SIGKILL)


def _answer(question: dict[str, Any]) -> dict[str, Any]:
    """Costs of one size by name, with the bytes that its rows have; curves are of `size`. Nothing if all is checked."""
    if question["kind"] == "check":
        c = from_values(question["configuration"])
        check_domain(make_domain(c.env, c.agents, c.domain))
        return {}
    import mpi4py

    mpi4py.rc.initialize = False  # a process beside the job, whose launcher knows nothing of it
    import torch

    torch.set_num_threads(1)
    c = from_values(question["configuration"])
    c.method.load()  # as every rank does, before memory is looked at
    start, memory = time.process_time(), peak_memory()
    domain = make_domain(c.env, c.agents, c.domain)
    work = _joint if question["kind"] == "joint" else _block
    found, ours = work(c, domain, question["size"], Path(question["folder"]) / "dataset.npz")
    more = peak_memory() - memory - ours
    return {"size": question["size"], "start": start, "memory": memory, "more_memory": more, **found}


def _block(c: Configuration, domain: Domain, size: int, seen: Path) -> tuple[dict[str, float], float]:
    """What a block costs its owner, and the MiB of the dataset here."""
    import numpy as np

    from dials_mpi.algorithms.dials import LocalLearners
    from dials_mpi.influence.dataset import InfluenceDataset
    from dials_mpi.influence.predictor import InfluencePredictor, train
    from dials_mpi.learning.distributions import actions_of
    from dials_mpi.learning.policy import Policy
    from dials_mpi.learning.ppo import PPO
    from dials_mpi.learning.rollout import Rollout
    from dials_mpi.learning.statistics import Means

    agents = range(size)
    begin = time.perf_counter()
    policy = Policy(agents, domain.observation_size, actions_of(domain), c.policy, c.seed)
    rollout = Rollout.of_domain(domain, size, c.ppo, c.policy.recurrent_size)
    found = {"rollout_bytes": sum(array.nbytes for array in rollout.arrays().values()) // size}
    permutations = stream(c.seed, "predictor/minibatches")
    if c.method.learns_on_gs:
        learner = PPO(policy, c.ppo, domain.horizon, absorbing_reward=domain.absorbing_reward)
        found["block_start"] = time.perf_counter() - begin
        found["learn"] = _quickest(lambda: learner.update(rollout, 0, 0.0, permutations))
        return found, 0.0
    few = c.predictor.model_copy(update={"epochs": _EPOCHS, "patience": _EPOCHS})
    predictor = InfluencePredictor(agents, domain.influence, few, c.seed, n_actions=domain.n_actions)
    learners = LocalLearners(c, domain, agents, policy, predictor, Clock())
    found["block_start"] = time.perf_counter() - begin
    datasets = 0.0
    if c.method.rounds:
        episodes = min(-(-c.dataset.steps // domain.horizon), _MOST_EPISODES)
        with np.load(seen) as arrays:
            # The episodes of few agents again and again.
            dataset = InfluenceDataset(
                **{
                    name: array[np.arange(size)[:, None] % len(array), np.arange(episodes) % array.shape[1]]
                    for name, array in arrays.items()
                }
            )
        datasets = sum(array.nbytes for array in dataset.arrays().values()) / MIB
        training = _seconds(lambda: train(predictor, dataset, c.dataset.test_fraction, permutations))
        found["epoch"] = training / (_EPOCHS * episodes)
    steps = range(0, unit_steps(c, domain.horizon), c.ppo.rollout_steps)
    first = _seconds(lambda: learners.learn(0, steps[:1], Means()))
    most = max(_FEWEST_UPDATES, min(_MOST_UPDATES, int(_LEARNING_SECONDS / first)))
    steps = steps[:most]
    found["learn"] = _quickest(lambda: learners.learn(0, steps, Means())) / len(steps)
    learners.close()
    return found, datasets


def _joint(c: Configuration, domain: Domain, size: int, seen: Path) -> tuple[dict[str, float], float]:
    """What all agents together cost a collector; leaves what they saw in the file `seen` if there is none yet."""
    import numpy as np

    from dials_mpi.influence.collection import collect
    from dials_mpi.learning.distributions import actions_of
    from dials_mpi.learning.episodes import JointEpisodes
    from dials_mpi.learning.policy import Policy
    from dials_mpi.learning.rollout import Actor, Player, Rollout
    from dials_mpi.training.evaluation import play_controller

    policy = Policy(range(size), domain.observation_size, actions_of(domain), c.policy, c.seed)

    def set_up(copies: int) -> None:
        with domain.global_simulator(copies) as simulator:
            simulator.seed(streams(c.seed, "evaluate/simulator", range(copies)))
            simulator.reset()

    def played(play: Callable[[JointEpisodes, range], object], copies: int) -> float:
        """Seconds of a joint step of one copy."""
        with JointEpisodes(domain, Player(policy), c.seed, 0) as episodes:
            seconds = _seconds(lambda: play(episodes, range(copies)))
        return (seconds - found["setup"]) / (copies * domain.horizon)

    evaluation = batch_sizes(c.evaluation.episodes, c.evaluation.copies)[0]
    set_up(1)  # libraries are loaded, kernels chosen
    found: dict[str, float] = {"policy_bytes": policy.parameters[0].nbytes}
    found["setup"] = _seconds(lambda: set_up(evaluation))
    if c.method.rounds:
        batch = batch_sizes(-(-c.dataset.steps // domain.horizon), c.dataset.copies)[0]
        data = []
        found["collect"] = played(lambda episodes, members: data.append(collect(episodes, 0, members)[0]), batch)
        if not seen.exists():
            np.savez(seen, **data[0].arrays())
    if c.method.rounds and batch == evaluation:
        found["evaluate"] = found["collect"]  # writing down what is seen costs next to nothing
    else:
        found["evaluate"] = played(lambda episodes, members: episodes.play(0, members), evaluation)
    if domain.controllers and c.evaluation.handcoded_episodes:
        copies = batch_sizes(c.evaluation.handcoded_episodes, c.evaluation.copies)[0]
        seconds = _seconds(lambda: play_controller(domain, domain.controllers[0], range(copies), c.seed))
        found["reference"] = (seconds - found["setup"]) / (copies * domain.horizon)
    if c.method.learns_on_gs:
        with domain.global_simulator(c.ppo.copies) as simulator:
            actor = Actor(policy, simulator, c.ppo.copies, domain, Clock())
            simulator.seed(streams(c.seed, "train/simulator", range(c.ppo.copies)))
            actor.start(streams(c.seed, "train/actions", range(size)))
            rollout = Rollout.of_domain(domain, size, c.ppo, c.policy.recurrent_size)
            found["act"] = _seconds(lambda: actor.collect(rollout, c.ppo.sequence_length))
    return found, 0.0


def _quickest(work: Callable[[], object]) -> float:
    """Seconds of the shortest of some repetitions."""
    end = time.perf_counter() + _SECONDS
    times = [_seconds(work)]
    while time.perf_counter() < end:
        times.append(_seconds(work))
    return min(times)


def _seconds(work: Callable[[], object]) -> float:
    """Of CPU time, which others on this machine do not stretch; of the clock, if a process works for this one."""
    begin, cpu = time.perf_counter(), _cpu_time()
    work()
    seconds, cpu = time.perf_counter() - begin, _cpu_time() - cpu
    children = [file.read_text() for file in Path("/proc/self/task").glob("*/children")]
    return cpu if children and not any(children) else seconds


def _cpu_time() -> float:
    """Seconds of this process and of those that have ended for it."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


if __name__ == "__main__":
    asked = json.loads(sys.stdin.readline())
    threading.Thread(target=_end_with_input, daemon=True).start()
    try:
        answered = _answer(asked)
    except UserError as problem:
        answered = {"error": str(problem)}
    print(json.dumps(answered))
