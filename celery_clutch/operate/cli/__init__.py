"""``celery -A proj clutch ...``: the operator's command line.

Exit codes: 0 for success, 1 for trouble (said in one line on stderr), 2 for wrong usage.
"""

from . import looking, steering, watching, why
from .base import clutch

__all__ = ["clutch", "looking", "steering", "watching", "why"]
