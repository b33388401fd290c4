"""Opened verifiers: what the sandbox lacks is said before anything runs in it."""

from __future__ import annotations

import pytest

from onebase.config.verifiers import CodeGroup, ExactGroup
from onebase.recipes.setup.verifiers import open_verifiers
from onebase.verifiers import sandbox
from onebase.verifiers.sandbox import layers


def test_what_the_sandbox_lacks_is_said_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if not layers()[0].startswith("namespaces"):
        pytest.skip("neither bubblewrap nor unshare makes namespaces here")
    monkeypatch.setattr(sandbox, "compiled_filter", lambda: b"")
    open_verifiers([ExactGroup(name="exact")])
    assert capsys.readouterr().err == ""
    code = CodeGroup(name="code")
    assert len(open_verifiers([code, code], allow_code_execution=True)) == 2
    assert capsys.readouterr().err == (
        "the sandbox of the verifier code lacks seccomp: system calls are not filtered (install libseccomp2)\n"
    )
