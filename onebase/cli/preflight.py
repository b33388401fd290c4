"""Checks what a command was given before torch is imported, so that mistakes are reported at once."""

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

if TYPE_CHECKING:  # takes a tenth of a second, which --help need not spend
    from pydantic import BaseModel


def check(config: BaseModel) -> None:
    """Checks that the data files named in a verb's config exist.

    Raises:
        DataError: a file does not exist, or its kind is not supported.
    """
    keys: Any = config
    groups = {"data": ("train", "eval"), "ppo": ("ptx_data",)}
    for group, names in groups.items():
        for name in names:
            for path in getattr(getattr(keys, group, None), name, ()):
                check_file(path)


def check_models(config: BaseModel) -> None:
    """Checks that the base and the roles named in a verb's config exist.

    Raises:
        ModelError: a folder does not exist, or is not what is needed there.
    """
    from onebase.recipes.setup.named_folders import check_named

    check_named(config)


def check_writable(folder: Path, key: str = "--output_dir") -> None:
    """Checks that files can be created in the folder, or where it would be, with a file that vanishes at once.

    Raises:
        ConfigError: they cannot.
    """
    there = folder.absolute()
    try:
        try:
            os.stat(folder)
        except (FileNotFoundError, NotADirectoryError):
            pass  # it would be created
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
    """Checks that these folders are roles of these kinds, or a base where a policy may be one.

    Args:
        roles: folder -> kinds of role it may be.
        model: folder of the base, if it is not where the roles say.

    Raises:
        ConfigError: `model` is blank.
        ModelError: they are not, or their base does not exist.
    """
    from onebase.recipes.setup.named_folders import check_opened

    if model is not None and not model.strip():
        raise ConfigError("--model is empty; name the folder of the base model, or leave it out")
    check_opened({folder: (folder, kinds) for folder, kinds in roles.items()}, model=model)


def check_device(name: str) -> None:
    """Checks that this names a device; whether the device exists shows when it is used.

    Raises:
        ConfigError: it does not.
    """
    from onebase.config.groups import DEVICES

    if not re.fullmatch(DEVICES, name):
        raise ConfigError(f"--device is {shown(name, 60)}; it should be auto, cpu, cuda or cuda:1")


def check_sampling(
    texts: Mapping[str, str | None], *, max_new_tokens: int, temperature: float, top_p: float, seed: int
) -> None:
    """Checks the options for sampling answers; `texts` holds what the user wrote, by option.

    Raises:
        ConfigError: a number is out of range, or a text is blank or not UTF-8.
    """
    if max_new_tokens < 1:
        raise ConfigError(f"--max-new-tokens is {max_new_tokens}; it should be at least 1")
    if not 0 <= temperature < math.inf:
        raise ConfigError(f"--temperature is {temperature}; it should be 0 or more, and finite")
    if not 0 < top_p <= 1:
        raise ConfigError(f"--top-p is {top_p}; it should be above 0 and at most 1")
    if not 0 <= seed < 2**63:
        raise ConfigError(f"--seed is {seed}; it should be between 0 and {2**63 - 1}")
    for option, text in texts.items():
        if text is not None and not text.strip():
            raise ConfigError(f"{option} is empty; write what it should say, or leave it out")
        # Python passes undecodable bytes on as lone surrogates.
        if text is not None and any("\ud800" <= character <= "\udfff" for character in text):
            raise ConfigError(f"{option} is not UTF-8 text: {shown(text, 60)}")
