"""The fixtures of the recipes: a base, and roles that runs left."""

from tests.recipes.conftest import (  # noqa: F401
    base,
    no_pictures,
    one_thread,
    pictures,
    prompts,
    reward_role,
    sft_role,
)
