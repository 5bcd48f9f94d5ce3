//! The connection under every stub: it adds the key and the deadline, and it is gRPC's retry policy, which tonic lacks.
//!
//! It reads headers and trailers, never a message.

use std::fmt;
use std::future::{Future, poll_fn};
use std::hash::{BuildHasher, RandomState};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, request};
use http_body_util::{BodyExt, Full};
use tokio::time::Instant;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, Status};
use tower_service::Service;

use crate::error::of_transport;

const MAX_ATTEMPTS: u32 = 3;
const INITIAL_BACKOFF: Duration = Duration::from_millis(200);
const MAX_BACKOFF: Duration = Duration::from_secs(2);
const BACKOFF_MULTIPLIER: u32 = 2;
// Loads are not in it: to repeat one is the caller's decision.
const RETRIED_SERVICE: &str = "/inferwire.v1.InferenceService/";

const STATUS: HeaderName = HeaderName::from_static("grpc-status");
const DETAILS: HeaderName = HeaderName::from_static("grpc-status-details-bin");
const TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
const PUSHBACK: HeaderName = HeaderName::from_static("grpc-retry-pushback-ms");
const PREVIOUS_ATTEMPTS: HeaderName = HeaderName::from_static("grpc-previous-rpc-attempts");

/// When a call ends at the latest, as an extension of its request.
#[derive(Clone, Copy)]
pub(crate) struct Deadline(pub(crate) Instant);

/// A connection to a server, for the stubs of any service: those of [`v1`](crate::v1), or grpc.health.v1. It connects at
/// the first call and again after a loss. A clone is the same connection.
///
/// Every call carries the token. A call of the inference service is repeated up to twice while nothing of its answer
/// has come. Deadlines and errors are those of the stub: see [`Client`](crate::Client) for more.
#[derive(Clone)]
pub struct Connection {
    channel: Channel,
    authorization: Option<HeaderValue>,
    throttle: Option<Arc<Throttle>>,
}

impl Connection {
    pub(crate) fn new(channel: Channel, authorization: Option<HeaderValue>, retry: bool) -> Self {
        Self { channel, authorization, throttle: retry.then(Arc::default) }
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<Connection>")
    }
}

impl Service<Request<Body>> for Connection {
    type Response = Response<Body>;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Response<Body>, Status>> + Send>>;

    /// Always ready: each attempt waits for the channel itself.
    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (mut parts, body) = request.into_parts();
        if let Some(key) = &self.authorization {
            parts.headers.entry(AUTHORIZATION).or_insert_with(|| key.clone());
        }
        let channel = self.channel.clone();
        let throttle = self.throttle.clone().filter(|_| parts.uri.path().starts_with(RETRIED_SERVICE));
        Box::pin(async move {
            // One message, kept whole for the next attempt.
            let message = body.collect().await?.to_bytes();
            let mut response = send(channel, parts, message, throttle).await?;
            mend(response.headers_mut());
            Ok(response.map(|body| {
                Body::new(body.map_frame(|mut frame| {
                    if let Some(trailers) = frame.trailers_mut() {
                        mend(trailers);
                    }
                    frame
                }))
            }))
        })
    }
}

/// Sends until there is an answer, or a refusal that is final.
async fn send(
    mut channel: Channel,
    parts: request::Parts,
    message: Bytes,
    throttle: Option<Arc<Throttle>>,
) -> Result<Response<Body>, Status> {
    let mut retries = Retries { num_attempts: 0, backoff: INITIAL_BACKOFF };
    loop {
        // Mapped, it has no size hint, so that hyper sends no content-length: gRPC knows none.
        let body = Full::new(message.clone()).map_frame(|frame| frame);
        let mut request = Request::from_parts(parts.clone(), Body::new(body));
        if let Some(Deadline(deadline)) = parts.extensions.get() {
            let left = deadline.saturating_duration_since(Instant::now());
            request.headers_mut().insert(TIMEOUT, timeout_value(left));
        }
        if retries.num_attempts > 0 {
            request.headers_mut().insert(PREVIOUS_ATTEMPTS, retries.num_attempts.into());
        }
        let outcome = attempt(&mut channel, request).await;
        let pause = throttle.as_ref().and_then(|throttle| retries.pause_after(&outcome, throttle));
        match pause {
            Some(pause) => tokio::time::sleep(pause).await,
            None => return outcome,
        }
    }
}

async fn attempt(channel: &mut Channel, request: Request<Body>) -> Result<Response<Body>, Status> {
    let answer = match poll_fn(|cx| channel.poll_ready(cx)).await {
        Ok(()) => channel.call(request).await,
        Err(error) => Err(error),
    };
    answer.map_err(|error| of_transport(&error))
}

/// The attempts of one call, by gRPC's own rules: https://github.com/grpc/proposal/blob/master/A6-client-retries.md
struct Retries {
    num_attempts: u32,
    backoff: Duration,
}

impl Retries {
    /// Returns how long to wait before the next attempt; None: this outcome is the caller's.
    fn pause_after(&mut self, outcome: &Result<Response<Body>, Status>, throttle: &Throttle) -> Option<Duration> {
        self.num_attempts += 1;
        let (code, pushback) = match outcome {
            Ok(response) => (code_of(response), response.headers().get(PUSHBACK)),
            Err(status) => (status.code(), None),
        };
        if code == Code::Ok {
            throttle.succeeded();
        }
        if !matches!(code, Code::Unavailable | Code::ResourceExhausted) {
            return None;
        }
        let may_retry = throttle.failed();
        if !may_retry || self.num_attempts == MAX_ATTEMPTS {
            return None;
        }
        if let Some(pushback) = pushback {
            self.backoff = INITIAL_BACKOFF;
            // What is negative or no number means: not at all.
            return pushback.to_str().ok()?.parse().ok().map(Duration::from_millis);
        }
        let pause = self.backoff.mul_f64(jitter());
        self.backoff = MAX_BACKOFF.min(self.backoff * BACKOFF_MULTIPLIER);
        Some(pause)
    }
}

/// Returns the code of an answer without any message; OK when there may be messages.
fn code_of(response: &Response<Body>) -> Code {
    match response.headers().get(STATUS) {
        Some(code) => Code::from_bytes(code.as_bytes()),
        // What a proxy says that could not reach the server.
        None if matches!(response.status().as_u16(), 429 | 502 | 503 | 504) => Code::Unavailable,
        None => Code::Ok,
    }
}

/// Keeps retries from making an overload worse: after some failures in a row nobody repeats a call.
/// It counts in tenths of gRPC's tokens.
struct Throttle(AtomicI32);

impl Throttle {
    const MAX: i32 = 100;
    const FAILURE: i32 = -10;
    const SUCCESS: i32 = 1;

    fn succeeded(&self) {
        self.add(Self::SUCCESS);
    }

    /// Counts a failure and returns whether a retry is still allowed.
    fn failed(&self) -> bool {
        self.add(Self::FAILURE) > Self::MAX / 2
    }

    fn add(&self, tenths: i32) -> i32 {
        let sum = |count: i32| (count + tenths).clamp(0, Self::MAX);
        let before = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |count| Some(sum(count)));
        sum(before.unwrap_or_else(|count| count))
    }
}

impl Default for Throttle {
    fn default() -> Self {
        Self(AtomicI32::new(Self::MAX))
    }
}

/// Returns a number from 0.8 to 1.2, so that callers who were refused together do not come back together.
fn jitter() -> f64 {
    // The keys of a new RandomState differ from call to call.
    let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    0.8 + 0.4 * random
}

/// Returns a timeout as gRPC writes it: at most eight digits and a unit.
fn timeout_value(left: Duration) -> HeaderValue {
    const MAX: u128 = 99_999_999;
    let millis = left.as_nanos().div_ceil(1_000_000);
    let text = match millis {
        0..=MAX => format!("{millis}m"),
        _ => format!("{}S", left.as_secs().min(MAX as u64)),
    };
    HeaderValue::from_str(&text).expect("digits and a letter are a header's value")
}

/// Drops details that are not base64: tonic would panic at them.
fn mend(headers: &mut HeaderMap) {
    const CONFIG: GeneralPurposeConfig =
        GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
    const BASE64: GeneralPurpose = GeneralPurpose::new(&base64::alphabet::STANDARD, CONFIG);
    if headers.get(DETAILS).is_some_and(|details| BASE64.decode(details).is_err()) {
        headers.remove(DETAILS);
    }
}
