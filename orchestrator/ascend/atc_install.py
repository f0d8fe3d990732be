"""The ATC of this machine: where it is, of which version, and the variables that its set_env.sh sets."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from orchestrator.core.errors import InternalError

_ROOTS: Final = ("/usr/local/Ascend/cann", "/usr/local/Ascend/ascend-toolkit/latest")
_VERSION: Final = re.compile(r"^\s*(?:version|Version|toolkit_installed_version)\s*[=:]\s*\[?([\w.:-]+)", re.MULTILINE)
_VERSION_FILES: Final = ("version.cfg", "*-linux/ascend_toolkit_install.info", "compiler/version.info", "version.info")
_MARKS: Final = ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH", "ASCEND_OPP_PATH")
_SETTLE_S: Final = 30.0
_PARENTS: Final = 5


@dataclass(frozen=True, slots=True)
class AtcInstall:
    """An ATC.

    Attributes:
        program: The wrapper script.
        version: Version of the toolkit; `unknown` where no file says it.
        set_env: Script that sets its environment; None where there is none, or the variables are set already.
    """

    program: Path
    version: str
    set_env: Path | None

    def environment(self, base: Mapping[str, str]) -> dict[str, str]:
        """Return `base` with what set_env.sh adds.

        Raises:
            InternalError: The script fails or does not end.
        """
        return source_script(self.set_env, base) if self.set_env is not None else dict(base)


def find_atc(configured: str | None, environment: Mapping[str, str] | None = None) -> AtcInstall | None:
    """Return the ATC to use: the configured one, else what the environment, PATH or the usual folders have; None = none.

    Raises:
        InternalError: One is configured and is not there.
    """
    variables = os.environ if environment is None else environment
    if configured is not None:
        path = Path(configured).expanduser()
        found = path if path.is_file() else None
        if found is None or not os.access(found, os.X_OK):
            raise InternalError(
                f"tools.atc is {configured!r}, which is no program here",
                place="tools.atc",
                hint="correct the path in the environment, or leave it null to rehearse with the twin",
            )
        return _install(found.absolute(), variables)
    for candidate in _candidates(variables):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return _install(candidate.absolute(), variables)
    return None


def _candidates(variables: Mapping[str, str]) -> Iterator[Path]:
    homes = [variables[name] for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH") if variables.get(name)]
    yield from (Path(home) / "bin/atc" for home in homes)
    on_path = shutil.which("atc", path=variables.get("PATH"))
    if on_path is not None and not Path(on_path).resolve().is_relative_to("/usr/bin"):  # Debian's `at` family is no ATC
        yield Path(on_path)
    yield from (Path(root) / "bin/atc" for root in _ROOTS)


def _install(program: Path, variables: Mapping[str, str]) -> AtcInstall:
    folders = [*_above(program), *_above(program.resolve())]
    script = next((folder / "set_env.sh" for folder in folders if (folder / "set_env.sh").is_file()), None)
    if any(variables.get(name) for name in _MARKS):
        script = None  # the caller has sourced it; sourcing another would mix two versions
    return AtcInstall(program, _version(folders), script)


def _above(program: Path) -> list[Path]:
    return [folder for folder in list(program.parents)[:_PARENTS] if folder != folder.parent]


def _version(folders: list[Path]) -> str:
    for folder in folders:
        for pattern in _VERSION_FILES:
            for path in sorted(folder.glob(pattern)):
                match = _VERSION.search(path.read_text(errors="replace")[:65536])
                if match is not None:
                    return match[1]
    return "unknown"


def source_script(script: Path, base: Mapping[str, str]) -> dict[str, str]:
    """Run a script in a shell of its own and return the variables that it leaves, `base` being those before.

    Raises:
        InternalError: It fails or does not end.
    """
    command = ["bash", "-c", 'source "$1" >/dev/null && env -0', "set_env", str(script)]
    try:
        done = subprocess.run(
            command, env=dict(base), capture_output=True, timeout=_SETTLE_S, check=True, stdin=subprocess.DEVNULL
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise InternalError(
            f"set_env.sh failed: {error}", place=str(script), hint="source it in a shell to see"
        ) from error
    rows = (row.partition("=") for row in done.stdout.decode(errors="surrogateescape").split("\0") if "=" in row)
    return {name: value for name, _, value in rows if name not in {"_", "SHLVL", "PWD", "OLDPWD"}}
