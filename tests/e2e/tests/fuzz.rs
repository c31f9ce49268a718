//! The fuzz targets over their committed corpora, and over a million generated inputs each.
//!
//! `MILLRACE_FUZZ_ITERATIONS` changes the million, `MILLRACE_SEED` repeats one input.

use millrace_harness::dice::Dice;
use millrace_harness::fuzz::{TARGETS, generate};
use millrace_harness::system::paths;

const ITERATIONS: u64 = 1_000_000;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

fn corpus(target: &str) -> Vec<Vec<u8>> {
    let folder = paths::workspace().join("tests/fuzz/corpus").join(target);
    let mut files: Vec<_> = std::fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}", folder.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files.iter().map(|file| std::fs::read(file).unwrap()).collect()
}

#[test]
fn the_committed_corpora_are_understood() {
    for (name, target) in TARGETS {
        for input in corpus(name) {
            target(&input);
        }
    }
}

#[test]
fn a_million_inputs_find_nothing() {
    let iterations = number("MILLRACE_FUZZ_ITERATIONS").unwrap_or(ITERATIONS);
    for (name, target) in TARGETS {
        let corpus = corpus(name);
        let mut input = Vec::new();
        let seeds = match number("MILLRACE_SEED") {
            Some(seed) => seed..seed + 1,
            None => 0..iterations,
        };
        for seed in seeds {
            generate(&mut Dice::new(seed), &corpus, &mut input);
            let outcome = std::panic::catch_unwind(|| target(&input));
            if let Err(panic) = outcome {
                eprintln!(
                    "target {name}, seed {seed}: repeat it with MILLRACE_SEED={seed}; the input is\n\
                     {}",
                    input.escape_ascii()
                );
                std::panic::resume_unwind(panic);
            }
        }
    }
}
