"""The server's folders: a tiny base and roles on it."""

from tests.serving.conftest import folders  # noqa: F401
