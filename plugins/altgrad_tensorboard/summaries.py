"""What TensorBoard shows, as its own messages: scalars, histograms, texts, and a run's settings and end for its HParams tab.

``tensorboard.plugins.*.summary`` make the same messages but need TensorFlow.
"""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.struct_pb2 import Value as HParamValue
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DT_DOUBLE, DT_STRING
from tensorboard.plugins.histogram.metadata import create_summary_metadata as histogram_metadata
from tensorboard.plugins.hparams import api_pb2, metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData, SessionEndInfo, SessionStartInfo
from tensorboard.plugins.text.metadata import create_summary_metadata

from altgrad_core.training.histograms import CastHistogram

COMPARED = ("val/loss", "train/loss")
"""The columns of the HParams tab."""


def scalars(values: Mapping[str, float]) -> Summary:
    """Return metrics of one step; TensorBoard keeps them as float32."""
    return Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])


def histograms(found: Mapping[str, CastHistogram]) -> Summary:
    """Return casts of one step for the Histograms tab, over log2 of abs(x / scale): [bins, left edge, right edge, count]."""
    return Summary(value=[_histogram(f"histogram/{name}", its) for name, its in found.items()])


def text(tag: str, markdown: str) -> Summary:
    """Return a text for the Text tab."""
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=1)])
    tensor = TensorProto(dtype=DT_STRING, string_val=[markdown.encode(errors="backslashreplace")], tensor_shape=shape)
    return _value(tag, create_summary_metadata(display_name=tag, description=""), tensor)


def table(rows: Mapping[str, object]) -> str:
    """Return a Markdown table of two columns."""
    cells = [[str(cell).replace("|", r"\|").replace("\n", " ") for cell in row] for row in rows.items()]
    return "\n".join(["| key | value |", "| --- | --- |", *(f"| {key} | {value} |" for key, value in cells)])


def compared(prefix: str, time: float) -> Summary:
    """Return which metrics the HParams tab compares runs by; their names begin with ``prefix``."""
    names = [api_pb2.MetricName(group="", tag=f"{prefix}{name}") for name in COMPARED]
    infos = [api_pb2.MetricInfo(name=name, display_name=name.tag) for name in names]
    experiment = api_pb2.Experiment(metric_infos=infos, time_created_secs=time)
    return _hparams(metadata.EXPERIMENT_TAG, HParamsPluginData(experiment=experiment))


def settings(values: Mapping[str, bool | float | str], time: float) -> Summary:
    """Return a run's settings for the HParams tab."""
    info = SessionStartInfo(start_time_secs=time)
    for name, value in values.items():
        kind = "bool_value" if isinstance(value, bool) else "string_value" if isinstance(value, str) else "number_value"
        info.hparams[name].CopyFrom(HParamValue(**{kind: value}))
    return _hparams(metadata.SESSION_START_INFO_TAG, HParamsPluginData(session_start_info=info))


def ended(status: str, time: float) -> Summary:
    """Return how a run ended for the HParams tab, which knows success and failure."""
    known = api_pb2.STATUS_SUCCESS if status in ("done", "stopped") else api_pb2.STATUS_FAILURE
    info = SessionEndInfo(status=known, end_time_secs=time)
    return _hparams(metadata.SESSION_END_INFO_TAG, HParamsPluginData(session_end_info=info))


def _hparams(tag: str, data: HParamsPluginData) -> Summary:
    return _value(tag, metadata.create_summary_metadata(data), metadata.NULL_TENSOR)


def _histogram(tag: str, its: CastHistogram) -> Summary.Value:
    bins = zip(its.edges[:-1], its.edges[1:], its.counts, strict=True)
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=size) for size in (len(its.counts), 3)])
    tensor = TensorProto(dtype=DT_DOUBLE, double_val=[float(n) for row in bins for n in row], tensor_shape=shape)
    about = histogram_metadata(display_name=tag, description=f"log2 of abs(x / scale), cast to {its.format}")
    return Summary.Value(tag=tag, metadata=about, tensor=tensor)


def _value(tag: str, of: SummaryMetadata, tensor: TensorProto) -> Summary:
    return Summary(value=[Summary.Value(tag=tag, metadata=of, tensor=tensor)])
