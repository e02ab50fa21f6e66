"""Computations of ``tff.learning`` for devices, whose data are serialized examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import tensorflow_federated as tff


def learning_process_computation(process: Any, parse_examples: Callable[[Any], Any]) -> Any:
    """Return the ``next`` of a learning process as a computation on serialized examples.

    Training (``tff.learning.algorithms.build_weighted_fed_avg``) and evaluation
    (``tff.learning.algorithms.build_fed_eval``) are learning processes alike.

    :param process: a ``tff.learning.templates.LearningProcess``; ``process.initialize()`` makes the
        first state, ``process.set_model_weights(state, weights)`` one with other weights.
    :param parse_examples: what a client makes of its examples: from a ``tf.data.Dataset`` of scalar
        strings to the dataset that the process reads, batched; traced to a TensorFlow graph.
    :returns: a ``tff.Computation`` (state, client data) to ``LearningProcessOutput(state,
        metrics)``, for :class:`fcp_platform.FederatedComputation`.
    :raises TypeError: if *process* is not one, or the parsed dataset is not what it reads.
    """
    if not isinstance(process, tff.learning.templates.LearningProcess):
        raise TypeError(f"process must be a LearningProcess, found {type(process).__name__}")
    examples_type = tff.SequenceType(np.str_)
    parse = tff.tensorflow.computation(parse_examples, examples_type)
    state_type, data_type = process.next.type_signature.parameter
    if not data_type.member.is_assignable_from(parse.type_signature.result):
        raise TypeError(
            f"the process reads client data of type {data_type.member}, parse_examples gives "
            f"{parse.type_signature.result}"
        )

    def compute(state: Any, data: Any) -> Any:
        return process.next(state, tff.federated_map(parse, data))

    return tff.federated_computation(
        compute, state_type, tff.FederatedType(examples_type, tff.CLIENTS)
    )
