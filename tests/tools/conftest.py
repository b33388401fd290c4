"""The recipes' fixtures: a base, and roles left by runs."""

from tests.recipes.conftest import (  # noqa: F401
    base,
    no_pictures,
    one_thread,
    pictures,
    prompts,
    reward_role,
    sft_role,
)
