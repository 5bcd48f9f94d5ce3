"""docs/telemetry.md names every metric that a server tells, and no other."""

from __future__ import annotations

import pathlib
import re

from inferwire_server import logs
from tests.test_dashboards import RULES, traffic
from tests.test_metrics import Scrape

PAGE = (pathlib.Path(__file__).parents[1] / "docs/telemetry.md").read_text()


def row(scrape: Scrape, name: str) -> str:
    """Returns a family's row as the page must have it."""
    family = scrape.families[name]
    labels = sorted({label for sample in family.samples for label in sample.labels} - {"le"})
    shown = f"{name}_total" if family.type == "counter" else name
    return f"| `{shown}` | {family.type} | {', '.join(f'`{label}`' for label in labels)} | {family.documentation} |"


async def test_the_table_of_metrics_is_that_of_a_scrape():
    """Name, type, labels and meaning."""
    scrape = await traffic()
    expected = {row(scrape, name) for name in scrape.families if not name.startswith("process_")}
    assert expected == set(re.findall(r"^\| `inferwire_.*$", PAGE, re.MULTILINE))


def test_every_alert_is_on_the_page():
    """By its name."""
    assert {rule["alert"] for rule in RULES} == set(re.findall(r"^\| `(Inferwire\w+)`", PAGE, re.MULTILINE))


def test_the_settings_of_the_page_are_settings():
    """What a reader copies is taken."""
    from inferwire_server.config import Settings

    named = re.findall(r"^(\w+) = ", PAGE, re.MULTILINE)
    assert (
        {"metrics_address", "traces_endpoint", "log_prompts"} <= set(named) <= set(Settings.__struct_fields__)
    )


def test_every_field_of_a_line_about_a_call_is_on_the_page():
    """And is one that the log lets through."""
    (told,) = re.findall(r"A line about a call\s+has (.*?)\.\s", PAGE, re.DOTALL)
    named = set(re.findall(r"`(\w+)`", told))
    assert {"method", "id", "code", "reason", "seconds", "principal", "trace_id"} <= named <= logs.FIELDS
