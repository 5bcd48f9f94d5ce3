"""Every failure that a caller may see, as one tree. Imports nothing; `status` gives each its gRPC codes.

    ServingError
    +-- RequestError
    |     +-- InvalidRequest
    |     +-- MalformedMessage
    |     +-- PromptTooLarge
    |     +-- RequestTooLarge
    |     +-- ContextLengthExceeded
    |     +-- TemplateRejected
    |     +-- GrammarInvalid
    |     +-- GrammarTooComplex
    |     +-- UnsupportedByBackend
    |     +-- ModelNotFound
    |     +-- BackendNotFound
    |     +-- ModelPathNotAllowed
    |     +-- ModelFileNotFound
    +-- IdentityError
    |     +-- TokenMissing
    |     +-- TokenInvalid
    |     +-- ScopeRequired
    +-- ModelError
    |     +-- ModelNotLoaded
    |     +-- ModelLoading
    |     +-- ModelUnloading
    |     +-- ModelUnloaded
    |     +-- ModelFailed
    |     +-- ModelBusy
    |     +-- ModelConfigConflict
    |     +-- ModelFileInvalid
    |     +-- TemplateInvalid
    |     +-- InsufficientMemory
    |     +-- LoadStalled
    |     +-- LoadCancelled
    +-- EngineError
    |     +-- EngineCrashed
    |     +-- EngineStalled
    |     +-- RequestQuarantined
    +-- LoadSheddingError
    |     +-- QueueFull
    |     +-- RateLimited
    |     +-- DeadlineUnreachable
    |     +-- Draining
    |     +-- DrainTimeout
    |     +-- ClientTooSlow
    +-- CallEnded
    |     +-- Cancelled
    |     +-- DeadlineExceeded
    +-- UpstreamError
    |     +-- UpstreamUnavailable
    |     +-- UpstreamRateLimited
    |     +-- UpstreamRejected
    |     +-- UpstreamAuth
    |     +-- UpstreamModelNotFound
    |     +-- UpstreamProtocolError
    |     +-- UpstreamStalled
    |     +-- UpstreamTruncated
    |     +-- UpstreamRedirect
    +-- DefectError
    |     +-- Internal
    |     +-- StreamTruncated

The leaves are raised, one for each value of the contract's ErrorReason, whose name is the class's `reason`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Self


class ServingError(Exception):
    """A failure with a reason of the contract.

    `message` is for the caller: what to do next, and no path, exception text or exit code. `metadata` becomes
    ErrorInfo's metadata (lowerCamelCase keys); `violations` are pairs of a field path and what is wrong with it;
    `retry_delay_seconds` becomes RetryInfo; `detail` goes to the log and nowhere else.
    """

    reason = ""

    def __init__(
        self,
        message: str,
        *,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[tuple[str, str]] = (),
        retry_delay_seconds: float | None = None,
        detail: str = "",
    ) -> None:
        super().__init__(message)
        self.message = message
        self.metadata = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_delay_seconds = retry_delay_seconds
        self.detail = detail

    def copy(self) -> Self:
        """Returns an equal failure for another caller: one that is raised twice would gather both tracebacks."""
        return type(self)(
            self.message,
            metadata=self.metadata,
            violations=self.violations,
            retry_delay_seconds=self.retry_delay_seconds,
            detail=self.detail,
        )

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.reason} {self.message!r}>"


class RequestError(ServingError):
    """The request itself is wrong; sending it again changes nothing."""


class InvalidRequest(RequestError):
    """A field is missing, out of range or at odds with another. BadRequest says which and why."""

    reason = "INVALID_REQUEST"


class MalformedMessage(RequestError):
    """The bytes are not the request's message, or a string in it is not UTF-8."""

    reason = "MALFORMED_MESSAGE"


class PromptTooLarge(RequestError):
    """The text exceeds the server's limit in bytes."""

    reason = "PROMPT_TOO_LARGE"


class RequestTooLarge(RequestError):
    """An image, schema, grammar or list exceeds its limit."""

    reason = "REQUEST_TOO_LARGE"


class ContextLengthExceeded(RequestError):
    """The prompt has more tokens than the model's context has room for. Nothing is cut silently."""

    reason = "CONTEXT_LENGTH_EXCEEDED"


class TemplateRejected(RequestError):
    """The model's chat template refuses this conversation, or rendering it exceeds a limit."""

    reason = "TEMPLATE_REJECTED"


class GrammarInvalid(RequestError):
    """The response format cannot be read, or holds something that cannot be enforced."""

    reason = "GRAMMAR_INVALID"


class GrammarTooComplex(RequestError):
    """The response format exceeds the limits on size or depth."""

    reason = "GRAMMAR_TOO_COMPLEX"


class UnsupportedByBackend(RequestError):
    """The backend or model cannot honour a field. BadRequest says which; the model's capabilities say what it can."""

    reason = "UNSUPPORTED_BY_BACKEND"


class ModelNotFound(RequestError):
    """No model, alias or route has this name. ResourceInfo repeats it."""

    reason = "MODEL_NOT_FOUND"


class BackendNotFound(RequestError):
    """The operator configured no backend of this id."""

    reason = "BACKEND_NOT_FOUND"


class ModelPathNotAllowed(RequestError):
    """The path leaves the operator's model roots. The answer is the same whether it exists or not."""

    reason = "MODEL_PATH_NOT_ALLOWED"


class ModelFileNotFound(RequestError):
    """No regular file of this name lies beneath a model root."""

    reason = "MODEL_FILE_NOT_FOUND"


class IdentityError(ServingError):
    """The caller may not do this."""


class TokenMissing(IdentityError):
    """The call carries no key."""

    reason = "TOKEN_MISSING"


class TokenInvalid(IdentityError):
    """The key is unknown or expired; which of the two is not said."""

    reason = "TOKEN_INVALID"


class ScopeRequired(IdentityError):
    """The key lacks the scope of this call."""

    reason = "SCOPE_REQUIRED"


class ModelError(ServingError):
    """The model is not in a state to answer."""


class ModelNotLoaded(ModelError):
    """The model is known but not in memory. Load it first."""

    reason = "MODEL_NOT_LOADED"


class ModelLoading(ModelError):
    """The model is being loaded, or its engine is being started again."""

    reason = "MODEL_LOADING"


class ModelUnloading(ModelError):
    """The model is being unloaded."""

    reason = "MODEL_UNLOADING"


class ModelUnloaded(ModelError):
    """The model was unloaded while the request was on it."""

    reason = "MODEL_UNLOADED"


class ModelFailed(ModelError):
    """The model could not be loaded, or crashed too often. GetModel says more; Load tries again."""

    reason = "MODEL_FAILED"


class ModelBusy(ModelError):
    """Another load of this name with other settings is running."""

    reason = "MODEL_BUSY"


class ModelConfigConflict(ModelError):
    """The name is loaded with another source or config. Unload it first, or set replace."""

    reason = "MODEL_CONFIG_CONFLICT"


class ModelFileInvalid(ModelError):
    """The file is not a model that this server can load. The log has the loader's words under the errorId."""

    reason = "MODEL_FILE_INVALID"


class TemplateInvalid(ModelError):
    """The chat template cannot be compiled or fails on a plain conversation."""

    reason = "TEMPLATE_INVALID"


class InsufficientMemory(ModelError):
    """The model with its cache does not fit into memory."""

    reason = "INSUFFICIENT_MEMORY"


class LoadStalled(ModelError):
    """The load made no progress for the server's limit and was ended."""

    reason = "LOAD_STALLED"


class LoadCancelled(ModelError):
    """An Unload, a replacing Load or the server's end stopped the load."""

    reason = "LOAD_CANCELLED"


class EngineError(ServingError):
    """The engine process failed; the request may be sound."""


class EngineCrashed(EngineError):
    """The engine process ended. It is being started again; other models did not notice."""

    reason = "ENGINE_CRASHED"


class EngineStalled(EngineError):
    """The engine process made no progress for the stall limit and was ended."""

    reason = "ENGINE_STALLED"


class RequestQuarantined(EngineError):
    """This very request crashed the engine more than once. Do not send it again."""

    reason = "REQUEST_QUARANTINED"


class LoadSheddingError(ServingError):
    """The server protects itself; nothing was computed."""


class QueueFull(LoadSheddingError):
    """The model's queue is full."""

    reason = "QUEUE_FULL"


class RateLimited(LoadSheddingError):
    """The caller's rate, concurrency or token quota is used up."""

    reason = "RATE_LIMITED"


class DeadlineUnreachable(LoadSheddingError):
    """The queue is longer than the call's deadline."""

    reason = "DEADLINE_UNREACHABLE"


class Draining(LoadSheddingError):
    """The server is going away; another replica will answer."""

    reason = "DRAINING"


class DrainTimeout(LoadSheddingError):
    """The server ended before the answer did."""

    reason = "DRAIN_TIMEOUT"


class ClientTooSlow(LoadSheddingError):
    """The caller did not read for the server's limit."""

    reason = "CLIENT_TOO_SLOW"


class CallEnded(ServingError):
    """The caller ended the call."""


class Cancelled(CallEnded):
    """The caller cancelled. Most libraries report it without these details."""

    reason = "CANCELLED"


class DeadlineExceeded(CallEnded):
    """The call's deadline passed. Most libraries report it without these details."""

    reason = "DEADLINE_EXCEEDED"


class UpstreamError(ServingError):
    """A remote backend failed."""


class UpstreamUnavailable(UpstreamError):
    """The provider cannot be reached, or says that it is overloaded."""

    reason = "UPSTREAM_UNAVAILABLE"


class UpstreamRateLimited(UpstreamError):
    """The provider limits the operator's key."""

    reason = "UPSTREAM_RATE_LIMITED"


class UpstreamRejected(UpstreamError):
    """The provider refuses the request."""

    reason = "UPSTREAM_REJECTED"


class UpstreamAuth(UpstreamError):
    """The provider refuses the operator's key; the caller's is not in question."""

    reason = "UPSTREAM_AUTH"


class UpstreamModelNotFound(UpstreamError):
    """The provider has no such model."""

    reason = "UPSTREAM_MODEL_NOT_FOUND"


class UpstreamProtocolError(UpstreamError):
    """The provider's answer breaks its own format."""

    reason = "UPSTREAM_PROTOCOL_ERROR"


class UpstreamStalled(UpstreamError):
    """The provider sent nothing, or nothing of use, for the idle limit."""

    reason = "UPSTREAM_STALLED"


class UpstreamTruncated(UpstreamError):
    """The provider's stream ended without its terminal event."""

    reason = "UPSTREAM_TRUNCATED"


class UpstreamRedirect(UpstreamError):
    """The provider answered with a redirect, which is never followed."""

    reason = "UPSTREAM_REDIRECT"


class DefectError(ServingError):
    """Somebody's program is wrong."""


class Internal(DefectError):
    """A defect of the server. The log has it under the errorId."""

    reason = "INTERNAL"


class StreamTruncated(DefectError):
    """Made by a client, never sent: the stream ended with OK but without a completion."""

    reason = "STREAM_TRUNCATED"


def leaves(root: type[ServingError] = ServingError) -> list[type[ServingError]]:
    """Returns the classes that are raised, in the order of the tree."""
    children = root.__subclasses__()
    return [leaf for child in children for leaf in leaves(child)] if children else [root]


BY_REASON = {leaf.reason: leaf for leaf in leaves()}
