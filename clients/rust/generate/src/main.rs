//! Writes the Rust code of a descriptor set: `inferwire-generate DESCRIPTORS FOLDER`.
//!
//! A program of its own and no build script, so that who uses the client needs neither protoc nor buf.

use std::{env, error::Error, fs};

use prost::Message;
use prost_types::FileDescriptorSet;

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let [descriptors, folder] = arguments.as_slice() else {
        return Err("usage: inferwire-generate DESCRIPTORS FOLDER".into());
    };
    let set = FileDescriptorSet::decode(fs::read(descriptors)?.as_slice())?;
    tonic_prost_build::configure().build_server(false).build_transport(false).out_dir(folder).compile_fds(set)?;
    Ok(())
}
