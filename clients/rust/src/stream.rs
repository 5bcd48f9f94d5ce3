//! A stream of events as its caller reads it: the law of the contract, the deadline, and the end by dropping.

use std::fmt;
use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::Streaming;

use crate::error::Error;
use crate::gather::Gatherer;
use crate::v1::stream_complete_response::Event;
use crate::v1::{CompleteResponse, Completion, Started, StreamCompleteResponse};

/// The messages of one call, once and in order. The call begins when the stream is first polled, and to drop the stream
/// ends it. An error is the last item.
///
/// It is a [`futures_core::Stream`]; [`next`](EventStream::next) is there for who has no such traits at hand.
pub struct EventStream<E> {
    state: State<E>,
    law: Law<E>,
    held: Option<E>,
    deadline: Option<Instant>,
    timer: Option<Pin<Box<Sleep>>>,
}

type Opening<E> = Pin<Box<dyn Future<Output = Result<Streaming<E>, Error>> + Send>>;

enum State<E> {
    Opening(Opening<E>),
    Open(Box<Streaming<E>>),
    Ended,
}

/// What the contract says about the events of a stream.
pub(crate) enum Law<E> {
    /// Every event passes, and the stream may end anywhere.
    Watch,
    /// The last event is held back until the status is OK, so whoever has it knows that all is there; what this
    /// version does not know is skipped.
    Ends(fn(&E) -> Arm),
}

/// What an event is to its stream.
pub(crate) enum Arm {
    Unknown,
    Passing,
    Last,
}

impl<E> EventStream<E> {
    pub(crate) fn new(
        opening: impl Future<Output = Result<Streaming<E>, Error>> + Send + 'static,
        law: Law<E>,
        deadline: Option<Instant>,
    ) -> Self {
        Self { state: State::Opening(Box::pin(opening)), law, held: None, deadline, timer: None }
    }

    /// Returns the next event; None after the last one.
    pub async fn next(&mut self) -> Option<Result<E, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    fn poll_event(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<E, Error>>> {
        loop {
            match &mut self.state {
                State::Opening(opening) => match ready!(opening.as_mut().poll(cx)) {
                    Ok(events) => self.state = State::Open(Box::new(events)),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                State::Open(events) => match (ready!(Pin::new(&mut **events).poll_next(cx)), &self.law) {
                    (Some(Ok(event)), Law::Watch) => return Poll::Ready(Some(Ok(event))),
                    (Some(Ok(event)), Law::Ends(arm)) => match arm(&event) {
                        Arm::Unknown => {}
                        Arm::Passing => return Poll::Ready(Some(Ok(event))),
                        Arm::Last => self.held = Some(event),
                    },
                    (Some(Err(status)), _) => return Poll::Ready(Some(Err(status.into()))),
                    (None, Law::Watch) => return Poll::Ready(None),
                    (None, Law::Ends(_)) => {
                        self.state = State::Ended;
                        return Poll::Ready(Some(self.held.take().ok_or_else(Error::stream_truncated)));
                    }
                },
                State::Ended => return Poll::Ready(None),
            }
        }
    }

    fn poll_deadline(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match self.deadline {
            Some(deadline) => self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline))).as_mut().poll(cx),
            None => Poll::Pending,
        }
    }
}

impl<E> Stream for EventStream<E> {
    type Item = Result<E, Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        let next = match this.poll_event(cx) {
            Poll::Ready(next) => next,
            Poll::Pending => {
                ready!(this.poll_deadline(cx));
                Some(Err(Error::deadline_exceeded()))
            }
        };
        if !matches!(next, Some(Ok(_))) {
            this.state = State::Ended;
        }
        Poll::Ready(next)
    }
}

// No event is ever pinned.
impl<E> Unpin for EventStream<E> {}

impl<E> fmt::Debug for EventStream<E> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match self.state {
            State::Opening(_) => "opening",
            State::Open(_) => "open",
            State::Ended => "ended",
        };
        write!(f, "<EventStream [{state}]>")
    }
}

/// The events of one answer: `started`, deltas, and `completion` last. Unknown events are skipped.
///
/// The completion comes only when the status is OK, so it proves that the answer is whole. The call begins when the
/// stream is first polled; to drop the stream cancels the generation.
pub struct CompletionStream {
    events: EventStream<StreamCompleteResponse>,
    started: Option<Started>,
    completion: Option<Completion>,
}

impl CompletionStream {
    pub(crate) fn new(
        opening: impl Future<Output = Result<Streaming<StreamCompleteResponse>, Error>> + Send + 'static,
        deadline: Option<Instant>,
    ) -> Self {
        let law = Law::Ends(|event: &StreamCompleteResponse| match event.event {
            None => Arm::Unknown,
            Some(Event::Completion(_)) => Arm::Last,
            Some(_) => Arm::Passing,
        });
        Self { events: EventStream::new(opening, law, deadline), started: None, completion: None }
    }

    /// Returns the next event; None after the last one.
    pub async fn next(&mut self) -> Option<Result<StreamCompleteResponse, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }

    /// The answer's text as it comes, and nothing else of it.
    pub fn text(&mut self) -> TextStream<'_> {
        TextStream(self)
    }

    /// Reads to the end and returns the answer that [`Client::complete`](crate::Client::complete) would have given;
    /// instead of reading the events, not after.
    pub async fn gather(mut self) -> Result<CompleteResponse, Error> {
        let mut gatherer = Gatherer::new();
        while let Some(event) = self.next().await {
            gatherer.add(event?);
        }
        Ok(gatherer.response())
    }

    /// The beginning of the answer; None until it has been read.
    pub fn started(&self) -> Option<&Started> {
        self.started.as_ref()
    }

    /// The end of the answer; None until all of it has been read.
    pub fn completion(&self) -> Option<&Completion> {
        self.completion.as_ref()
    }
}

impl Stream for CompletionStream {
    type Item = Result<StreamCompleteResponse, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = ready!(Pin::new(&mut self.events).poll_next(cx));
        match next.as_ref().and_then(|event| event.as_ref().ok()?.event.as_ref()) {
            Some(Event::Started(started)) => self.started = Some(started.clone()),
            Some(Event::Completion(completion)) => self.completion = Some(completion.clone()),
            _ => {}
        }
        Poll::Ready(next)
    }
}

impl fmt::Debug for CompletionStream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (&self.events.state, &self.completion) {
            (_, Some(_)) => "completed",
            (State::Ended, None) => "failed",
            _ => "open",
        };
        write!(f, "<CompletionStream [{state}]>")
    }
}

/// The text of a [`CompletionStream`], piece by piece.
#[derive(Debug)]
pub struct TextStream<'a>(&'a mut CompletionStream);

impl TextStream<'_> {
    /// Returns the next piece of text; None after the last one.
    pub async fn next(&mut self) -> Option<Result<String, Error>> {
        poll_fn(|cx| Pin::new(&mut *self).poll_next(cx)).await
    }
}

impl Stream for TextStream<'_> {
    type Item = Result<String, Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(Pin::new(&mut *self.0).poll_next(cx)) {
                Some(Ok(StreamCompleteResponse { event: Some(Event::Text(delta)) })) => {
                    return Poll::Ready(Some(Ok(delta.text)));
                }
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
    }
}
