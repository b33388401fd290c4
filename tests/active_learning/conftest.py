"""A base and a reward role that runs left."""

from tests.recipes.conftest import (  # noqa: F401
    base,
    no_pictures,
    one_thread,
    pictures,
    reward_role,
    sft_role,
)
