"""What a command was given, looked at before torch is imported: what is wrong is answered at once."""

from __future__ import annotations

import errno
import math
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebase.data.files import check_file
from onebase.errors import ConfigError
from onebase.shown import shown

if TYPE_CHECKING:  # a tenth of a second, which --help has no use for
    from pydantic import BaseModel


def check(config: BaseModel) -> None:
    """Looks whether the data files that a verb's configuration names are there.

    Raises:
        DataError: no such file, or one of a kind that is not read.
    """
    keys: Any = config
    groups = {"data": ("train", "eval"), "ppo": ("ptx_data",)}
    for group, names in groups.items():
        for name in names:
            for path in getattr(getattr(keys, group, None), name, ()):
                check_file(path)


def check_models(config: BaseModel) -> None:
    """Looks whether the base and the roles that a verb's configuration names are there.

    Raises:
        ModelError: no such folder, or not what is needed there.
    """
    from onebase.recipes.setup.named_folders import check_named

    check_named(config)


def check_writable(folder: Path, key: str = "--output_dir") -> None:
    """Tries whether a file can be made where the folder is, or would be; it has no name and is gone at once.

    Raises:
        ConfigError: it cannot.
    """
    there = folder.absolute()
    try:
        try:
            os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it would be made
        while not os.path.lexists(there):
            there = there.parent
        if not os.path.isdir(there):
            raise NotADirectoryError(errno.ENOTDIR, f"{shown(there, 200)} is a file")
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        reason = f"{shown(folder, 200)}: cannot be written ({error.strerror})"
        raise ConfigError(f"{reason}; choose another {key}") from None


def check_roles(roles: Mapping[str, tuple[str, ...]], *, model: str | None) -> None:
    """Looks whether these folders are roles of these kinds, or a base where a policy may be one.

    Args:
        roles: folder -> kinds of role it may be.
        model: the base, where it is not where the roles say.

    Raises:
        ConfigError: the base has no name.
        ModelError: they are not, or their base is not there.
    """
    from onebase.recipes.setup.named_folders import check_opened

    if model is not None and not model.strip():
        raise ConfigError("--model is empty; name the folder of the base model, or leave it out")
    check_opened({folder: (folder, kinds) for folder, kinds in roles.items()}, model=model)


def check_device(name: str) -> None:
    """Looks whether this names a device; whether it is there is seen when it is used.

    Raises:
        ConfigError: it does not.
    """
    from onebase.config.groups import DEVICES

    if not re.fullmatch(DEVICES, name):
        raise ConfigError(f"--device is {shown(name, 60)}; it should be auto, cpu, cuda or cuda:1")


def check_sampling(
    texts: Mapping[str, str | None], *, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> None:
    """Looks whether answers can be sampled so; `texts` are what a person wrote, by the option it came in.

    Raises:
        ConfigError: a number that cannot be, or bytes that are no text.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens is {max_new_tokens}; at least 1 is needed")
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"--temperature is {temperature}; 0 or more is needed")
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is {top_p}; a number above 0 and up to 1 is needed")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed is {seed}; a number from 0 on is needed")
    for option, text in texts.items():
        if text is not None and not text.strip():
            raise ConfigError(f"{option} is empty; write what it should say, or leave it out")
        # Python hands on bytes that are no text as halves of surrogates.
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"{option} is not UTF-8 text: {shown(text, 60)}")
