"""How many examples hypothesis tries: all that a test states in ``make test-all``, a quarter of them in ``make test``."""

from typing import Any

from hypothesis import settings


def examples(count: int, **options: Any) -> settings:
    """Settings of a test whose examples are expensive. The profile's ``max_examples`` is a percentage of ``count``."""
    return settings(max_examples=max(2, count * settings.default.max_examples // 100), deadline=None, **options)
