"""`onebase push`: what is listed is what a Hub gets, and nothing is sent that nobody agreed to."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from onebase.cli.main import main
from tests.exporting.conftest import Make
from tests.exporting.hub import Hub, serving

Push = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as found:
        yield found


@pytest.fixture
def push(hub: Hub, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Push:
    """Runs `onebase push` as if HF_ENDPOINT named the Hub here and no token lay in a file; returns what it printed."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))

    def run(
        folder: Path,
        name: str,
        *words: str,
        code: int = 0,
        token: str = hub.token,
        url: str = "",
        offline: bool = False,
    ) -> tuple[str, str]:
        monkeypatch.setattr(constants, "ENDPOINT", url or hub.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        monkeypatch.setenv("HF_TOKEN", token)
        capsys.readouterr()
        found = main(["push", str(folder), name, *words])
        printed = capsys.readouterr()
        assert found == code, printed.err
        if code:
            errors = [line for line in printed.err.splitlines() if line.startswith("error: ")]
            assert len(errors) == 1 and "Traceback" not in printed.err, printed.err
        return printed.out, printed.err

    return run


def test_a_role_is_uploaded_whole_and_private_with_a_card_after_its_files_were_listed(
    hub: Hub, push: Push, make: Make
) -> None:
    made = make()
    out, err = push(made.policy, "me/role", "--yes")
    assert out.strip() == f"{hub.url}/me/role"
    assert hub.repositories["me/role"]["visibility"] == "private"
    names = {path.name for path in made.policy.iterdir()}
    assert set(hub.files) == names | {"README.md"} and "README.md" not in names
    for name in names:
        assert hub.files[name] == (made.policy / name).read_bytes()
        assert f"  {name}\n" in err
    assert ModelCard(hub.files["README.md"].decode()).data.library_name == "peft"
    assert f"role.json names the base by its folder on this machine, {made.base}" in err


def test_a_public_repository_is_one_that_was_asked_for(hub: Hub, push: Push, make: Make) -> None:
    _, err = push(make().policy, "me/open", "--yes", "--public")
    assert hub.repositories["me/open"]["visibility"] == "public" and "(public if it is new)" in err


def test_nothing_is_sent_without_a_yes_a_token_or_the_network(hub: Hub, push: Push, make: Make) -> None:
    role, before = make().policy, dict(hub.repositories)
    assert "nobody can be asked here; add --yes" in push(role, "me/other", code=2)[1]
    _, err = push(role, "me/other", "--yes", token="", code=2)
    assert "there is no token for the Hugging Face Hub; run 'hf auth login', or set HF_TOKEN" in err
    _, err = push(role, "me/other", "--yes", token="hf_wrong", code=1)
    assert f"{hub.url} refuses: the token is not valid" in err
    assert "HF_HUB_OFFLINE is set" in push(role, "me/other", "--yes", offline=True, code=2)[1]
    _, err = push(role, "me/other", "--yes", url="http://127.0.0.1:9", code=1)
    assert "http://127.0.0.1:9 cannot be reached" in err
    assert hub.repositories == before


def test_the_answer_on_the_terminal_decides(hub: Hub, push: Push, make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal:
        def __init__(self, answer: str) -> None:
            self.answer = answer

        def isatty(self) -> bool:
            return True

        def readline(self) -> str:
            return self.answer

        def fileno(self) -> int:
            return 0

    for answer, sent in (("", False), ("no\n", False), ("y\n", True)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        _, err = push(make().policy, "me/asked")
        assert ("me/asked" in hub.repositories) == sent and ("nothing was uploaded" in err) != sent


def test_folders_without_a_model_or_with_files_that_run_code_are_refused(
    push: Push, make: Make, tmp_path: Path
) -> None:
    (tmp_path / "notes").mkdir()
    _, err = push(tmp_path / "notes", "me/x", code=2)
    assert "holds no model; name a role, or what merge or export wrote" in err
    shutil.copytree(make().policy, tmp_path / "role")
    (tmp_path / "role" / "optimizer.pt").write_bytes(b"x")
    assert "optimizer.pt: a pickled file can run any code" in push(tmp_path / "role", "me/x", code=2)[1]
    (tmp_path / "role" / "optimizer.pt").unlink()
    (tmp_path / "role" / "secret.txt").symlink_to("/etc/passwd")
    assert "secret.txt: not a regular file" in push(tmp_path / "role", "me/x", code=2)[1]
    assert "gone: no such folder" in push(tmp_path / "gone", "me/x", code=2)[1]
    _, err = push(tmp_path / "role", "just-a-name", code=2)
    assert "just-a-name is no repository; write it as owner/name" in err
