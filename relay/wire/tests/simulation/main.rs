//! The uplink against a cluster that loses connections, leaders, answers and time, from many seeds.
//!
//! A failure names its seed; `MILLRACE_SEED=N` runs that one alone. `MILLRACE_SEEDS` changes their number.

mod broker;
mod cluster;
mod dice;
mod log;
mod network;
mod run;

use run::{Counts, Kind, run};

fn seeds(kind: Kind, count: u64) {
    if let Ok(seed) = std::env::var("MILLRACE_SEED") {
        run(kind, seed.parse().expect("MILLRACE_SEED is a number"));
        return;
    }
    let wanted = std::env::var("MILLRACE_SEEDS").ok();
    let count = wanted.map_or(count, |count| count.parse().expect("MILLRACE_SEEDS is a number"));
    let mut counts = Counts::default();
    for seed in 1..=count {
        match std::panic::catch_unwind(|| run(kind, seed)) {
            Ok(of_run) => counts += of_run,
            Err(panic) => {
                eprintln!("{kind:?}: seed {seed} fails; repeat it with MILLRACE_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{kind:?}, {count} runs: {counts:?}");
    let full = counts.full as u64;
    assert!(count < 100 || full > count / 2, "only {full} of {count} runs have sent all they may");
}

/// Nothing that is acknowledged is lost by the brokers, and what they refuse they refuse always.
#[test]
fn everything_is_written_once_and_in_order() {
    seeds(Kind::Strict, 4000);
}

/// The right to write is withdrawn for a while, so that what is refused may have been written before.
#[test]
fn what_follows_a_record_that_is_refused_is_written_once() {
    seeds(Kind::Revoked, 2000);
}

#[test]
fn what_is_given_up_takes_nothing_with_it() {
    seeds(Kind::Purged, 2000);
}

#[test]
fn a_topic_that_is_made_anew_is_written_to() {
    seeds(Kind::MadeAnew, 1000);
}

#[test]
fn brokers_that_lose_what_they_had_are_written_to() {
    seeds(Kind::Lossy, 1000);
}
