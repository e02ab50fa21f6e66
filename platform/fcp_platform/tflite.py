"""The TFLite model of a client's graph, which published clients of 2024 prefer to the graph."""

from __future__ import annotations

import ctypes
import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf
from flatbuffers import flexbuffers
from tensorflow.lite.python import lite
from tensorflow.lite.python import schema_py_generated as schema
from tensorflow.python.framework import op_def_registry

_LOG = logging.getLogger(__name__)

#: The operations of plans that stock TensorFlow does not know: their inputs and outputs.
_OPERATIONS = {
    "ExternalDataset": (("token: string", "selector: string"), ("handle: variant",)),
    "MakeSlicesSelectorExampleSelector": (
        ("served_at_id: string", "keys: int32"),
        ("serialized_proto: string",),
    ),
}
#: TensorFlow keeps what operations there are in one place, and so must we.
_REGISTERING = threading.Lock()


def convert(
    graph_def: Any, inputs: Sequence[str], targets: Sequence[str], outputs: Sequence[str] = ()
) -> bytes:
    """Return the model that does what a graph does.

    What TFLite has no operation of its own for stays TensorFlow's, so a client needs both: its
    *select* or *flex* build, with the protocol's own operations.

    :param graph_def: a ``tf.compat.v1.GraphDef`` whose control flow is that of functions: what
        Grappler makes of it cannot be converted.
    :param inputs: the names of the placeholders, all of scalar strings.
    :param targets: the nodes that are to run.
    :param outputs: the names of the tensors that are to be given back.
    :returns: nothing if it cannot be converted; the log says why.
    """
    try:
        _register()
        converter = lite.TFLiteFrozenGraphConverter(
            graph_def, None, None, [(name, []) for name in inputs], list(outputs) or None
        )
        # As the reference sets them: whatever TensorFlow can do, with variables and assertions.
        converter._control_output_arrays = list(targets)
        converter.target_spec.supported_ops = [
            tf.lite.OpsSet.TFLITE_BUILTINS,
            tf.lite.OpsSet.SELECT_TF_OPS,
        ]
        converter.target_spec.experimental_select_user_tf_ops = list(_OPERATIONS)
        converter._experimental_allow_all_select_tf_ops = True
        converter._experimental_preserve_assert_op = True
        converter.experimental_enable_resource_variables = True
        return _ordered(converter.convert())
    except Exception as error:
        # It is one of two forms: devices with TensorFlow have the other.
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        _LOG.warning("the plan has no TFLite model: %s", reason)
        return b""


def _ordered(model: bytes) -> bytes:
    """Return the same model with the attributes of TensorFlow's operations in order.

    Otherwise a program that is started again would make other bytes, and devices would not find the
    plan in their caches.
    """
    changed = bytearray(model)
    graphs = schema.Model.GetRootAsModel(changed, 0)
    for index in range(graphs.SubgraphsLength()):
        graph = graphs.Subgraphs(index)
        for number in range(graph.OperatorsLength()):
            options = graph.Operators(number).CustomOptionsAsNumpy()
            # A TensorFlow operation: its name, and its node. (0 stands for no options.)
            if not isinstance(options, np.ndarray):
                continue
            data = options.tobytes()
            root = flexbuffers.GetRoot(data)
            if not root.IsVector or len(root.AsVector) != 2:
                continue
            old = root.AsVector[1].AsStringBytes
            node = tf.compat.v1.NodeDef.FromString(old)
            new = node.SerializeToString(deterministic=True)
            at = data.rfind(old)
            if len(new) == len(old) and at >= 0:
                # A view on the bytes of the model.
                options.flags.writeable = True
                options[at : at + len(new)] = np.frombuffer(new, np.uint8)
    return bytes(changed)


def _register() -> None:
    """Tell TensorFlow what the protocol's own operations look like; it cannot run them here.

    A program that brings those of the reference has them already, and twice would end it.

    :raises OSError: if this TensorFlow has no library with the C interface.
    :raises RuntimeError: if it refuses.
    """
    with _REGISTERING:
        missing = [name for name in _OPERATIONS if op_def_registry.get(name) is None]
        library: Any = _interface() if missing else None
        for name in missing:
            inputs, outputs = _OPERATIONS[name]
            builder = library.TF_NewOpDefinitionBuilder(name.encode())
            for item in inputs:
                library.TF_OpDefinitionBuilderAddInput(builder, item.encode())
            for item in outputs:
                library.TF_OpDefinitionBuilderAddOutput(builder, item.encode())
            library.TF_OpDefinitionBuilderSetIsStateful(builder, name == "ExternalDataset")
            status = library.TF_NewStatus()
            library.TF_RegisterOpDefinition(builder, status)
            code, message = library.TF_GetCode(status), library.TF_Message(status)
            library.TF_DeleteStatus(status)
            if code:
                raise RuntimeError(f"TensorFlow does not take the operation {name}: {message!r}")


def _interface() -> Any:
    """Return TensorFlow's C interface for registering operations (``tensorflow/c/ops.h``)."""
    (path, *_) = sorted(Path(tf.sysconfig.get_lib()).glob("libtensorflow_framework.*"))
    library = ctypes.CDLL(str(path))
    pointer, text = ctypes.c_void_p, ctypes.c_char_p
    for name, result, arguments in (
        ("TF_NewOpDefinitionBuilder", pointer, (text,)),
        ("TF_OpDefinitionBuilderAddInput", None, (pointer, text)),
        ("TF_OpDefinitionBuilderAddOutput", None, (pointer, text)),
        ("TF_OpDefinitionBuilderSetIsStateful", None, (pointer, ctypes.c_bool)),
        ("TF_NewStatus", pointer, ()),
        ("TF_RegisterOpDefinition", None, (pointer, pointer)),
        ("TF_GetCode", ctypes.c_int, (pointer,)),
        ("TF_Message", text, (pointer,)),
        ("TF_DeleteStatus", None, (pointer,)),
    ):
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library
