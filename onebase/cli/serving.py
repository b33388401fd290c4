"""The verb `serve`: roles on one base over HTTP."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Literal

from onebase.cli import modules, preflight, streams
from onebase.cli.numbers import REAL, WHOLE
from onebase.errors import ConfigError, MissingExtraError

KEY_VARIABLE = "ONEBASE_API_KEY"
PACKAGES = {"fastapi": "fastapi", "uvicorn": "uvicorn", "prometheus_client": "prometheus-client"}


def serve(
    *roles: str,
    config: Path | None = None,
    model: str | None = None,
    host: str | None = None,
    port: Annotated[int | None, WHOLE] = None,
    api_key: str | None = None,
    allow_role_changes: bool = False,
    price_per_hour: Annotated[float | None, REAL] = None,
    threads: Annotated[int | None, WHOLE] = None,
    dtype: Literal["auto", "float32", "bfloat16"] | None = None,
    quantization: Literal["none", "nf4"] | None = None,
    device: str | None = None,
) -> None:
    """Serve roles on one base over HTTP, in the shape of OpenAI's API.

    Args:
        roles: Folders of policy and reward roles, in place of the file's; each gets the name of its run.
        config: A serve.yaml with names, defaults and limits (docs/serving.md); options here come first.
        model: Folder or hub name of the base, if it is not where the roles say; alone, it is served without roles.
        host: Address to listen on; by default 127.0.0.1.
        port: Port to listen on; by default 8000; 0 for any free one.
        api_key: What clients have to send as their bearer token; better in the environment as ONEBASE_API_KEY, as
            other users of this machine can read command lines.
        allow_role_changes: Let clients load roles from this machine's folders, and unload them.
        price_per_hour: Price of the machine, to report the cost of a thousand tokens.
        threads: CPU threads; by default one per core.
        dtype: Number format of the base; by default the one the roles were trained with.
        quantization: none, or nf4 for a base in 4 bits; by default what the roles were trained with.
        device: auto, cpu, cuda, cuda:1.
    """
    given = {
        "model": model,
        "host": host,
        "port": port,
        "allow_role_changes": allow_role_changes or None,
        "price_per_hour": price_per_hour,
        "threads": threads,
        "dtype": dtype,
        "quantization": quantization,
        "device": device,
    }
    key = api_key if api_key is not None else os.environ.get(KEY_VARIABLE)
    if key is not None and not key.strip():
        named = "--api-key" if api_key is not None else KEY_VARIABLE
        raise ConfigError(f"{named} is blank; give a key, or leave it out")
    if missing := [package for module, package in PACKAGES.items() if find_spec(module) is None]:
        raise MissingExtraError(f'serve needs {" and ".join(missing)}: pip install "onebase[serve]"')
    loaded = preflight.read_serving(roles, config, {name: value for name, value in given.items() if value is not None})
    streams.say_first(f"serve: loading {', '.join(loaded.roles) or loaded.model}")
    modules.load("onebase.serving.run").run(loaded, api_key=key)
