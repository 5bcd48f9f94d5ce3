//! The client: one method for each RPC of the contract.

use std::fmt;
use std::future::Future;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::metadata::{AsciiMetadataKey, AsciiMetadataValue};
use tonic::{Code, Request, Response, Status};

use crate::connect::{MAX_MESSAGE_BYTES, Options};
use crate::connection::{Connection, Deadline};
use crate::error::Error;
use crate::stream::{Arm, CompletionStream, EventStream, Law};
use crate::v1::inference_service_client::InferenceServiceClient;
use crate::v1::model_service_client::ModelServiceClient;
use crate::v1::stream_load_response::Event;
use crate::v1::{
    CompleteRequest, CompleteResponse, CountTokensResponse, DetokenizeRequest, DetokenizeResponse, EmbedRequest,
    EmbedResponse, GetModelRequest, GetModelResponse, HealthRequest, HealthResponse, ListBackendsRequest,
    ListBackendsResponse, ListModelsRequest, ListModelsResponse, LoadRequest, LoadResponse, StreamLoadResponse,
    TokenizeRequest, TokenizeResponse, UnloadRequest, UnloadResponse, WatchModelsRequest, WatchModelsResponse,
};

/// A connection to a server. Tasks may share it, and a clone is the same connection; it connects at the first call and
/// again after a loss.
///
/// Every method takes the request as it is, or as a [`Call`] with a timeout and metadata of its own. A call without a
/// timeout has the client's default; loads and watches have none. To drop what a method returned ends the call.
///
/// A call of the inference service is repeated up to twice while nothing of its answer has come, when the server is
/// not there or refuses it for now, and not before the time that the server names. Loads are never repeated.
#[derive(Clone)]
pub struct Client {
    connection: Connection,
    inference: InferenceServiceClient<Connection>,
    models: ModelServiceClient<Connection>,
    default_timeout: Duration,
    way: String,
}

impl Client {
    /// Returns a client of the server at `target`, such as `127.0.0.1:50051` or `dns:///inferwire.example:443`.
    ///
    /// A target on this machine is called in plain text, any other with TLS, unless `options` says otherwise.
    ///
    /// # Errors
    ///
    /// INVALID_ARGUMENT, when the target, the token or a certificate cannot be read. That there is no server shows at
    /// the first call.
    ///
    /// # Panics
    ///
    /// Outside of a Tokio runtime.
    pub fn connect(target: &str, options: Options) -> Result<Self, Error> {
        let (connection, way) = options.connect(target)?;
        Ok(Self {
            inference: InferenceServiceClient::new(connection.clone())
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            models: ModelServiceClient::new(connection.clone())
                .max_encoding_message_size(MAX_MESSAGE_BYTES)
                .max_decoding_message_size(MAX_MESSAGE_BYTES),
            connection,
            default_timeout: options.default_timeout,
            way,
        })
    }

    /// The connection, for stubs of other services such as grpc.health.v1.
    pub fn connection(&self) -> Connection {
        self.connection.clone()
    }

    /// Returns the whole answer.
    pub async fn complete(&self, call: impl Into<Call<CompleteRequest>>) -> Result<CompleteResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.complete(request).await).await
    }

    /// Returns the answer as it is made.
    pub fn stream(&self, call: impl Into<Call<CompleteRequest>>) -> CompletionStream {
        let mut stub = self.inference.clone();
        let (request, deadline) = call.into().begin(self.default_timeout);
        let opening = async move { Ok(stub.stream_complete(request?).await?.into_inner()) };
        CompletionStream::new(opening, deadline)
    }

    /// Returns one vector per text, in order.
    pub async fn embed(&self, call: impl Into<Call<EmbedRequest>>) -> Result<EmbedResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.embed(request).await).await
    }

    /// Returns how many tokens the request would put before the model; nothing is generated.
    pub async fn count_tokens(&self, call: impl Into<Call<CompleteRequest>>) -> Result<CountTokensResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.count_tokens(request).await).await
    }

    /// Returns the tokens of a text with the bytes of each.
    pub async fn tokenize(&self, call: impl Into<Call<TokenizeRequest>>) -> Result<TokenizeResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.tokenize(request).await).await
    }

    /// Returns the bytes that the tokens stand for; they need not be valid UTF-8.
    pub async fn detokenize(&self, call: impl Into<Call<DetokenizeRequest>>) -> Result<DetokenizeResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.detokenize(request).await).await
    }

    /// Returns every model in any state, and the default model's name.
    pub async fn list_models(&self, call: impl Into<Call<ListModelsRequest>>) -> Result<ListModelsResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.list_models(request).await).await
    }

    /// Returns one model.
    pub async fn get_model(&self, call: impl Into<Call<GetModelRequest>>) -> Result<GetModelResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.get_model(request).await).await
    }

    /// Returns the list of models now and again after every change; it ends only by failure or by the caller.
    pub fn watch_models(&self, call: impl Into<Call<WatchModelsRequest>>) -> EventStream<WatchModelsResponse> {
        let mut stub = self.inference.clone();
        let (request, deadline) = call.into().begin(Duration::MAX);
        let opening = async move { Ok(stub.watch_models(request?).await?.into_inner()) };
        EventStream::new(opening, Law::Watch, deadline)
    }

    /// Returns the backends with their capabilities, models and health, ordered by id.
    pub async fn list_backends(
        &self,
        call: impl Into<Call<ListBackendsRequest>>,
    ) -> Result<ListBackendsResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.list_backends(request).await).await
    }

    /// Returns what the server is and how it is.
    pub async fn health(&self, call: impl Into<Call<HealthRequest>>) -> Result<HealthResponse, Error> {
        let mut stub = self.inference.clone();
        call.into().unary(self.default_timeout, async move |request| stub.health(request).await).await
    }

    /// Loads a model and returns when it is ready. To stop waiting does not stop the load: `unload` does.
    pub async fn load(&self, call: impl Into<Call<LoadRequest>>) -> Result<LoadResponse, Error> {
        let mut stub = self.models.clone();
        call.into().unary(Duration::MAX, async move |request| stub.load(request).await).await
    }

    /// Returns the way of a load: any number of `progress`, then exactly one `loaded`. As `load` otherwise.
    pub fn stream_load(&self, call: impl Into<Call<LoadRequest>>) -> EventStream<StreamLoadResponse> {
        let mut stub = self.models.clone();
        let (request, deadline) = call.into().begin(Duration::MAX);
        let opening = async move { Ok(stub.stream_load(request?).await?.into_inner()) };
        let law = Law::Ends(|event: &StreamLoadResponse| match event.event {
            None => Arm::Unknown,
            Some(Event::Loaded(_)) => Arm::Last,
            Some(_) => Arm::Passing,
        });
        EventStream::new(opening, law, deadline)
    }

    /// Unloads a model; running requests may go on for the request's drain timeout.
    pub async fn unload(&self, call: impl Into<Call<UnloadRequest>>) -> Result<UnloadResponse, Error> {
        let mut stub = self.models.clone();
        call.into().unary(self.default_timeout, async move |request| stub.unload(request).await).await
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<Client [{}]>", self.way)
    }
}

/// A request with a timeout and metadata of its own. A request alone is a call without them.
#[derive(Clone, Debug)]
pub struct Call<Q> {
    request: Q,
    timeout: Option<Duration>,
    metadata: Vec<(String, String)>,
}

impl<Q> Call<Q> {
    /// Returns a call of `request` with the client's defaults.
    pub fn new(request: Q) -> Self {
        Self { request, timeout: None, metadata: Vec::new() }
    }

    /// Sets how long the call may take, retries included; [`Duration::MAX`]: no deadline.
    pub fn timeout(self, timeout: Duration) -> Self {
        Self { timeout: Some(timeout), ..self }
    }

    /// Sets the request's id; without it the server makes one.
    pub fn request_id(self, id: impl Into<String>) -> Self {
        self.metadata("x-request-id", id)
    }

    /// Adds metadata. The call fails with INVALID_ARGUMENT when a header cannot carry it.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.metadata.push((key.into(), value.into()));
        self
    }

    async fn unary<R, F>(self, default_timeout: Duration, send: impl FnOnce(Request<Q>) -> F) -> Result<R, Error>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let (request, deadline) = self.begin(default_timeout);
        let answer = send(request?);
        let response = match deadline {
            Some(deadline) => timeout_at(deadline, answer).await.map_err(|_| Error::deadline_exceeded())?,
            None => answer.await,
        };
        Ok(response?.into_inner())
    }

    fn begin(self, default_timeout: Duration) -> (Result<Request<Q>, Error>, Option<Instant>) {
        let timeout = self.timeout.unwrap_or(default_timeout);
        let deadline = Instant::now().checked_add(timeout);
        let mut request = Request::new(self.request);
        if let Some(deadline) = deadline {
            request.extensions_mut().insert(Deadline(deadline));
        }
        for (key, value) in self.metadata {
            match (key.parse::<AsciiMetadataKey>(), AsciiMetadataValue::try_from(&value)) {
                (Ok(key), Ok(value)) => request.metadata_mut().append(key, value),
                _ => {
                    let message = format!("a header cannot carry the metadata {key:?}");
                    return (Err(Error::new(Code::InvalidArgument, message)), deadline);
                }
            };
        }
        (Ok(request), deadline)
    }
}

impl<Q> From<Q> for Call<Q> {
    fn from(request: Q) -> Self {
        Self::new(request)
    }
}
