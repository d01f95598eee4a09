"""Render pages from templates, and format their numbers."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from jinja2 import Environment, PackageLoader


def render(template: str, **values: Any) -> str:
    """Render one of the templates in this folder; values are escaped."""
    pages = Environment(
        loader=PackageLoader("fastselfie.report", "."), autoescape=True, trim_blocks=True
    )
    return pages.get_template(template).render(**values)


def format_rate(rate: float) -> str:
    """Format a rate: three digits below 100, whole numbers above."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def format_duration(seconds: float) -> str:
    """Format a duration with at most two units."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def format_time(seconds: float | None) -> str | None:
    """Format a Unix time as date and minute, in UTC; None stays None."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
