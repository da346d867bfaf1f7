"""The configuration: this tree is the schema, `configs/*.yaml` are the values.

Layers, later ones win: the defaults here, the domain's own file (`configs/<env>.yaml`), `--config FILE`, the command
line. Values for one method alone stand in a file of their own beside each of these, FILE_FAMILY.yaml for FILE.yaml, and
are laid over it. `resolve` merges and checks them; what comes out is complete and goes to `config.yaml` in the run
directory.
"""

import difflib
import functools
import json
import re
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from dials_mpi.algorithms.registry import METHODS, Method, owners
from dials_mpi.errors import UserError
from dials_mpi.settings import Settings
from dials_mpi.simulators import registry
from dials_mpi.simulators.interface import DomainSettings


class EvaluationSettings(Settings):
    interval: int = Field(50_000, ge=1, description="steps per agent between two evaluations on the GS")
    episodes: int = Field(40, ge=2, le=10**9, description="of an evaluation that no dataset's collection stands for")
    copies: int = Field(10, ge=1, le=100_000, description="episodes per batch, in copies of the GS side by side")
    handcoded_episodes: int = Field(
        100, ge=0, le=10**9, description="episodes of each hand-coded controller at the start; 0: none"
    )

    @model_validator(mode="after")
    def _enough_for_a_standard_error(self):
        if self.handcoded_episodes == 1:
            raise ValueError("handcoded_episodes 1 gives no standard error; take 0 or at least 2")
        return self


class CheckpointSettings(Settings):
    minutes: float = Field(10.0, gt=0, description="between two checkpoints")
    steps: int | None = Field(None, ge=1, description="training steps between two checkpoints, if that is sooner")
    keep: int = Field(2, ge=1, description="newest checkpoints that are kept; the best by evaluation is kept as well")
    boundary_seconds: float = Field(
        10.0, ge=0, description="about how long until a request to stop is heard; 0: at every whole episode"
    )


class LogSettings(Settings):
    tensorboard: bool = Field(False, description="event files for TensorBoard beside metrics.jsonl")


class ParallelSettings(Settings):
    """Who does what; no result depends on it."""

    collectors: int | Literal["auto"] = Field(
        "auto",
        description="ranks, at most, that play batches of episodes on the GS; auto: rank 0 alone for fewer than 25 "
        "agents, else as many as there are cores",
    )
    coordinator_works: bool | Literal["auto"] = Field(
        "auto",
        description="rank 0 owns agents, too; auto: if that makes the largest block smaller and every rank has a core",
    )

    @field_validator("collectors", mode="before")
    @classmethod
    def _number_or_auto(cls, value):
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if value != "auto" and not (number and value >= 1 and value % 1 == 0):
            raise ValueError(f"{_shown(value)} is neither auto nor a number of ranks from 1 on")
        return value

    @field_validator("coordinator_works", mode="before")
    @classmethod
    def _yes_no_or_auto(cls, value):
        if value != "auto" and not isinstance(value, bool):
            raise ValueError(f"{_shown(value)} is neither auto nor true nor false")
        return value


MAY_CHANGE = ("steps", "evaluation", "checkpoint", "log", "parallel")
"""What a resumed run may do differently from the run it goes on with."""


class Configuration(Settings):
    """What all methods have. `resolve` adds the sections of the method and the domain's own settings."""

    env: str = Field(description="warehouse, traffic, platoon, or your own domain as package.module:ClassName")
    agents: int = Field(ge=1, le=2**31 - 1, description="N; default: ranks - 1, or 4 in a single process")
    mode: str = Field(next(iter(METHODS)), description="the method: where and how agents learn")
    seed: int = Field(0, ge=0, le=2**63 - 1)
    steps: int = Field(1_000_000, ge=1, le=10**18, description="training steps per agent")
    domain: SerializeAsAny[DomainSettings] = DomainSettings()
    evaluation: EvaluationSettings = EvaluationSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    log: LogSettings = LogSettings()
    parallel: ParallelSettings = ParallelSettings()

    @model_validator(mode="after")
    def _settled(self):
        """Said once and for all when a run is made: one that is prolonged goes on as it began."""
        for name, section in self.sections.items():
            open_ = [key for key in section.settled if getattr(section, key) is None]
            if open_:
                section = section.model_copy(update=dict.fromkeys(open_, self.steps))
                object.__setattr__(self, name, section)
        return self

    @property
    def method(self) -> Method:
        return METHODS[self.mode]

    @property
    def sections(self) -> dict[str, Settings]:
        """The method's, by name."""
        return {name: getattr(self, name) for name in self.method.sections}

    def setting(self, key: str) -> Any:
        """The value of `section.key`."""
        section, _, name = key.partition(".")
        return getattr(getattr(self, section), name)

    @property
    def shares_policy(self) -> bool:
        """Whether all agents act by one policy."""
        return "policy" in self.sections and self.policy.shared

    def to_yaml(self) -> str:
        return yaml.dump(self.model_dump(mode="json"), Dumper=_Dumper, sort_keys=False)


def resolve(
    layers: list[tuple[str, dict[str, Any]]], default_agents: int, named_env: str | None = None
) -> Configuration:
    """Merges layers of nested mappings into a checked configuration.

    Layers may come from anybody's files, so they do not choose code to be imported: a domain that is not built in is
    used only if it is `named_env` as well.

    Args:
        layers: (where the values come from, values), later ones win. The domain's own file is put beneath them.
        default_agents: N if no layer says.
        named_env: the domain that the user names, on the command line or as an argument. The layers must come to it.

    Raises:
        UserError: unknown keys, wrong types, values out of range, a section of another method: each named with its
            place, in one line. Another domain than `named_env`, or one that is not built in without it.
    """
    origin, env = _last(layers, "env")
    if env is None:
        raise UserError(f"env: no domain given; try --env {' or --env '.join(registry.BUILT_IN)}")
    if not isinstance(env, str):
        raise UserError(f"env: {env!r} is no name; try --env {' or --env '.join(registry.BUILT_IN)}")
    if named_env not in (None, env):
        raise UserError(
            f"env: it is {env!r} in {_place(origin, ('env',))}, not {named_env!r}; the two must be the same"
        )
    if named_env is None and ":" in env:
        raise UserError(
            f"env: {_place(origin, ('env',))} names {env!r}, and only who starts the program chooses code to import; "
            f"add --env {env!r} if you trust it"
        )
    domain_settings = registry.domain_class(env).Settings
    file = registry.configuration_file(env)
    of_domain = [(str(file), load_yaml(file))] if file else []
    mode = _mode([*of_domain, *layers])
    layers = [layer for below in of_domain for layer in with_companion(*below, mode)] + layers
    for origin, values in layers:
        _refuse_sections_of_others(origin, values, mode)
    merged: dict[str, Any] = {"agents": default_agents, "domain": {}}
    origins: dict[tuple[str, ...], str] = {}
    for origin, values in layers:
        _merge(merged, values, origin, origins, ())
    schema = _schema(domain_settings, METHODS[mode])
    try:
        return schema.model_validate(merged)
    except ValidationError as error:
        raise UserError(_explain(error, schema, origins)) from None


def from_values(values: dict[str, Any]) -> Configuration:
    """A configuration from all its values, as `model_dump` gives them: of one that `resolve` has accepted."""
    return _schema(registry.domain_class(values["env"]).Settings, METHODS[values["mode"]]).model_validate(values)


def stored_layer(file: Path, values: dict[str, Any], mode: str | None = None) -> tuple[str, dict[str, Any]]:
    """The layer of a configuration that a run has written.

    Without what earlier versions wrote of other methods, and left open of what is settled when a run is made.

    Args:
        mode: that the run goes on with; None: its own.
    """
    method = METHODS.get(mode or values.get("mode", ""))
    kept = {}
    for key, value in values.items():
        settings = method.sections.get(key) if method else None
        if settings and isinstance(value, dict):
            kept[key] = {k: v for k, v in value.items() if not (v is None and k in settings.settled)}
        elif not (method and owners(key)):
            kept[key] = value
    return str(file), kept


def with_companion(file: str, values: dict[str, Any], mode: str) -> list[tuple[str, dict[str, Any]]]:
    """The layer of a file and, if there is one, that of the file beside it with values for the mode's method."""
    path = Path(file)
    beside = path.with_name(f"{path.stem}_{METHODS[mode].family}{path.suffix}")
    return [(file, values), *([(str(beside), load_yaml(beside))] if beside.is_file() else [])]


def mode_of(layers: list[tuple[str, dict[str, Any]]]) -> str:
    """The mode that layers come to, the file of their domain included.

    Raises:
        UserError: there is no such mode.
    """
    env = _last(layers, "env")[1]
    file = registry.configuration_file(env) if isinstance(env, str) else None
    return _mode([(str(file), load_yaml(file)), *layers] if file else layers)


def _mode(layers: list[tuple[str, dict[str, Any]]]) -> str:
    origin, mode = _last(layers, "mode")
    if mode is None:
        return next(iter(METHODS))
    if not isinstance(mode, str) or mode not in METHODS:
        *others, last = map(repr, METHODS)
        raise UserError(
            f"mode: {_shown(mode)}: Input should be {', '.join(others)} or {last} ({_place(origin, ('mode',))})"
        )
    return mode


def _last(layers: list[tuple[str, dict[str, Any]]], key: str) -> tuple[str, Any]:
    """Origin and value of a key in the last layer that has it."""
    found = ((origin, values[key]) for origin, values in reversed(layers) if values.get(key) is not None)
    return next(found, ("", None))


def _refuse_sections_of_others(origin: str, values: dict[str, Any], mode: str) -> None:
    for key in values:
        if key not in METHODS[mode].sections and (modes := owners(str(key))):
            raise UserError(
                f"{key}: belongs to mode {' or '.join(modes)}, not to {mode} ({_place(origin, (key,))}); leave it out"
            )


def load_yaml(path: Path) -> dict[str, Any]:
    """A mapping from a YAML file; `UserError` if it cannot be read, is no YAML or no mapping."""
    try:
        values = yaml.load(Path(path).read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506 - is a SafeLoader
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: no text in UTF-8 (byte {error.start + 1}); save it as such") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a date that there is not
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error).partition("\n")[0]
        what += "; indent with spaces" if r"'\t'" in what else ""
        raise UserError(f"{path}{where}: no valid YAML: {what}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise UserError(f"{path}: a configuration is a mapping of keys to values, not {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """Refuses a key that stands twice in one mapping: the first one would be lost without a word."""

    def construct_mapping(self, node, deep=False):
        seen = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode):
                continue
            if key_node.value in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"key {key_node.value!r} stands here for a second time", problem_mark=key_node.start_mark
                )
            seen.add(key_node.value)
        return super().construct_mapping(node, deep)


class _Dumper(yaml.SafeDumper):
    """Puts what `_Loader` would take for a number in quotes."""


for _class in (_Loader, _Dumper):  # 1e6 is a number, as in YAML 1.2; in YAML 1.1 it is a text, and 1.0e+6 a number
    _class.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.\d+|\d[\d_]*(\.\d*)?)[eE][-+]?\d+$", re.ASCII),
        list("-+.0123456789"),
    )


def _place(origin: str, path: tuple[str, ...]) -> str:
    """`origin`, with the line of the key if it is a file that has it."""
    try:
        text = Path(origin).read_text(encoding="utf-8")
    except (OSError, ValueError):  # no file
        return origin
    node, line = yaml.compose(text, Loader=yaml.SafeLoader), None
    for part in path:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next(((key, value) for key, value in pairs if key.value == part), None)
        if found is None:
            break
        line, node = found[0].start_mark.line + 1, found[1]
    return f"{origin}, line {line}" if line else origin


def parse_override(text: str) -> dict[str, Any]:
    """`ppo.learning_rate=1e-3` → {"ppo": {"learning_rate": 0.001}}; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not all(key.strip().split(".")):
        raise UserError(f"--set {text}: write it as key=value, for example --set domain.horizon=50")
    try:
        parsed = yaml.load(value, Loader=_Loader)  # noqa: S506 - is a SafeLoader
    except (yaml.YAMLError, ValueError) as error:
        raise UserError(f"--set {text}: {value!r} is no valid YAML value") from error
    for part in reversed(key.strip().split(".")):
        parsed = {part: parsed}
    return parsed


@functools.cache
def _schema(domain_settings: type[DomainSettings], method: Method) -> type[Configuration]:
    """`Configuration` with the domain's own settings in its `domain:` section, and with the sections of the method."""
    namespace = {
        "__annotations__": {"domain": SerializeAsAny[domain_settings], **method.sections},
        "domain": Field(default_factory=domain_settings),
        **{name: Field(default_factory=settings) for name, settings in method.sections.items()},
        "__module__": __name__,
    }
    return type("Configuration", (Configuration,), namespace)


def _merge(base: dict, values: dict, origin: str, origins: dict, path: tuple[str, ...]) -> None:
    """Lays `values` over `base`; `origins`, where each came from, is kept in the order in which they came."""
    for key, value in values.items():
        key = str(key)
        here = (*path, key)
        if isinstance(value, dict) and isinstance(base.get(key), dict):
            _merge(base[key], value, origin, origins, here)
        else:
            base[key] = {} if isinstance(value, dict) else value
            for gone in [known for known in origins if known[: len(here)] == here]:
                del origins[gone]
            origins[here] = origin
            if isinstance(value, dict):
                _merge(base[key], value, origin, origins, here)


_WORDS = {
    "int": "Input should be a valid integer, for example 100 or 1e6",
    "float": "Input should be a valid number, for example 0.01 or 1e-3",
    "bool": "Input should be true or false",
    "tuple": "Input should be a list",
    "list": "Input should be a list",
    "string": "Input should be text; put it in quotes",
    "model": "Input should be a section with settings of its own",
    "dict": "Input should be a section with settings of its own",
}
"""What is to be written, by the beginning of pydantic's error types, where its own message does not tell."""


def _explain(error: ValidationError, schema: type[BaseModel], origins: dict[tuple[str, ...], str]) -> str:
    """The first problem in one line: key, what is wrong with which value, where it stands, and the remedy."""
    first = error.errors()[0]
    path = tuple(str(part) for part in first["loc"])
    key, kind, value = ".".join(path), first["type"], first["input"]
    message = first["msg"].removeprefix("Value error, ")
    origin = _origin(path, message, origins)
    if kind == "extra_forbidden":
        known = _known_keys(schema, path[:-1])
        close = difflib.get_close_matches(path[-1], known, n=1, cutoff=0.5)
        elsewhere = [k for k in _all_keys(schema) if k.rpartition(".")[2] == path[-1]]
        remedy = f"did you mean {'.'.join((*path[:-1], close[0]))}?" if close else ""
        remedy = remedy or (f"did you mean {elsewhere[0]}?" if elsewhere else f"known here: {', '.join(sorted(known))}")
        return f"{key}: unknown key ({origin}); {remedy}"
    more = f" (and {error.error_count() - 1} more)" if error.error_count() > 1 else ""
    if kind == "value_error":
        return f"{key + ': ' if key else ''}{message} ({origin}){more}"
    if kind == "missing":
        return f"{key}: has no default; give it a value, for example with --set {key}=…{more}"
    message = _WORDS.get(kind.partition("_")[0], message)
    if kind.startswith(("model", "dict")) and (known := _known_keys(schema, path)):
        message += f", for example {key}.{known[0]}"
    if kind.startswith(("tuple", "list")):
        message += f", for example {f'[{value}]' if isinstance(value, str | int | float) else '[64, 64]'}"
    remedy = ""
    if value is None:
        remedy = "; leave it out for its default"
    elif isinstance(value, bool):
        remedy = "; YAML reads yes, no, on and off as true and false"
        remedy += "" if kind.startswith(("int", "float")) else ", unless they are in quotes"
    return f"{key}: {_shown(value)}: {message} ({origin}){remedy}{more}"


def _origin(path: tuple[str, ...], message: str, origins: dict[tuple[str, ...], str]) -> str:
    """Where the values come from that a message is about.

    A section as a whole is at fault when its settings do not go together: the one that the message names and that came
    last is to be mended.
    """
    inside = [key for key in origins if len(key) > len(path) and key[: len(path)] == path]
    named = [k for k in inside if re.search(rf"(?<![\w.]){re.escape('.'.join(k[len(path) :]))}(?!\.?\w)", message)]
    around = [key for n in range(len(path) + 1) if (key := path[:n]) in origins]
    keys = named or inside or around
    return _place(origins[keys[-1]], keys[-1]) if keys else "the defaults"


def _shown(value: Any) -> str:
    """A value as YAML has it."""
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return repr(value)
    return json.dumps(value, ensure_ascii=False, default=str, skipkeys=True)


def _known_keys(schema: type[BaseModel], path: tuple[str, ...]) -> list[str]:
    for part in path:
        schema = _section(schema, part)
        if schema is None:
            return []
    return list(schema.model_fields)


def _section(schema: type[BaseModel], key: str) -> type[BaseModel] | None:
    field = schema.model_fields.get(key)
    annotation = getattr(field, "annotation", None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _all_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    keys = []
    for name in schema.model_fields:
        section = _section(schema, name)
        keys += _all_keys(section, f"{prefix}{name}.") if section else [prefix + name]
    return keys
