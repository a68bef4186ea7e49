"""The counters of a server, in Prometheus' text format, version 0.0.4."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)  # upper bounds of the buckets


class Metrics:
    """What a server counts."""

    def __init__(self) -> None:
        self.prompt_tokens = self.generated_tokens = 0
        self._requests: Counter[tuple[str, int]] = Counter()
        self._buckets = [0] * (len(SECONDS) + 1)
        self._seconds = 0.0

    def count_request(self, route: str, status: int) -> None:
        """Count an answer that has ended. Status 499 means that the client went away before it began."""
        self._requests[route, status] += 1

    def count_first_token(self, seconds: float) -> None:
        """Count the seconds from the moment a call was read until its first token."""
        self._buckets[bisect_left(SECONDS, seconds)] += 1
        self._seconds += seconds

    def text(self, **gauges: int) -> str:
        """Return the page of /metrics. `gauges` are the present values of what goes up and down."""
        lines = [*self._request_lines(), *self._latency_lines()]
        for name, value in (
            ("prompt_tokens", self.prompt_tokens),
            ("generated_tokens", self.generated_tokens),
        ):
            lines += [f"# TYPE jaxgpt_{name}_total counter", f"jaxgpt_{name}_total {value}"]
        for name, value in gauges.items():
            lines += [f"# TYPE jaxgpt_{name} gauge", f"jaxgpt_{name} {value}"]
        return "\n".join(lines) + "\n"

    def _request_lines(self) -> Iterator[str]:
        yield "# HELP jaxgpt_requests_total HTTP requests by route and status. 499: the client went away."
        yield "# TYPE jaxgpt_requests_total counter"
        for (route, status), count in sorted(self._requests.items()):
            yield f'jaxgpt_requests_total{{route="{route}",status="{status}"}} {count}'

    def _latency_lines(self) -> Iterator[str]:
        name = "jaxgpt_time_to_first_token_seconds"
        yield f"# TYPE {name} histogram"
        total = 0
        for bound, count in zip([*SECONDS, "+Inf"], self._buckets, strict=True):
            total += count
            yield f'{name}_bucket{{le="{bound}"}} {total}'
        yield f"{name}_sum {self._seconds:.6f}"
        yield f"{name}_count {total}"
