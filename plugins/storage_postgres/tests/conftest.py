"""The server that the tests here share, whichever folder they are run from."""

from fcp_postgres.testing import fcp_postgres_schema, fcp_postgres_server

__all__ = ["fcp_postgres_schema", "fcp_postgres_server"]
