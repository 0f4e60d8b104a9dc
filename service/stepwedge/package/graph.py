"""The ONNX graph of a package: what it is, whether it may be served, and the outputs that its head allows to add.

The only importer of onnx. The graph's answers are never changed: nodes are added beside it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, external_data_helper, helper, inliner, numpy_helper, shape_inference

from stepwedge.errors import PackageError
from stepwedge.manifest import MODEL, Manifest
from stepwedge.package.head import Activation, Head, Node, Wiring, activation, constant, find_head, quantisation_step

OLDEST_OPSET, NEWEST_OPSET = 7, 20  # what ONNX Runtime promises to run, and what this format promises to take
BATCH = "batch"

_EXTERNAL = f"{MODEL}.data"
_LARGEST_INSIDE = 1 << 30  # bytes of weights in model.onnx itself; a Protocol Buffers file may have 2 GiB
# What makes an answer depend on the images beside it, or on chance, by the operator.
_REFUSED = {
    "DynamicQuantizeLinear": "it quantises by the range of the whole batch, so an answer depends on the images that "
    "happen to be beside it; quantise statically (QDQ), or not at all",
    "RandomNormal": "its answers are random",
    "RandomUniform": "its answers are random",
    "RandomNormalLike": "its answers are random",
    "RandomUniformLike": "its answers are random",
    "Multinomial": "its answers are random",
    "Bernoulli": "its answers are random",
}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of a graph. A size is a number, or a name where it may be any."""

    name: str
    type: str  # as ONNX spells it, e.g. FLOAT
    shape: tuple[int | str, ...]


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a graph says about itself."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    activations: Mapping[str, Activation]  # found at the end of each output
    quantised: Mapping[str, float]  # step of the output's last quantisation, where there is one
    opset: int


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A graph ready to be put into a package."""

    model: onnx.ModelProto
    embedding: str | None
    activation_map: str | None
    head: Head | None
    notes: tuple[str, ...]  # what was done and what could not be, for people


def read_model(file: Path) -> onnx.ModelProto:
    """Read a graph with its external data, and refuse what cannot be served.

    Raises
    ------
    PackageError
        If the file or its external data is missing or damaged, the opset is unknown, a weight is not finite (the
        message names it), or an operator makes answers depend on chance or on the batch.
    """
    try:
        model = onnx.load(file, load_external_data=False)
    except OSError as error:
        raise PackageError(f"{file}: the model cannot be read: {error.strerror}") from None
    except Exception as error:  # noqa: BLE001 - Protocol Buffers' own errors for what is not its format have no stubs
        raise PackageError(f"{file}: cannot be read as ONNX: {error}") from None
    if not model.graph.node:
        raise PackageError(f"{file}: cannot be read as ONNX: there is no graph in it")
    _load_external(model, file)
    if model.functions:
        model = inliner.inline_local_functions(model)
    _check_opset(model, file)
    _check_operators(model.graph, file)
    _check_weights(model.graph, file)
    try:
        if model.ByteSize() < _LARGEST_INSIDE:  # beyond it the checker wants a file
            onnx.checker.check_model(model)
    except onnx.checker.ValidationError as error:
        raise PackageError(f"{file}: is no valid ONNX: {str(error).splitlines()[0]}; export it again") from None
    return _with_shapes(model)


def describe(model: onnx.ModelProto) -> Description:
    """What can be read from a graph."""
    weights = {initialiser.name for initialiser in model.graph.initializer}
    inputs = tuple(_tensor(value) for value in model.graph.input if value.name not in weights)
    outputs = tuple(_tensor(value) for value in model.graph.output)
    wiring = _wiring(model)
    quantised = {output.name: step for output in outputs if (step := quantisation_step(wiring, output.name))}
    return Description(
        inputs=inputs,
        outputs=outputs,
        activations={output.name: activation(wiring, output.name) for output in outputs},
        quantised=quantised,
        opset=_opset(model),
    )


def prepare(model: onnx.ModelProto, manifest: Manifest) -> Prepared:
    """Hold a graph against its description, free its batch dimension, and add what its head allows.

    An output that the description names is kept as it is. Where it names none, ``embedding`` is what goes into the
    last linear layer, and ``activation_map`` (class activation mapping: Zhou et al., CVPR 2016) is that layer at
    every place of the last feature map, where the layer sees the map's mean.

    Raises
    ------
    PackageError
        If inputs, outputs, shapes or the activation are not those of the description.
    """
    prepared = onnx.ModelProto()
    prepared.CopyFrom(model)
    description = describe(prepared)
    _check_against(description, manifest)
    notes = _free_batch(prepared)
    head = find_head(_wiring(prepared), manifest.output.scores)
    embedding, activation_map = manifest.output.embedding, manifest.output.activation_map
    if embedding is None and head is not None:
        embedding = _add_embedding(prepared, head)
        notes.append(f"output {embedding} added: what goes into the last linear layer")
    elif embedding is None:
        notes.append("no embedding: the graph does not end in a linear layer that is recognised")
    wanted = activation_map is None and "explanation" not in manifest.model_fields_set
    if wanted and manifest.input.unit == "instance":
        if head is not None and head.feature_map is not None and head.weights is not None:
            activation_map = _add_activation_map(prepared, head)
            notes.append(f"output {activation_map} added: the last linear layer at every place of the last feature map")
        else:
            notes.append("no activation map: the head is not pooling and one linear layer; heat maps are by occlusion")
    return Prepared(model=prepared, embedding=embedding, activation_map=activation_map, head=head, notes=tuple(notes))


def write_model(model: onnx.ModelProto, folder: Path) -> None:
    """Write ``model.onnx``, and beside it ``model.onnx.data`` where the weights are many."""
    size = sum(len(initialiser.raw_data) for initialiser in model.graph.initializer)
    if size > _LARGEST_INSIDE:
        onnx.save(model, folder / MODEL, save_as_external_data=True, all_tensors_to_one_file=True, location=_EXTERNAL)
    else:
        onnx.save(model, folder / MODEL)


# --- Checks -------------------------------------------------------------------------------------------------------


def _load_external(model: onnx.ModelProto, file: Path) -> None:
    for initialiser in model.graph.initializer:
        if not external_data_helper.uses_external_data(initialiser):
            continue
        location = external_data_helper.ExternalDataInfo(initialiser).location
        if not (file.parent / location).is_file():
            raise PackageError(
                f"{file}: its weights lie in {location}, which is not beside it (wanted for {initialiser.name}); "
                "copy the whole folder that the model was exported to"
            )
    try:
        external_data_helper.load_external_data_for_model(model, str(file.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as error:
        raise PackageError(f"{file}: its external data cannot be read: {error}; export the model again") from None


def _with_shapes(model: onnx.ModelProto) -> onnx.ModelProto:
    """With the sizes of the tensors between, where they can be told and the library takes a graph of this size."""
    return shape_inference.infer_shapes(model) if model.ByteSize() < _LARGEST_INSIDE else model


def _opset(model: onnx.ModelProto) -> int:
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=0)


def _check_opset(model: onnx.ModelProto, file: Path) -> None:
    found = _opset(model)
    if not OLDEST_OPSET <= found <= NEWEST_OPSET:
        raise PackageError(
            f"{file}: the graph is of ONNX opset {found}; wanted {OLDEST_OPSET} to {NEWEST_OPSET}: export it again"
        )


def _nodes(graph: onnx.GraphProto) -> Iterator[NodeProto]:
    """Every node, also in the branches and bodies of other nodes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _check_operators(graph: onnx.GraphProto, file: Path) -> None:
    for node in _nodes(graph):
        if node.op_type in _REFUSED:
            raise PackageError(f"{file}: the graph holds {node.op_type} ({node.name}): {_REFUSED[node.op_type]}")
        if node.op_type == "BatchNormalization" and _attribute(node, "training_mode", 0):
            raise PackageError(
                f"{file}: {node.name} normalises by the batch (training_mode): export the model in evaluation mode"
            )


def _check_weights(graph: onnx.GraphProto, file: Path) -> None:
    constants = [(node.output[0], a.t) for node in _nodes(graph) if node.op_type == "Constant" for a in node.attribute]
    # A constant may well be infinite: masks are made of that. A weight that is not a number is never meant.
    for name, tensor in [(i.name, i) for i in graph.initializer] + constants:
        if tensor.data_type not in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16):
            continue
        values = numpy_helper.to_array(tensor).astype(np.float64)
        bad = np.isnan(values) | (np.isinf(values) & (values.size > 1))
        if bad.any():
            raise PackageError(
                f"{file}: {name} holds {int(bad.sum())} values of {values.size} that are not finite (NaN or infinity); "
                "the training or the export failed"
            )


def _check_against(description: Description, manifest: Manifest) -> None:
    named = [spec.name for spec in manifest.inputs]
    found = [tensor.name for tensor in description.inputs]
    if set(named) != set(found):
        raise PackageError(f"model.yaml: input: the graph's inputs are {', '.join(found)}, found {', '.join(named)}")
    tensors = {tensor.name: tensor for tensor in description.inputs}
    for spec in manifest.inputs:
        tensor = tensors[spec.name]
        if tensor.type != "FLOAT":
            raise PackageError(f"input {spec.name} of the graph is {tensor.type}; wanted FLOAT: export it so")
        images = () if spec.unit == "instance" else ("images",)
        want = (BATCH, *images, spec.channels, spec.rows, spec.columns)
        if len(tensor.shape) != len(want) or any(
            isinstance(have, int) and have != need
            for have, need in zip(tensor.shape[1:], want[1:], strict=True)
            if isinstance(need, int)
        ):
            raise PackageError(
                f"input {spec.name} of the graph is {_shape(tensor.shape)}, model.yaml says {_shape(want)}; correct "
                "rows, columns or channels (channels come before rows)"
            )
    _check_outputs(description, manifest)


def _check_outputs(description: Description, manifest: Manifest) -> None:
    output = manifest.output
    outputs = {tensor.name: tensor for tensor in description.outputs}
    for field in ("scores", "embedding", "activation_map"):
        name = getattr(output, field)
        if name is not None and name not in outputs:
            raise PackageError(f"model.yaml: output.{field}: the graph has no output {name!r}; it has {_list(outputs)}")
        if name is not None and outputs[name].type != "FLOAT":
            raise PackageError(f"output {name} of the graph is {outputs[name].type}; wanted FLOAT: export it so")
    scores = outputs[output.scores]
    if scores.shape and (
        len(scores.shape) != 2 or (isinstance(scores.shape[1], int) and scores.shape[1] != len(output.classes))
    ):
        raise PackageError(
            f"output {scores.name} of the graph is {_shape(scores.shape)}, model.yaml names {len(output.classes)} "
            f"classes: wanted (batch, {len(output.classes)})"
        )
    applied = description.activations[output.scores]
    if applied != "none" and applied != output.activation:
        raise PackageError(
            f"model.yaml: output.activation: the graph ends in {applied}, found {output.activation}; wanted {applied}"
        )


# --- The batch dimension ------------------------------------------------------------------------------------------


def _free_batch(model: onnx.ModelProto) -> list[str]:
    """Let a graph that was exported for one image take any number. Whether it then can is for the caller to try."""
    graph = model.graph
    weights = {initialiser.name for initialiser in graph.initializer}
    inputs = [value for value in graph.input if value.name not in weights]
    fixed = [v.name for v in inputs if v.type.tensor_type.shape.dim and v.type.tensor_type.shape.dim[0].dim_value]
    if not fixed:
        return []
    sizes = {v.type.tensor_type.shape.dim[0].dim_value for v in inputs}
    if sizes != {1}:
        raise PackageError(
            f"inputs {_list(fixed)} of the graph take batches of {_list(map(str, sorted(sizes)))} only; export it with "
            "a batch dimension of any size"
        )
    for value in (*inputs, *graph.output):
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = BATCH
    del graph.value_info[:]
    wiring = _wiring(model)
    for node in graph.node:
        if node.op_type != "Reshape" or _attribute(node, "allowzero", 0):
            continue
        shape = constant(wiring, node.input[1])
        if shape is not None and shape.size > 1 and int(shape.ravel()[0]) == 1:
            # 0 stands for the size that the input has there (ONNX, Reshape).
            free = np.concatenate([[0], shape.ravel()[1:]]).astype(np.int64)
            name = _unused(graph, f"{node.output[0]}_shape")
            graph.initializer.append(numpy_helper.from_array(free, name))
            node.input[1] = name
    model.CopyFrom(_with_shapes(model))
    return ["the batch dimension was fixed to 1 and is free now"]


# --- What the head allows to add ----------------------------------------------------------------------------------


def _add_embedding(model: onnx.ModelProto, head: Head) -> str:
    graph = model.graph
    source = _as_float(graph, head.features)
    if head.pooled_after:
        pooled = _unused(graph, "embedding_pooled")
        graph.node.append(helper.make_node("GlobalAveragePool", [source], [pooled]))
        source = pooled
    name = _unused(graph, "embedding")
    graph.node.append(helper.make_node("Flatten", [source], [name], axis=1))
    features = head.weights.shape[1] if head.weights is not None else "features"
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [_batch_name(graph), features]))
    return name


def _add_activation_map(model: onnx.ModelProto, head: Head) -> str:
    assert head.feature_map is not None
    assert head.weights is not None
    graph = model.graph
    weights, name = _unused(graph, "activation_map_weights"), _unused(graph, "activation_map")
    graph.initializer.append(numpy_helper.from_array(head.weights[:, :, None, None], weights))
    source = _as_float(graph, head.feature_map)
    graph.node.append(helper.make_node("Conv", [source, weights], [name], kernel_shape=[1, 1]))
    shape = [_batch_name(graph), len(head.weights), "map_rows", "map_columns"]
    graph.output.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
    return name


def _as_float(graph: onnx.GraphProto, name: str) -> str:
    """The tensor as float32; a graph may compute in half precision."""
    known = {v.name: v for v in graph.value_info}
    if name not in known or known[name].type.tensor_type.elem_type in (TensorProto.FLOAT, TensorProto.UNDEFINED):
        return name
    cast = _unused(graph, "as_float32")
    graph.node.append(helper.make_node("Cast", [name], [cast], to=TensorProto.FLOAT))
    return cast


def _unused(graph: onnx.GraphProto, name: str) -> str:
    """``name``, or with a number where the graph has it already."""
    taken = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    taken |= {output for node in graph.node for output in node.output}
    numbered = (name, *(f"{name}_{number}" for number in range(1, len(taken) + 2)))
    return next(candidate for candidate in numbered if candidate not in taken)


def _wiring(model: onnx.ModelProto) -> Wiring:
    made_by: dict[str, Node] = {}
    constants = {i.name: partial(numpy_helper.to_array, i) for i in model.graph.initializer}
    for made in model.graph.node:
        attributes = {a.name: helper.get_attribute_value(a) for a in made.attribute}
        node = Node(type=made.op_type, inputs=tuple(made.input), outputs=tuple(made.output), attributes=attributes)
        made_by |= dict.fromkeys(node.outputs, node)
        if made.op_type == "Constant" and "value" in attributes:
            constants[made.output[0]] = partial(numpy_helper.to_array, attributes["value"])
    values = (*model.graph.value_info, *model.graph.input, *model.graph.output)
    sizes = {value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim) for value in values}
    return Wiring(made_by=made_by, constants=constants, sizes=sizes)


def _batch_name(graph: onnx.GraphProto) -> str:
    weights = {initialiser.name for initialiser in graph.initializer}
    first = next(value for value in graph.input if value.name not in weights)
    return first.type.tensor_type.shape.dim[0].dim_param or BATCH


def _attribute(node: NodeProto, name: str, default: Any) -> Any:
    return next((helper.get_attribute_value(a) for a in node.attribute if a.name == name), default)


def _tensor(value: onnx.ValueInfoProto) -> Tensor:
    tensor = value.type.tensor_type
    shape = tuple(d.dim_value or d.dim_param or f"size_{place}" for place, d in enumerate(tensor.shape.dim))
    return Tensor(name=value.name, type=TensorProto.DataType.Name(tensor.elem_type), shape=shape)


def _shape(sizes: Sequence[int | str]) -> str:
    return f"({_list(map(str, sizes))})"


def _list(names: Iterable[str]) -> str:
    return ", ".join(names)
