"""Finds the aggregator of each intrinsic, and answers for its faults."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

from fcp_core.aggregation.aggregator import JOINT_URI, Accumulator, AggregatorFactory, Options
from fcp_core.aggregation.spec import Intrinsic
from fcp_core.errors import describe, plugin_errors
from fcp_core.protocol.status import Code, StatusError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BoundIntrinsic:
    """An intrinsic, and who serves it with which options."""

    intrinsic: Intrinsic
    factory: AggregatorFactory
    options: Options

    def make(self, state: bytes | memoryview | None = None) -> Accumulator:
        """Make an accumulator.

        :param state: what it begins with; None: it is empty.
        :raises StatusError: as the aggregator does; INTERNAL if it fails otherwise.
        """
        made: object
        with self.guard("make" if state is None else "load"):
            if state is None:
                made = self.factory.make(self.intrinsic, self.options)
            else:
                state = state if self.factory.loads_views else bytes(state)
                made = self.factory.load(self.intrinsic, self.options, state)
            if not isinstance(made, Accumulator):
                raise TypeError(f"it is {made!r:.200}, which is no Accumulator")
        return made

    @contextmanager
    def guard(self, what: str) -> Iterator[None]:
        """Call the aggregator: make what it raises, unless a StatusError, one that names it.

        :param what: the method.
        """
        try:
            yield
        except StatusError:
            raise
        except plugin_errors() as error:
            raise self.fault(what, error) from error

    def fault(self, what: str, error: BaseException, code: Code = Code.INTERNAL) -> StatusError:
        """Log that the aggregator failed; return it as an error that names it.

        :param what: the method.
        """
        name = self.factory.name
        logger.error("the aggregator %s failed (%s)", name, what, exc_info=error)
        return StatusError(code, f"the aggregator {name!r} failed ({what}): {describe(error)}")


def bind(
    intrinsics: Sequence[Intrinsic],
    factories: Mapping[str, AggregatorFactory],
    chosen: Mapping[str, str],
    options: Mapping[str, Options],
) -> tuple[BoundIntrinsic, ...]:
    """Find the aggregator of each intrinsic; those of one joint aggregator become one.

    :param factories: the installed aggregators by name.
    :param chosen: the aggregator's name by intrinsic URI; a URI that is not listed is served by the
        aggregator that carries its name.
    :param options: each aggregator's options, by its name.
    :raises StatusError: INVALID_ARGUMENT if the aggregator is not installed or cannot serve the
        URI; the message says which ones can.
    """
    bound: list[BoundIntrinsic] = []
    joint: dict[str, int] = {}
    for intrinsic in intrinsics:
        uri = intrinsic.uri
        name = chosen.get(uri, uri)
        serving = sorted(
            factory.name
            for factory in factories.values()
            if uri in factory.uris and not factory.nested_only
        )
        if name not in serving:
            problem = "cannot serve it" if name in factories else "is not installed"
            answer = f"these can: {', '.join(serving)}" if serving else "no installed one can"
            raise StatusError(
                Code.INVALID_ARGUMENT, f"intrinsic {uri!r}: aggregator {name!r} {problem}; {answer}"
            )
        factory, own = factories[name], options.get(name, {})
        if not factory.joint:
            bound.append(BoundIntrinsic(intrinsic, factory, own))
        elif name not in joint:
            joint[name] = len(bound)
            bound.append(BoundIntrinsic(Intrinsic(JOINT_URI, nested=(intrinsic,)), factory, own))
        else:
            known = bound[joint[name]].intrinsic
            whole = replace(known, nested=(*known.nested, intrinsic))
            bound[joint[name]] = BoundIntrinsic(whole, factory, own)
    return tuple(bound)
