"""Objectives as pure tensor functions: torch in, torch out."""
