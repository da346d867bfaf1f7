"""Finds the domain that `--env` names, and the configurations that are shipped."""

import importlib
import inspect
import math
import shlex
import sys
from pathlib import Path

from dials_mpi.errors import UserError
from dials_mpi.simulators.interface import Domain, DomainSettings

BUILT_IN = {
    "warehouse": "dials_mpi.simulators.warehouse:Warehouse",
    "traffic": "dials_mpi.simulators.traffic:Traffic",
    "platoon": "dials_mpi.simulators.platoon:Platoon",
}


def env_option(env: str) -> str:
    """What a command on a run of that domain has to name: ` --env …` for a user's own, else nothing."""
    return "" if env in BUILT_IN else f" --env {shlex.quote(env)}"


def domain_class(env: str) -> type[Domain]:
    """The class behind a built-in name or `package.module:ClassName`.

    A module that is not built in is looked for on Python's path, and then in the current directory.

    Raises:
        UserError: unknown name, a module that cannot be imported, a class that is no complete `Domain`.
    """
    module_name, separator, class_name = BUILT_IN.get(env, env).partition(":")
    if not (module_name and separator and class_name):
        raise UserError(
            f"env: {env!r} is no domain; choose {' or '.join(BUILT_IN)}, or give your own as package.module:ClassName"
        )
    here = str(Path.cwd())
    if env not in BUILT_IN and here not in sys.path:
        sys.path.append(here)
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and f"{module_name}.".startswith(f"{error.name}."):
            raise UserError(
                f"env: {env!r}: {error} on Python's path or in {here}; install its package, or start where it is"
            ) from error
        what = f"{type(error).__name__}: {error}".partition("\n")[0]
        raise UserError(f"env: {env!r}: importing {module_name} fails ({what})") from error
    cls = getattr(module, class_name, None)
    if not inspect.isclass(cls) or not issubclass(cls, Domain):
        raise UserError(
            f"env: {env!r}: {class_name} in {module_name} is not a subclass of dials_mpi.simulators.interface.Domain"
        )
    if cls.__abstractmethods__:
        missing = ", ".join(sorted(cls.__abstractmethods__))
        raise UserError(f"env: {env!r}: {class_name} lacks {missing}; see dials_mpi/simulators/interface.py")
    return cls


def make_domain(env: str, n_agents: int, settings: DomainSettings, default: str | None = None) -> Domain:
    """An instance, with what `Domain` promises checked as far as that is possible without simulating.

    Args:
        default: how `n_agents` came about, if nobody asked for that number.

    Raises:
        UserError: a number of agents that the domain cannot have, or a missing attribute.
    """
    cls = domain_class(env)
    try:
        domain = cls(n_agents, settings)
    except ValueError as error:
        hint = f" ({n_agents} is the default, {default}; give --agents)" if default else ""
        raise UserError(f"agents: {error}{hint}") from error
    acts = domain.n_actions or domain.action_size
    for attribute in ("name", "n_agents", "n_actions", "observation_size", "horizon", "influence"):
        if not hasattr(domain, attribute) or (attribute == "n_actions" and not acts):
            raise UserError(
                f"env: {env!r}: {cls.__name__} does not set {attribute!r}; see dials_mpi/simulators/interface.py"
            )
    if domain.action_size and (domain.n_actions or domain.masks_actions):
        wrong = "n_actions" if domain.n_actions else "masks_actions"
        raise UserError(f"env: {env!r}: {wrong} with action_size: actions are either discrete or continuous")
    low, high = domain.action_range
    if not -math.inf < low < high < math.inf:
        raise UserError(f"env: {env!r}: action_range {low:g} to {high:g}: bounds are finite, the lower one first")
    if domain.n_actions > 256 or (domain.influence and domain.influence.classes > 256):
        raise UserError(f"env: {env!r}: more than 256 actions or classes of an influence source; datasets hold bytes")
    return domain


def configuration_file(env: str) -> Path | None:
    """The default configuration of a built-in domain; None for a user's own."""
    if env not in BUILT_IN:
        return None
    if env not in shipped_configurations():
        raise UserError(
            f"env: the default configuration {env}.yaml is missing; reinstall the package or give --config FILE"
        )
    return shipped_configurations()[env]


def shipped_configurations() -> dict[str, Path]:
    """The files in `configs/` by name, without `.yaml`: of a checkout, or inside an installed wheel."""
    package = Path(__file__).parents[1]
    for folder in (package.parent / "configs", package / "configs"):
        if all((folder / f"{env}.yaml").is_file() for env in BUILT_IN):
            return {file.stem: file for file in sorted(folder.glob("*.yaml"))}
    return {}
