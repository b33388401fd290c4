"""Checks what a command was given before torch is imported, so that mistakes are reported at once."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onebase.errors import ConfigError
from onebase.reading.databases import is_server, name_of
from onebase.reading.files import check_file
from onebase.shown import shown

if TYPE_CHECKING:  # takes a tenth of a second, which --help need not spend
    from pydantic import BaseModel

    from onebase.config.serving import ServeConfig
    from onebase.config.verifiers import VerifierGroup
    from onebase.quality.options import Filter


def check(config: BaseModel) -> None:
    """Checks that the data files named in a verb's config exist.

    Raises:
        DataError: a file does not exist, or its kind is not supported.
    """
    keys: Any = config
    data = getattr(keys, "data", None)
    for path in (*getattr(data, "files", getattr(data, "train", ())), *getattr(data, "eval", ())):
        check_file(path)
    for path in getattr(getattr(keys, "ppo", None), "ptx_data", ()):
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


def read_serving(folders: Sequence[str], file: Path | None, given: Mapping[str, Any]) -> ServeConfig:
    """The config of the server: a file's, where the command line does not say otherwise. Its roles and base are there.

    Raises:
        ConfigError: a key or a value is wrong, or nothing is named to serve.
        ModelError: a folder is no role, or the base does not exist.
    """
    from onebase.config.files import load_config
    from onebase.config.serving import ServeConfig, names_of
    from onebase.recipes.setup.named_folders import check_opened

    words = [word for key, value in given.items() for word in (f"--{key}", json.dumps(value))]
    if folders:
        words += ["--roles", json.dumps(names_of(folders))]
    config = load_config(ServeConfig, file, words)
    check_opened({name: (role.role, ("policy", "reward")) for name, role in config.roles.items()}, model=config.model)
    return config


def check_device(name: str) -> None:
    """Checks that this names a device; whether the device exists shows when it is used.

    Raises:
        ConfigError: it does not.
    """
    from onebase.config.values import DEVICES

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


def check_samples(samples: int, ks: Sequence[int], *, temperature: float, limit: int | None) -> list[int]:
    """Checks how many answers are drawn and counted; returns the ks in order, or 1, 2, 4, ... if there are none.

    Raises:
        ConfigError: a number is out of range, or samples would all be the same.
    """
    if samples < 1:
        raise ConfigError(f"--samples is {samples}; it should be at least 1")
    if temperature == 0 and samples > 1:
        raise ConfigError(f"--samples is {samples}, but at --temperature 0 all are the same; add --samples 1")
    if limit is not None and limit < 1:
        raise ConfigError(f"--limit is {limit}; it should be at least 1, or left out")
    for k in ks:
        if not 1 <= k <= samples:
            raise ConfigError(f"--k is {k}; it should be between 1 and the {samples} of --samples")
    return sorted(set(ks)) or [2**power for power in range(samples.bit_length())]


def read_verifiers(texts: Sequence[str]) -> Sequence[VerifierGroup]:
    """The verifiers that `--verifier` names, read like the entries of `reward.verifiers`.

    Raises:
        ConfigError: there is no such verifier, or it has no such option.
    """
    from pydantic import TypeAdapter, ValidationError

    from onebase.config.verifiers import Verifiers

    try:
        values = [_yaml(text, "--verifier") if text[:1] == "{" else text for text in texts]
        return TypeAdapter(Verifiers).validate_python(values)
    except ValidationError as error:
        said = "; ".join(problem["msg"].removeprefix("Value error, ") for problem in error.errors(include_url=False))
        raise ConfigError(f"--verifier: {said}") from None


def read_columns(text: str | None) -> dict[str, str] | None:
    """The mapping that `--columns` gives, read like `data.columns`; None without one.

    Raises:
        ConfigError: it maps no names to keys.
    """
    if text is None:
        return None
    from pydantic import ConfigDict, TypeAdapter, ValidationError

    from onebase.config.values import Columns

    mapping: TypeAdapter[dict[str, str]] = TypeAdapter(Columns, config=ConfigDict(coerce_numbers_to_str=True))
    try:
        return mapping.validate_python(_yaml(text, "--columns"))
    except ValidationError:
        raise ConfigError(
            f"--columns is {shown(text, 60)}; it should map what is read to the file's keys, as in "
            "'{prompt: question, completion: answer}'"
        ) from None


def _yaml(text: str, option: str) -> Any:
    import yaml

    from onebase.config.yaml_reader import Loader

    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as error:
        said = getattr(error, "problem", None) or error
        raise ConfigError(f"{option} is not valid YAML: {shown(' '.join(str(said).split()), 200)}") from None


def check_output(path: Path, option: str = "--output") -> None:
    """Checks that a file can be written here.

    Raises:
        ConfigError: it cannot.
    """
    if path.is_dir():
        raise ConfigError(f"{shown(path, 200)} is a folder; name a file with {option}")
    check_writable(path.absolute().parent, option)


def check_blocks(folder: Path) -> None:
    """Checks that finished blocks can be kept in this folder.

    Raises:
        ConfigError: it is a file, or cannot be written.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise ConfigError(f"{shown(folder, 200)} is a file; name a folder with --output")
    check_writable(folder, "--output")


def check_actors(count: int, cluster: str | None, files: Sequence[Path] = ()) -> None:
    """Checks the number of actors on a Ray cluster, and that they can read the files.

    Raises:
        ConfigError: it is below 1, or above it without a cluster; a file is a database on a server.
    """
    if count < 1 or (count > 1 and cluster is None):
        raise ConfigError(f"--actors is {count}; it should be at least 1, and 1 without --ray")
    if cluster is not None and (servers := [file for file in files if is_server(file)]):
        raise ConfigError(
            f"actors on Ray read files, and {shown(name_of(servers[0]))} is a database on a server; leave --ray out, "
            "or write its rankings to a file with 'onebase label export'"
        )


def read_filters(texts: Sequence[str], *, leaks: bool, difficulty: bool, reward: bool) -> list[Filter]:
    """The filters that `--filter` names, or the standard ones; with those that a file to compare with asks for.

    Raises:
        ConfigError: there is no such filter or option, an option is out of range, or a filter has nothing to work on.
    """
    from onebase.quality.options import FILTERS, STANDARD, in_order

    found: list[Filter] = []
    for text in texts or STANDARD:
        value = _yaml(text, "--filter") if text[:1] == "{" else {"name": text}
        found.append(_filter(value))
    named = {given.name for given in found}
    needed = {"leaks": ("--against", leaks), "difficulty": ("--difficulty", difficulty), "noise": ("", reward)}
    for name, (option, is_given) in needed.items():
        if name in named and option and not is_given:
            raise ConfigError(f"--filter {name} has nothing to compare with; add {option}")
        if is_given and name not in named:
            found.append(FILTERS[name]())
    return in_order(found)


def _filter(value: Any) -> Filter:
    from pydantic import ConfigDict, TypeAdapter, ValidationError
    from pydantic.dataclasses import dataclass

    from onebase.quality.options import FILTERS

    name = value.get("name") if isinstance(value, dict) else None
    if not isinstance(name, str) or name not in FILTERS:
        near = get_close_matches(str(name), FILTERS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"the filters are {', '.join(FILTERS)}"
        raise ConfigError(f"--filter: there is no filter {shown(repr(name), 60)}; {hint}")
    kind = FILTERS[name]
    checked = TypeAdapter(dataclass(kind, frozen=True, config=ConfigDict(extra="forbid", strict=True)))
    options = {key: option for key, option in value.items() if key != "name"}
    try:
        checked.validate_json(json.dumps(options, default=str))  # strict about types, but takes an object
    except ValidationError as error:
        said = "; ".join(
            f"{name}: {shown('.'.join(map(str, problem['loc'])), 60)}: {problem['msg']}"
            for problem in error.errors(include_url=False)
        )
        raise ConfigError(f"--filter: {said}") from None
    return kind(**options)


def check_new_folder(folder: Path, option: str = "--output") -> None:
    """Checks that a folder can be made here: there is none yet, or it is empty.

    Raises:
        ConfigError: it cannot.
    """
    if os.path.lexists(folder) and not os.path.isdir(folder):
        raise ConfigError(f"{shown(folder, 200)} is a file; name a new folder with {option}")
    check_writable(folder, option)
    if os.path.isdir(folder) and any(os.scandir(folder)):
        raise ConfigError(f"{shown(folder, 200)} is not empty; name a new folder with {option}, or empty this one")
