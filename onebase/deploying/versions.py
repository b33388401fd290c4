"""The versions that are installed here, to be installed there too."""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import onebase
from onebase.errors import ConfigError

PACKAGE = "onebase"
WHEEL = f"{PACKAGE}-{onebase.__version__}-py3-none-any.whl"
"""The file that `pip wheel` makes of this version."""
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def source() -> Path | None:
    """The checkout this package runs from, if it is one."""
    folder = Path(onebase.__file__).resolve().parents[1]
    return folder if (folder / "pyproject.toml").is_file() else None


def constraints(extras: str) -> str:
    """The exact version of every package that `onebase[extras]` needs and that is installed here, for `pip install -c`.

    Args:
        extras: names with commas between them.

    Raises:
        ConfigError: onebase itself is not installed, only lies where Python finds it.
    """
    found: dict[str, str] = {}
    waiting = [Requirement(f"{PACKAGE}[{extras}]")]
    seen: set[tuple[str, str]] = set()
    while waiting:
        wanted = waiting.pop()
        name = canonicalize_name(wanted.name)
        for extra in ("", *wanted.extras):
            if (name, extra) in seen:
                continue
            seen.add((name, extra))
            try:
                needed = [Requirement(text) for text in distribution(name).requires or ()]
            except PackageNotFoundError:
                if name == PACKAGE:
                    raise ConfigError(
                        "onebase is not installed here, so the versions of what it needs are not known; install it "
                        "with pip, and render again"
                    ) from None
                continue  # for another platform
            if name != PACKAGE:
                found[name] = version(name).partition("+")[0]  # 2.13.0+cpu is 2.13.0 elsewhere
            waiting += [one for one in needed if one.marker is None or one.marker.evaluate({"extra": extra})]
    return "".join(f"{name}=={found[name]}\n" for name in sorted(found))
