//! What the fuzzers run: each target takes any bytes, and panics if what it tests is wrong about
//! them. `tests/fuzz` runs them under libFuzzer (`cargo xtask fuzz`), `tests/e2e/tests/fuzz.rs` over the
//! committed corpora and over generated inputs.

pub mod answer;
pub mod framing;
pub mod http;
pub mod mqtt;
pub mod packet;
pub mod protocols;
pub mod records;

use std::path::PathBuf;

use anyhow::{Result, ensure};
use millrace_corpus::Corpus;

use crate::dice::Dice;
use crate::system::paths::workspace;

/// A target: its name, which is its corpus's too, and what it does with an input.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: &[Target] = &[
    ("answer", answer::answer),
    ("auto", protocols::auto),
    ("codec", framing::codec),
    ("config", records::config),
    ("http", http::http),
    ("key", records::key),
    ("mqtt", mqtt::mqtt),
    ("packet", |frame| {
        let _ = packet::packet(frame);
    }),
    ("registry", records::registry),
    ("websocket", protocols::websocket),
];

/// Where the corpora are committed.
pub fn corpora() -> PathBuf {
    workspace().join("tests/fuzz/corpus")
}

/// The committed inputs of a target, in the order of their names.
pub fn corpus(target: &str) -> Result<Vec<Vec<u8>>> {
    let file = corpora().join(target).with_extension(millrace_corpus::EXTENSION);
    let corpus = Corpus::read(&file)?;
    ensure!(!corpus.is_empty(), "{} is missing or empty", file.display());
    Ok(corpus.inputs().map(|(_, input)| input.to_vec()).collect())
}

/// An input from a seed: for a target's sake it is often nearly right.
pub fn generate(dice: &mut Dice, corpus: &[Vec<u8>], input: &mut Vec<u8>) {
    let byte = |dice: &mut Dice| u8::try_from(dice.below(256)).expect("a byte");
    input.clear();
    if !corpus.is_empty() && !dice.one_in(4) {
        input.extend_from_slice(&corpus[dice.below(corpus.len())]);
    }
    for _ in 0..dice.below(12) {
        let place = dice.below(input.len() + 1);
        match dice.below(6) {
            0 if place < input.len() => input[place] = byte(dice),
            1 if place < input.len() => input[place] ^= 1 << dice.below(8),
            2 if place < input.len() => drop(input.drain(place..)),
            3 => input.insert(place, b"\r\n\0\x01\xff-"[dice.below(6)]),
            4 => {
                let copy = input[place..].to_vec();
                input.extend_from_slice(&copy[..copy.len().min(64)]);
            }
            _ => input.extend((0..dice.below(24)).map(|_| byte(dice))),
        }
    }
}
