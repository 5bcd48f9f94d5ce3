//! Requests and the turns of a conversation in few words, and a message's text.

use crate::v1::complete_request::Input;
use crate::v1::part::Part as Kind;
use crate::v1::{Chat, CompleteRequest, Message, Part, Role, ToolResult};

impl CompleteRequest {
    /// Returns the request to complete a raw text; everything else is unset.
    pub fn prompt(text: impl Into<String>) -> Self {
        Self { input: Some(Input::Prompt(text.into())), ..Self::default() }
    }

    /// Returns the request to answer a conversation; everything else is unset.
    pub fn chat(messages: impl Into<Vec<Message>>) -> Self {
        let chat = Chat { messages: messages.into(), ..Chat::default() };
        Self { input: Some(Input::Chat(chat)), ..Self::default() }
    }
}

/// Returns the operator's turn, which stands first in a chat.
pub fn system(text: impl Into<String>) -> Message {
    turn(Role::System, Kind::Text(text.into()))
}

/// Returns a person's turn.
pub fn user(text: impl Into<String>) -> Message {
    turn(Role::User, Kind::Text(text.into()))
}

/// Returns a turn of the model. An answer's own `message` says more (thoughts, tool calls): prefer it.
pub fn assistant(text: impl Into<String>) -> Message {
    turn(Role::Assistant, Kind::Text(text.into()))
}

/// Returns the turn that answers the tool call `call_id`.
pub fn tool_result(call_id: impl Into<String>, text: impl Into<String>) -> Message {
    let result = ToolResult { call_id: call_id.into(), text: text.into(), ..ToolResult::default() };
    turn(Role::Tool, Kind::ToolResult(result))
}

/// Returns the message's text parts, joined; thoughts and tool calls are not text.
pub fn text_of(message: &Message) -> String {
    let texts = message.parts.iter().filter_map(|part| match &part.part {
        Some(Kind::Text(text)) => Some(text.as_str()),
        _ => None,
    });
    texts.collect()
}

fn turn(role: Role, kind: Kind) -> Message {
    Message { role: role.into(), parts: vec![Part { part: Some(kind) }] }
}
