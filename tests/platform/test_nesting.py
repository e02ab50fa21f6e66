"""Computations that nest more deeply than protobuf parses."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

pytest.importorskip("tensorflow_federated")

import tensorflow_federated as tff
from google.protobuf.message import DecodeError
from tensorflow_federated.proto.v0 import computation_pb2
from tensorflow_federated.python.core.impl.compiler import building_blocks as blocks

from fcp_platform import nesting

pytestmark = [pytest.mark.tff, pytest.mark.slow]

#: Both ways to begin a program; the computation nests as those of distributed privacy do.
PROGRAM = """
{imports}
import numpy as np
@tff.tensorflow.computation(np.int32)
def same(x):
    return x
@tff.federated_computation(np.int32)
def deep(x):
    def nested(depth):
        @tff.federated_computation(np.int32)
        def inner(y):
            return nested(depth - 1)(y) if depth else same(y)
        return inner
    return nested(40)(x)
print(len(deep.to_building_block().proto.SerializeToString()) > 0)
"""
IMPORTS = ["import fcp_platform", "import tensorflow_federated as tff"]


def chain(length: int) -> Any:
    """Return a block that selects from a structure of a selection, and so on."""
    x = blocks.Reference("x", tff.types.TensorType(np.int32))
    value: Any = x
    for _ in range(length):
        value = blocks.Selection(blocks.Struct([("a", value), (None, x)]), index=0)
    return value


@pytest.mark.parametrize("imports", [IMPORTS, IMPORTS[::-1]], ids=["before TFF", "after TFF"])
def test_a_program_is_traced_whichever_is_imported_first(imports: list[str]) -> None:
    program = PROGRAM.format(imports="\n".join(imports))
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["True"], done.stderr


def test_protobufs_own_limit_stays() -> None:
    deep = chain(60).proto
    with pytest.raises(DecodeError):
        computation_pb2.Computation.FromString(deep.SerializeToString())


def built_by_constructors(block: Any) -> Any:
    """Return a block's message, of which every part is given to a constructor."""
    proto = computation_pb2
    typed = nesting._message(block)
    if isinstance(block, blocks.Selection):
        made = {
            "selection": proto.Selection(
                source=built_by_constructors(block.source), index=block.as_index()
            )
        }
    elif isinstance(block, blocks.Struct):
        made = {
            "struct": proto.Struct(
                element=[
                    proto.Struct.Element(name=name, value=built_by_constructors(value))
                    for name, value in tff.structure.iter_elements(block)
                ]
            )
        }
    elif isinstance(block, blocks.Call):
        given = (
            {} if block.argument is None else {"argument": built_by_constructors(block.argument)}
        )
        made = {"call": proto.Call(function=built_by_constructors(block.function), **given)}
    elif isinstance(block, blocks.Lambda):
        made = {
            "lambda": proto.Lambda(
                parameter_name=block.parameter_name, result=built_by_constructors(block.result)
            )
        }
    elif isinstance(block, blocks.Block):
        made = {
            "block": proto.Block(
                local=[
                    proto.Block.Local(name=name, value=built_by_constructors(value))
                    for name, value in block.locals
                ],
                result=built_by_constructors(block.result),
            )
        }
    else:
        return block.proto
    return proto.Computation(type=typed.type, **made)


def test_shallow_messages_are_the_same() -> None:
    number = tff.types.TensorType(np.int32)
    x = blocks.Reference("x", number)
    identity = blocks.Lambda("x", number, x)
    made = [
        x,
        chain(3),
        identity,
        blocks.Lambda(None, None, chain(1)),
        blocks.Call(identity, x),
        blocks.Call(blocks.Lambda(None, None, x)),
        blocks.Block([("y", x), ("z", chain(2))], blocks.Call(identity, chain(1))),
        blocks.Struct([]),
    ]
    for block in made:
        assert block.proto == built_by_constructors(block)
        assert block.proto.WhichOneof("computation") is not None
        assert blocks.ComputationBuildingBlock.from_proto(block.proto).proto == block.proto
