"""Imports a verb's module only once the verb is called: it may bring torch."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from importlib import import_module
from types import ModuleType


def load(name: str) -> ModuleType:
    """Imports a module, keeping the notices of the libraries it brings off the terminal."""
    _quiet_libraries()
    # Signals wait for the import to finish: one raised inside is swallowed, or looks like a broken installation.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
    try:
        return import_module(name)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _quiet_libraries() -> None:
    """Keeps the libraries' own notices off stderr, which is for what the user can act on."""
    # bitsandbytes reports optional kernels that are not installed.
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    # transformers 5.23 warns about a name that peft 0.21 still uses.
    warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
