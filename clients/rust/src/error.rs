//! The one error of this crate, and the only place that reads a gRPC status.

use std::collections::BTreeMap;
use std::error::Error as StdError;
use std::fmt;
use std::time::Duration;

use prost::Message;
use tonic::{Code, ConnectError, Status, TimeoutExpired, transport};

use crate::v1::ErrorReason;

const DOMAIN: &str = "inferwire.dev";

/// A call failed. [`code`](Error::code) is for who retries, [`reason`](Error::reason) for who branches,
/// [`message`](Error::message) for people.
#[derive(Clone, PartialEq)]
pub struct Error(Box<Failure>);

#[derive(Clone, PartialEq)]
struct Failure {
    code: Code,
    reason: String,
    message: String,
    metadata: BTreeMap<String, String>,
    retry_delay: Option<Duration>,
    violations: Vec<Violation>,
    resource: String,
}

/// A field of the request that the server refuses, and why.
#[derive(Clone, PartialEq, Eq, Hash, prost::Message)]
pub struct Violation {
    /// The field's path, such as `sampling.temperature`.
    #[prost(string, tag = "1")]
    pub field: String,
    /// What is wrong with it.
    #[prost(string, tag = "2")]
    pub description: String,
}

impl Error {
    /// The gRPC code.
    pub fn code(&self) -> Code {
        self.0.code
    }

    /// The code's canonical name, such as `UNAVAILABLE`.
    pub fn code_name(&self) -> &'static str {
        match self.0.code {
            Code::Ok => "OK",
            Code::Cancelled => "CANCELLED",
            Code::Unknown => "UNKNOWN",
            Code::InvalidArgument => "INVALID_ARGUMENT",
            Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
            Code::NotFound => "NOT_FOUND",
            Code::AlreadyExists => "ALREADY_EXISTS",
            Code::PermissionDenied => "PERMISSION_DENIED",
            Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
            Code::FailedPrecondition => "FAILED_PRECONDITION",
            Code::Aborted => "ABORTED",
            Code::OutOfRange => "OUT_OF_RANGE",
            Code::Unimplemented => "UNIMPLEMENTED",
            Code::Internal => "INTERNAL",
            Code::Unavailable => "UNAVAILABLE",
            Code::DataLoss => "DATA_LOSS",
            Code::Unauthenticated => "UNAUTHENTICATED",
        }
    }

    /// The name of an [`ErrorReason`] without its prefix, such as `QUEUE_FULL`, also one that this version does not
    /// know; empty when the failure is not the service's own: no server there, a proxy's answer, the transport.
    pub fn reason(&self) -> &str {
        &self.0.reason
    }

    /// The reason as the contract's enum; None when there is none or this version does not know it.
    pub fn known_reason(&self) -> Option<ErrorReason> {
        ErrorReason::from_str_name(&format!("ERROR_REASON_{}", self.0.reason))
            .filter(|reason| *reason != ErrorReason::Unspecified)
    }

    /// A sentence for people.
    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// What the reason documents, such as `{"model": "demo", "queueCapacity": "64"}`.
    pub fn metadata(&self) -> &BTreeMap<String, String> {
        &self.0.metadata
    }

    /// After how long the server wants to be asked again; None: it does not say.
    pub fn retry_delay(&self) -> Option<Duration> {
        self.0.retry_delay
    }

    /// The fields of the request that the server refuses.
    pub fn violations(&self) -> &[Violation] {
        &self.0.violations
    }

    /// The name of the thing that was not found, such as a model's; empty when the server names none.
    pub fn resource(&self) -> &str {
        &self.0.resource
    }

    pub(crate) fn new(code: Code, message: impl Into<String>) -> Self {
        Self(Box::new(Failure {
            code,
            reason: String::new(),
            message: message.into(),
            metadata: BTreeMap::new(),
            retry_delay: None,
            violations: Vec::new(),
            resource: String::new(),
        }))
    }

    /// The failure of a stream that ended with OK but without its last event.
    pub(crate) fn stream_truncated() -> Self {
        let mut error =
            Self::new(Code::Aborted, "the stream ended without its last event; the answer may be cut short");
        error.0.reason = "STREAM_TRUNCATED".to_owned();
        error
    }

    /// The failure of a call whose own deadline passed.
    pub(crate) fn deadline_exceeded() -> Self {
        Self::new(Code::DeadlineExceeded, "the call's deadline passed")
    }

    fn read_details(&mut self, data: &[u8]) -> Result<(), prost::DecodeError> {
        let mut info = ErrorInfo::default();
        let mut retry = RetryInfo::default();
        let mut request = BadRequest::default();
        let mut resource = ResourceInfo::default();
        for detail in StatusDetails::decode(data)?.details {
            let value = detail.value.as_slice();
            match detail.type_url.rsplit('/').next() {
                Some("google.rpc.ErrorInfo") => info = Message::decode(value)?,
                Some("google.rpc.RetryInfo") => retry = Message::decode(value)?,
                Some("google.rpc.BadRequest") => request = Message::decode(value)?,
                Some("google.rpc.ResourceInfo") => resource = Message::decode(value)?,
                _ => {}
            }
        }
        if info.domain == DOMAIN {
            self.0.reason = info.reason;
            self.0.metadata = info.metadata;
        }
        self.0.retry_delay = retry.retry_delay.and_then(|delay| delay.try_into().ok());
        self.0.violations = request.field_violations;
        self.0.resource = resource.resource_name;
        Ok(())
    }
}

impl From<Status> for Error {
    /// Reads a status. Details that are absent, foreign or garbage leave only code and message.
    fn from(status: Status) -> Self {
        if let Some(source) = status.source() {
            return Self::new(transport_code(source), told(source));
        }
        let code = match status.code() {
            // What tonic calls a message over the limit; gRPC calls it RESOURCE_EXHAUSTED, and the contract knows no
            // OUT_OF_RANGE.
            Code::OutOfRange => Code::ResourceExhausted,
            code => code,
        };
        let mut error = Self::new(code, status.message());
        // Nothing is kept of details that cannot be read to their end.
        let _ = error.read_details(status.details());
        error
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.reason() {
            "" => self.code_name(),
            reason => reason,
        };
        write!(f, "{name}: {}", self.message())?;
        for violation in self.violations() {
            write!(f, "; {}: {}", violation.field, violation.description)?;
        }
        Ok(())
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Failure { code, reason, message, metadata, retry_delay, violations, resource } = &*self.0;
        f.debug_struct("Error")
            .field("code", code)
            .field("reason", reason)
            .field("message", message)
            .field("metadata", metadata)
            .field("retry_delay", retry_delay)
            .field("violations", violations)
            .field("resource", resource)
            .finish()
    }
}

impl StdError for Error {}

/// Returns the status of a call that got no answer from a server.
pub(crate) fn of_transport(error: &transport::Error) -> Status {
    Status::new(transport_code(error), told(error))
}

/// Returns gRPC's code of a failure of the connection or of one stream on it.
/// https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md#errors
fn transport_code(error: &(dyn StdError + 'static)) -> Code {
    for cause in causes(error) {
        if cause.is::<TimeoutExpired>() {
            return Code::DeadlineExceeded;
        }
        if cause.is::<ConnectError>() {
            return Code::Unavailable;
        }
        if let Some(reset) = cause.downcast_ref::<h2::Error>().filter(|reset| reset.is_reset()) {
            return match reset.reason() {
                Some(h2::Reason::REFUSED_STREAM) | None => Code::Unavailable,
                Some(h2::Reason::CANCEL) => Code::Cancelled,
                Some(h2::Reason::ENHANCE_YOUR_CALM) => Code::ResourceExhausted,
                Some(h2::Reason::INADEQUATE_SECURITY) => Code::PermissionDenied,
                Some(_) => Code::Internal,
            };
        }
    }
    // The connection is lost, or the server takes no new streams on it.
    Code::Unavailable
}

/// Returns what an error and its causes say, outermost first.
fn told(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = causes(error).map(ToString::to_string).collect();
    texts.dedup();
    texts.join(": ")
}

fn causes<'a>(error: &'a (dyn StdError + 'static)) -> impl Iterator<Item = &'a (dyn StdError + 'static)> {
    std::iter::successors(Some(error), |&error| error.source())
}

// What of google/rpc/status.proto and error_details.proto is read here, each field with its own number.

#[derive(Clone, PartialEq, prost::Message)]
struct StatusDetails {
    #[prost(message, repeated, tag = "3")]
    details: Vec<prost_types::Any>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ErrorInfo {
    #[prost(string, tag = "1")]
    reason: String,
    #[prost(string, tag = "2")]
    domain: String,
    #[prost(btree_map = "string, string", tag = "3")]
    metadata: BTreeMap<String, String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RetryInfo {
    #[prost(message, optional, tag = "1")]
    retry_delay: Option<prost_types::Duration>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct BadRequest {
    #[prost(message, repeated, tag = "1")]
    field_violations: Vec<Violation>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceInfo {
    #[prost(string, tag = "2")]
    resource_name: String,
}
