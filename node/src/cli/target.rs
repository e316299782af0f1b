//! Whom to ask: one node, or any node of a local cluster.

use crate::client::{ApiAddress, Client, ClientError};
use crate::local::Layout;
use anyhow::Context;
use futures::StreamExt;
use futures::stream::FuturesUnordered;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::path::Path;
use std::time::Duration;
use tokio::time::timeout;

/// After so long another node is asked as well.
const SILENCE: Duration = Duration::from_millis(400);
/// A node that takes longer to say how things are is not asked to change anything.
const TRY_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(15);
/// Longer than a node itself takes to give up on a change.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(70);

/// The nodes that may be asked, in the order in which they are tried.
#[derive(Clone, Debug)]
pub struct Target {
    clients: Vec<Client>,
}

impl Target {
    /// One node.
    pub fn one(address: ApiAddress) -> Self {
        Self { clients: vec![Client::new(address)] }
    }

    /// The nodes of the local cluster in a folder whose configs can be read.
    ///
    /// # Errors
    /// The folder holds no cluster, or there is no such node.
    pub fn in_dir(dir: &Path) -> anyhow::Result<Self> {
        let (layout, unusable) = Layout::load_usable(dir)?;
        if layout.nodes().len() == 0
            && let Some(error) = unusable.into_iter().next()
        {
            return Err(error);
        }
        let clients = layout.nodes().map(|node| Client::new(node.api_address())).collect();
        Ok(Self { clients })
    }

    /// Whether every node is asked over its Unix socket.
    pub fn is_local(&self) -> bool {
        self.clients.iter().all(Client::is_local)
    }

    /// Gets facts from the first node that gives them.
    ///
    /// # Errors
    /// What the last node asked had to say.
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let (_, facts) = self.first(path, READ_TIMEOUT).await?;
        Ok(facts)
    }

    /// Asks the nodes in their order, another one whenever one has failed or been silent for a moment (it
    /// is frozen, perhaps), until one answers.
    async fn first<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> anyhow::Result<(&Client, T)> {
        let mut last = None;
        let mut asked = FuturesUnordered::new();
        let mut others = self.clients.iter();
        loop {
            let next = others.next();
            let more = next.is_some();
            asked.extend(next.map(|client| async move { (client, client.get(path, limit).await) }));
            let ended = match more {
                true => timeout(SILENCE, asked.next()).await,
                false => Ok(asked.next().await),
            };
            match ended {
                Ok(Some((client, Ok(facts)))) => return Ok((client, facts)),
                Ok(Some((_, Err(error)))) if error.kind().is_some() && !error.is_elsewhere() => {
                    return Err(error.into());
                }
                Ok(Some((_, Err(error)))) => last = Some(error),
                Ok(None) if !more => return Err(self.nobody(last)),
                Ok(None) | Err(_) => {}
            }
        }
    }

    /// Makes something, through the first node that answers.
    ///
    /// # Errors
    /// What the node had to say. After a timeout it may have been done or not.
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
    ) -> anyhow::Result<T> {
        Ok(self.live().await?.post(path, body, CHANGE_TIMEOUT).await?)
    }

    /// Removes something, through the first node that answers.
    ///
    /// # Errors
    /// What the node had to say. After a timeout it may have been done or not.
    pub async fn delete(&self, path: &str) -> anyhow::Result<()> {
        Ok(self.live().await?.delete(path, CHANGE_TIMEOUT).await?)
    }

    /// Takes an answer as it comes, from the first node that answers; says how many bytes came.
    ///
    /// # Errors
    /// What the node had to say, or what `take` did. What was taken before is not to be used.
    pub async fn download(
        &self,
        path: &str,
        take: &mut (dyn FnMut(&[u8]) -> anyhow::Result<()> + Send),
    ) -> anyhow::Result<u64> {
        self.live().await?.download(path, READ_TIMEOUT, take).await
    }

    /// The first node that answers: a change is sent once, so not to a node that is frozen.
    async fn live(&self) -> anyhow::Result<&Client> {
        if let [client] = self.clients.as_slice() {
            return Ok(client);
        }
        let (client, IgnoredAny) = self.first("/v1/status", TRY_TIMEOUT).await?;
        Ok(client)
    }

    fn nobody(&self, last: Option<ClientError>) -> anyhow::Error {
        match (last, self.clients.len()) {
            (Some(error), 1) => error.into(),
            (Some(error), count) => {
                let text = format!("none of {count} nodes answers: `smalti up` starts them");
                anyhow::Error::from(error).context(text)
            }
            (None, _) => anyhow::anyhow!("there is no node to ask"),
        }
    }
}

/// Asks on the terminal, through stderr, and says whether the reply is `answer`.
pub(super) fn confirm(question: &str, answer: &str) -> anyhow::Result<bool> {
    use std::io::Write;
    let mut stderr = std::io::stderr();
    write!(stderr, "{question} ").and_then(|()| stderr.flush()).context("ask")?;
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("read the answer")?;
    Ok(line.trim() == answer)
}
