"""Configuration: layers, and one line for every kind of bad value."""

import itertools
import math
import re
import zlib

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from dials_mpi import cli
from dials_mpi.config import Configuration, load_yaml, parse_override, resolve
from dials_mpi.errors import UserError
from dials_mpi.parallel.launcher import check_size, launched_rank, launched_size
from dials_mpi.parallel.layout import Layout, choose_layout
from dials_mpi.simulators.conformance import check_domain
from dials_mpi.simulators.interface import DomainSettings
from dials_mpi.simulators.noise import NoiseBuffer, gumbel, logistic, uniform
from dials_mpi.simulators.registry import (
    BUILT_IN,
    configuration_file,
    domain_class,
    make_domain,
    shipped_configurations,
)
from dials_mpi.streams import stream, streams, torch_seed
from dials_mpi.training.plan import batch_sizes, evaluation_at, most_batches, plan, rounding, unit_steps


def configuration(*overrides: str, env="warehouse"):
    return resolve([("--env", {"env": env}), *((f"--set {text}", parse_override(text)) for text in overrides)], 4, env)


@pytest.mark.parametrize("env", BUILT_IN)
def test_shipped_configurations_are_valid(env):
    folder = configuration_file(env).parent
    for file in folder.glob(f"{env}*.yaml"):
        if not file.stem.endswith(("_dials", "_dppo")):
            assert of_files(str(file)).env == env


def of_files(*names: str, **named) -> Configuration:
    """What `--config` comes to."""
    arguments = [f"--config={name}" for name in names] + [f"--{key}={value}" for key, value in named.items()]
    return resolve(cli.layers(cli.parser().parse_args(arguments)), 4)


@pytest.mark.parametrize("env", ["warehouse", "traffic"])
def test_values_for_one_method_stand_in_a_file_beside_and_count_in_its_modes(env):
    folder = configuration_file(env).parent
    for name in (env, f"{env}_paper"):
        beside = load_yaml(folder / f"{name}_dials.yaml")
        for mode in ("dials", "untrained-dials"):
            found = of_files(name, mode=mode).model_dump(mode="json")
            for section, values in beside.items():
                assert {key: found[section][key] for key in values} == values
        assert set(of_files(name, mode="gs").sections) == {"policy", "ppo"}
    assert of_files(f"{env}_paper").predictor != of_files(env).predictor


def test_a_file_beside_ones_own_is_laid_over_it(tmp_path):
    (tmp_path / "mine.yaml").write_text("env: warehouse\nsteps: 5\nppo:\n  copies: 3\n")
    (tmp_path / "mine_dials.yaml").write_text("predictor:\n  epochs: 3\nppo:\n  copies: 4\n")
    (tmp_path / "mine_gs.yaml").write_text("steps: 7\n")
    mine = str(tmp_path / "mine.yaml")
    c = of_files(mine)
    assert (c.steps, c.ppo.copies, c.predictor.epochs) == (5, 4, 3)
    c = of_files(mine, mode="gs")
    assert (c.steps, c.ppo.copies) == (7, 3)
    (tmp_path / "later.yaml").write_text("mode: untrained-dials\nppo:\n  copies: 5\n")
    c = of_files(mine, str(tmp_path / "later.yaml"))
    assert (c.mode, c.ppo.copies, c.predictor.epochs) == ("untrained-dials", 5, 3)


def test_paper_configuration_has_the_published_values():
    c = of_files("warehouse_paper")
    assert (c.steps, c.predictor.interval) == (4_000_000, 4_000_000)
    assert (c.policy.recurrent_size, c.policy.hidden_sizes, c.policy.activation) == (256, (128,), "relu")
    ppo = c.ppo
    assert (ppo.copies, ppo.rollout_steps) == (1, 128)
    assert (ppo.epochs, ppo.minibatch_size, ppo.sequence_length) == (3, 32, 8)
    assert (ppo.discount, ppo.gae_lambda, ppo.learning_rate, ppo.clip) == (0.99, 0.95, 2.5e-4, 0.1)
    assert (ppo.clip_values, ppo.anneal_clip, ppo.max_gradient_norm) == (True, True, None)
    assert ppo.entropy_coefficient == 0.01


def test_paper_configuration_of_traffic_has_the_published_values():
    c = of_files("traffic_paper")
    assert (c.steps, c.predictor.interval, c.dataset.steps) == (4_000_000, 1_000_000, 10_000)
    assert (c.policy.recurrent_size, c.policy.hidden_sizes, c.policy.activation) == (0, (256, 128), "relu")
    assert c.policy.initial_logits is None
    predictor = c.predictor
    assert (predictor.recurrent_size, predictor.hidden_sizes, predictor.activation) == (0, (128,), "relu")
    assert (predictor.learning_rate, predictor.minibatch_size, predictor.epochs) == (1e-4, 120, 100)
    assert predictor.patience >= predictor.epochs
    ppo = c.ppo
    assert (ppo.copies, ppo.rollout_steps, ppo.epochs, ppo.minibatch_size) == (1, 128, 3, 32)
    assert (ppo.discount, ppo.gae_lambda, ppo.learning_rate, ppo.clip) == (0.99, 0.95, 2.5e-4, 0.1)
    assert (ppo.clip_values, ppo.anneal, ppo.anneal_clip, ppo.anneal_entropy) == (True, True, True, False)
    assert (ppo.entropy_coefficient, ppo.max_gradient_norm, ppo.reward_scale) == (0.01, None, 1.0)
    domain = c.domain
    assert (domain.horizon, domain.edge_length, domain.cell_length, domain.outgoing_length) == (300, 100, 10, 100)
    assert (domain.inflow_probability, domain.junction_radius, domain.speed_limit, domain.yellow) == (0.1, 6.2, 10, 3)


def test_later_layers_win_key_by_key():
    c = resolve(
        [
            ("a", {"env": "warehouse", "ppo": {"copies": 3}}),
            ("b", {"ppo": {"learning_rate": 0.5}}),
            ("c", {"agents": 9}),
        ],
        default_agents=4,
    )
    assert (c.ppo.copies, c.ppo.learning_rate, c.agents) == (3, 0.5, 9)
    assert c.ppo.epochs == configuration().ppo.epochs, "what nobody says comes from the domain's own file"


def test_files_are_laid_over_each_other_in_their_order(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.yaml").write_text("env: warehouse\nseed: 1\nppo:\n  copies: 3\n  clip: 0.3\n")
    (tmp_path / "b.yaml").write_text("ppo:\n  clip: 0.4\n\n  epochs: 2\n")

    def resolved(*arguments):
        return resolve(cli.layers(cli.parser().parse_args(arguments)), 4)

    c = resolved("--config", "a.yaml", "--config", "b.yaml")
    assert (c.seed, c.ppo.copies, c.ppo.clip, c.ppo.epochs) == (1, 3, 0.4, 2)
    c = resolved("--config=b.yaml", "--set=ppo.epochs=5", "--config=a.yaml", "--seed=7")
    assert (c.seed, c.ppo.copies, c.ppo.clip, c.ppo.epochs) == (7, 3, 0.3, 5), "the command line comes last"
    (tmp_path / "b.yaml").write_text("ppo:\n  clip: 0.4\n\n  epochs: none\n")
    with pytest.raises(UserError, match=r"ppo.epochs: 'none': .* \(b.yaml, line 4\)"):
        resolved("--config=a.yaml", "--config=b.yaml")
    (tmp_path / "a.yaml").write_text("env: warehouse\nseed: 1\nppo:\n  copies: 3\n  clip: 3\n")
    (tmp_path / "b.yaml").write_text("ppo:\n  epochs: 2\n")
    with pytest.raises(UserError, match=r"ppo.clip: 3: .* \(a.yaml, line 5\)"):
        resolved("--config=a.yaml", "--config=b.yaml")


def test_shipped_configurations_are_found_by_name_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def resolved(*arguments):
        return resolve(cli.layers(cli.parser().parse_args(arguments)), 4)

    assert set(shipped_configurations()) == {
        "platoon", "platoon_dppo", "traffic", "traffic_dials", "traffic_large", "traffic_paper", "traffic_paper_dials",
        "warehouse", "warehouse_dials", "warehouse_paper", "warehouse_paper_dials",
    }  # fmt: skip
    for name, file in shipped_configurations().items():
        if not name.endswith(("_dials", "_dppo")):
            assert resolved(f"--config={name}") == resolved(f"--config={file}"), name
    c = resolved("--config=traffic_large", "--config=traffic_paper")
    assert (c.ppo.copies, c.ppo.rollout_length, c.steps) == (1, 128, 4_000_000)
    (tmp_path / "traffic").mkdir()  # no file
    assert resolved("--config=traffic").env == "traffic"
    (tmp_path / "traffic_large").write_text("env: warehouse\n")  # one's own comes first
    assert resolved("--config=traffic_large").env == "warehouse"
    for unknown in ("traffic_huge", "traffic_paper.yaml", "nowhere/traffic_paper"):
        with pytest.raises(
            UserError, match=rf"--config: {unknown}: .*; shipped are platoon, traffic, traffic_large, traffic_paper, "
        ):
            resolved(f"--config={unknown}")


def test_the_examples_in_the_help_name_what_is_there_for_everybody():
    named = re.findall(r"--config (\S+)", cli.parser().format_help().partition("examples:")[2])
    assert named
    assert set(named) <= set(shipped_configurations())


def test_resolved_configuration_reads_back_the_same():
    c = configuration("domain.border=none", "seed=3")
    assert resolve([("config.yaml", yaml.safe_load(c.to_yaml()))], 1) == c


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "ppo.learning_rat=1",
            "ppo.learning_rat: unknown key (--set ppo.learning_rat=1); did you mean ppo.learning_rate?",
        ),
        ("lambda=1", "lambda: unknown key (--set lambda=1); known here: agents, checkpoint, dataset,"),
        ("gae_lambda=1", "gae_lambda: unknown key (--set gae_lambda=1); did you mean ppo.gae_lambda?"),
        ("domain.boarder=none", "domain.boarder: unknown key (--set domain.boarder=none); did you mean domain.border?"),
        ("ppo.learning_rate=-1", "ppo.learning_rate: -1: Input should be greater than 0 (--set ppo.learning_rate=-1)"),
        ("ppo.learning_rate=fast", "ppo.learning_rate: 'fast': Input should be a valid number"),
        ("ppo.learning_rate=.nan", "ppo.learning_rate: nan: Input should be a finite number"),
        ("ppo.copies=0", "ppo.copies: 0: Input should be greater than or equal to 1 (--set ppo.copies=0)"),
        ("seed=1.5", "seed: 1.5: Input should be a valid integer"),
        ("domain.border=wall", "domain.border: 'wall': Input should be 'scripted' or 'none'"),
        ("mode=fast", "mode: 'fast': Input should be 'dials', 'untrained-dials', 'gs' or 'dppo'"),
        ("ppo=3", "ppo: 3: Input should be a section with settings of its own, for example ppo.copies (--set ppo=3)"),
        ("domain=[1]", "domain: [1]: Input should be a section with settings of its own, for example domain.border"),
        (
            "ppo.sequence_length=33",
            "ppo: sequence_length 33 must divide rollout_length 20 (--set ppo.sequence_length=33)",
        ),
        (
            "ppo.minibatch_size=70",
            "ppo: minibatch_size 70 must be a multiple of sequence_length 20 (--set ppo.minibatch_size=70)",
        ),
        (
            "ppo.minibatch_size=300",
            "ppo: minibatch_size 300 must divide rollout_length times copies, 1280 (--set ppo.minibatch_size=300)",
        ),
        (
            "evaluation.handcoded_episodes=1",
            "evaluation: handcoded_episodes 1 gives no standard error; take 0 or at least 2 (--set evaluation.",
        ),
        (
            "policy.hidden_sizes=[0]",
            "policy.hidden_sizes.0: 0: Input should be greater than or equal to 1 (--set policy.hidden_sizes=[0])",
        ),
        (
            "policy.hidden_sizes=[64, 1e9]",
            "policy.hidden_sizes.1: 1000000000.0: Input should be less than or equal to 4096",
        ),
        ("dataset.steps=1e15", "dataset.steps: 1000000000000000.0: Input should be less than or equal to 1000000000"),
        ("policy.hidden_sizes=64", "policy.hidden_sizes: 64: Input should be a list, for example [64] (--set"),
        (
            "policy.hidden_sizes=64,32",
            "policy.hidden_sizes: '64,32': Input should be a list, for example [64,32] (--set",
        ),
        (
            "domain.border=no",
            "domain.border: false: Input should be 'scripted' or 'none' (--set domain.border=no); YAML reads yes, no, "
            "on and off as true and false, unless they are in quotes",
        ),
        ("policy.hidden_sizes=[64, x]", "policy.hidden_sizes.1: 'x': Input should be a valid integer, for example 100"),
        (
            "policy.hidden_sizes=",
            "policy.hidden_sizes: null: Input should be a list, for example [64, 64] (--set policy.hidden_sizes=); "
            "leave it out for its default",
        ),
        ("agents=1e10", "agents: 10000000000.0: Input should be less than or equal to 2147483647 (--set agents=1e10)"),
        ("ppo.copies=two", "ppo.copies: 'two': Input should be a valid integer, for example 100 or 1e6 (--set"),
        ("ppo.clip=0,2", "ppo.clip: '0,2': Input should be a valid number, for example 0.01 or 1e-3 (--set"),
        ("ppo.clip_values=maybe", "ppo.clip_values: 'maybe': Input should be true or false (--set"),
        ("ppo.=3", "--set ppo.=3: write it as key=value"),
        ("seed=2024-02-31", "--set seed=2024-02-31: '2024-02-31' is no valid YAML value"),
        ("ppo={copies: 2, copies: 3}", "--set ppo={copies: 2, copies: 3}: '{copies: 2, copies: 3}' is no valid YAML"),
        (f"policy.hidden_sizes=[{'64, ' * 99}x]", "policy.hidden_sizes.99: 'x': Input should be a valid integer"),
        ("parallel.collectors=0", "parallel.collectors: 0 is neither auto nor a number of ranks from 1 on"),
        ("parallel.collectors=1.5", "parallel.collectors: 1.5 is neither auto nor a number of ranks from 1 on (--set"),
        ("parallel.collectors=.nan", "parallel.collectors: nan is neither auto nor a number of ranks from 1 on (--set"),
        ("parallel.collectors=yes", "parallel.collectors: true is neither auto nor a number of ranks from 1 on (--set"),
        ("parallel.collectors=many", "parallel.collectors: 'many' is neither auto nor a number of ranks from 1 on"),
        ("parallel.coordinator_works=2", "parallel.coordinator_works: 2 is neither auto nor true nor false"),
    ],
)
def test_bad_values_are_named_with_place_and_remedy(override, message):
    with pytest.raises(UserError) as error:
        configuration(override)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "key", ["steps", "seed", "ppo.copies", "ppo.clip", "ppo.anneal_steps", "ppo.max_gradient_norm", "domain.horizon"]
)
@pytest.mark.parametrize("word", ["yes", "no", "true", "off"])
def test_no_yes_is_taken_for_a_number(key, word):
    with pytest.raises(UserError) as error:
        configuration(f"{key}={word}")
    value = {"yes": "true", "true": "true", "no": "false", "off": "false"}[word]
    kind = "number" if key in ("ppo.clip", "ppo.max_gradient_norm") else "integer"
    assert str(error.value).startswith(f"{key}: {value}: Input should be a valid {kind}, for example ")
    assert str(error.value).endswith("; YAML reads yes, no, on and off as true and false")


@pytest.mark.parametrize("value", ["[yes]", "[64, true]"])
def test_no_yes_in_a_list_is_taken_for_a_number(value):
    with pytest.raises(UserError, match=r"policy.hidden_sizes: \[.*true\]: Input should be a valid integer"):
        configuration(f"policy.hidden_sizes={value}")


def test_a_domains_own_settings_refuse_booleans_where_they_ask_for_numbers():
    class Mine(DomainSettings):
        size: int = 3
        share: float | None = None
        shares: tuple[float, ...] = ()
        wild: bool = False
        either: int | bool = 0

    for key, value in (("size", True), ("share", False), ("shares", [0.5, True])):
        with pytest.raises(ValidationError, match="should be a valid"):
            Mine(**{key: value})
    mine = Mine(size=2.0, share=1, shares=[1, 2], wild=True, either=True)
    assert (mine.size, mine.share, mine.shares, mine.wild, mine.either) == (2, 1.0, (1.0, 2.0), True, True)


def test_numbers_may_be_written_in_scientific_notation():
    c = configuration("steps=1e6", "domain.horizon=1E2", "ppo.learning_rate=1e-3", "ppo.copies=1.28e+2", "seed=2_0e1")
    assert (c.steps, c.domain.horizon, c.ppo.learning_rate, c.ppo.copies, c.seed) == (1_000_000, 100, 0.001, 128, 200)
    assert isinstance(c.steps, int)
    c = configuration("policy.hidden_sizes=[1e2, 64]", "parallel.collectors=1e1", "ppo.anneal_steps=5e5")
    assert (c.policy.hidden_sizes, c.parallel.collectors, c.ppo.anneal_steps) == ((100, 64), 10, 500_000)
    assert parse_override("domain.border=1e3x") == {"domain": {"border": "1e3x"}}
    assert parse_override("domain.border='1e3'") == {"domain": {"border": "1e3"}}
    for text in ("1.5", "1.5e0", "1e-3"):
        with pytest.raises(UserError, match=rf"steps: {float(text)}: Input should be a valid integer, for example"):
            configuration(f"steps={text}")
    with pytest.raises(UserError, match="steps: inf: Input should be a finite number"):
        configuration("steps=1e400")


def test_a_text_that_looks_like_a_number_is_read_back_as_a_text(monkeypatch):
    class Named(DomainSettings):
        label: str = "1e3"

    monkeypatch.setattr(domain_class("ring:Ring"), "Settings", Named)
    c = configuration(env="ring:Ring")
    assert yaml.safe_load(c.to_yaml())["domain"]["label"] == "1e3"
    assert resolve([("config.yaml", parse_override(f"x={c.to_yaml()}")["x"])], 4, c.env) == c


def test_a_domains_setting_without_a_default_is_asked_for(monkeypatch):
    class Needy(DomainSettings):
        size: int

    monkeypatch.setattr(domain_class("ring:Ring"), "Settings", Needy)
    with pytest.raises(UserError, match=r"domain.size: has no default; give it a value, for example with --set domain"):
        configuration(env="ring:Ring")


def test_of_settings_that_do_not_go_together_the_last_one_is_blamed(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("env: warehouse\nppo:\n  clip: 0.1\n  rollout_length: 33\n  minibatch_size: 660\n")

    def complaint(*layers):
        with pytest.raises(UserError) as error:
            resolve([(str(file), load_yaml(file)), *layers], 4)
        return str(error.value)

    assert complaint() == f"ppo: sequence_length 20 must divide rollout_length 33 ({file}, line 4)"
    clip = ("--set ppo.clip=0.3", {"ppo": {"clip": 0.3}})
    assert complaint(clip) == complaint(), "the last one that the message is about"
    length = ("--set ppo.sequence_length=7", {"ppo": {"sequence_length": 7}})
    assert complaint(length, clip).endswith("(--set ppo.sequence_length=7)")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("ppo: {copies: 2", "line 1: no valid YAML"),
        ("seed: 2024-02-31", "no valid YAML: day is out of range for month"),
        ("ppo:\n\tcopies: 3\n", "line 2: no valid YAML: found character '.t' that cannot start any token; indent with"),
        ("? [a, b]\n: 3\n", "line 1: no valid YAML: found unhashable key"),
        ("env: \x00", r"no valid YAML: unacceptable character #x0000: special characters are not allowed$"),
        ("seed: 1\nppo: {copies: 2}\nppo: {clip: 0.1}\n", "line 3: no valid YAML: key 'ppo' stands here for a second"),
        ("- a\n- b\n", "a configuration is a mapping of keys to values, not list"),
        ("!!python/object/apply:os.system ['true']", "no valid YAML"),
    ],
)
def test_bad_files_are_named(tmp_path, content, message):
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(UserError, match=message) as error:
        load_yaml(file)
    assert str(file) in str(error.value)


def test_a_file_in_another_encoding_is_named(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_bytes("env: warehouse # größer\n".encode("latin-1"))
    with pytest.raises(UserError, match=r"mine.yaml: no text in UTF-8 \(byte 20\); save it as such$"):
        load_yaml(file)


def test_a_bad_value_is_named_with_its_line(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("env: warehouse\nppo:\n  copies: 2\n  clip: 2\n")
    with pytest.raises(UserError, match=rf"ppo.clip: 2: Input should be less than 1 \({file}, line 4\)"):
        resolve([(str(file), load_yaml(file))], 4)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(UserError, match=r"nowhere.yaml: cannot be read: No such file"):
        load_yaml(tmp_path / "nowhere.yaml")


@pytest.mark.parametrize(
    ("env", "message"),
    [
        ("warehous", "'warehous' is no domain; choose warehouse"),
        ("nowhere.to_be_found:Domain", "No module named 'nowhere'"),
        (":Ring", "':Ring' is no domain"),
        ("ring:Rong", "Rong in ring is not a subclass"),
        ("ring:Incomplete", "Incomplete lacks local_simulator"),
    ],
)
def test_bad_domains_are_named(env, message):
    with pytest.raises(UserError, match=message):
        domain_class(env)


def test_a_domain_that_forgets_an_attribute_is_named(monkeypatch):
    cls = domain_class("ring:Ring")
    monkeypatch.delattr(cls, "horizon")
    with pytest.raises(UserError, match="Ring does not set 'horizon'"):
        make_domain("ring:Ring", 3, cls.Settings())


def test_conformance_check_finds_a_broken_promise():
    check_domain(make_domain("ring:Ring", 3, domain_class("ring:Ring").Settings()))
    with pytest.raises(UserError, match="the same seeds give another episode"):
        check_domain(make_domain("ring:Forgetful", 3, domain_class("ring:Forgetful").Settings()))


@pytest.mark.parametrize(
    ("n_agents", "n_ranks"), [(4, 1), (4, 2), (4, 3), (4, 5), (25, 3), *((100, n) for n in (2, 3, 5, 26, 101))]
)
def test_layout_gives_every_agent_one_owner_in_balanced_blocks(n_agents, n_ranks):
    layout = Layout(n_agents, n_ranks)
    owned = [list(layout.agents(rank)) for rank in range(n_ranks)]
    assert [agent for block in owned for agent in block] == list(range(n_agents))
    if n_ranks > 1:
        assert owned[0] == []
        sizes = [len(block) for block in owned[1:]]
        assert max(sizes) - min(sizes) <= 1
    if n_ranks <= n_agents:
        layout = Layout(n_agents, n_ranks, coordinator_works=True)
        owned = [list(layout.agents(rank)) for rank in range(n_ranks)]
        assert [agent for block in owned for agent in block] == list(range(n_agents))
        sizes = [len(block) for block in owned]
        assert max(sizes) - min(sizes) <= 1
        assert sizes[0] == min(sizes), "rank 0 has other things to do as well"


def test_what_is_rounded_up_to_whole_rollouts_and_episodes_is_said():
    """Units of the warehouse: 5 rollouts of 20 steps in 64 copies are one episode of 100 steps in each, 6,400 steps."""
    why = (
        ", to multiples of 6,400 steps per agent: whole rollouts of 20 steps in 64 copies, and whole episodes of 100 "
        "steps"
    )
    assert rounding(configuration("steps=20000"), 100) == "rounded up: steps 20,000 → 25,600" + why, "no interval"
    c = configuration("steps=20000", "evaluation.interval=12801", "predictor.interval=100")
    assert rounding(c, 100) == (
        "rounded up: steps 20,000 → 25,600, evaluation.interval 12,801 → 19,200, predictor.interval 100 → 6,400" + why
    )
    c = configuration("steps=20000", "evaluation.interval=12801", "mode=gs")
    assert rounding(c, 100) == "rounded up: steps 20,000 → 25,600, evaluation.interval 12,801 → 19,200" + why
    exact = ("steps=64000", "evaluation.interval=12800", "predictor.interval=6400")
    assert rounding(configuration(*exact), 100) == ""
    assert rounding(configuration(*exact, "predictor.interval=6401"), 100).startswith(
        "rounded up: predictor.interval 6,401 → 12,800, to"
    )
    assert rounding(configuration("steps=6400", "evaluation.interval=6000", "predictor.interval=6400"), 100) == ""
    for key, becomes in (("steps", "25,600"), ("evaluation.interval", "19,200")):
        c = configuration("steps=20000", "evaluation.interval=12801")
        segments = plan(c, 100)
        last = {"steps": segments[-1].stop, "evaluation.interval": segments[0].stop}[key]
        assert f"{last:,}" == becomes, "what is said is what is done"


def test_ranks_without_work_are_refused():
    with pytest.raises(UserError, match="7 ranks for 4 agents leave 2 without work; start at most 5"):
        Layout(4, 7)
    with pytest.raises(UserError, match="5 ranks for 4 agents leave 1 without work; start at most 4"):
        Layout(4, 5, coordinator_works=True)


@pytest.mark.parametrize("n_batches", [1, 7, 34])
@pytest.mark.parametrize("n_collectors", [1, 2, 5])
@pytest.mark.parametrize("n_ranks", [5, 26])
def test_every_batch_is_played_once_by_collectors_all_over_the_machines(n_ranks, n_collectors, n_batches):
    layout = Layout(25, n_ranks, n_collectors=n_collectors)
    assert layout.collectors[0] == 0
    gaps = np.diff([*layout.collectors, n_ranks])
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1
    turns = layout.turns(n_batches)
    assert [batch for turn in turns for batch in turn.values()] == list(range(n_batches))
    assert all(rank in layout.collectors for turn in turns for rank in turn)
    assert len(turns) == -(-n_batches // n_collectors)


@pytest.mark.parametrize(
    ("agents", "ranks", "cores", "batches", "works", "collectors"),
    [
        (4, 1, 2, 10, False, 1),
        (4, 5, 64, 10, False, 1),  # one agent a rank already
        (4, 3, 64, 10, False, 1),  # two agents on some rank in any case
        (4, 2, 2, 10, True, 1),
        (100, 3, 2, 10, False, 2),  # no core for rank 0
        (100, 3, 4, 10, True, 3),
        (100, 101, 128, 10, False, 10),
        (25, 26, 2, 10, False, 2),
    ],
)
def test_layout_is_chosen_by_agents_ranks_and_cores(agents, ranks, cores, batches, works, collectors):
    layout = choose_layout(agents, ranks, cores, batches, "auto", "auto")
    assert (layout.coordinator_works, layout.n_collectors) == (works, collectors)
    wanted = choose_layout(agents, ranks, cores, batches, ranks <= agents, 3)
    assert (wanted.coordinator_works, wanted.n_collectors) == (ranks <= agents, min(3, ranks, batches))


@pytest.mark.parametrize(
    ("environment", "size", "fits"),
    [
        ({}, 1, True),
        ({"PMI_SIZE": "4"}, 4, True),
        ({"PMI_SIZE": "4"}, 1, False),
        ({"OMPI_COMM_WORLD_SIZE": "3"}, 1, False),
        ({"SLURM_STEP_NUM_TASKS": "5"}, 1, False),
        ({"SLURM_STEP_NUM_TASKS": "1", "PMI_SIZE": "5"}, 5, True),  # mpirun inside a Slurm job
        ({"SLURM_NTASKS": "5"}, 1, True),  # a batch script that starts one process itself
    ],
)
def test_communicator_that_contradicts_the_launcher_is_refused(environment, size, fits):
    if fits:
        check_size(size, environment)
    else:
        with pytest.raises(UserError, match=rf"the launcher started \d processes .* but MPI connects {size}"):
            check_size(size, environment)


def test_launched_rank():
    assert launched_rank({}) == 0
    assert launched_rank({"OMPI_COMM_WORLD_RANK": "3"}) == 3
    assert launched_rank({"PMI_RANK": "2", "SLURM_PROCID": "0"}) == 2
    assert launched_size({}) == 1
    assert launched_size({"PMI_SIZE": "2", "SLURM_STEP_NUM_TASKS": "1"}) == 2


@pytest.mark.parametrize("mode", ["dials", "gs"])
@pytest.mark.parametrize(
    ("steps", "evaluation", "interval", "length", "horizon"),
    [(1600, 400, 800, 50, 100), (1000, 300, 700, 50, 50), (90, 400, 4000, 50, 100), (9000, 128, 1000, 128, 100)],
)
def test_plan_covers_every_update_once_in_whole_episodes(mode, steps, evaluation, interval, length, horizon):
    sizes = {"copies": 1, "rollout_length": length, "sequence_length": length, "minibatch_size": length}
    values = {
        "steps": steps,
        "mode": mode,
        "evaluation": {"interval": evaluation},
        **({"predictor": {"interval": interval}} if mode == "dials" else {}),
        "ppo": sizes,
    }
    configuration = resolve([("--env", {"env": "warehouse"}), ("test", values)], 4)
    segments = plan(configuration, horizon)
    unit = unit_steps(configuration, horizon)
    assert unit == math.lcm(length, horizon)
    assert segments[0].start == 0
    assert all(earlier.stop == later.start for earlier, later in itertools.pairwise(segments))
    total = segments[-1].stop
    assert total == unit * -(-steps // unit)
    assert all((segment.stop - segment.start) % unit == 0 < segment.stop - segment.start for segment in segments)
    assert segments[-1].evaluates
    evaluated = [0] if mode == "gs" else []  # before training, on its own or by the first collection
    for segment in segments:
        evaluated += [segment.start] * segment.collection_evaluates + [segment.stop] * segment.evaluates
        assert segment.round is not None or not segment.collection_evaluates
    gap = unit * -(-evaluation // unit)
    assert evaluated == sorted({*range(0, total, gap), total}), "each evaluation once"
    if mode != "dials":
        assert [segment.start for segment in segments] == list(range(0, total, gap)), "and nothing else"
    for done in evaluated:
        collected = any(segment.collection_evaluates and segment.start == done for segment in segments)
        episodes = configuration.dataset.steps // horizon if collected else configuration.evaluation.episodes
        assert evaluation_at(configuration, horizon, done)[0] == episodes
    rounds = [segment for segment in segments if segment.round is not None]
    if mode == "gs":
        assert rounds == []
        return
    assert [segment.round for segment in rounds] == list(range(len(rounds)))
    gaps = {later.start - earlier.start for earlier, later in itertools.pairwise(rounds)}
    assert all(interval <= gap < interval + math.lcm(length, horizon) for gap in gaps)


def test_streams_differ_by_every_part_of_their_name():
    keys = [
        (seed, purpose, member, round_)
        for seed in (0, 1)
        for purpose in ("evaluate/actions", "train/actions")
        for member in (0, 1)
        for round_ in (0, 1)
    ]
    draws = {stream(*key).random() for key in keys}
    assert len(draws) == len(keys)
    assert stream(*keys[3]).random() == stream(*keys[3]).random()
    with pytest.raises(KeyError):
        stream(0, "train/action")


def test_a_stream_is_made_of_its_name_alone_and_left_out_parts_are_zero():
    """As it has always been: a run of an older version is repeated to the bit."""
    for member, round_ in ((0, 0), (3, 0), (3, 8)):
        key = zlib.crc32(b"train/actions"), member, round_
        expected = np.random.SeedSequence(5, spawn_key=key)
        parts = [part for part in (member, round_) if part]
        assert stream(5, "train/actions", *parts).random() == np.random.default_rng(expected).random()
        assert (
            streams(5, "train/actions", [9, member], *parts[1:])[1].random() == np.random.default_rng(expected).random()
        )
        (word,) = expected.generate_state(1, np.uint64).tolist()
        assert torch_seed(5, "train/actions", *parts) == word // 2


@pytest.mark.parametrize("draw", [uniform, gumbel, logistic])
def test_noise_of_a_stream_depends_on_nothing_else(draw):
    """Nor on the length of the blocks that are drawn ahead, which is another for one stream than for many."""

    def numbers(members, steps):
        buffer = NoiseBuffer([stream(0, "train/actions", m) for m in members], (3, 2), draw)
        return np.stack([buffer.next().copy() for _ in range(steps)])

    alone, among_many = numbers([7], 500), numbers(range(300), 500)
    assert np.array_equal(alone[:, 0], among_many[:, 7])
    assert np.isfinite(alone).all()
    assert len(np.unique(alone)) > 2900


def test_batches_and_how_many_ranks_can_share_them_by_hand():
    assert batch_sizes(7, 3) == [3, 3, 1]
    assert batch_sizes(6, 3) == [3, 3]
    # 100 episodes of 100 steps of a dataset, 25 side by side, and 100 of an evaluation, 50 side by side.
    fewer = "evaluation.copies=50"
    assert most_batches(configuration(fewer), 100) == 4
    assert most_batches(configuration(fewer, "dataset.steps=10001"), 100) == 5
    assert most_batches(configuration("evaluation.copies=10"), 100) == 10
    assert most_batches(configuration(fewer, "mode=untrained-dials"), 100) == 2
    assert most_batches(configuration(fewer, "mode=gs"), 100) == 1


@pytest.mark.parametrize(
    ("draw", "numbers"),
    [
        (uniform, lambda g, shape: g.random(shape, dtype=np.float32)),
        (gumbel, lambda g, shape: -np.log(g.standard_exponential(shape, dtype=np.float32))),
        (logistic, lambda g, shape: np.log((u := g.random(shape, dtype=np.float32)) / (1 - u))),
    ],
)
def test_noise_is_what_the_stream_has_to_give_in_its_order_and_all_of_it(draw, numbers):
    buffer = NoiseBuffer(streams(0, "train/actions", range(2)), (3, 2), draw)
    drawn = np.stack([buffer.next().copy() for _ in range(300)], axis=1)
    expected = np.stack([numbers(stream(0, "train/actions", m), (300, 3, 2)) for m in range(2)])
    np.testing.assert_allclose(drawn, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("agents", [1, 4])
@pytest.mark.parametrize("env", ["warehouse", "traffic"])
def test_names_of_observations_and_actions_are_those_of_the_bits(env, agents):
    c = resolve([("test", {"env": env})], agents)
    domain = make_domain(env, agents, c.domain)
    check_domain(domain)
    with domain.global_simulator(1) as simulator:
        simulator.seed([stream(0, "evaluate/simulator")])
        observation = simulator.reset()[-1, 0]
    seen = {name for name, bit in zip(domain.observation_names, observation, strict=True) if bit}
    if env == "warehouse":
        assert {name for name in seen if name.startswith("robot")} == {"robot_row2_column2"}, "in the centre"
        assert domain.observation_names[25:29] == (
            "item_row0_column1", "item_row0_column2", "item_row0_column3", "item_row4_column1",
        )  # fmt: skip
    else:
        assert seen == {"green_north_south"}, "roads are empty"
        assert domain.observation_names[9] == "east_lane0_cell0"


def test_a_domain_that_does_not_name_its_observations_has_numbers():
    domain = make_domain("ring:Ring", 3, domain_class("ring:Ring").Settings())
    assert domain.observation_names == ["observation_0", "observation_1"]
    assert domain.action_names == ["action_0", "action_1"]
    assert domain.grid_shape == (1, 3)
    domain.action_names = ["still", "still"]
    with pytest.raises(UserError, match="domain ring: action_names is not 2 different names"):
        check_domain(domain)
