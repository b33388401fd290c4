"""Serves roles on one base over HTTP, in the shape of OpenAI's API."""
