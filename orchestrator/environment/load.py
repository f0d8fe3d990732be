"""Environment file -> Environment."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from orchestrator.core.addresses import is_loopback
from orchestrator.core.errors import EnvironmentFileError
from orchestrator.environment.model import Environment
from orchestrator.recipe.problems import Loc, did_you_mean, raise_problems
from orchestrator.recipe.validation import check
from orchestrator.recipe.yaml_text import read_document

DEFAULT_PATH = Path(__file__).with_name("local.yaml")
"""The embedded environment; the same text as `configs/local.yaml`."""


def load_environment(path: Path | None = None) -> Environment:
    """Read and check an environment.

    Args:
        path: The file; the embedded local environment when None. Relative folders inside it count from the current folder.

    Raises:
        EnvironmentFileError: Anything wrong with it; `details["problems"]` lists all with their positions.
    """
    document = read_document(path or DEFAULT_PATH, EnvironmentFileError)
    environment, problems = check(document, Environment, {})
    if environment is not None:
        problems += [document.problem(loc, message) for loc, message in _cross_check(environment)]
    if problems:
        raise_problems(problems, EnvironmentFileError)
    if environment is None:
        raise EnvironmentFileError("the environment is not valid", place=document.name)
    return environment


def _cross_check(environment: Environment) -> Iterator[tuple[Loc, str]]:
    for name, pool in environment.pools.items():
        if pool.site not in environment.sites:
            yield ("pools", name, "site"), f"there is no site `{pool.site}`{did_you_mean(pool.site, environment.sites)}"
    for name, site in environment.sites.items():
        serving = site.serving
        if serving.link is not None and serving.tls is None and not is_loopback(serving.host):
            yield ("sites", name, "serving", "link"), "a link that other hosts reach needs `tls`"
        if not is_loopback(serving.host) and not serving.guarded:
            yield (
                ("sites", name, "serving", "host"),
                f"{serving.host} can be reached by others, and nothing says who may ask: add `tokens_file` "
                "(`orchestrate endpoint token NAME` writes it) or `tls.client_ca`, or use 127.0.0.1",
            )
