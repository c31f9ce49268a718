//! Flows that a table has lost, or would lose.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};

use anyhow::ensure;
use millrace_common::verdict::Verdict;
use millrace_harness::clients::tcp::PATIENCE;
use millrace_harness::gateway::test_run::{
    Bench, Family, GENERATION, PASS, Programs, REDIRECT, RULES, flow, now_ns,
};
use millrace_harness::net::frames::flag::{ACK, FIN, RST, SYN};
use millrace_harness::net::frames::{Frame, Transport};
use millrace_harness::net::{raw_socket, socket_table};
use millrace_harness::system::process::wait_until;

use super::is_diverted;

/// A SYN between the ends of a connection that the relay has, where a rule passes by now. It erased
/// the flow once, and the server reset the connection.
fn kept_connection(programs: &mut Programs, bench: &Bench, segment: &Frame) -> anyhow::Result<()> {
    let key = flow(segment);
    let syn = Frame::tcp(segment.source, segment.destination, SYN, 1);
    programs.rules("pass tcp 10.77.2.0/24 port any\npass tcp fd77:2::/64 port any", false)?;
    for (accepted, verdict) in [(false, Verdict::DivertPending), (true, Verdict::DivertEstablished)]
    {
        programs.begin(key)?;
        if accepted {
            programs.accept(key)?;
        }
        is_diverted(&programs.ingress(&syn, verdict, REDIRECT)?, &syn)?;
        ensure!(programs.has(&key)? == (true, accepted), "a SYN has erased a flow");
    }
    // A relay that hangs keeps what it has; what another run of it had is nobody's any more.
    programs.heartbeat(0, GENERATION)?;
    programs.ingress(&syn, Verdict::DivertEstablished, REDIRECT)?;
    programs.heartbeat(now_ns(), GENERATION + 1)?;
    programs.ingress(&syn, Verdict::PassRule, PASS)?;
    ensure!(programs.has(&key)? == (false, false), "a former relay's flow is still there");
    programs.heartbeat(now_ns(), GENERATION)?;
    // Nor has a relay a connection whose process is gone, or one that its stack has not.
    programs.accept(key)?;
    bench.without_process(|| programs.ingress(&syn, Verdict::PassRule, PASS).map(drop))?;
    programs.accept(key)?;
    programs.ingress(&syn.from_port(1), Verdict::PassRule, PASS)?;
    programs.ingress(&syn, Verdict::DivertEstablished, REDIRECT)?;
    programs.established()?.remove(&key)?;
    programs.rules(RULES, false)?;
    Ok(())
}

/// A connection that `PENDING` has lost and the relay has closed: it takes what comes until the client
/// has closed it too. A dead relay's socket, of which the stack has yet to take leave, is not honoured.
fn closed_connection(
    programs: &mut Programs,
    bench: &Bench,
    [ack, fin]: [&Frame; 2],
    (mut client, mut accepted): (TcpStream, TcpStream),
) -> anyhow::Result<()> {
    let mut found = |frame: &Frame| -> anyhow::Result<()> {
        bench.without_process(|| programs.ingress(frame, Verdict::PassNoFlow, PASS).map(drop))?;
        is_diverted(&programs.ingress(frame, Verdict::DivertSocket, REDIRECT)?, frame)?;
        Ok(programs.pending()?.remove(&flow(frame))?)
    };
    // The relay still reads. With the byte the client acknowledges the FIN: FIN-WAIT-2.
    accepted.shutdown(Shutdown::Write)?;
    client.write_all(b"1")?;
    accepted.read_exact(&mut [0])?;
    found(ack)?;
    found(fin)?;
    // TIME-WAIT, and only a FIN is waited for: the client may have connected to the server anew.
    let (server, port) = (accepted.local_addr()?, accepted.peer_addr()?.port());
    drop(accepted);
    let table = if server.is_ipv4() { "tcp" } else { "tcp6" };
    wait_until(PATIENCE, "TIME-WAIT", || {
        Ok(bench.relay.run(|| socket_table::inode(table, server.port(), port))?? == Some(0))
    })?;
    found(fin)?;
    programs.ingress(ack, Verdict::PassNoFlow, PASS).map(drop)
}

/// Connections that `PENDING` has lost, as in a flood of SYNs, and the relay's stack has not.
pub(crate) fn lost_flows(programs: &mut Programs, bench: &Bench) -> anyhow::Result<()> {
    for family in Family::BOTH {
        let connection = TcpStream::connect(family.server())?;
        let listener = &bench.listeners[usize::from(family == Family::Ipv6)];
        let accepted = listener.accept()?;
        let segment = |flags| Frame::tcp(accepted.1, family.server(), flags, 7);
        programs.ingress(&segment(RST), Verdict::PassNoFlow, PASS)?;
        let ack = segment(ACK);
        is_diverted(&programs.ingress(&ack, Verdict::DivertSocket, REDIRECT)?, &ack)?;
        // It is found again from then on.
        programs.ingress(&ack, Verdict::DivertPending, REDIRECT)?;
        programs.pending()?.remove(&flow(&ack))?;
        kept_connection(programs, bench, &ack)?;
        programs.pending()?.remove(&flow(&ack))?; // it was left to the server
        closed_connection(programs, bench, [&ack, &segment(FIN | ACK)], (connection, accepted.0))?;
    }

    // A stack that always answers with a cookie keeps nothing of a SYN.
    bench.relay.sysctl("net/ipv4/tcp_syncookies", "2")?;
    let client = SocketAddr::from(([10, 77, 1, 1], 50_000));
    let syn = Frame::tcp(client, Family::Ipv4.server(), SYN, 1000);
    let cookie = raw_socket::syn_ack_number(&syn)?;
    let transport = |acknowledgment| Transport::Tcp { flags: ACK, sequence: 1001, acknowledgment };
    let forged = Frame { transport: transport(cookie.wrapping_add(9)), ..syn.clone() };
    programs.ingress(&forged, Verdict::PassNoFlow, PASS)?;
    let ack = Frame { transport: transport(cookie.wrapping_add(1)), ..syn };
    is_diverted(&programs.ingress(&ack, Verdict::DivertCookie, REDIRECT)?, &ack)?;
    programs.ingress(&ack, Verdict::DivertPending, REDIRECT)?;
    Ok(())
}
