//! `docs/verdicts.md` is true: it names every verdict, and the committed frames get theirs.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context as _, ensure};
use millrace_common::verdict::Verdict;
use millrace_harness::gateway::odd_traffic;
use millrace_harness::gateway::test_run::{Bench, PASS};
use millrace_harness::net::netns::bpf_object;
use millrace_harness::system::paths;
use millrace_harness::system::privilege::privileged;

/// Set to 1 to write the file of frames anew.
const WRITE: &str = "MILLRACE_WRITE_CORPUS";

/// Rows of the table that follows a heading, as cells.
fn table(document: &str, heading: &str) -> anyhow::Result<Vec<Vec<String>>> {
    let (_, rest) = document.split_once(heading).with_context(|| format!("no `{heading}`"))?;
    let cells = |row: &str| -> Vec<String> {
        let cells = row.trim_matches('|').split('|');
        cells.map(|cell| cell.trim().trim_matches('`').to_owned()).collect()
    };
    // The table's own heading and the line below it come first.
    let rows = rest.lines().skip_while(|line| !line.starts_with('|')).skip(2);
    Ok(rows.take_while(|line| line.starts_with('|')).map(cells).collect())
}

fn document() -> anyhow::Result<String> {
    Ok(std::fs::read_to_string(paths::workspace().join("docs/verdicts.md"))?)
}

#[test]
fn every_verdict_is_documented_once() -> anyhow::Result<()> {
    let rows = table(&document()?, "## Every verdict")?;
    let mut documented = HashSet::new();
    for row in &rows {
        let [verdict, _, action, example] = row.as_slice() else {
            anyhow::bail!("{row:?} has not four cells");
        };
        ensure!(Verdict::ALL.iter().any(|known| known.name() == verdict), "there is no {verdict}");
        ensure!(documented.insert(verdict.as_str()), "{verdict} stands there twice");
        let (prefix, _) = verdict.split_once('/').context("no slash")?;
        let right = match prefix {
            "pass" => action == "XDP_PASS",
            "drop" => action == "XDP_DROP",
            "divert" => action == "XDP_REDIRECT",
            _ => ["XDP_PASS", "XDP_DROP", "XDP_REDIRECT", "XDP_TX"].contains(&action.as_str()),
        };
        ensure!(right && !example.is_empty(), "{row:?}");
    }
    let missing: Vec<_> =
        Verdict::ALL.iter().map(|v| v.name()).filter(|name| !documented.contains(name)).collect();
    ensure!(missing.is_empty(), "not documented: {missing:?}");
    Ok(())
}

#[test]
fn odd_traffic_gets_the_documented_verdicts() -> anyhow::Result<()> {
    let frames = odd_traffic::frames();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus/odd_traffic.pcap");
    if std::env::var_os(WRITE).is_some_and(|value| value == "1") {
        std::fs::write(&path, odd_traffic::to_pcap(&frames))?;
    }
    let packets = odd_traffic::from_pcap(&std::fs::read(&path)?)
        .context("odd_traffic.pcap is no pcap file")?;
    ensure!(
        packets.iter().eq(frames.iter().map(|(_, frame)| frame)),
        "odd_traffic.pcap has other frames than odd_traffic.rs: write it anew with {WRITE}=1"
    );
    let rows = table(&document()?, "## Odd traffic")?;
    if !privileged("odd_traffic_gets_the_documented_verdicts") {
        return Ok(());
    }
    let bench = Bench::new()?;
    let bytes = std::fs::read(bpf_object()?)?;
    let mut found = Vec::new();
    bench.with_programs(&bytes, |programs| {
        for (frame, (name, _)) in packets.iter().zip(&frames) {
            let outcome = programs.run("ingress", frame).with_context(|| name.clone())?;
            ensure!(outcome.counted.len() == 1 && outcome.counted[0].1 == 1, "{name}: {outcome:?}");
            ensure!(outcome.returned != PASS || outcome.out == *frame, "{name} was changed");
            found.push(vec![
                (found.len() + 1).to_string(),
                name.clone(),
                outcome.counted[0].0.to_owned(),
            ]);
        }
        Ok(())
    })?;
    let wrong: Vec<_> = found.iter().filter(|row| !rows.contains(row)).collect();
    ensure!(wrong.is_empty(), "not as documented: {wrong:#?}");
    ensure!(
        rows == found,
        "the document has other rows than the file has frames, or in another order"
    );
    Ok(())
}
