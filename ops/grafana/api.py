"""The HTTP API: requests, their latency, and refusals."""

from __future__ import annotations

from ops.grafana.board import Board, Row
from ops.grafana.panels import COUNT, PER_SECOND, SECONDS, SHARE, above, graph, number
from ops.grafana.promql import age, mean, quantile, rate, total

HTTP = "outrider_http_request_seconds"
ANSWERS = "outrider_http_answers_total"
PROBES = 'route!~"/healthz|/readyz"'
SUBMISSIONS = 'route=~"/pipeline/(run|batch)", status="202"'
ANSWERED_AT_ONCE = 'route!~"/pipeline/job/.job_id.(/events)?"'
ANSWERED = rate(ANSWERS)
FAILED = rate(ANSWERS, where='class="5xx"')

STATE = Row(
    "State",
    [
        number(
            "Requests",
            "Requests a second, without probes.",
            {"": ANSWERED},
            unit=PER_SECOND,
            alerts=["OutriderNoWeb"],
        ),
        number(
            "Answered with 5xx",
            "The share of requests that are answered with 5xx. The objective allows 0.1 %.",
            {"": f"{FAILED} / {ANSWERED}"},
            unit=SHARE,
            limits=above(0.001, 0.0144),
            alerts=["OutriderAvailabilityBurnsFast", "OutriderAvailabilityBurnsSlowly"],
        ),
        number(
            "Submission, 99 of 100",
            "How long an accepted submission takes. The objective is 100 ms.",
            {"": quantile(0.99, HTTP, where=SUBMISSIONS)},
            unit=SECONDS,
            limits=above(0.05, 0.1),
            alerts=["OutriderSubmitBurnsFast", "OutriderSubmitBurnsSlowly"],
        ),
        number(
            "In flight",
            "Requests in progress, including those that wait for a job.",
            {"": total("outrider_http_requests_in_flight")},
        ),
        number(
            "Event streams",
            "Clients that follow a job.",
            {"": total("outrider_sse_connections")},
        ),
    ],
    height=5,
)

REQUESTS = Row(
    "Requests",
    [
        graph(
            "By route",
            "Requests a second.",
            {"{{method}} {{route}}": rate(f"{HTTP}_count", "method, route")},
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "By status",
            "Requests a second, without probes.",
            {"{{status}}": rate(f"{HTTP}_count", "status", PROBES)},
            unit=PER_SECOND,
            stacked=True,
            alerts=["OutriderAvailabilityBurnsFast"],
        ),
        graph(
            "99 of 100 by route",
            "How long requests take. Event streams and reads that wait for a job are left out: they last as long as "
            "clients ask.",
            {"{{route}}": quantile(0.99, HTTP, "route", ANSWERED_AT_ONCE)},
            unit=SECONDS,
            limits=above(0.25, 1),
            alerts=["OutriderApiSlow"],
        ),
    ],
)

SUBMITTING = Row(
    "Submissions",
    [
        graph(
            "Accepted jobs",
            "Jobs a second, by preset.",
            {"{{preset}}": rate("outrider_jobs_enqueued_total", "preset")},
            unit=PER_SECOND,
            stacked=True,
        ),
        graph(
            "How long they take",
            "The latency of accepted submissions.",
            {
                "half": quantile(0.5, HTTP, where=SUBMISSIONS),
                "95 of 100": quantile(0.95, HTTP, where=SUBMISSIONS),
                "99 of 100": quantile(0.99, HTTP, where=SUBMISSIONS),
            },
            unit=SECONDS,
            limits=above(0.05, 0.1),
            alerts=["OutriderSubmitBurnsFast", "OutriderSubmitBurnsSlowly"],
        ),
        graph(
            "Jobs of one commit",
            "The mean number of jobs. Submissions that come together share a commit.",
            {"jobs": mean("outrider_batch_rows", where='batch="submissions"')},
            unit=COUNT,
        ),
        graph(
            "Idempotency keys",
            "Submissions with a key, a second. Replayed: the first answer was sent again. Mismatch: the key came with "
            "another body.",
            {"{{outcome}}": rate("outrider_idempotency_keys_total", "outcome")},
            unit=PER_SECOND,
        ),
    ],
)

HEALTH = Row(
    "Health",
    [
        graph(
            "Refused tokens",
            "Tokens a second, by reason.",
            {"{{reason}}": rate("outrider_auth_failures_total", "reason")},
            unit=PER_SECOND,
            alerts=["OutriderJwksStale"],
        ),
        graph(
            "Age of the issuer's keys",
            "How long ago the keys were fetched. While requests come, web fetches them every five minutes. After a day "
            "web drops them.",
            {"age": age("outrider_jwks_fetched_timestamp_seconds")},
            unit=SECONDS,
            limits=above(600, 3600),
            alerts=["OutriderJwksStale"],
        ),
        graph(
            "Waiting inside",
            "Submissions and reads that wait for their group, and clients that watch a job. At 10,000 waiting "
            "submissions web answers 503.",
            {"{{what}}": total("outrider_http_waiting", "what")},
            alerts=["OutriderAvailabilityBurnsFast", "OutriderSubmitBurnsFast"],
        ),
        graph(
            "Connections",
            "Open connections to the API, by process.",
            {"{{instance}}": total("outrider_http_connections", "instance", 'server="api"')},
        ),
        graph(
            "Connections closed by bounds",
            "A second, by reason. Replaced: a newcomer took the place of a silent or idle one. Refused: no place could "
            "be given up. Late: no whole request head came in time.",
            {"{{server}}, {{reason}}": rate("outrider_http_connections_closed_total", "server, reason")},
            unit=PER_SECOND,
        ),
        graph(
            "Event loop lag, 99 of 100",
            "How late timers run, by process. Late timers mean that the process is overloaded: start more processes.",
            {"{{instance}}": quantile(0.99, "outrider_event_loop_lag_seconds", "instance")},
            unit=SECONDS,
            limits=above(0.1, 1),
            alerts=["OutriderSubmitBurnsFast"],
        ),
    ],
)

BOARD = Board(
    "outrider-api",
    "Outrider: API",
    "Requests to the HTTP API, their latency, and refusals.",
    [STATE, REQUESTS, SUBMITTING, HEALTH],
)
