//! A mistaken address is told at the start, before anything else is tried.

use std::net::{Ipv4Addr, TcpListener};
use std::time::Duration;

use anyhow::{Result, ensure};
use millrace_harness::relay::direct::Direct;
use millrace_harness::system::process::run;

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn an_address_that_cannot_be_is_refused_with_what_to_do() -> Result<()> {
    // No broker is needed, and none is there.
    let relay = Direct::at("127.0.0.1:1", "mistaken", |_| {})?;
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let in_use = taken.local_addr()?.to_string();
    for (given, code, told) in [
        (&*in_use, 1, "the process that has the port with `ss -ltnp`"),
        ("192.0.2.77:9742", 1, "this host has no such address"),
        ("localhost:9742", 2, "`localhost:9742` is not ADDRESS:PORT"),
        ("9742", 2, "`9742` is not ADDRESS:PORT"),
    ] {
        let mut command = relay.instance.command("run", false);
        command.args(["--no-gateway", "127.0.0.1", "--metrics", given]);
        let finished = run("relay run", &mut command, PATIENCE)?;
        ensure!(finished.status.code() == Some(code), "{given}: {}", finished.status);
        let said = &finished.stderr;
        ensure!(said.contains(told) && said.contains(given), "{given}: {said}");
    }
    let file = relay.instance.config_file();
    let text = std::fs::read_to_string(&file)?;
    let text = text.replace("[metrics]", "[metrics]\nlisten = \"here\"");
    std::fs::write(&file, text)?;
    let finished = run("relay check", &mut relay.instance.command("check", false), PATIENCE)?;
    let said = &finished.stderr;
    ensure!(!finished.status.success() && said.contains("`here` is not ADDRESS:PORT"), "{said}");
    Ok(())
}
