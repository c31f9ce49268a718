//! A plain TCP server, the same wherever it runs: on a server host, behind TPROXY, or in the relay
//! namespace in the relay's stead. The first byte of a connection says what is wanted.

use std::cell::RefCell;
use std::io;
use std::net::TcpListener;
use std::rc::Rc;
use std::thread::JoinHandle;

use anyhow::Result;
use millrace_relay::gateway::FlowTable;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

/// First byte: what follows is read to its end, and then answered by one byte.
pub const SINK: u8 = 1;
/// First byte: a number of 8 bytes in network byte order follows, and as many bytes are sent.
pub const SOURCE: u8 = 2;
const CHUNK: usize = 64 << 10;

/// Running until it is dropped. Any other first byte, such as the first of a frame's length, begins
/// an echo.
#[derive(Debug)]
pub struct TcpServer {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl TcpServer {
    /// Serves on one thread. With a flow table it is a relay: it tells the gateway of every
    /// connection's begin and end.
    pub fn start(listener: TcpListener, flows: Option<FlowTable>) -> Result<Self> {
        listener.set_nonblocking(true)?;
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread =
            std::thread::Builder::new().name("tcp-server".to_owned()).spawn(move || {
                let local = tokio::task::LocalSet::new();
                let flows = Rc::new(RefCell::new(flows));
                local.block_on(&runtime, async {
                    tokio::select! {
                        result = accept(listener, flows) => result.expect("a listener accepts"),
                        _ = stopped => {}
                    }
                });
            })?;
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for TcpServer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            eprintln!("a TCP server has panicked");
        }
    }
}

type Flows = Rc<RefCell<Option<FlowTable>>>;

async fn accept(listener: TcpListener, flows: Flows) -> io::Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        let (stream, client) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let server = stream.local_addr()?;
        if let Some(flows) = flows.borrow_mut().as_mut() {
            flows.accepted(client, server).map_err(io::Error::other)?;
        }
        let flows = Rc::clone(&flows);
        tokio::task::spawn_local(async move {
            let mut stream = stream;
            // What the client did is the client's to report.
            let _ = serve(&mut stream).await;
            // Before the socket closes, as the relay does.
            if let Some(flows) = flows.borrow_mut().as_mut() {
                flows.closed(client, server).expect("the flow table can be written");
            }
        });
    }
}

async fn serve(stream: &mut TcpStream) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    match stream.peek(&mut chunk[..1]).await? {
        0 => Ok(()),
        _ if chunk[0] == SINK => {
            while stream.read(&mut chunk).await? > 0 {}
            stream.write_all(&[SINK]).await
        }
        _ if chunk[0] == SOURCE => {
            let (_, mut left) = (stream.read_u8().await?, stream.read_u64().await?);
            while left > 0 {
                let length = usize::try_from(left).unwrap_or(CHUNK).min(CHUNK);
                stream.write_all(&chunk[..length]).await?;
                left -= length as u64;
            }
            Ok(())
        }
        _ => loop {
            let length = stream.read(&mut chunk).await?;
            if length == 0 {
                return Ok(());
            }
            stream.write_all(&chunk[..length]).await?;
        },
    }
}
