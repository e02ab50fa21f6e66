"""What a computation aggregates and makes nothing of: devices need not send it."""

from __future__ import annotations

import dataclasses

from fcp_platform.graphs import ancestors
from fcp_platform.lowering import Aggregations, Lowered


def without_unused(lowered: Lowered) -> Lowered:
    """Return a computation without the aggregates that neither state nor metrics come of.

    TFF keeps those of a process whose metrics a program leaves out. If all are such, all stay: a
    device has to contribute something.
    """
    result = lowered.result
    nodes = {node.name for node in result.graph_def.node}
    names = {_node(port.tensor_name) for port in result.outputs}
    needed = ancestors(result.graph_def, names & nodes) | names
    used = {port.leaf.name for port in result.inputs if _node(port.tensor_name) in needed}
    old = lowered.aggregations
    configs = [
        config for config in old.configs if any(spec.name in used for spec in config.output_tensors)
    ]
    if not configs or len(configs) == len(old.configs):
        return lowered
    outputs = {spec.name for config in configs for spec in config.output_tensors}
    arguments = [argument for config in configs for argument in config.intrinsic_args]
    sent = {argument.input_tensor.name for argument in arguments}
    read = {argument.state_tensor.name for argument in arguments}
    return dataclasses.replace(
        lowered,
        aggregations=Aggregations(
            configs,
            {name: form for name, form in old.updates.items() if name in sent},
            {name: form for name, form in old.parameters.items() if name in read},
            {name: value for name, value in old.constants.items() if name in read},
            {name: form for name, form in old.outputs.items() if name in outputs},
        ),
        result=dataclasses.replace(
            result,
            inputs=tuple(
                port
                for port in result.inputs
                if port.leaf.name in outputs or port.leaf.name not in old.outputs
            ),
        ),
    )


def _node(tensor: str) -> str:
    return tensor.partition(":")[0]
