from inferwire.v1 import error_reason_pb2 as _error_reason_pb2
from inferwire.v1 import inference_pb2 as _inference_pb2
from inferwire.v1 import models_pb2 as _models_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Command(_message.Message):
    __slots__ = ("load", "submit", "cancel", "query", "embed")
    LOAD_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_FIELD_NUMBER: _ClassVar[int]
    CANCEL_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    EMBED_FIELD_NUMBER: _ClassVar[int]
    load: LoadCommand
    submit: SubmitCommand
    cancel: CancelCommand
    query: QueryCommand
    embed: EmbedCommand
    def __init__(self, load: _Optional[_Union[LoadCommand, _Mapping]] = ..., submit: _Optional[_Union[SubmitCommand, _Mapping]] = ..., cancel: _Optional[_Union[CancelCommand, _Mapping]] = ..., query: _Optional[_Union[QueryCommand, _Mapping]] = ..., embed: _Optional[_Union[EmbedCommand, _Mapping]] = ...) -> None: ...

class LoadCommand(_message.Message):
    __slots__ = ("path", "model", "instance_id", "config", "max_decode_step_seconds", "max_prefill_step_seconds", "max_prompt_bytes", "adapter_paths", "max_gather_tokens")
    PATH_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    MAX_DECODE_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PREFILL_STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    MAX_PROMPT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_PATHS_FIELD_NUMBER: _ClassVar[int]
    MAX_GATHER_TOKENS_FIELD_NUMBER: _ClassVar[int]
    path: str
    model: str
    instance_id: str
    config: _models_pb2.LoadConfig
    max_decode_step_seconds: float
    max_prefill_step_seconds: float
    max_prompt_bytes: int
    adapter_paths: _containers.RepeatedScalarFieldContainer[str]
    max_gather_tokens: int
    def __init__(self, path: _Optional[str] = ..., model: _Optional[str] = ..., instance_id: _Optional[str] = ..., config: _Optional[_Union[_models_pb2.LoadConfig, _Mapping]] = ..., max_decode_step_seconds: _Optional[float] = ..., max_prefill_step_seconds: _Optional[float] = ..., max_prompt_bytes: _Optional[int] = ..., adapter_paths: _Optional[_Iterable[str]] = ..., max_gather_tokens: _Optional[int] = ...) -> None: ...

class SubmitCommand(_message.Message):
    __slots__ = ("sequence_id", "request_id", "request", "deadline_seconds", "time_limit_seconds", "principal")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    TIME_LIMIT_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    request_id: str
    request: _inference_pb2.CompleteRequest
    deadline_seconds: float
    time_limit_seconds: float
    principal: str
    def __init__(self, sequence_id: _Optional[int] = ..., request_id: _Optional[str] = ..., request: _Optional[_Union[_inference_pb2.CompleteRequest, _Mapping]] = ..., deadline_seconds: _Optional[float] = ..., time_limit_seconds: _Optional[float] = ..., principal: _Optional[str] = ...) -> None: ...

class EmbedCommand(_message.Message):
    __slots__ = ("sequence_id", "input", "index", "pooling", "dimensions", "normalize", "deadline_seconds", "principal")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    INPUT_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    POOLING_FIELD_NUMBER: _ClassVar[int]
    DIMENSIONS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZE_FIELD_NUMBER: _ClassVar[int]
    DEADLINE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    PRINCIPAL_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    input: str
    index: int
    pooling: _inference_pb2.Pooling
    dimensions: int
    normalize: bool
    deadline_seconds: float
    principal: str
    def __init__(self, sequence_id: _Optional[int] = ..., input: _Optional[str] = ..., index: _Optional[int] = ..., pooling: _Optional[_Union[_inference_pb2.Pooling, str]] = ..., dimensions: _Optional[int] = ..., normalize: bool = ..., deadline_seconds: _Optional[float] = ..., principal: _Optional[str] = ...) -> None: ...

class CancelCommand(_message.Message):
    __slots__ = ("sequence_id",)
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    def __init__(self, sequence_id: _Optional[int] = ...) -> None: ...

class QueryCommand(_message.Message):
    __slots__ = ("query_id", "count_tokens", "tokenize", "detokenize")
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_FIELD_NUMBER: _ClassVar[int]
    DETOKENIZE_FIELD_NUMBER: _ClassVar[int]
    query_id: int
    count_tokens: _inference_pb2.CompleteRequest
    tokenize: _inference_pb2.TokenizeRequest
    detokenize: _inference_pb2.DetokenizeRequest
    def __init__(self, query_id: _Optional[int] = ..., count_tokens: _Optional[_Union[_inference_pb2.CompleteRequest, _Mapping]] = ..., tokenize: _Optional[_Union[_inference_pb2.TokenizeRequest, _Mapping]] = ..., detokenize: _Optional[_Union[_inference_pb2.DetokenizeRequest, _Mapping]] = ...) -> None: ...

class Report(_message.Message):
    __slots__ = ("load_progress", "loaded", "load_failed", "step", "answer", "refused")
    LOAD_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    LOAD_FAILED_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    ANSWER_FIELD_NUMBER: _ClassVar[int]
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    load_progress: _models_pb2.LoadProgress
    loaded: LoadedReport
    load_failed: EngineError
    step: StepReport
    answer: AnswerReport
    refused: SequenceEvents
    def __init__(self, load_progress: _Optional[_Union[_models_pb2.LoadProgress, _Mapping]] = ..., loaded: _Optional[_Union[LoadedReport, _Mapping]] = ..., load_failed: _Optional[_Union[EngineError, _Mapping]] = ..., step: _Optional[_Union[StepReport, _Mapping]] = ..., answer: _Optional[_Union[AnswerReport, _Mapping]] = ..., refused: _Optional[_Union[SequenceEvents, _Mapping]] = ...) -> None: ...

class LoadedReport(_message.Message):
    __slots__ = ("model",)
    MODEL_FIELD_NUMBER: _ClassVar[int]
    model: _models_pb2.Model
    def __init__(self, model: _Optional[_Union[_models_pb2.Model, _Mapping]] = ...) -> None: ...

class StepReport(_message.Message):
    __slots__ = ("sequences", "running", "waiting", "cells_used", "cells_cached", "cells_total", "step_seconds", "step_tokens", "step_sequences", "prompt_tokens_total", "cached_prompt_tokens_total", "completion_tokens_total", "preemptions_total")
    SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    RUNNING_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    CELLS_USED_FIELD_NUMBER: _ClassVar[int]
    CELLS_CACHED_FIELD_NUMBER: _ClassVar[int]
    CELLS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    STEP_SECONDS_FIELD_NUMBER: _ClassVar[int]
    STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    STEP_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    CACHED_PROMPT_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_TOKENS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    PREEMPTIONS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    sequences: _containers.RepeatedCompositeFieldContainer[SequenceEvents]
    running: int
    waiting: int
    cells_used: int
    cells_cached: int
    cells_total: int
    step_seconds: float
    step_tokens: int
    step_sequences: int
    prompt_tokens_total: int
    cached_prompt_tokens_total: int
    completion_tokens_total: int
    preemptions_total: int
    def __init__(self, sequences: _Optional[_Iterable[_Union[SequenceEvents, _Mapping]]] = ..., running: _Optional[int] = ..., waiting: _Optional[int] = ..., cells_used: _Optional[int] = ..., cells_cached: _Optional[int] = ..., cells_total: _Optional[int] = ..., step_seconds: _Optional[float] = ..., step_tokens: _Optional[int] = ..., step_sequences: _Optional[int] = ..., prompt_tokens_total: _Optional[int] = ..., cached_prompt_tokens_total: _Optional[int] = ..., completion_tokens_total: _Optional[int] = ..., preemptions_total: _Optional[int] = ...) -> None: ...

class SequenceEvents(_message.Message):
    __slots__ = ("sequence_id", "events", "error", "generated_tokens", "embedded")
    SEQUENCE_ID_FIELD_NUMBER: _ClassVar[int]
    EVENTS_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    GENERATED_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDED_FIELD_NUMBER: _ClassVar[int]
    sequence_id: int
    events: _containers.RepeatedCompositeFieldContainer[_inference_pb2.StreamCompleteResponse]
    error: EngineError
    generated_tokens: int
    embedded: Embedded
    def __init__(self, sequence_id: _Optional[int] = ..., events: _Optional[_Iterable[_Union[_inference_pb2.StreamCompleteResponse, _Mapping]]] = ..., error: _Optional[_Union[EngineError, _Mapping]] = ..., generated_tokens: _Optional[int] = ..., embedded: _Optional[_Union[Embedded, _Mapping]] = ...) -> None: ...

class Embedded(_message.Message):
    __slots__ = ("values", "prompt_tokens")
    VALUES_FIELD_NUMBER: _ClassVar[int]
    PROMPT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    values: _containers.RepeatedScalarFieldContainer[float]
    prompt_tokens: int
    def __init__(self, values: _Optional[_Iterable[float]] = ..., prompt_tokens: _Optional[int] = ...) -> None: ...

class EngineError(_message.Message):
    __slots__ = ("reason", "message", "metadata", "violations", "detail")
    class MetadataEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    METADATA_FIELD_NUMBER: _ClassVar[int]
    VIOLATIONS_FIELD_NUMBER: _ClassVar[int]
    DETAIL_FIELD_NUMBER: _ClassVar[int]
    reason: _error_reason_pb2.ErrorReason
    message: str
    metadata: _containers.ScalarMap[str, str]
    violations: _containers.RepeatedCompositeFieldContainer[FieldViolation]
    detail: str
    def __init__(self, reason: _Optional[_Union[_error_reason_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ..., metadata: _Optional[_Mapping[str, str]] = ..., violations: _Optional[_Iterable[_Union[FieldViolation, _Mapping]]] = ..., detail: _Optional[str] = ...) -> None: ...

class FieldViolation(_message.Message):
    __slots__ = ("field", "description")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    field: str
    description: str
    def __init__(self, field: _Optional[str] = ..., description: _Optional[str] = ...) -> None: ...

class AnswerReport(_message.Message):
    __slots__ = ("query_id", "count_tokens", "tokenize", "detokenize", "error")
    QUERY_ID_FIELD_NUMBER: _ClassVar[int]
    COUNT_TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENIZE_FIELD_NUMBER: _ClassVar[int]
    DETOKENIZE_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    query_id: int
    count_tokens: _inference_pb2.CountTokensResponse
    tokenize: _inference_pb2.TokenizeResponse
    detokenize: _inference_pb2.DetokenizeResponse
    error: EngineError
    def __init__(self, query_id: _Optional[int] = ..., count_tokens: _Optional[_Union[_inference_pb2.CountTokensResponse, _Mapping]] = ..., tokenize: _Optional[_Union[_inference_pb2.TokenizeResponse, _Mapping]] = ..., detokenize: _Optional[_Union[_inference_pb2.DetokenizeResponse, _Mapping]] = ..., error: _Optional[_Union[EngineError, _Mapping]] = ...) -> None: ...
