#![doc = include_str!("../README.md")]
#![deny(missing_docs)]
#![forbid(unsafe_code)]

mod chat;
mod client;
mod connect;
mod connection;
mod error;
mod gather;
mod stream;

/// The messages and stubs of the contract, generated; do not edit them.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    include!("gen/inferwire.v1.rs");
}

pub use chat::{assistant, system, text_of, tool_result, user};
pub use client::{Call, Client};
#[cfg(feature = "tls")]
pub use connect::Tls;
pub use connect::{DEFAULT_TIMEOUT, MAX_MESSAGE_BYTES, Options};
pub use connection::Connection;
pub use error::{Error, Violation};
pub use gather::Gatherer;
pub use prost_types;
pub use stream::{CompletionStream, EventStream, TextStream};
pub use tonic::Code;
