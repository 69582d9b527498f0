"""What the server counts, for Prometheus; each application has a registry of its own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """The metrics of one application; `for_model` gives those of a model."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"small_doge_{name}", text, labels, registry=self.registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"small_doge_{name}", text, labels, registry=self.registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(f"small_doge_{name}", text, labels, buckets=SECONDS, registry=self.registry)

        self.requests = counter("requests", "Requests answered.", "path", "status")
        self.request_seconds = histogram("request_seconds", "Time from a request to the end of its answer.", "path")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.", "model")
        self.cached_tokens = counter("cached_prompt_tokens", "Tokens of prompts that the cache had.", "model")
        self.generated_tokens = counter("generated_tokens", "Tokens generated.", "model")
        self.cancelled = counter("cancelled", "Completions stopped because the client left.", "model")
        self.failures = counter("failures", "Completions that broke.", "model")
        self.running = gauge("running", "Completions under way.", "model")
        self.waiting = gauge("waiting", "Completions that wait for a row.", "model")
        self.first_token_seconds = histogram("first_token_seconds", "Time from a request to its first token.", "model")

    def for_model(self, model: str) -> ModelMetrics:
        """The same metrics with the model's name on them."""
        return ModelMetrics(self, model)


class ModelMetrics:
    """The metrics of one model."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self.prompt_tokens = metrics.prompt_tokens.labels(model)
        self.cached_tokens = metrics.cached_tokens.labels(model)
        self.generated_tokens = metrics.generated_tokens.labels(model)
        self.cancelled = metrics.cancelled.labels(model)
        self.failures = metrics.failures.labels(model)
        self.running = metrics.running.labels(model)
        self.waiting = metrics.waiting.labels(model)
        self.first_token_seconds = metrics.first_token_seconds.labels(model)
