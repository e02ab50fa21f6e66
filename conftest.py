"""What the tests of every distribution here get: examples without a clock."""

from __future__ import annotations

from hypothesis import settings

# How long an example takes says something of the machine and nothing of the code. Examples are
# drawn afresh each time, and one that fails says how to draw it again.
settings.register_profile("fcp", deadline=None, derandomize=False, print_blob=True)
settings.load_profile("fcp")

# A PostgreSQL server, which is started when a test asks for it.
pytest_plugins = ["fcp_postgres.testing"]
