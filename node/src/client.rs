//! A client of the control API: one request per connection, over TCP or a Unix socket.

use crate::api::ErrorBody;
use crate::control::{ControlError, ErrorKind};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};

const ANSWER_BYTES_MAX: usize = 64 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);

/// Where a control API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiAddress {
    /// `host:port`.
    Tcp(String),
    /// `unix:PATH`.
    Unix(PathBuf),
}

impl FromStr for ApiAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.is_empty() {
                Err("unix: needs a path, as in unix:/run/smalti/api.sock".into())
            } else {
                Ok(Self::Unix(path.into()))
            };
        }
        let host = text.strip_prefix("http://").unwrap_or(text).trim_end_matches('/');
        match host.rsplit_once(':') {
            Some((name, port)) if !name.is_empty() && port.parse::<u16>().is_ok_and(|p| p > 0) => {
                Ok(Self::Tcp(host.to_owned()))
            }
            _ => Err("an address is host:port or unix:PATH".into()),
        }
    }
}

impl fmt::Display for ApiAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host) => f.write_str(host),
            Self::Unix(path) => write!(f, "unix:{}", path.display()),
        }
    }
}

/// Why a request has no answer.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nothing was sent.
    #[error("connect to {address}: {problem}")]
    Connect {
        /// Where to.
        address: ApiAddress,
        /// What the system said.
        problem: String,
    },
    /// It may have been done or not.
    #[error("{address} has not answered for {} s", waited.as_secs())]
    Timeout {
        /// Who was asked.
        address: ApiAddress,
        /// For how long.
        waited: Duration,
    },
    /// It may have been done or not.
    #[error("{address} broke off: {problem}")]
    Broken {
        /// Who was asked.
        address: ApiAddress,
        /// What the connection said.
        problem: String,
    },
    /// The answer is not of the API.
    #[error("{address} gave an answer that is not understood: {problem}")]
    Answer {
        /// Who was asked.
        address: ApiAddress,
        /// What is wrong with it.
        problem: String,
    },
    /// The node says no.
    #[error("{0}")]
    Refused(ControlError),
}

impl ClientError {
    /// What the node said, when it did.
    pub fn kind(&self) -> Option<ErrorKind> {
        match self {
            Self::Refused(error) => Some(error.kind),
            _ => None,
        }
    }

    /// Whether the request certainly had no effect and another node could do it.
    pub fn is_elsewhere(&self) -> bool {
        matches!(self, Self::Connect { .. }) || self.kind() == Some(ErrorKind::Starting)
    }
}

/// A client of one node.
#[derive(Clone, Debug)]
pub struct Client {
    address: ApiAddress,
}

impl Client {
    /// A client of the node with that address. Connects when asked something.
    pub fn new(address: ApiAddress) -> Self {
        Self { address }
    }

    /// Whether requests go to a Unix socket.
    pub const fn is_local(&self) -> bool {
        matches!(self.address, ApiAddress::Unix(_))
    }

    /// Asks for facts.
    ///
    /// # Errors
    /// As [`ClientError`] lists.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &str,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = self.request(Method::GET, path, None, limit).await?;
        self.parse(&body)
    }

    /// Asks for something to be made.
    ///
    /// # Errors
    /// As [`ClientError`] lists.
    pub async fn post<B: Serialize + Sync, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &B,
        limit: Duration,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.answer(&error))?;
        let body = self.request(Method::POST, path, Some(body), limit).await?;
        self.parse(&body)
    }

    /// Asks for something to be removed.
    ///
    /// # Errors
    /// As [`ClientError`] lists.
    pub async fn delete(&self, path: &str, limit: Duration) -> Result<(), ClientError> {
        self.request(Method::DELETE, path, None, limit).await.map(|_| ())
    }

    /// Takes the body of an answer as it comes, and says how many bytes it had. `limit` is how long
    /// the node may keep silent.
    ///
    /// # Errors
    /// As [`ClientError`] lists, or what `take` says. What was taken before is not to be used.
    pub async fn download(
        &self,
        path: &str,
        limit: Duration,
        take: &mut (dyn FnMut(&[u8]) -> anyhow::Result<()> + Send),
    ) -> anyhow::Result<u64> {
        match &self.address {
            ApiAddress::Tcp(host) => {
                let stream = self.connect(TcpStream::connect(host.as_str())).await?;
                self.receive(stream, host, path, limit, take).await
            }
            ApiAddress::Unix(socket) => {
                let stream = self.connect(UnixStream::connect(socket)).await?;
                self.receive(stream, "localhost", path, limit, take).await
            }
        }
    }

    async fn receive<S>(
        &self,
        stream: S,
        host: &str,
        path: &str,
        limit: Duration,
        take: &mut (dyn FnMut(&[u8]) -> anyhow::Result<()> + Send),
    ) -> anyhow::Result<u64>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let late = |_| ClientError::Timeout { address: self.address.clone(), waited: limit };
        let request = self.build(Method::GET, path, host, None)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        let exchange = async {
            let answer = tokio::time::timeout(limit, sender.send_request(request));
            let answer = answer.await.map_err(late)?.map_err(|error| self.broken(&error))?;
            let status = answer.status();
            let mut body = answer.into_body();
            if !status.is_success() {
                let body = Limited::new(body, ANSWER_BYTES_MAX).collect();
                let body = tokio::time::timeout(limit, body).await.map_err(late)?;
                let body = body.map_err(|error| self.broken(error.as_ref()))?;
                self.judge(status, body.to_bytes())?;
                return Ok(0);
            }
            let mut taken = 0;
            loop {
                let frame = tokio::time::timeout(limit, body.frame()).await.map_err(late)?;
                let Some(frame) = frame else { return Ok(taken) };
                let frame = frame.map_err(|error| self.broken(&error))?;
                if let Some(bytes) = frame.data_ref() {
                    take(bytes)?;
                    taken += bytes.len() as u64;
                }
            }
        };
        let mut connection = std::pin::pin!(connection);
        let mut exchange = std::pin::pin!(exchange);
        tokio::select! {
            taken = &mut exchange => taken,
            ended = &mut connection => match ended {
                Ok(()) => exchange.await,
                Err(error) => Err(self.broken(&error).into()),
            },
        }
    }

    fn build(
        &self,
        method: Method,
        path: &str,
        host: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Request<Full<Bytes>>, ClientError> {
        let mut request = Request::builder().method(method).uri(path).header(header::HOST, host);
        if body.is_some() {
            request = request.header(header::CONTENT_TYPE, "application/json");
        }
        request
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.answer(&error))
    }

    async fn request(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
        limit: Duration,
    ) -> Result<Bytes, ClientError> {
        let exchange = async {
            match &self.address {
                ApiAddress::Tcp(host) => {
                    let stream = self.connect(TcpStream::connect(host.as_str())).await?;
                    self.exchange(stream, host, method, path, body).await
                }
                ApiAddress::Unix(socket) => {
                    let stream = self.connect(UnixStream::connect(socket)).await?;
                    self.exchange(stream, "localhost", method, path, body).await
                }
            }
        };
        let late = |_| ClientError::Timeout { address: self.address.clone(), waited: limit };
        tokio::time::timeout(limit, exchange).await.map_err(late)?
    }

    async fn connect<S>(
        &self,
        connect: impl Future<Output = std::io::Result<S>>,
    ) -> Result<S, ClientError> {
        let failed =
            |problem: String| ClientError::Connect { address: self.address.clone(), problem };
        match tokio::time::timeout(CONNECT_TIMEOUT, connect).await {
            Ok(connected) => connected.map_err(|error| failed(error.to_string())),
            Err(_) => Err(failed("no answer".into())),
        }
    }

    async fn exchange<S>(
        &self,
        stream: S,
        host: &str,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, ClientError>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = self.build(method, path, host, body)?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(&error))?;
        let ask = async {
            let answer = sender.send_request(request).await.map_err(|e| self.broken(&e))?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_BYTES_MAX)
                .collect()
                .await
                .map_err(|error| self.broken(error.as_ref()))?;
            Ok((status, body.to_bytes()))
        };
        // The connection moves the bytes of the request; it is driven here, so nothing is left
        // running when the caller gives up.
        let mut connection = std::pin::pin!(connection);
        let mut ask = std::pin::pin!(ask);
        let (status, body) = tokio::select! {
            answer = &mut ask => answer?,
            ended = &mut connection => match ended {
                Ok(()) => ask.await?,
                Err(error) => return Err(self.broken(&error)),
            },
        };
        self.judge(status, body)
    }

    fn judge(&self, status: StatusCode, body: Bytes) -> Result<Bytes, ClientError> {
        if status.is_success() {
            return Ok(body);
        }
        match serde_json::from_slice::<ErrorBody>(&body) {
            Ok(body) => Err(ClientError::Refused(body.error)),
            Err(_) => Err(self.answer(&format_args!("HTTP status {status}"))),
        }
    }

    fn parse<T: DeserializeOwned>(&self, body: &[u8]) -> Result<T, ClientError> {
        serde_json::from_slice(body).map_err(|error| self.answer(&error))
    }

    fn broken(&self, problem: &dyn std::error::Error) -> ClientError {
        let problem = match problem.source() {
            Some(source) => format!("{problem}: {source}"),
            None => problem.to_string(),
        };
        ClientError::Broken { address: self.address.clone(), problem }
    }

    fn answer(&self, problem: &dyn fmt::Display) -> ClientError {
        ClientError::Answer { address: self.address.clone(), problem: problem.to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_in_both_forms() {
        let parse = |text: &str| text.parse::<ApiAddress>();
        assert_eq!(parse("127.0.0.1:80"), Ok(ApiAddress::Tcp("127.0.0.1:80".into())));
        assert_eq!(parse("http://[::1]:80/"), Ok(ApiAddress::Tcp("[::1]:80".into())));
        assert_eq!(parse("unix:/a/b"), Ok(ApiAddress::Unix("/a/b".into())));
        assert_eq!(parse("unix:///a/b"), Ok(ApiAddress::Unix("/a/b".into())));
        for bad in ["", "unix:", "host", ":80", "host:", "host:0", "host:99999", "/a/b"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
