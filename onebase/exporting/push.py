"""`onebase push`: a role's or an exported folder on the Hugging Face Hub, after its files were listed and agreed to."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HTTPError

from onebase.errors import ConfigError, ModelError, OnebaseError
from onebase.exporting.card import write_card
from onebase.exporting.merge import sized
from onebase.exporting.source import find_source
from onebase.models.role_card import CARD_FILE, PICKLED
from onebase.runs.progress import say
from onebase.shown import number_of, shown

MODELS = ("config.json", CARD_FILE, "adapter_config.json", "Modelfile", "*.gguf")
"""What a folder holds that is worth uploading."""


def run(*, folder: Path, name: str, yes: bool, public: bool) -> None:
    """Lists the folder's files, asks, and uploads them in one commit; prints where they are.

    A role's folder without a model card gets one. A repository that does not exist is created, private unless `public`.

    Raises:
        ConfigError: there is no token, or nobody who could agree.
        ModelError: the folder holds no model, or files that can run code.
        OnebaseError: the Hub cannot be reached, or refuses.
    """
    files = files_of(folder)
    with tempfile.TemporaryDirectory() as temporary:
        if (folder / CARD_FILE).is_file() and not (folder / "README.md").exists():
            files |= made_card(folder, Path(temporary))
        tell(files, folder, name, public)
        if constants.HF_HUB_OFFLINE:
            raise ConfigError("HF_HUB_OFFLINE is set, so nothing can be uploaded; unset it")
        if get_token() is None:
            raise ConfigError("there is no token for the Hugging Face Hub; run 'hf auth login', or set HF_TOKEN")
        if not yes and not agreed():
            say("nothing was uploaded")
            return
        print(upload(files, name, public))


def files_of(folder: Path) -> dict[str, Path]:
    """The files to upload, by their names in the repository; hidden ones stay here.

    Raises:
        ModelError: one could run code as it is read, one is a link, or none belongs to a model.
    """
    if not any(any(folder.glob(pattern)) for pattern in MODELS):
        raise ModelError(f"{shown(folder)}: holds no model; name a role, or what merge or export wrote")
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if any(part.startswith(".") for part in Path(name).parts) or path.is_dir():
            continue
        if path.suffix in PICKLED:
            raise ModelError(f"{shown(path)}: a pickled file can run any code as it is read; take it out of the folder")
        if path.is_symlink() or not path.is_file():
            raise ModelError(f"{shown(path)}: not a regular file; take it out of the folder")
        found[name] = path
    return found


def made_card(folder: Path, temporary: Path) -> dict[str, Path]:
    """A model card, and the base's licence files, for a role that has none yet."""
    source = find_source(str(folder), model=None)
    write_card(temporary, source, form="adapter", dtype=source.stored_dtype, usage=_adapter_usage())
    return {path.name: path for path in temporary.iterdir() if not (folder / path.name).exists()}


def _adapter_usage() -> str:
    return (
        "```python\nfrom peft import PeftModel\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n"
        "tokenizer = AutoTokenizer.from_pretrained(FOLDER)\n"
        "model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(BASE), FOLDER)\n```"
    )


def tell(files: dict[str, Path], folder: Path, name: str, public: bool) -> None:
    """Lists what would be uploaded, and what in it says something about this machine."""
    sizes = {file: path.stat().st_size for file, path in files.items()}
    say(
        f"{number_of(len(files), 'file')}, {sized(sum(sizes.values()))}, to {constants.ENDPOINT}/{name} "
        f"({'public' if public else 'private'} if it is new):"
    )
    for file, size in sizes.items():
        say(f"  {sized(size):>10}  {shown(file)}")
    for file, key in (("adapter_config.json", "base_model_name_or_path"), (CARD_FILE, "base")):
        try:
            named = json.loads((folder / file).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(named, str) and Path(named).is_absolute():
            say(f"warning: {file} names the base by its folder on this machine, {shown(named, 200)}")


def agreed() -> bool:
    """Asks on the terminal. Raises ConfigError if nobody can answer."""
    if not sys.stdin.isatty():
        raise ConfigError("nobody can be asked here; add --yes to upload these files")
    sys.stderr.write("Upload them? [y/N] ")
    sys.stderr.flush()
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def upload(files: dict[str, Path], name: str, public: bool) -> str:
    """Uploads in one commit; returns the repository's address.

    Raises:
        OnebaseError: the Hub cannot be reached, or refuses.
    """
    hub = HfApi()
    try:
        hub.create_repo(name, private=not public, exist_ok=True)
        operations = [CommitOperationAdd(file, path) for file, path in files.items()]
        hub.create_commit(name, operations, commit_message="Upload with onebase")
    except (HTTPError, OSError, RuntimeError, ValueError) as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        said = getattr(error, "server_message", None) or str(error) or type(error).__name__
        reason = {401: "the token is not valid", 403: "the token may not write there"}.get(status or 0, "")
        what = "refuses" if status else "cannot be reached" if isinstance(error, HTTPError | OSError) else "fails"
        raise OnebaseError(
            f"{constants.ENDPOINT} {what}: {reason or shown(' '.join(said.split()), 200)}; nothing or not "
            "everything was uploaded. Run the same command again"
        ) from error
    return f"{constants.ENDPOINT}/{name}"
