//! Serves exports held in memory, for measurements and for trying clients.
//!
//! `memory_server [--unix PATH] [--tcp ADDRESS] [--size SIZE] [--name NAME]... [--read-only]`
//!
//! Prints one line per listener once it accepts connections, and stops at Ctrl-C or the end of
//! its input if `--until-eof` is given.

use std::io::Write;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};
use smalti_nbd::test_support::{FixedExports, MemoryExport};
use smalti_nbd::{Export, ExportInfo, Limits, Listener, Server};
use tokio::io::AsyncReadExt;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::sync::CancellationToken;

#[derive(Default)]
struct Options {
    unix: Option<PathBuf>,
    tcp: Option<SocketAddr>,
    size: u64,
    names: Vec<String>,
    read_only: bool,
    until_eof: bool,
}

fn parse() -> anyhow::Result<Options> {
    let mut options = Options { size: 1 << 30, ..Options::default() };
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
        match argument.as_str() {
            "--unix" => options.unix = Some(value()?.into()),
            "--tcp" => options.tcp = Some(value()?.parse().context("address")?),
            "--size" => options.size = size(&value()?)?,
            "--name" => options.names.push(value()?),
            "--read-only" => options.read_only = true,
            "--until-eof" => options.until_eof = true,
            other => bail!("unknown argument {other}"),
        }
    }
    if options.unix.is_none() && options.tcp.is_none() {
        bail!("give --unix PATH or --tcp ADDRESS");
    }
    if options.names.is_empty() {
        options.names.push("memory".into());
    }
    Ok(options)
}

fn size(text: &str) -> anyhow::Result<u64> {
    let digits = text.trim_end_matches(['K', 'M', 'G']);
    let shift = match &text[digits.len()..] {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        _ => bail!("size {text}"),
    };
    let number: u64 = digits.parse().with_context(|| format!("size {text}"))?;
    number.checked_mul(1 << shift).with_context(|| format!("size {text}"))
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .init();
    let options = parse()?;
    let exports = FixedExports::new(options.names.iter().map(|name| {
        let info = ExportInfo::new(name, options.size);
        let description = Some(format!("{} bytes of memory", options.size));
        let info = ExportInfo { description, read_only: options.read_only, ..info };
        Arc::new(MemoryExport::new(info)) as Arc<dyn Export>
    }));
    let server = Server::new(Arc::new(exports), Limits::default())?;
    let stop = CancellationToken::new();
    let mut tasks = Vec::new();
    let mut out = std::io::stdout();
    if let Some(path) = &options.unix {
        let listener = UnixListener::bind(path).context("bind the unix socket")?;
        writeln!(out, "unix {}", path.display())?;
        let (server, stop) = (server.clone(), stop.clone());
        tasks.push(tokio::spawn(async move { server.serve(Listener::unix(listener), stop).await }));
    }
    if let Some(address) = options.tcp {
        let listener = TcpListener::bind(address).await.context("bind the tcp socket")?;
        writeln!(out, "tcp {}", listener.local_addr()?)?;
        let (server, stop) = (server.clone(), stop.clone());
        tasks.push(tokio::spawn(async move { server.serve(Listener::Tcp(listener), stop).await }));
    }
    out.flush()?;
    if options.until_eof {
        let mut sink = Vec::new();
        tokio::io::stdin().read_to_end(&mut sink).await?;
    } else {
        tokio::signal::ctrl_c().await?;
    }
    stop.cancel();
    for task in tasks {
        task.await?;
    }
    if let Some(path) = &options.unix {
        std::fs::remove_file(path).context("remove the unix socket")?;
    }
    Ok(())
}
