"""What a server's TensorFlow plan may do on a device: real graphs that try more."""

from __future__ import annotations

import numpy as np
import pytest

from fcp_core.client.executors import PlanRun, run_plan
from fcp_core.client.graph_guard import OperationRules, listed_operations
from fcp_core.client.interruption import Interruption
from fcp_core.client.stores import EmptyExamplesStore
from fcp_core.client.tensorflow_plan import TensorFlowExecutor
from fcp_core.errors import UsageError
from fcp_core.protocol.checkpoint import open_checkpoint
from fcp_core.protocol.protos import plan_pb2, tensorflow_struct_pb2
from fcp_core.protocol.status import Code, StatusError

tf = pytest.importorskip("tensorflow")
v1 = tf.compat.v1

pytestmark = [pytest.mark.tff, pytest.mark.slow]

SECRET = b"the owner's own"
OUTSIDE = """
    WriteFile MatchingFiles PyFunc EagerPyFunc PyFuncStateless ImmutableConst SqlDataset
    TFRecordDataset TFRecordDatasetV2 TextLineDataset FixedLengthRecordDatasetV2
    LMDBDataset WholeFileReaderV2 InitializeTableFromTextFileV2
    FixedUnigramCandidateSampler Skipgram LoadAndRemapMatrix GenerateVocabRemapping
    DecodeProtoV2 EncodeProto SaveDatasetV2 LoadDataset SnapshotDatasetV2
    DatasetFromGraph DatasetToTFRecord DataServiceDatasetV4 DebugIdentityV2
    CreateSummaryFileWriter WriteSummary RpcCall RpcServer Send Recv Abort RemoteCall
    FileSystemSetConfiguration DeserializeIterator XlaCallModule TRTEngineOp
    TfLiteSubgraphExecute CSVDatasetV2 DistributedSave IteratorFromStringHandleV2
    SleepDataset
"""


def plan_of(build, change=lambda graph_def: None):
    """Return a plan that contributes as ``x`` the text that *build* makes in a graph."""
    with tf.Graph().as_default() as graph:
        path = v1.placeholder(tf.string, (), "output_filepath")
        tf.raw_ops.SaveSlices(
            filename=path,
            tensor_names=["x"],
            shapes_and_slices=[""],
            data=[build()],
            name="save",
        )
    graph_def = graph.as_graph_def()
    change(graph_def)
    plan = plan_pb2.ClientOnlyPlan(graph=graph_def.SerializeToString())
    work = plan.phase.tensorflow_spec
    work.target_node_names.append("save")
    spec = tensorflow_struct_pb2.TensorSpecProto(name="output_filepath:0", dtype=7)
    spec.shape.SetInParent()
    work.input_tensor_specs.append(spec.SerializeToString())
    plan.phase.federated_compute.output_filepath_tensor_name = "output_filepath:0"
    return plan


def run(plan, rules=None, *, store=None, interruption=None):
    executor = TensorFlowExecutor(rules=rules)
    work = PlanRun(plan, b"", store or EmptyExamplesStore(0), None, interruption or Interruption())
    return open_checkpoint(run_plan({"tensorflow_spec": executor}, work))["x"]


def refused(plan, rules=None):
    with pytest.raises(StatusError) as caught:
        run(plan, rules)
    return caught.value


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "secret"
    path.write_bytes(SECRET)
    return str(path)


def in_a_function(work):
    """Return a graph that does *work* in the function of a dataset."""
    return lambda: (
        tf.data.Dataset.from_tensors("").map(lambda _: work()).reduce("", lambda _, text: text)
    )


def test_the_list_names_operations_there_are_and_none_that_reaches_out():
    from tensorflow.python.framework import op_def_registry

    own = {"CreateTaskEligibilityInfo", "ExternalDataset", "MakeSlicesSelectorExampleSelector"}
    listed = listed_operations()
    assert {name for name in listed - own if op_def_registry.get(name) is None} == set()
    outside = OUTSIDE.split()
    assert [name for name in outside if op_def_registry.get(name) is None] == []
    assert listed.isdisjoint(outside)


def test_what_keras_makes_of_training_is_listed():
    """Layers, gradients, an optimizer, a metric and a pipeline of data, in one graph."""
    keras = tf.keras
    layers = keras.layers
    text = keras.Sequential(
        [layers.Embedding(9, 4, mask_zero=True), layers.LSTM(3, return_sequences=True)]
        + [layers.GRU(3), layers.Dropout(0.5), layers.Dense(1)]
    )
    images = keras.Sequential(
        [layers.Conv2D(2, 3), layers.BatchNormalization(), layers.MaxPool2D()]
        + [layers.Flatten(), layers.Dense(1, activation="gelu")]
    )
    loss, metric = keras.losses.BinaryCrossentropy(from_logits=True), keras.metrics.AUC()
    for model, data in (
        (text, np.zeros((2, 5), np.int32)),
        (images, np.zeros((2, 8, 8, 1), np.float32)),
    ):
        model.build(data.shape)
        optimizer = keras.optimizers.Adam()
        optimizer.build(model.trainable_variables)

        @tf.function
        def train(data, model=model, optimizer=optimizer):
            pipeline = tf.data.Dataset.from_tensor_slices(data)
            pipeline = pipeline.map(lambda x: x, num_parallel_calls=2).cache().shuffle(5)
            for batch in pipeline.batch(2).repeat(2).prefetch(1):
                with tf.GradientTape() as tape:
                    output = model(batch, training=True)
                    error = loss(tf.ones_like(output), output)
                gradients = tape.gradient(error, model.trainable_variables)
                gradients, _ = tf.clip_by_global_norm(gradients, 1.0)
                optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
                metric.update_state(tf.ones_like(output), tf.sigmoid(output))
            return metric.result()

        graph = train.get_concrete_function(data).graph.as_graph_def()
        functions = {function.signature.name for function in graph.library.function}
        used = {node.op for node in graph.node}
        used |= {node.op for function in graph.library.function for node in function.node_def}
        assert used - functions - listed_operations() == set()


def test_a_plan_does_not_write_files(secret, tmp_path):
    target = tmp_path / "new" / "authorized_keys"

    def build():
        with tf.control_dependencies([tf.io.write_file(str(target), tf.io.read_file(secret))]):
            return tf.identity("done")

    error = refused(plan_of(build))
    assert (error.code, "the operation WriteFile" in error.message) == (
        Code.PERMISSION_DENIED,
        True,
    )
    assert not target.parent.exists()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_plan_reads_no_file_of_the_owner(secret, hidden):
    def read():
        return tf.io.read_file(secret)

    plan = plan_of(in_a_function(read) if hidden else read)
    assert "only-the-folder-of-the-run" in refused(plan).message
    # Whoever trusts the server may say so.
    for rules in (OperationRules(frozenset({"ReadFile"})), OperationRules(everything=True)):
        assert run(plan, rules) == SECRET


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "..", "", "a/b", "a\nb", "*"])
def test_a_plan_does_not_leave_its_folder(name):
    """Names are computed from the folder's own, which the plan is fed."""

    def build():
        own = v1.get_default_graph().get_tensor_by_name("output_filepath:0")
        folder = tf.strings.regex_replace(own, "/[^/]*$", "/")
        return tf.io.read_file(tf.strings.join([folder, name]))

    assert "only-the-folder-of-the-run" in refused(plan_of(build)).message


def test_a_name_is_what_it_was_when_it_was_checked(secret):
    """A reference variable is written to between the check of its name and its use."""

    def build():
        own = v1.get_default_graph().get_tensor_by_name("output_filepath:0")
        name = tf.raw_ops.VariableV2(shape=[], dtype=tf.string, container="", shared_name="")
        inside = tf.raw_ops.Assign(ref=name, value=tf.strings.join([own, ".part"]))
        tf.raw_ops.Assign(ref=name, value=tf.constant(secret), name="change")
        return tf.raw_ops.ReadFile(filename=inside, name="read")

    def change(graph_def):
        nodes = {node.name: node for node in graph_def.node}
        nodes["change"].input.append("^fcp_confine_0_inside")
        nodes["read"].input.append("^change")

    plan = plan_of(build, change)
    for _ in range(20):  # which of the two is first is up to chance
        assert ".part" in refused(plan).message


def test_a_plan_reads_what_it_wrote():
    def build():
        own = v1.get_default_graph().get_tensor_by_name("output_filepath:0")
        other = tf.strings.join([own, ".part"])
        saved = tf.raw_ops.SaveV2(
            prefix=other, tensor_names=["t"], shape_and_slices=[""], tensors=[tf.constant("kept")]
        )
        with tf.control_dependencies([saved]):
            (text,) = tf.raw_ops.RestoreV2(
                prefix=tf.identity(other),
                tensor_names=["t"],
                shape_and_slices=[""],
                dtypes=[tf.string],
            )
        return tf.ensure_shape(text, ())

    assert run(plan_of(build)) == b"kept"


@pytest.mark.parametrize("write", ["SaveV2", "Save", "MergeV2Checkpoints", "CacheDatasetV2"])
def test_checkpoints_and_caches_stay_inside(write, tmp_path):
    path = str(tmp_path / "new" / "file")

    def build():
        if write == "CacheDatasetV2":
            return tf.data.Dataset.from_tensors("").cache(path).reduce("", lambda _, x: x)
        if write == "MergeV2Checkpoints":
            done = tf.raw_ops.MergeV2Checkpoints(
                checkpoint_prefixes=[path], destination_prefix=path
            )
        elif write == "Save":
            done = tf.raw_ops.Save(filename=path, tensor_names=["t"], data=[tf.constant(1)])
        else:
            done = tf.raw_ops.SaveV2(
                prefix=path, tensor_names=["t"], shape_and_slices=[""], tensors=[tf.constant(1)]
            )
        with tf.control_dependencies([done]):
            return tf.identity("")

    refused(plan_of(build))
    assert list(tmp_path.iterdir()) == []


def test_a_cache_in_memory_is_allowed():
    plan = plan_of(
        lambda: tf.data.Dataset.from_tensors("a").cache().repeat(2).reduce("", lambda a, b: a + b)
    )
    assert run(plan) == b"aa"


def const_variant(graph_def):
    node = graph_def.node.add(name="hidden", op="Const")
    node.attr["dtype"].type = tf.variant.as_datatype_enum
    node.attr["value"].tensor.dtype = tf.variant.as_datatype_enum
    node.attr["value"].tensor.variant_val.add(type_name="tensorflow::WrappedDatasetVariant")


def named_by_an_attribute(graph_def):
    node = graph_def.node.add(name="hidden", op="PartitionedCall")
    node.attr["f"].func.attr["inner"].list.func.add(name="PyFunc")
    node.attr["f"].func.name = "MatMul"


def shadowing(graph_def):
    graph_def.library.function.add().signature.name = "ReadFile"


def types(op, attribute, kind):
    def change(graph_def):
        node = graph_def.node.add(name="hidden", op=op)
        if attribute == "dtypes":
            node.attr[attribute].list.type.append(kind.as_datatype_enum)
        else:
            node.attr[attribute].type = kind.as_datatype_enum

    return change


def printing(graph_def):
    node = graph_def.node.add(name="hidden", op="PrintV2")
    node.attr["output_stream"].s = b"file:///tmp/somewhere"


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (const_variant, "a constant holds variants"),
        (named_by_an_attribute, "the operation PyFunc"),
        (shadowing, "a function has the name of the operation ReadFile"),
        (types("ParseTensor", "out_type", tf.variant), "ParseTensor makes variants"),
        (types("ParseTensor", "out_type", tf.resource), "ParseTensor makes variants"),
        (types("RestoreV2", "dtypes", tf.variant), "RestoreV2 makes variants"),
        (printing, "PrintV2 writes to a file"),
    ],
)
def test_nothing_hides_another_graph(change, problem):
    error = refused(plan_of(lambda: tf.constant(""), change))
    assert (error.code, problem in error.message) == (Code.PERMISSION_DENIED, True), error


def test_python_functions_and_functions_of_functions_are_found():
    def call():
        return tf.numpy_function(lambda: b"", (), tf.string)

    for build in (in_a_function(call), in_a_function(in_a_function(call))):
        assert "PyFunc" in refused(plan_of(build)).message


def test_a_plan_feeds_only_its_own_nodes(secret):
    plan = plan_of(lambda: tf.io.read_file("x"))
    value = tf.make_tensor_proto(secret).SerializeToString()
    plan.phase.tensorflow_spec.constant_inputs["fcp_confine_0_chosen"] = value
    assert "none of its own nodes" in refused(plan).message


def test_guarding_nodes_take_no_name_of_the_plan(secret):
    plan = plan_of(lambda: tf.io.read_file(tf.identity(secret, name="fcp_confine_0_chosen")))
    assert "only-the-folder-of-the-run" in refused(plan).message


def test_a_session_configuration_reaches_no_other_machine():
    plan = plan_of(lambda: tf.constant("fine"))
    config = v1.ConfigProto(intra_op_parallelism_threads=10**6)
    config.cluster_def.job.add(name="evil").tasks[0] = "192.0.2.1:1"
    config.experimental.coordination_config.service_type = "standalone"
    config.graph_options.rewrite_options.custom_optimizers.add(name="unknown")
    plan.tensorflow_config_proto.value = config.SerializeToString()
    assert run(plan) == b"fine"


def test_a_plan_ends_with_its_time():
    """A dataset without end is interrupted."""

    def endless():
        total = tf.data.Dataset.range(1).repeat().reduce(np.int64(0), lambda a, b: a + b)
        return tf.strings.as_string(total)

    with (
        Interruption().limited(0.2, "the plan") as interruption,
        pytest.raises(StatusError) as caught,
    ):
        run(plan_of(endless), interruption=interruption)
    assert caught.value.code is Code.DEADLINE_EXCEEDED


def test_rules_are_checked():
    with pytest.raises(UsageError, match="is not the name"):
        OperationRules(frozenset({"Read File"}))
