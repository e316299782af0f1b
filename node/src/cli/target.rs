//! Whom to ask: one node, or any node of a local cluster.

use crate::client::{ApiAddress, Client, ClientError};
use crate::local::Layout;
use anyhow::Context;
use serde::Serialize;
use serde::de::{DeserializeOwned, IgnoredAny};
use std::path::Path;
use std::time::Duration;

/// When there are others to ask, a silent node (frozen, perhaps) costs no more than this.
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

    /// The nodes of the local cluster in a folder.
    ///
    /// # Errors
    /// The folder holds no cluster.
    pub fn in_dir(dir: &Path) -> anyhow::Result<Self> {
        let layout = Layout::load(dir)?;
        let clients = layout.nodes().map(|node| Client::new(node.api_address())).collect();
        Ok(Self { clients })
    }

    /// Gets facts from the first node that gives them.
    ///
    /// # Errors
    /// What the last node asked had to say.
    pub async fn read<T: DeserializeOwned>(&self, path: &str) -> anyhow::Result<T> {
        let mut last = None;
        for (index, client) in self.clients.iter().enumerate() {
            let alone = index + 1 == self.clients.len();
            let limit = if alone { READ_TIMEOUT } else { TRY_TIMEOUT };
            match client.get(path, limit).await {
                Ok(facts) => return Ok(facts),
                Err(error) if matches!(error, ClientError::Refused(_)) && !error.is_elsewhere() => {
                    return Err(error.into());
                }
                Err(error) => last = Some(error),
            }
        }
        Err(self.nobody(last))
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
        let mut last = None;
        for client in &self.clients {
            match client.get::<IgnoredAny>("/v1/status", TRY_TIMEOUT).await {
                Ok(_) => return Ok(client),
                Err(error) => last = Some(error),
            }
        }
        Err(self.nobody(last))
    }

    fn nobody(&self, last: Option<ClientError>) -> anyhow::Error {
        match (last, self.clients.len()) {
            (Some(error), 1) => error.into(),
            (Some(error), count) => {
                anyhow::Error::from(error).context(format!("none of {count} nodes answers"))
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
