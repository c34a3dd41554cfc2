"""The patterns run on every engine, as what is in `tests/behaviour` does."""

from __future__ import annotations

from behaviour.conftest import engine as engine
from behaviour.conftest import lab as lab
from behaviour.conftest import pytest_configure as pytest_configure
from behaviour.conftest import pytest_generate_tests as pytest_generate_tests
