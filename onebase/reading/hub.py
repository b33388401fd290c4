"""Finds datasets on the Hugging Face Hub by name: `owner/name`, `owner/name:split` or `owner/name:subset:split`.

The Hub keeps a copy of nearly every dataset as Parquet, one folder per subset and split, on a branch of its own. That
copy is read, so that no code of the dataset runs and its split is a folder's name, not a guess.
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

from onebase.errors import DataError
from onebase.shown import shown

_NAME = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)((?::[\w.-]+){0,2})")
_BRANCH = "refs/convert/parquet"
_SECONDS = 5.0


def is_name(name: str) -> bool:
    """Whether a name that is no path could be one of the Hub's: its first part is no folder here."""
    found = _NAME.fullmatch(name)
    return found is not None and not Path(found[1].partition("/")[0]).exists()


@cache
def files(name: str) -> list[Path]:
    """Downloads the files of a dataset's split, or takes them from the cache; asks the Hub once, without retries.

    Raises:
        DataError: the Hub cannot be reached, has no such dataset or split, or the name leaves open which is meant.
    """
    found = _NAME.fullmatch(name)
    assert found is not None, "is_name() was asked first"
    repository, wanted = found[1], [part for part in found[2].split(":") if part]
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    try:
        info = HfApi().dataset_info(repository, revision=_BRANCH, timeout=_SECONDS)
        names = [entry.rfilename for entry in info.siblings or []]
        chosen = choose([entry for entry in names if entry.endswith(".parquet")], wanted, name)
        return [
            Path(hf_hub_download(repository, entry, repo_type="dataset", revision=info.sha or _BRANCH))
            for entry in chosen
        ]
    except RevisionNotFoundError:
        raise DataError(
            f"{shown(name)}: the Hub has no Parquet copy of this dataset; download its files and name them here"
        ) from None
    except RepositoryNotFoundError:
        raise DataError(
            f"{shown(name)} is no file here, and no dataset on the Hub that you may read; check the name"
        ) from None
    except (HTTPError, OSError) as error:
        raise DataError(
            f"{shown(name)} is no file here, and the Hugging Face Hub cannot be asked for it "
            f"({type(error).__name__}); check the path, or the network"
        ) from None


def choose(paths: list[str], wanted: list[str], name: str) -> list[str]:
    """The files of one subset and split among `subset/split/0000.parquet`, in order.

    Raises:
        DataError: none fits, or several do.
    """
    folders: dict[tuple[str, str], list[str]] = {}
    for path in sorted(paths):
        subset, _, rest = path.partition("/")
        folders.setdefault((subset, rest.partition("/")[0]), []).append(path)
    fitting = [key for key in folders if all(part in key for part in wanted)]
    if len(fitting) != 1:
        listed = ", ".join(f"{name.partition(':')[0]}:{subset}:{split}" for subset, split in fitting or folders)
        what = "could mean several datasets" if fitting else "names no part of that dataset"
        raise DataError(f"{shown(name)} {what}; name one of {shown(listed, 400) or '(none)'}")
    return folders[fitting[0]]
