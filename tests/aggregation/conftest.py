"""What several tests of aggregation use."""

import pytest

from tests.aggregation.engine_jobs import FACTORIES, LOCAL, MODES


@pytest.fixture(params=MODES, ids=str)
def engine(request):
    engine = LOCAL.make(FACTORIES, request.param)
    engine.start()
    yield engine
    engine.stop()
