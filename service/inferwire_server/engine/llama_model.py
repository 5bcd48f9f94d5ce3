"""A model of llama.cpp: reads the file, fills in what a LoadConfig leaves open, and refuses what cannot work.

Low-level bindings of llama-cpp-python only. Nothing is computed here; `llama_runner` makes the context and computes.
"""

from __future__ import annotations

import ctypes
import functools
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

import llama_cpp

from inferwire.v1 import inference_pb2 as pb
from inferwire.v1 import models_pb2
from inferwire_server import errors

from .cells import Sharing
from .host import available_memory_bytes, num_usable_cores

MIN_CONTEXT_LENGTH = 8
DEFAULT_CONTEXT_LENGTH = 4096
DEFAULT_PARALLEL_SEQUENCES = 8
DEFAULT_BATCH_SIZE = 512
# llama.cpp rounds each sequence's buffer up to this many cells.
CELLS_MULTIPLE = 256

# Their files do not say so; llama.cpp knows them by name (src/models).
_NOT_CAUSAL = frozenset({"gemma-embedding", "dream", "llada", "llada-moe", "rnd1"})
# Positions of these are learnt, one vector each: beyond the last there is none, and llama.cpp aborts.
_LEARNT_POSITIONS = frozenset({"bert", "gpt2", "starcoder"})

_POOLINGS = {1: pb.POOLING_MEAN, 2: pb.POOLING_CLS, 3: pb.POOLING_LAST}
"""enum llama_pooling_type of include/llama.h -> ours."""

_CACHE_TYPES = {
    models_pb2.CACHE_TYPE_F32: (0, 4.0),
    models_pb2.CACHE_TYPE_F16: (1, 2.0),
    models_pb2.CACHE_TYPE_Q4_0: (2, 18 / 32),
    models_pb2.CACHE_TYPE_Q4_1: (3, 20 / 32),
    models_pb2.CACHE_TYPE_Q5_0: (6, 22 / 32),
    models_pb2.CACHE_TYPE_Q5_1: (7, 24 / 32),
    models_pb2.CACHE_TYPE_Q8_0: (8, 34 / 32),
    models_pb2.CACHE_TYPE_BF16: (30, 2.0),
}
"""Our type -> (ggml_type of ggml.h, bytes per element)."""

# Elements of one block of a quantized type; flash attention reads whole blocks of a head.
_BLOCK_SIZE = 32

_FLASH_ATTENTION = {
    models_pb2.FLASH_ATTENTION_AUTO: llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO,
    models_pb2.FLASH_ATTENTION_ON: llama_cpp.LLAMA_FLASH_ATTN_TYPE_ENABLED,
    models_pb2.FLASH_ATTENTION_OFF: llama_cpp.LLAMA_FLASH_ATTN_TYPE_DISABLED,
}

# llama.cpp's flash attention for processors takes a query's rows one by one and is slow beside its matrix products: a step of
# 16 sequences of 1,024 tokens takes twice as long. Without it the scores of a micro batch need memory: so much at most, and
# down to so small a micro batch, which is as fast there.
_MAX_SCORE_BYTES = 256 << 20
_MIN_SCORE_BATCH = 128

_ROPE_SCALING = {
    models_pb2.ROPE_SCALING_NONE: llama_cpp.LLAMA_ROPE_SCALING_TYPE_NONE,
    models_pb2.ROPE_SCALING_LINEAR: llama_cpp.LLAMA_ROPE_SCALING_TYPE_LINEAR,
    models_pb2.ROPE_SCALING_YARN: llama_cpp.LLAMA_ROPE_SCALING_TYPE_YARN,
    models_pb2.ROPE_SCALING_LONGROPE: llama_cpp.LLAMA_ROPE_SCALING_TYPE_LONGROPE,
}

# Enum llama_ftype of include/llama.h, the types that files of the field have.
_FILE_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 7: "Q8_0", 8: "Q5_0", 9: "Q5_1", 10: "Q2_K", 11: "Q3_K_S", 12: "Q3_K_M",
    13: "Q3_K_L", 14: "Q4_K_S", 15: "Q4_K_M", 16: "Q5_K_S", 17: "Q5_K_M", 18: "Q6_K", 19: "IQ2_XXS", 20: "IQ2_XS",
    21: "Q2_K_S", 22: "IQ3_XS", 23: "IQ3_XXS", 24: "IQ1_S", 25: "IQ4_NL", 26: "IQ3_S", 27: "IQ3_M", 28: "IQ2_S",
    29: "IQ2_M", 30: "IQ4_XS", 31: "IQ1_M", 32: "BF16",
}  # fmt: skip


@llama_cpp.llama_log_callback
def _log_to_stderr(level: int, text: bytes, user_data: object) -> None:
    # ggml_log_level of ggml.h: DEBUG is 1, ERROR 4, CONT 5. The gateway reads this pipe into its own log.
    if level != 1:
        sys.stderr.write(text.decode("utf-8", "replace"))


class LlamaVocabulary:
    """A model's vocabulary. Its calls only read the model, so any thread may make them."""

    def __init__(self, model: Any) -> None:
        self._vocab = llama_cpp.llama_model_get_vocab(model)
        self.num_tokens: int = llama_cpp.llama_vocab_n_tokens(self._vocab)
        self.piece = functools.lru_cache(maxsize=65536)(self._piece)

    @property
    def handle(self) -> Any:
        """The C pointer, for samplers."""
        return self._vocab

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Returns the tokens of a text."""
        data = text.encode()
        room = len(data) + 8
        tokens = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(
            self._vocab, data, len(data), tokens, room, add_special, parse_special
        )
        if count < 0:
            tokens = (llama_cpp.llama_token * -count)()
            count = llama_cpp.llama_tokenize(
                self._vocab, data, len(data), tokens, -count, add_special, parse_special
            )
        return list(tokens[:count])

    def _piece(self, token: int, *, special: bool = False) -> bytes:
        room = 64
        buffer = ctypes.create_string_buffer(room)
        size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, room, 0, special)
        if size < 0:
            buffer = ctypes.create_string_buffer(-size)
            size = llama_cpp.llama_token_to_piece(self._vocab, token, buffer, -size, 0, special)
        return buffer.raw[:size]

    def ends_generation(self, token: int) -> bool:
        """Whether the model says with this token that its answer ends."""
        return bool(llama_cpp.llama_vocab_is_eog(self._vocab, token))

    @functools.cache  # noqa: B019  one vocabulary per process
    def end_tokens(self) -> list[int]:
        """Returns every token that ends a generation."""
        return [token for token in range(self.num_tokens) if self.ends_generation(token)]

    def special_text(self, which: str) -> str:
        """Returns the text of the "bos" or "eos" token; empty when the model has none."""
        token = getattr(llama_cpp, f"llama_vocab_{which}")(self._vocab)
        return "" if token < 0 else self._piece(token, special=True).decode("utf-8", "replace")


class LlamaModel:
    """A loaded model, with the config in force.

    `adapters` are the paths of the config's LoRA adapters, in its order. Raises errors.ModelFileInvalid, InvalidRequest or
    InsufficientMemory when it cannot be served. `progress` is called with 0 to 1 while the file is read.
    """

    def __init__(
        self,
        path: str,
        asked: models_pb2.LoadConfig,
        *,
        adapters: Sequence[str] = (),
        progress: Callable[[float], None] = lambda fraction: None,
    ) -> None:
        llama_cpp.llama_log_set(_log_to_stderr, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()

        @llama_cpp.llama_progress_callback
        def on_progress(fraction: float, user_data: object) -> bool:
            progress(fraction)
            return True

        # Kept, because the model keeps the pointer to its tensor split.
        self._params = self._model_params(asked)
        self._params.progress_callback = on_progress
        self.handle = llama_cpp.llama_model_load_from_file(os.fsencode(path), self._params)
        if not self.handle:
            raise errors.ModelFileInvalid("the file is not a model that this server can load")
        is_encoder = llama_cpp.llama_model_has_encoder(self.handle)
        if is_encoder or not llama_cpp.llama_model_has_decoder(self.handle):
            raise errors.ModelFileInvalid(
                "the model is an encoder with a decoder, which this server does not run"
            )
        self.vocabulary = LlamaVocabulary(self.handle)
        self.config = self._resolve(asked)
        self._check_memory()
        self.adapters = [self._adapter(index, adapter) for index, adapter in enumerate(adapters)]

    def __repr__(self) -> str:
        return f"<LlamaModel [{self.architecture} | adapters {len(self.adapters)}]>"

    @property
    def architecture(self) -> str:
        """The file's general.architecture."""
        return self._metadata("general.architecture")

    @functools.cached_property
    def description(self) -> models_pb2.Model:
        """What the file says of itself, with the config in force."""
        file_type = llama_cpp.llama_model_ftype(self.handle)
        return models_pb2.Model(
            architecture=self.architecture,
            parameters=llama_cpp.llama_model_n_params(self.handle),
            quantization=_FILE_TYPES.get(file_type, ""),
            context_length=self.config.context_length,
            training_context_length=llama_cpp.llama_model_n_ctx_train(self.handle),
            size_bytes=llama_cpp.llama_model_size(self.handle),
            config=self.config,
        )

    @functools.cached_property
    def chat_template(self) -> str:
        """The Jinja template of the file; empty when it has none."""
        text = llama_cpp.llama_model_chat_template(self.handle, None)
        return text.decode("utf-8", "replace") if text else ""

    @functools.cached_property
    def sharing(self) -> Sharing:
        """What may be done with computed tokens. A state that only goes forward, and a window, cannot be cut anywhere."""
        if self.config.deterministic or not self.is_causal:
            return Sharing.NONE
        if (
            llama_cpp.llama_model_is_recurrent(self.handle)
            or llama_cpp.llama_model_is_hybrid(self.handle)
            or llama_cpp.llama_model_n_swa(self.handle) > 0
        ):
            return Sharing.WHOLE
        return Sharing.PREFIX

    @property
    def num_pooled_cells(self) -> int | None:
        """Cells that all sequences share; None when each has a buffer for its whole context."""
        return _pooled_cells(self.config)

    @functools.cached_property
    def is_causal(self) -> bool:
        """Whether tokens see only what is before them. A model that is not causal embeds, and completes nothing."""
        if self.architecture in _NOT_CAUSAL:
            return False
        return self._metadata(f"{self.architecture}.attention.causal") != "false"

    @property
    def max_embed_tokens(self) -> int:
        """Tokens that a text may have to be embedded."""
        limit = self.config.context_length
        return limit if self.is_causal else min(limit, self.config.micro_batch_size)

    @functools.cached_property
    def width(self) -> int:
        """Components of a vector."""
        return int(llama_cpp.llama_model_n_embd_out(self.handle))

    @functools.cached_property
    def pooling(self) -> pb.Pooling:
        """How the file says that tokens' vectors become one; the last token's where a causal model does not say."""
        own = self._metadata(f"{self.architecture}.pooling_type")
        default = pb.POOLING_LAST if self.is_causal else pb.POOLING_MEAN
        return _POOLINGS.get(int(own), default) if own.isdecimal() else default

    def new_context(self) -> Any:
        """Returns a context with the config in force and the adapters. InsufficientMemory when it cannot be made."""
        context = llama_cpp.llama_init_from_model(self.handle, self._context_params())
        if not context:
            raise errors.InsufficientMemory("the model's context could not be made with this config")
        if self.adapters:
            adapters = (llama_cpp.llama_adapter_lora_p_ctypes * len(self.adapters))(*self.adapters)
            scales = [each.scale if each.HasField("scale") else 1.0 for each in self.config.lora_adapters]
            count = len(self.adapters)
            code = llama_cpp.llama_set_adapters_lora(
                context, adapters, count, (ctypes.c_float * count)(*scales)
            )
            if code:
                raise errors.ModelFileInvalid("the adapters cannot be applied to the model")
        return context

    def _adapter(self, index: int, path: str) -> Any:
        adapter = llama_cpp.llama_adapter_lora_init(self.handle, os.fsencode(path))
        if not adapter:
            raise errors.ModelFileInvalid(
                "an adapter's file is not a LoRA adapter of this model",
                violations=[(f"config.lora_adapters[{index}]", "is not an adapter of this model")],
            )
        return adapter

    def _resolve(self, asked: models_pb2.LoadConfig) -> models_pb2.LoadConfig:
        """Returns the config in force: defaults filled in, impossible values refused."""
        config = models_pb2.LoadConfig()
        config.CopyFrom(asked)
        trained = llama_cpp.llama_model_n_ctx_train(self.handle)
        if trained < MIN_CONTEXT_LENGTH:
            raise errors.ModelFileInvalid("the model's own context is too short to be served")
        if not config.HasField("context_length"):
            config.context_length = min(trained, DEFAULT_CONTEXT_LENGTH)
        elif config.context_length > trained and self.architecture in _LEARNT_POSITIONS:
            raise errors.InvalidRequest(
                "the context is longer than the model's own, and its positions cannot be stretched",
                violations=[("config.context_length", f"at most {trained}")],
            )
        elif config.context_length > trained and not config.HasField("rope"):
            raise errors.InvalidRequest(
                "the context is longer than the model's own; set config.rope to stretch it",
                violations=[("config.context_length", f"at most {trained} without rope")],
            )
        if config.deterministic:
            config.parallel_sequences = 1
        elif not config.HasField("parallel_sequences"):
            config.parallel_sequences = DEFAULT_PARALLEL_SEQUENCES
        if not config.HasField("batch_size"):
            config.batch_size = max(DEFAULT_BATCH_SIZE, config.parallel_sequences)
            if not self.is_causal:
                # A text is computed whole.
                config.batch_size = max(config.batch_size, config.context_length)
        if config.batch_size < config.parallel_sequences:
            problem = f"at least parallel_sequences ({config.parallel_sequences})"
            raise errors.InvalidRequest(
                "a step must have room for one token of each sequence",
                violations=[("config.batch_size", problem)],
            )
        if not config.HasField("micro_batch_size"):
            config.micro_batch_size = (
                min(config.batch_size, DEFAULT_BATCH_SIZE) if self.is_causal else config.batch_size
            )
        if config.micro_batch_size > config.batch_size:
            raise errors.InvalidRequest(
                "what is computed at once is a part of a step",
                violations=[("config.micro_batch_size", f"at most batch_size ({config.batch_size})")],
            )
        self._resolve_cache_tokens(config)
        if not config.HasField("threads"):
            config.threads = num_usable_cores()
        if not config.HasField("batch_threads"):
            config.batch_threads = config.threads
        config.key_cache_type = config.key_cache_type or models_pb2.CACHE_TYPE_F16
        config.value_cache_type = config.value_cache_type or models_pb2.CACHE_TYPE_F16
        self._resolve_flash_attention(
            config, may_shrink=self.is_causal and not asked.HasField("micro_batch_size")
        )
        self._check_cache_types(config)
        if not config.HasField("mmap"):
            config.mmap = True
        if not config.HasField("mlock"):
            config.mlock = False
        config.deterministic = asked.deterministic
        return config

    def _resolve_cache_tokens(self, config: models_pb2.LoadConfig) -> None:
        whole = config.context_length * config.parallel_sequences
        if not config.HasField("cache_tokens") or llama_cpp.llama_model_is_recurrent(self.handle):
            # A recurrent model's memory is a state per sequence, whatever the number of tokens.
            config.cache_tokens = whole
        if not config.context_length <= config.cache_tokens <= whole:
            raise errors.InvalidRequest(
                "the cache must hold one request's context, and no more than everybody's",
                violations=[("config.cache_tokens", f"from {config.context_length} to {whole}")],
            )

    def _resolve_flash_attention(self, config: models_pb2.LoadConfig, *, may_shrink: bool) -> None:
        """Chooses, where nobody else did, and shrinks the micro batch for it if it may; see `_MAX_SCORE_BYTES`."""
        if config.flash_attention not in (
            models_pb2.FLASH_ATTENTION_UNSPECIFIED,
            models_pb2.FLASH_ATTENTION_AUTO,
        ):
            return
        config.flash_attention = models_pb2.FLASH_ATTENTION_AUTO
        has_gpu = llama_cpp.llama_supports_gpu_offload() and config.gpu_layers != 0
        if has_gpu or _is_quantized(config.key_cache_type) or _is_quantized(config.value_cache_type):
            return
        num_cells = _padded(_pooled_cells(config) or config.context_length)
        row_bytes = 4 * max(1, llama_cpp.llama_model_n_head(self.handle)) * num_cells
        micro_batch = config.micro_batch_size
        while (
            may_shrink and micro_batch * row_bytes > _MAX_SCORE_BYTES and micro_batch >= 2 * _MIN_SCORE_BATCH
        ):
            micro_batch //= 2
        if micro_batch * row_bytes <= _MAX_SCORE_BYTES:
            config.flash_attention = models_pb2.FLASH_ATTENTION_OFF
            config.micro_batch_size = micro_batch

    def _check_cache_types(self, config: models_pb2.LoadConfig) -> None:
        """Refuses quantized caches that llama.cpp cannot make, so that a failed context means too little memory."""
        flash = config.flash_attention != models_pb2.FLASH_ATTENTION_OFF
        violations = []
        if not flash and _is_quantized(config.value_cache_type):
            violations.append(("config.value_cache_type", "a quantized type needs flash attention"))
        for name, width in zip(("key_cache_type", "value_cache_type"), self._head_widths(), strict=True):
            if flash and _is_quantized(getattr(config, name)) and width % _BLOCK_SIZE:
                problem = f"a quantized type needs heads of a multiple of {_BLOCK_SIZE} values, not {width}"
                violations.append((f"config.{name}", problem))
        if violations:
            raise errors.InvalidRequest("the model's cache cannot have this type", violations=violations)

    @staticmethod
    def _model_params(asked: models_pb2.LoadConfig) -> Any:
        params = llama_cpp.llama_model_default_params()
        if asked.HasField("gpu_layers"):
            params.n_gpu_layers = asked.gpu_layers
        if asked.HasField("main_gpu"):
            params.main_gpu = asked.main_gpu
        if asked.HasField("mmap") or asked.HasField("mlock"):
            mmap = asked.mmap if asked.HasField("mmap") else True
            params.load_mode = {
                (False, False): llama_cpp.LLAMA_LOAD_MODE_NONE,
                (True, False): llama_cpp.LLAMA_LOAD_MODE_MMAP,
                (False, True): llama_cpp.LLAMA_LOAD_MODE_MLOCK,
                (True, True): llama_cpp.LLAMA_LOAD_MODE_MMAP_MLOCK,
            }[mmap, asked.mlock]
        if asked.tensor_split:
            devices = llama_cpp.llama_max_devices()
            if len(asked.tensor_split) > devices:
                raise errors.InvalidRequest(
                    "more shares than devices",
                    violations=[("config.tensor_split", f"at most {devices} entries")],
                )
            split = (ctypes.c_float * devices)(*asked.tensor_split)
            params.tensor_split = split
        return params

    def _context_params(self) -> Any:
        config, rope = self.config, self.config.rope
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = self._num_cells
        params.n_seq_max = config.parallel_sequences
        # One buffer per sequence where memory allows: attention then walks only the sequence's own cells.
        params.kv_unified = self.num_pooled_cells is not None
        params.n_batch = config.batch_size
        params.n_ubatch = config.micro_batch_size
        params.n_threads = config.threads
        params.n_threads_batch = config.batch_threads
        params.type_k = _CACHE_TYPES[config.key_cache_type][0]
        params.type_v = _CACHE_TYPES[config.value_cache_type][0]
        params.flash_attn_type = _FLASH_ATTENTION[config.flash_attention]
        # Pooling is done here, by what a request wants and over chunks.
        params.pooling_type = llama_cpp.LLAMA_POOLING_TYPE_NONE
        params.no_perf = True
        if rope.scaling:
            params.rope_scaling_type = _ROPE_SCALING[rope.scaling]
        for ours, theirs in (
            ("freq_base", "rope_freq_base"),
            ("freq_scale", "rope_freq_scale"),
            ("yarn_ext_factor", "yarn_ext_factor"),
            ("yarn_attn_factor", "yarn_attn_factor"),
            ("yarn_beta_fast", "yarn_beta_fast"),
            ("yarn_beta_slow", "yarn_beta_slow"),
            ("yarn_orig_context", "yarn_orig_ctx"),
        ):
            if rope.HasField(ours):
                setattr(params, theirs, getattr(rope, ours))
        return params

    def _check_memory(self) -> None:
        """Refuses a cache that cannot fit: Linux would grant the memory and then kill the process that touches it."""
        available = available_memory_bytes()
        model = self.handle
        has_state = llama_cpp.llama_model_is_recurrent(model) or llama_cpp.llama_model_is_hybrid(model)
        if available is None or has_state:
            return
        config = self.config
        key_width, value_width = self._head_widths()
        head_bytes = key_width * _CACHE_TYPES[config.key_cache_type][1]
        head_bytes += value_width * _CACHE_TYPES[config.value_cache_type][1]
        num_heads = llama_cpp.llama_model_n_layer(model) * llama_cpp.llama_model_n_head_kv(model)
        needed = int(self._num_cells * num_heads * head_bytes)
        if needed > available:
            raise errors.InsufficientMemory(
                "the cache of this context and number of sequences does not fit into memory; lower one of them",
                metadata={"neededBytes": str(needed), "availableBytes": str(available)},
            )

    @property
    def _num_cells(self) -> int:
        """Cells of all sequences, as llama.cpp rounds them."""
        if self.num_pooled_cells is not None:
            return _padded(self.num_pooled_cells)
        return _padded(self.config.context_length) * self.config.parallel_sequences

    def _head_widths(self) -> tuple[int, int]:
        """Returns the values of a head's key and of its value: as the file says, else its share of the width."""
        architecture = self.architecture
        share = llama_cpp.llama_model_n_embd(self.handle) // max(1, llama_cpp.llama_model_n_head(self.handle))
        key = self._metadata(f"{architecture}.attention.key_length")
        value = self._metadata(f"{architecture}.attention.value_length")
        return int(key) if key.isdecimal() else share, int(value) if value.isdecimal() else share

    def _metadata(self, key: str) -> str:
        buffer = ctypes.create_string_buffer(256)
        size = llama_cpp.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", "replace") if size >= 0 else ""


def _pooled_cells(config: models_pb2.LoadConfig) -> int | None:
    is_whole = config.cache_tokens == config.context_length * config.parallel_sequences
    return None if is_whole else config.cache_tokens


def _padded(num_cells: int) -> int:
    return -(-num_cells // CELLS_MULTIPLE) * CELLS_MULTIPLE


def _is_quantized(cache_type: models_pb2.CacheType) -> bool:
    return _CACHE_TYPES[cache_type][1] < 2
