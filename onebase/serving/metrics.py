"""What the server counts, for Prometheus and for the log's last line."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
    generate_latest,
)

from onebase.shown import number_of

disable_created_metrics()  # a second series for each of ours, which nobody reads

SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500)


class Metrics:
    """Counts of one server.

    Args:
        price_per_hour: price of the machine; None if it is not known.
    """

    def __init__(self, price_per_hour: float | None = None) -> None:
        self._price = price_per_hour
        self._started = time.monotonic()
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "onebase_requests", "Requests, by endpoint and status.", ["endpoint", "status"], registry=self.registry
        )
        self.tokens = Counter(
            "onebase_tokens", "Tokens read (prompt) and drawn (completion).", ["model", "kind"], registry=self.registry
        )
        self.first_token = Histogram(
            "onebase_first_token_seconds",
            "Time to an answer's first token.",
            ["model"],
            registry=self.registry,
            buckets=SECONDS,
        )
        self.answer = Histogram(
            "onebase_answer_seconds", "Time of a whole answer.", ["model"], registry=self.registry, buckets=SECONDS
        )
        self.num_requests, self.num_tokens = 0, 0

    def watch(self, running: Callable[[], int], waiting: Callable[[], int]) -> None:
        """Adds gauges that are read when somebody asks."""
        for name, about, read in (
            ("onebase_running_answers", "Answers being decoded.", running),
            ("onebase_waiting_answers", "Answers waiting for a place.", waiting),
            ("onebase_up_seconds", "Time since the start.", lambda: self.seconds),
        ):
            Gauge(name, about, registry=self.registry).set_function(read)
        if self._price is not None:
            cost = Gauge(
                "onebase_cost_per_1k_tokens",
                "Price of the time since the start, per thousand tokens read and drawn.",
                registry=self.registry,
            )
            cost.set_function(lambda: self.cost_per_1k or 0.0)

    @property
    def seconds(self) -> float:
        """Since the start."""
        return time.monotonic() - self._started

    @property
    def cost_per_1k(self) -> float | None:
        """Price of the time since the start, per thousand tokens; None without a price or a token."""
        if self._price is None or not self.num_tokens:
            return None
        return self._price * self.seconds / 3600 / (self.num_tokens / 1000)

    def count_request(self, endpoint: str, status: int) -> None:
        self.requests.labels(endpoint, status).inc()
        self.num_requests += 1

    def count_tokens(self, model: str, *, prompt: int = 0, completion: int = 0) -> None:
        """Counts tokens when they are read or drawn, whether or not anybody gets to see them."""
        for kind, count in (("prompt", prompt), ("completion", completion)):
            if count:
                self.tokens.labels(model, kind).inc(count)
        self.num_tokens += prompt + completion

    def text(self) -> bytes:
        """All of it in Prometheus' format."""
        return generate_latest(self.registry)

    def summary(self) -> str:
        """The log's last line."""
        line = (
            f"{number_of(self.num_requests, 'request')}, {number_of(self.num_tokens, 'token')} in {self.seconds:.1f} s "
            f"({self.num_tokens / max(self.seconds, 1e-9):.1f} tokens/s)"
        )
        cost = self.cost_per_1k
        return line if cost is None else f"{line}; {cost:.6g} per 1k tokens at {self._price:g} per hour"
