import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from inferwire.v1 import error_reason_pb2 as _error_reason_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ModelState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODEL_STATE_UNSPECIFIED: _ClassVar[ModelState]
    MODEL_STATE_UNLOADED: _ClassVar[ModelState]
    MODEL_STATE_LOADING: _ClassVar[ModelState]
    MODEL_STATE_READY: _ClassVar[ModelState]
    MODEL_STATE_DRAINING: _ClassVar[ModelState]
    MODEL_STATE_FAILED: _ClassVar[ModelState]

class LoadStage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOAD_STAGE_UNSPECIFIED: _ClassVar[LoadStage]
    LOAD_STAGE_STARTING: _ClassVar[LoadStage]
    LOAD_STAGE_FETCHING: _ClassVar[LoadStage]
    LOAD_STAGE_READING: _ClassVar[LoadStage]
    LOAD_STAGE_WARMING_UP: _ClassVar[LoadStage]

class CacheType(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    CACHE_TYPE_UNSPECIFIED: _ClassVar[CacheType]
    CACHE_TYPE_F32: _ClassVar[CacheType]
    CACHE_TYPE_F16: _ClassVar[CacheType]
    CACHE_TYPE_BF16: _ClassVar[CacheType]
    CACHE_TYPE_Q8_0: _ClassVar[CacheType]
    CACHE_TYPE_Q5_1: _ClassVar[CacheType]
    CACHE_TYPE_Q5_0: _ClassVar[CacheType]
    CACHE_TYPE_Q4_1: _ClassVar[CacheType]
    CACHE_TYPE_Q4_0: _ClassVar[CacheType]

class FlashAttention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FLASH_ATTENTION_UNSPECIFIED: _ClassVar[FlashAttention]
    FLASH_ATTENTION_AUTO: _ClassVar[FlashAttention]
    FLASH_ATTENTION_ON: _ClassVar[FlashAttention]
    FLASH_ATTENTION_OFF: _ClassVar[FlashAttention]

class RopeScaling(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ROPE_SCALING_UNSPECIFIED: _ClassVar[RopeScaling]
    ROPE_SCALING_NONE: _ClassVar[RopeScaling]
    ROPE_SCALING_LINEAR: _ClassVar[RopeScaling]
    ROPE_SCALING_YARN: _ClassVar[RopeScaling]
    ROPE_SCALING_LONGROPE: _ClassVar[RopeScaling]
MODEL_STATE_UNSPECIFIED: ModelState
MODEL_STATE_UNLOADED: ModelState
MODEL_STATE_LOADING: ModelState
MODEL_STATE_READY: ModelState
MODEL_STATE_DRAINING: ModelState
MODEL_STATE_FAILED: ModelState
LOAD_STAGE_UNSPECIFIED: LoadStage
LOAD_STAGE_STARTING: LoadStage
LOAD_STAGE_FETCHING: LoadStage
LOAD_STAGE_READING: LoadStage
LOAD_STAGE_WARMING_UP: LoadStage
CACHE_TYPE_UNSPECIFIED: CacheType
CACHE_TYPE_F32: CacheType
CACHE_TYPE_F16: CacheType
CACHE_TYPE_BF16: CacheType
CACHE_TYPE_Q8_0: CacheType
CACHE_TYPE_Q5_1: CacheType
CACHE_TYPE_Q5_0: CacheType
CACHE_TYPE_Q4_1: CacheType
CACHE_TYPE_Q4_0: CacheType
FLASH_ATTENTION_UNSPECIFIED: FlashAttention
FLASH_ATTENTION_AUTO: FlashAttention
FLASH_ATTENTION_ON: FlashAttention
FLASH_ATTENTION_OFF: FlashAttention
ROPE_SCALING_UNSPECIFIED: RopeScaling
ROPE_SCALING_NONE: RopeScaling
ROPE_SCALING_LINEAR: RopeScaling
ROPE_SCALING_YARN: RopeScaling
ROPE_SCALING_LONGROPE: RopeScaling

class LoadRequest(_message.Message):
    __slots__ = ("model", "source", "config", "keep_alive", "pinned", "replace")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    REPLACE_FIELD_NUMBER: _ClassVar[int]
    model: str
    source: ModelSource
    config: LoadConfig
    keep_alive: _duration_pb2.Duration
    pinned: bool
    replace: bool
    def __init__(self, model: _Optional[str] = ..., source: _Optional[_Union[ModelSource, _Mapping]] = ..., config: _Optional[_Union[LoadConfig, _Mapping]] = ..., keep_alive: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., pinned: bool = ..., replace: bool = ...) -> None: ...

class LoadResponse(_message.Message):
    __slots__ = ("model", "already_loaded")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ALREADY_LOADED_FIELD_NUMBER: _ClassVar[int]
    model: Model
    already_loaded: bool
    def __init__(self, model: _Optional[_Union[Model, _Mapping]] = ..., already_loaded: bool = ...) -> None: ...

class StreamLoadResponse(_message.Message):
    __slots__ = ("progress", "loaded")
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    LOADED_FIELD_NUMBER: _ClassVar[int]
    progress: LoadProgress
    loaded: LoadResponse
    def __init__(self, progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., loaded: _Optional[_Union[LoadResponse, _Mapping]] = ...) -> None: ...

class UnloadRequest(_message.Message):
    __slots__ = ("model", "drain_timeout")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DRAIN_TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    model: str
    drain_timeout: _duration_pb2.Duration
    def __init__(self, model: _Optional[str] = ..., drain_timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class UnloadResponse(_message.Message):
    __slots__ = ("was_loaded", "streams_ended")
    WAS_LOADED_FIELD_NUMBER: _ClassVar[int]
    STREAMS_ENDED_FIELD_NUMBER: _ClassVar[int]
    was_loaded: bool
    streams_ended: int
    def __init__(self, was_loaded: bool = ..., streams_ended: _Optional[int] = ...) -> None: ...

class ModelSource(_message.Message):
    __slots__ = ("local", "hub", "remote")
    LOCAL_FIELD_NUMBER: _ClassVar[int]
    HUB_FIELD_NUMBER: _ClassVar[int]
    REMOTE_FIELD_NUMBER: _ClassVar[int]
    local: LocalSource
    hub: HubSource
    remote: RemoteSource
    def __init__(self, local: _Optional[_Union[LocalSource, _Mapping]] = ..., hub: _Optional[_Union[HubSource, _Mapping]] = ..., remote: _Optional[_Union[RemoteSource, _Mapping]] = ...) -> None: ...

class LocalSource(_message.Message):
    __slots__ = ("path",)
    PATH_FIELD_NUMBER: _ClassVar[int]
    path: str
    def __init__(self, path: _Optional[str] = ...) -> None: ...

class HubSource(_message.Message):
    __slots__ = ("repository", "file", "revision")
    REPOSITORY_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    repository: str
    file: str
    revision: str
    def __init__(self, repository: _Optional[str] = ..., file: _Optional[str] = ..., revision: _Optional[str] = ...) -> None: ...

class RemoteSource(_message.Message):
    __slots__ = ("backend", "model")
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    backend: str
    model: str
    def __init__(self, backend: _Optional[str] = ..., model: _Optional[str] = ...) -> None: ...

class LoadConfig(_message.Message):
    __slots__ = ("context_length", "parallel_sequences", "gpu_layers", "threads", "batch_threads", "batch_size", "micro_batch_size", "key_cache_type", "value_cache_type", "flash_attention", "lora_adapters", "draft", "rope", "mmap", "mlock", "tensor_split", "main_gpu", "chat_template", "chat_family", "deterministic", "cache_tokens")
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    PARALLEL_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    GPU_LAYERS_FIELD_NUMBER: _ClassVar[int]
    THREADS_FIELD_NUMBER: _ClassVar[int]
    BATCH_THREADS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    KEY_CACHE_TYPE_FIELD_NUMBER: _ClassVar[int]
    VALUE_CACHE_TYPE_FIELD_NUMBER: _ClassVar[int]
    FLASH_ATTENTION_FIELD_NUMBER: _ClassVar[int]
    LORA_ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    DRAFT_FIELD_NUMBER: _ClassVar[int]
    ROPE_FIELD_NUMBER: _ClassVar[int]
    MMAP_FIELD_NUMBER: _ClassVar[int]
    MLOCK_FIELD_NUMBER: _ClassVar[int]
    TENSOR_SPLIT_FIELD_NUMBER: _ClassVar[int]
    MAIN_GPU_FIELD_NUMBER: _ClassVar[int]
    CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    CHAT_FAMILY_FIELD_NUMBER: _ClassVar[int]
    DETERMINISTIC_FIELD_NUMBER: _ClassVar[int]
    CACHE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    context_length: int
    parallel_sequences: int
    gpu_layers: int
    threads: int
    batch_threads: int
    batch_size: int
    micro_batch_size: int
    key_cache_type: CacheType
    value_cache_type: CacheType
    flash_attention: FlashAttention
    lora_adapters: _containers.RepeatedCompositeFieldContainer[LoraAdapter]
    draft: DraftModel
    rope: Rope
    mmap: bool
    mlock: bool
    tensor_split: _containers.RepeatedScalarFieldContainer[float]
    main_gpu: int
    chat_template: str
    chat_family: str
    deterministic: bool
    cache_tokens: int
    def __init__(self, context_length: _Optional[int] = ..., parallel_sequences: _Optional[int] = ..., gpu_layers: _Optional[int] = ..., threads: _Optional[int] = ..., batch_threads: _Optional[int] = ..., batch_size: _Optional[int] = ..., micro_batch_size: _Optional[int] = ..., key_cache_type: _Optional[_Union[CacheType, str]] = ..., value_cache_type: _Optional[_Union[CacheType, str]] = ..., flash_attention: _Optional[_Union[FlashAttention, str]] = ..., lora_adapters: _Optional[_Iterable[_Union[LoraAdapter, _Mapping]]] = ..., draft: _Optional[_Union[DraftModel, _Mapping]] = ..., rope: _Optional[_Union[Rope, _Mapping]] = ..., mmap: bool = ..., mlock: bool = ..., tensor_split: _Optional[_Iterable[float]] = ..., main_gpu: _Optional[int] = ..., chat_template: _Optional[str] = ..., chat_family: _Optional[str] = ..., deterministic: bool = ..., cache_tokens: _Optional[int] = ...) -> None: ...

class LoraAdapter(_message.Message):
    __slots__ = ("source", "scale")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    source: LocalSource
    scale: float
    def __init__(self, source: _Optional[_Union[LocalSource, _Mapping]] = ..., scale: _Optional[float] = ...) -> None: ...

class DraftModel(_message.Message):
    __slots__ = ("source", "max_tokens")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    source: LocalSource
    max_tokens: int
    def __init__(self, source: _Optional[_Union[LocalSource, _Mapping]] = ..., max_tokens: _Optional[int] = ...) -> None: ...

class Rope(_message.Message):
    __slots__ = ("scaling", "freq_base", "freq_scale", "yarn_ext_factor", "yarn_attn_factor", "yarn_beta_fast", "yarn_beta_slow", "yarn_orig_context")
    SCALING_FIELD_NUMBER: _ClassVar[int]
    FREQ_BASE_FIELD_NUMBER: _ClassVar[int]
    FREQ_SCALE_FIELD_NUMBER: _ClassVar[int]
    YARN_EXT_FACTOR_FIELD_NUMBER: _ClassVar[int]
    YARN_ATTN_FACTOR_FIELD_NUMBER: _ClassVar[int]
    YARN_BETA_FAST_FIELD_NUMBER: _ClassVar[int]
    YARN_BETA_SLOW_FIELD_NUMBER: _ClassVar[int]
    YARN_ORIG_CONTEXT_FIELD_NUMBER: _ClassVar[int]
    scaling: RopeScaling
    freq_base: float
    freq_scale: float
    yarn_ext_factor: float
    yarn_attn_factor: float
    yarn_beta_fast: float
    yarn_beta_slow: float
    yarn_orig_context: int
    def __init__(self, scaling: _Optional[_Union[RopeScaling, str]] = ..., freq_base: _Optional[float] = ..., freq_scale: _Optional[float] = ..., yarn_ext_factor: _Optional[float] = ..., yarn_attn_factor: _Optional[float] = ..., yarn_beta_fast: _Optional[float] = ..., yarn_beta_slow: _Optional[float] = ..., yarn_orig_context: _Optional[int] = ...) -> None: ...

class LoadProgress(_message.Message):
    __slots__ = ("stage", "fraction", "bytes_done", "bytes_total")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    BYTES_DONE_FIELD_NUMBER: _ClassVar[int]
    BYTES_TOTAL_FIELD_NUMBER: _ClassVar[int]
    stage: LoadStage
    fraction: float
    bytes_done: int
    bytes_total: int
    def __init__(self, stage: _Optional[_Union[LoadStage, str]] = ..., fraction: _Optional[float] = ..., bytes_done: _Optional[int] = ..., bytes_total: _Optional[int] = ...) -> None: ...

class Model(_message.Message):
    __slots__ = ("name", "state", "source", "backend", "instance_id", "architecture", "parameters", "quantization", "context_length", "training_context_length", "size_bytes", "memory_bytes", "capabilities", "config", "required", "pinned", "keep_alive", "streams_in_flight", "queue_length", "loaded_at", "last_used_at", "load_progress", "failure", "restarts", "candidates")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    INSTANCE_ID_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    TRAINING_CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    SIZE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    CAPABILITIES_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    REQUIRED_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    KEEP_ALIVE_FIELD_NUMBER: _ClassVar[int]
    STREAMS_IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    QUEUE_LENGTH_FIELD_NUMBER: _ClassVar[int]
    LOADED_AT_FIELD_NUMBER: _ClassVar[int]
    LAST_USED_AT_FIELD_NUMBER: _ClassVar[int]
    LOAD_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    FAILURE_FIELD_NUMBER: _ClassVar[int]
    RESTARTS_FIELD_NUMBER: _ClassVar[int]
    CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: ModelState
    source: ModelSource
    backend: str
    instance_id: str
    architecture: str
    parameters: int
    quantization: str
    context_length: int
    training_context_length: int
    size_bytes: int
    memory_bytes: int
    capabilities: Capabilities
    config: LoadConfig
    required: bool
    pinned: bool
    keep_alive: _duration_pb2.Duration
    streams_in_flight: int
    queue_length: int
    loaded_at: _timestamp_pb2.Timestamp
    last_used_at: _timestamp_pb2.Timestamp
    load_progress: LoadProgress
    failure: Failure
    restarts: int
    candidates: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[ModelState, str]] = ..., source: _Optional[_Union[ModelSource, _Mapping]] = ..., backend: _Optional[str] = ..., instance_id: _Optional[str] = ..., architecture: _Optional[str] = ..., parameters: _Optional[int] = ..., quantization: _Optional[str] = ..., context_length: _Optional[int] = ..., training_context_length: _Optional[int] = ..., size_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., capabilities: _Optional[_Union[Capabilities, _Mapping]] = ..., config: _Optional[_Union[LoadConfig, _Mapping]] = ..., required: bool = ..., pinned: bool = ..., keep_alive: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., streams_in_flight: _Optional[int] = ..., queue_length: _Optional[int] = ..., loaded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_used_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., load_progress: _Optional[_Union[LoadProgress, _Mapping]] = ..., failure: _Optional[_Union[Failure, _Mapping]] = ..., restarts: _Optional[int] = ..., candidates: _Optional[_Iterable[str]] = ...) -> None: ...

class Failure(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: _error_reason_pb2.ErrorReason
    message: str
    def __init__(self, reason: _Optional[_Union[_error_reason_pb2.ErrorReason, str]] = ..., message: _Optional[str] = ...) -> None: ...

class Capabilities(_message.Message):
    __slots__ = ("prompt", "chat", "tools", "reasoning", "structured_output", "logprobs", "embeddings", "images", "tokens")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    CHAT_FIELD_NUMBER: _ClassVar[int]
    TOOLS_FIELD_NUMBER: _ClassVar[int]
    REASONING_FIELD_NUMBER: _ClassVar[int]
    STRUCTURED_OUTPUT_FIELD_NUMBER: _ClassVar[int]
    LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    EMBEDDINGS_FIELD_NUMBER: _ClassVar[int]
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    prompt: bool
    chat: bool
    tools: bool
    reasoning: bool
    structured_output: bool
    logprobs: bool
    embeddings: bool
    images: bool
    tokens: bool
    def __init__(self, prompt: bool = ..., chat: bool = ..., tools: bool = ..., reasoning: bool = ..., structured_output: bool = ..., logprobs: bool = ..., embeddings: bool = ..., images: bool = ..., tokens: bool = ...) -> None: ...
