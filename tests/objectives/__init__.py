"""Tests of the objectives, against literal formulas."""
