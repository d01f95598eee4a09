"""From a template to a page, and how pages say their numbers."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from jinja2 import Environment, PackageLoader


def render(template: str, **values: Any) -> str:
    """A page by one of the templates here. All text from outside is escaped."""
    pages = Environment(
        loader=PackageLoader("fastselfie.report", "."), autoescape=True, trim_blocks=True
    )
    return pages.get_template(template).render(**values)


def shown_rate(rate: float) -> str:
    """Three digits of a slow one, whole images of a fast one."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"


def shown_time(seconds: float) -> str:
    """A duration in two units at the most."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    hours = minutes // 60
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def shown_moment(seconds: float | None) -> str | None:
    """A Unix time as a date and the minute, in UTC."""
    if seconds is None:
        return None
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
