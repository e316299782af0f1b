//! `smalti token ...` and `smalti join`.

use super::args::ShowArgs;
use super::output;
use crate::control::{CreateToken, NewToken};
use crate::join::{self, JoinOptions};
use anyhow::Context;
use clap::{Args, Subcommand};
use smalti_net::JoinToken;
use std::convert::Infallible;
use std::fmt;
use std::io::Read;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use zeroize::Zeroizing;

/// A token has a few hundred letters.
const TOKEN_BYTES_MAX: u64 = 4096;

/// `smalti token`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a token, print it, and forget its secret
    Create(TokenCreateArgs),
}

/// `smalti token create`.
#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// How long it may be used: a number with s, m, h or d, a week at most
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = time)]
    pub ttl: Duration,
    /// Let only a node of this name join with it
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// Where and how.
    #[command(flatten)]
    pub show: ShowArgs,
}

/// `smalti join`.
#[derive(Debug, Args)]
pub struct JoinArgs {
    /// The token; - to read it from stdin, where other users of the machine do not see it
    pub token: TokenText,
    /// Folder of the node; made when it is missing, and empty when it is there
    #[arg(long)]
    pub dir: PathBuf,
    /// Where other nodes will reach it, over UDP
    #[arg(long, value_name = "IP:PORT")]
    pub listen: SocketAddr,
    /// Its name [default: by its number]
    #[arg(long)]
    pub name: Option<String>,
    /// Where it serves the control API, loopback only [default: a free port]
    #[arg(long, value_name = "IP:PORT")]
    pub api: Option<SocketAddr>,
    /// Where it serves NBD, loopback only [default: a free port]
    #[arg(long, value_name = "IP:PORT")]
    pub nbd: Option<SocketAddr>,
}

/// A token as it was typed. Wiped when dropped, and `Debug` does not show it.
#[derive(Clone)]
pub struct TokenText(Zeroizing<String>);

impl TokenText {
    /// The text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for TokenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("TokenText")
    }
}

impl FromStr for TokenText {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        Ok(Self(Zeroizing::new(text.to_owned())))
    }
}

pub(super) async fn token(command: TokenCommand) -> anyhow::Result<()> {
    let TokenCommand::Create(args) = command;
    let wish = CreateToken { ttl_seconds: Some(args.ttl.as_secs()), name: args.name };
    let new: NewToken =
        args.show.target.resolve()?.post("/v1/tokens", &wish).await.context("create token")?;
    output::facts(args.show.json, &new, |new| format!("{}\n", new.token.as_str()))
}

pub(super) async fn join(args: JoinArgs) -> anyhow::Result<()> {
    let token = read(&args.token).context("read the join token")?;
    let (dir, listen, name) = (args.dir, args.listen, args.name);
    let options = JoinOptions { token, dir, listen, name, api: args.api, nbd: args.nbd };
    let joined = join::join(options).await.context("join the cluster")?;
    output::print(&format!(
        "joined as {}; start it with: smalti serve --config {}\n",
        joined.name,
        joined.config.display()
    ))
}

fn read(token: &TokenText) -> anyhow::Result<JoinToken> {
    if token.as_str() != "-" {
        return Ok(JoinToken::parse(token.as_str())?);
    }
    // Sized first, so that a growing buffer leaves no copy of the secret behind.
    let mut text = Zeroizing::new(String::with_capacity(TOKEN_BYTES_MAX as usize));
    std::io::stdin().lock().take(TOKEN_BYTES_MAX).read_to_string(&mut text)?;
    Ok(JoinToken::parse(&text)?)
}

fn time(text: &str) -> Result<Duration, String> {
    let wrong = || "a number with s, m, h or d, as in 90s or 1h".to_owned();
    let unit = text.chars().last().ok_or_else(wrong)?;
    let seconds: u64 = match unit {
        's' => 1,
        'm' => 60,
        'h' => 3600,
        'd' => 24 * 3600,
        _ => return Err(wrong()),
    };
    let number: u64 = text.strip_suffix(unit).unwrap_or(text).parse().map_err(|_| wrong())?;
    let seconds = number.checked_mul(seconds).filter(|seconds| *seconds > 0).ok_or_else(wrong)?;
    Ok(Duration::from_secs(seconds))
}
