//! The packet parser and an independent one over generated frames.
//!
//! `MILLRACE_FUZZ_ITERATIONS` changes their number, `MILLRACE_SEED` repeats one of them.

use std::collections::HashMap;
use std::mem::{Discriminant, discriminant};
use std::thread::available_parallelism;

use millrace_common::packet::Unsupported;
use millrace_harness::dice::Dice;
use millrace_harness::fuzz::packet::{Generator, packet};

const ITERATIONS: u64 = 50_000_000;
/// Reasons to refuse a frame, and the two protocols.
const OUTCOMES: usize = 11 + 2;
/// Each outcome is that of one frame in so many, at least.
const RAREST: u64 = 10_000;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable}={value} is not a number")))
}

/// Frames by what was said of them.
type Outcomes = HashMap<Result<u8, String>, u64>;

/// Runs some seeds; says which one found something.
fn run(seeds: impl Iterator<Item = u64>) -> Outcomes {
    let mut generator = Generator::default();
    let mut refused: HashMap<Discriminant<Unsupported>, (Unsupported, u64)> = HashMap::new();
    let mut outcomes = Outcomes::new();
    for seed in seeds {
        let frame = generator.next(&mut Dice::new(seed));
        match std::panic::catch_unwind(|| packet(frame)) {
            Ok(Ok(protocol)) => *outcomes.entry(Ok(protocol)).or_default() += 1,
            Ok(Err(reason)) => {
                refused.entry(discriminant(&reason)).or_insert((reason, 0)).1 += 1;
            }
            Err(panic) => {
                eprintln!("repeat it with MILLRACE_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    outcomes
        .extend(refused.into_values().map(|(reason, count)| (Err(format!("{reason:?}")), count)));
    outcomes
}

#[test]
fn both_parsers_agree_on_every_frame() {
    if let Some(seed) = number("MILLRACE_SEED") {
        run(seed..=seed);
        return;
    }
    let iterations = number("MILLRACE_FUZZ_ITERATIONS").unwrap_or(ITERATIONS);
    let threads = available_parallelism().map_or(1, std::num::NonZero::get);
    let start = std::time::Instant::now();
    let mut outcomes = Outcomes::new();
    std::thread::scope(|scope| {
        let runners: Vec<_> = (0..threads as u64)
            .map(|thread| scope.spawn(move || run((thread..iterations).step_by(threads))))
            .collect();
        for runner in runners {
            for (outcome, count) in runner.join().unwrap() {
                *outcomes.entry(outcome).or_default() += count;
            }
        }
    });
    println!("{iterations} frames in {:?}: {outcomes:#?}", start.elapsed());
    assert_eq!(outcomes.len(), OUTCOMES, "{outcomes:#?}");
    for (outcome, count) in outcomes {
        assert!(count > iterations / RAREST, "{outcome:?}: only {count} frames");
    }
}
