//! The fuzz targets over their committed corpora, and over a million generated inputs each.
//!
//! `MILLRACE_FUZZ_ITERATIONS` changes the million, `MILLRACE_SEED` repeats one input.

use std::path::Path;

use millrace_harness::dice::Dice;
use millrace_harness::fuzz::{TARGETS, corpora, corpus, generate};
use millrace_harness::system::paths::workspace;

const ITERATIONS: u64 = 1_000_000;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// Names of the files in a folder, without extension, sorted.
fn names(folder: &Path) -> Vec<String> {
    let files = std::fs::read_dir(folder).unwrap().map(|file| file.unwrap().path());
    let mut names: Vec<_> =
        files.map(|file| file.file_stem().unwrap().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn every_target_has_its_program_and_its_corpus() {
    let targets: Vec<_> = TARGETS.iter().map(|(name, _)| *name).collect();
    assert_eq!(names(&workspace().join("tests/fuzz/fuzz_targets")), targets);
    assert_eq!(names(&corpora()), targets);
}

#[test]
fn the_committed_corpora_are_understood() {
    for (name, target) in TARGETS {
        for input in corpus(name).unwrap() {
            target(&input);
        }
    }
}

#[test]
fn a_million_inputs_find_nothing() {
    let iterations = number("MILLRACE_FUZZ_ITERATIONS").unwrap_or(ITERATIONS);
    for (name, target) in TARGETS {
        let corpus = corpus(name).unwrap();
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
