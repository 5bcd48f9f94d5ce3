//! A stream into the unary answer. Owns what "the concatenation of the deltas" means, without any I/O.

use std::collections::HashMap;
use std::fmt;

use crate::v1::part::Part as Kind;
use crate::v1::stream_complete_response::Event;
use crate::v1::{
    CompleteResponse, Completion, Message, Part, Reasoning, ReasoningDelta, Role, Started, StreamCompleteResponse,
    TextDelta, TokenLogprob, ToolCall, ToolCallDelta,
};

/// Takes the events of one stream in order and gives the answer that Complete would have given.
///
/// Parts stand in the order of their first delta:
///
/// - text extends the last part when that is text, else it begins one;
/// - reasoning likewise, but a signature ends its thought: what comes after it begins a new part;
/// - a tool call is one part wherever its deltas stand, told apart by its index.
///
/// Token ids and logprobs concatenate over all events, those of the completion included. Events of an unknown kind and
/// progress leave no trace.
#[derive(Clone, Default)]
pub struct Gatherer {
    started: Option<Started>,
    completion: Option<Completion>,
    parts: Vec<Kind>,
    /// Where the call of an index stands among the parts.
    calls: HashMap<u32, usize>,
    token_ids: Vec<u32>,
    logprobs: Vec<TokenLogprob>,
}

impl Gatherer {
    /// Returns one that has seen nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next event.
    pub fn add(&mut self, event: StreamCompleteResponse) {
        match event.event {
            Some(Event::Started(started)) => self.started = Some(started),
            Some(Event::Text(delta)) => self.add_text(delta),
            Some(Event::Reasoning(delta)) => self.add_reasoning(delta),
            Some(Event::ToolCall(delta)) => self.add_tool_call(delta),
            Some(Event::Completion(completion)) => {
                self.add_tokens(&completion.token_ids, &completion.logprobs);
                self.completion = Some(completion);
            }
            Some(Event::Progress(_)) | None => {}
        }
    }

    /// Returns the answer so far. `completion` is unset until its event came.
    pub fn response(self) -> CompleteResponse {
        let parts = self.parts.into_iter().map(|kind| Part { part: Some(kind) }).collect();
        CompleteResponse {
            started: self.started,
            message: Some(Message { role: Role::Assistant.into(), parts }),
            token_ids: self.token_ids,
            logprobs: self.logprobs,
            completion: self.completion,
        }
    }

    fn add_text(&mut self, delta: TextDelta) {
        self.add_tokens(&delta.token_ids, &delta.logprobs);
        if delta.text.is_empty() {
            return;
        }
        match self.parts.last_mut() {
            Some(Kind::Text(text)) => text.push_str(&delta.text),
            _ => self.parts.push(Kind::Text(delta.text)),
        }
    }

    fn add_reasoning(&mut self, delta: ReasoningDelta) {
        self.add_tokens(&delta.token_ids, &delta.logprobs);
        if delta.text.is_empty() && delta.signature.is_empty() {
            return;
        }
        match self.parts.last_mut() {
            Some(Kind::Reasoning(thought)) if thought.signature.is_empty() => {
                thought.text.push_str(&delta.text);
                thought.signature = delta.signature;
            }
            _ => self.parts.push(Kind::Reasoning(Reasoning { text: delta.text, signature: delta.signature })),
        }
    }

    fn add_tool_call(&mut self, delta: ToolCallDelta) {
        self.add_tokens(&delta.token_ids, &delta.logprobs);
        let place = *self.calls.entry(delta.index).or_insert_with(|| {
            self.parts.push(Kind::ToolCall(ToolCall::default()));
            self.parts.len() - 1
        });
        let Kind::ToolCall(call) = &mut self.parts[place] else {
            unreachable!("the index of a call leads to a call");
        };
        if call.id.is_empty() {
            call.id = delta.id;
        }
        if call.name.is_empty() {
            call.name = delta.name;
        }
        call.arguments.push_str(&delta.arguments);
        call.signature.extend(delta.signature);
    }

    fn add_tokens(&mut self, token_ids: &[u32], logprobs: &[TokenLogprob]) {
        self.token_ids.extend_from_slice(token_ids);
        self.logprobs.extend_from_slice(logprobs);
    }
}

impl fmt::Debug for Gatherer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match (&self.started, &self.completion) {
            (_, Some(_)) => "completed",
            (Some(_), None) => "started",
            (None, None) => "new",
        };
        write!(f, "<Gatherer [{state} | parts {} | token ids {}]>", self.parts.len(), self.token_ids.len())
    }
}
