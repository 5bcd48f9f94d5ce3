"""Writes the Grafana dashboard: python deploy/grafana/dashboard.py [--check]

The dashboard is this file; inferwire.json beside it is what Grafana imports. Queries are of metrics in docs/telemetry.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import pathlib
import sys
from typing import Any

FILE = pathlib.Path(__file__).with_name("inferwire.json")
COLUMNS, HEIGHT = 24, 8
OF = 'job=~"$job", instance=~"$instance"'
OF_MODEL = f'{OF}, model=~"$model"'
FAILED = f'{OF_MODEL}, code=~"INTERNAL|UNAVAILABLE|ABORTED|UNKNOWN"'


@dataclasses.dataclass(frozen=True)
class Panel:
    """A graph. `queries` are pairs of PromQL and legend."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    description: str = ""
    width: int = 8
    is_stacked: bool = False


@dataclasses.dataclass(frozen=True)
class Row:
    """A row with its panels."""

    title: str
    panels: tuple[Panel, ...]


def rate(metric: str, by: str, of: str = OF_MODEL) -> str:
    """Returns the sum of a counter's rates."""
    return f"sum by ({by}) (rate({metric}{{{of}}}[$__rate_interval]))"


def quantiles(metric: str, by: str = "model", of: str = OF_MODEL) -> tuple[tuple[str, str], ...]:
    """Returns the queries of a histogram's median and 99th percentile."""
    labels = ", ".join(filter(None, ("le", by)))
    legend = f"{{{{{by}}}}} " if by else ""
    return tuple(
        (f"histogram_quantile({quantile}, {rate(f'{metric}_bucket', labels, of)})", f"{legend}{name}")
        for quantile, name in ((0.5, "p50"), (0.99, "p99"))
    )


def gauge(metric: str, by: str = "model", of: str = OF_MODEL) -> str:
    """Returns the sum of a gauge."""
    return f"sum by ({by}) ({metric}{{{of}}})"


ROWS = (
    Row(
        "Golden signals",
        (
            Panel("Calls", "reqps", ((rate("inferwire_calls_total", "method"), "{{method}}"),)),
            Panel(
                "Calls that did not end well",
                "reqps",
                (
                    (
                        rate("inferwire_calls_total", "code, reason", f'{OF_MODEL}, code!="OK"'),
                        "{{code}} {{reason}}",
                    ),
                ),
                "CANCELLED are callers who left.",
            ),
            Panel(
                "Error ratio",
                "percentunit",
                (
                    (
                        f"{rate('inferwire_calls_total', 'model', FAILED)} / {rate('inferwire_calls_total', 'model')}",
                        "{{model}}",
                    ),
                ),
                "Failures that are not the caller's.",
            ),
            Panel("Time to first token", "s", quantiles("inferwire_time_to_first_token_seconds")),
            Panel("Between tokens", "s", quantiles("inferwire_inter_token_seconds")),
            Panel("Whole calls", "s", quantiles("inferwire_call_seconds", "method")),
        ),
    ),
    Row(
        "Tokens",
        (
            Panel(
                "Generated",
                "short",
                ((rate("inferwire_completion_tokens_total", "model"), "{{model}}"),),
                is_stacked=True,
            ),
            Panel(
                "Prompts",
                "short",
                (
                    (rate("inferwire_prompt_tokens_total", "model"), "{{model}}"),
                    (rate("inferwire_cached_prompt_tokens_total", "model"), "{{model}} from the cache"),
                ),
            ),
            Panel(
                "How answers end",
                "reqps",
                ((rate("inferwire_completions_total", "finish_reason"), "{{finish_reason}}"),),
                is_stacked=True,
            ),
        ),
    ),
    Row(
        "Queue",
        (
            Panel(
                "Running and waiting",
                "short",
                (
                    (gauge("inferwire_requests_running"), "{{model}} running"),
                    (gauge("inferwire_requests_waiting"), "{{model}} waiting"),
                ),
            ),
            Panel("Wait for a slot", "s", quantiles("inferwire_queue_seconds")),
            Panel("Reading the prompt", "s", quantiles("inferwire_prefill_seconds")),
        ),
    ),
    Row(
        "Engines",
        (
            Panel("Steps", "s", quantiles("inferwire_engine_step_seconds")),
            Panel("Sequences in a step", "short", quantiles("inferwire_engine_step_sequences")),
            Panel(
                "Computed",
                "short",
                (
                    (rate("inferwire_engine_prompt_tokens_total", "model"), "{{model}} prompt"),
                    (rate("inferwire_engine_completion_tokens_total", "model"), "{{model}} answer"),
                ),
                "Tokens per second while they are computed, and not when calls end.",
            ),
            Panel(
                "KV cells",
                "percentunit",
                (
                    (f"{gauge('inferwire_kv_cells_used')} / {gauge('inferwire_kv_cells')}", "{{model}} held"),
                    (
                        f"{gauge('inferwire_kv_cells_cached')} / {gauge('inferwire_kv_cells')}",
                        "{{model}} cached",
                    ),
                ),
            ),
            Panel(
                "Restarts and preemptions",
                "short",
                (
                    (
                        f"sum by (model) (increase(inferwire_engine_restarts_total{{{OF_MODEL}}}[$__rate_interval]))",
                        "{{model}} restarts",
                    ),
                    (
                        f"sum by (model) (increase(inferwire_engine_preemptions_total{{{OF_MODEL}}}[$__rate_interval]))",
                        "{{model}} preemptions",
                    ),
                ),
            ),
            Panel(
                "Models by state",
                "short",
                (
                    (
                        f"sum by (model, state) (inferwire_model_state{{{OF_MODEL}}}) > 0",
                        "{{model}} {{state}}",
                    ),
                ),
            ),
        ),
    ),
    Row(
        "Backends",
        (
            Panel(
                "Requests",
                "reqps",
                ((rate("inferwire_upstream_attempts_total", "backend", OF), "{{backend}}"),),
            ),
            Panel(
                "Failures",
                "reqps",
                (
                    (
                        rate("inferwire_upstream_failures_total", "backend, reason", OF),
                        "{{backend}} {{reason}}",
                    ),
                ),
            ),
            Panel(
                "Breakers",
                "short",
                (
                    (
                        f"sum by (backend, state) (inferwire_breaker_state{{{OF}}}) > 0",
                        "{{backend}} {{state}}",
                    ),
                ),
            ),
        ),
    ),
    Row(
        "Process",
        (
            Panel("Event loop's lag", "s", quantiles("inferwire_event_loop_lag_seconds", "", OF)),
            Panel(
                "Processors",
                "short",
                (
                    (f"sum(rate(process_cpu_seconds_total{{{OF}}}[$__rate_interval]))", "gateway"),
                    (rate("inferwire_engine_cpu_seconds_total", "model"), "{{model}}"),
                ),
                is_stacked=True,
            ),
            Panel(
                "Memory",
                "bytes",
                (
                    (f"sum(process_resident_memory_bytes{{{OF}}})", "gateway"),
                    (gauge("inferwire_engine_resident_memory_bytes"), "{{model}}"),
                ),
                is_stacked=True,
            ),
        ),
    ),
)
VARIABLES = (
    ("job", "inferwire_ready"),
    ("instance", "inferwire_ready"),
    ("model", "inferwire_requests_waiting"),
)


def dashboard() -> dict[str, Any]:
    """Returns the dashboard as Grafana reads it."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        panels.append({"type": "row", "title": row.title, "gridPos": _place(0, y, COLUMNS, 1)})
        y, x = y + 1, 0
        for panel in row.panels:
            if x + panel.width > COLUMNS:
                y, x = y + HEIGHT, 0
            panels.append(_graph(panel, _place(x, y, panel.width, HEIGHT)))
            x += panel.width
        y += HEIGHT
    return {
        "title": "inferwire",
        "uid": "inferwire",
        "schemaVersion": 39,
        "tags": ["inferwire", "llm"],
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": [_DATA_SOURCE, *(_variable(name, metric) for name, metric in VARIABLES)]},
        "panels": [{"id": number, **panel} for number, panel in enumerate(panels, 1)],
    }


def _place(x: int, y: int, width: int, height: int) -> dict[str, int]:
    return {"x": x, "y": y, "w": width, "h": height}


_DATA_SOURCE = {"name": "datasource", "type": "datasource", "query": "prometheus", "label": "Data source"}


def _variable(name: str, metric: str) -> dict[str, Any]:
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "query": {"query": query, "refId": name},
        "definition": query,
        "includeAll": True,
        "multi": True,
        # All is everything, also what has no such label's value yet.
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "refresh": 2,
    }


def _graph(panel: Panel, place: dict[str, int]) -> dict[str, Any]:
    return {
        "type": "timeseries",
        "title": panel.title,
        "description": panel.description,
        "gridPos": place,
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {
            "defaults": {
                "unit": panel.unit,
                "min": 0,
                "custom": {"fillOpacity": 10, "stacking": {"mode": "normal" if panel.is_stacked else "none"}},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom"},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {"refId": chr(ord("A") + number), "expr": expression, "legendFormat": legend}
            for number, (expression, legend) in enumerate(panel.queries)
        ],
    }


def main() -> None:
    """Writes the file, or checks that it is what would be written."""
    parser = argparse.ArgumentParser(description="Writes the Grafana dashboard.")
    parser.add_argument(
        "--check", action="store_true", help="fail when the file differs from what would be written"
    )
    text = json.dumps(dashboard(), indent=1) + "\n"
    if not parser.parse_args().check:
        FILE.write_text(text)
    elif not FILE.exists() or FILE.read_text() != text:
        sys.exit(f"stale: {FILE.name}; run python deploy/grafana/dashboard.py")


if __name__ == "__main__":
    main()
