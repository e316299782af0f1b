//! The negotiation of one connection, up to an opened export.
//!
//! It reads exactly the bytes of one option at a time and buffers nothing ahead, so that a switch
//! to another transport in the middle cannot carry over bytes from before it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::{Instant, timeout, timeout_at};

use crate::device::{BoxFuture, Export, ExportInfo, OpenError};
use crate::proto::{
    ClientOption, InfoRequest, MetaQuery, OptionHeader, block_size_info, export_info,
    export_name_reply, greeting, option_reply, text_info, wire,
};
use crate::server::Shared;
use crate::session::{Session, preferred_bytes, transmission_flags};

/// Names sent in one listing.
const LIST_MAX: usize = 10_000;

/// Why a negotiation ended without an export, other than by the client's wish.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HandshakeError {
    #[error("the connection failed")]
    Io(#[from] io::Error),
    #[error("the client took too long")]
    TimedOut,
    #[error("the client sent flags {0:#x}, which are unknown")]
    Flags(u32),
    #[error("an option does not start with its magic number")]
    Magic,
    #[error("the client sent too many options")]
    TooManyOptions,
    #[error("an option has {0} bytes")]
    TooLarge(u32),
    #[error("an old client sent option {0}")]
    NotFixed(u32),
    #[error("the export named by an old option cannot be opened")]
    ExportName(#[source] OpenError),
    #[error("the export's name is not a text of at most 4096 bytes")]
    BadName,
}

/// Negotiates until an export is open. `Ok(None)` means that the client said goodbye.
pub(crate) async fn negotiate<S>(
    stream: &mut S,
    shared: &Shared,
) -> Result<Option<Session>, HandshakeError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let deadline = Instant::now() + shared.limits.handshake_timeout;
    Negotiation {
        stream,
        shared,
        deadline,
        out: BytesMut::new(),
        fixed: false,
        no_zeroes: false,
        structured: false,
        allocation_of: None,
    }
    .run()
    .await
}

struct Negotiation<'a, S> {
    stream: &'a mut S,
    shared: &'a Shared,
    deadline: Instant,
    /// Replies to the current option.
    out: BytesMut,
    fixed: bool,
    no_zeroes: bool,
    structured: bool,
    /// The export `base:allocation` was selected for.
    allocation_of: Option<String>,
}

/// Where the conversation goes after an option.
enum Next {
    Option,
    Goodbye,
    Transmission(Session),
}

impl<S: AsyncRead + AsyncWrite + Unpin> Negotiation<'_, S> {
    async fn run(mut self) -> Result<Option<Session>, HandshakeError> {
        self.out.extend_from_slice(&greeting());
        self.flush().await?;
        let mut flags = [0; 4];
        self.read(&mut flags).await?;
        let flags = u32::from_be_bytes(flags);
        let (fixed, no_zeroes) =
            (u32::from(wire::FLAG_FIXED_NEWSTYLE), u32::from(wire::FLAG_NO_ZEROES));
        if flags & !(fixed | no_zeroes) != 0 {
            return Err(HandshakeError::Flags(flags));
        }
        self.fixed = flags & fixed != 0;
        self.no_zeroes = flags & no_zeroes != 0;

        for _ in 0..self.shared.limits.options_max {
            let mut header = [0; OptionHeader::BYTES];
            self.read(&mut header).await?;
            let header = OptionHeader::parse(&header).ok_or(HandshakeError::Magic)?;
            if !self.fixed && header.option != wire::OPT_EXPORT_NAME {
                return Err(HandshakeError::NotFixed(header.option));
            }
            let next = self.handle_option(header).await?;
            self.flush().await?;
            match next {
                Next::Option => {}
                Next::Goodbye => return Ok(None),
                Next::Transmission(session) => return Ok(Some(session)),
            }
        }
        Err(HandshakeError::TooManyOptions)
    }

    async fn handle_option(&mut self, header: OptionHeader) -> Result<Next, HandshakeError> {
        let OptionHeader { option, length } = header;
        if length > self.shared.limits.option_bytes_max {
            if length > self.shared.limits.option_drain_bytes_max || option == wire::OPT_EXPORT_NAME
            {
                return Err(HandshakeError::TooLarge(length));
            }
            self.skip(length).await?;
            self.refuse(option, wire::REP_ERR_TOO_BIG, "the option is too large");
            return Ok(Next::Option);
        }
        let mut payload = vec![0; length as usize];
        self.read(&mut payload).await?;
        let parsed = match ClientOption::parse(option, &payload) {
            Ok(parsed) => parsed,
            Err(_) if option == wire::OPT_EXPORT_NAME => return Err(HandshakeError::BadName),
            Err(fault) => {
                if option == wire::OPT_SET_META_CONTEXT {
                    self.allocation_of = None;
                }
                self.refuse(option, fault.reply(), fault.text());
                return Ok(Next::Option);
            }
        };
        match parsed {
            ClientOption::ExportName(name) => {
                let session = self.open(&name).await.map_err(HandshakeError::ExportName)?;
                let flags = transmission_flags(&session.info, self.structured);
                let reply = export_name_reply(session.info.size, flags, self.no_zeroes);
                self.out.extend_from_slice(&reply);
                return Ok(Next::Transmission(session));
            }
            ClientOption::Go(request) => match self.open(&request.name).await {
                Ok(session) => {
                    self.inform(option, &session.info, &request);
                    return Ok(Next::Transmission(session));
                }
                Err(error) => self.refuse_open(option, &error),
            },
            ClientOption::Info(request) => match self.describe(&request.name).await {
                Ok((_, info)) => self.inform(option, &info, &request),
                Err(error) => self.refuse_open(option, &error),
            },
            ClientOption::Abort => {
                self.reply(option, wire::REP_ACK, &[]);
                return Ok(Next::Goodbye);
            }
            ClientOption::List => self.list().await,
            ClientOption::StartTls => {
                self.refuse(option, wire::REP_ERR_POLICY, "TLS is not offered here");
            }
            ClientOption::StructuredReply => {
                self.structured = true;
                self.reply(option, wire::REP_ACK, &[]);
            }
            ClientOption::ListMetaContext(query) => {
                let shown = query.lists_allocation();
                self.meta_context(option, &query, shown).await;
            }
            ClientOption::SetMetaContext(query) => {
                self.allocation_of = None;
                let selected = query.selects_allocation();
                let name = self.meta_context(option, &query, selected).await;
                self.allocation_of = name.filter(|_| selected);
            }
            ClientOption::Unknown(_) => {
                self.refuse(option, wire::REP_ERR_UNSUP, "the option is unknown");
            }
        }
        Ok(Next::Option)
    }

    async fn list(&mut self) {
        let names = self.names().await;
        match names {
            Ok(names) => {
                let names = names.iter().filter(|name| name.len() <= wire::STRING_BYTES_MAX);
                for name in names.take(LIST_MAX) {
                    let length = u32::try_from(name.len()).expect("filtered to be short");
                    let payload = [&length.to_be_bytes(), name.as_bytes()].concat();
                    self.reply(wire::OPT_LIST, wire::REP_SERVER, &payload);
                }
                self.reply(wire::OPT_LIST, wire::REP_ACK, &[]);
            }
            Err(error) => self.refuse_open(wire::OPT_LIST, &error),
        }
    }

    /// Answers either metadata option and returns the export it was about, if there is one.
    async fn meta_context(
        &mut self,
        option: u32,
        query: &MetaQuery,
        shown: bool,
    ) -> Option<String> {
        if !self.structured {
            self.refuse(option, wire::REP_ERR_INVALID, "structured replies come first");
            return None;
        }
        match self.describe(&query.export).await {
            Ok((name, _)) => {
                if shown {
                    // In a listing the number means nothing and is zero.
                    let id = if option == wire::OPT_SET_META_CONTEXT {
                        wire::BASE_ALLOCATION_ID
                    } else {
                        0
                    };
                    let payload = [&id.to_be_bytes(), wire::BASE_ALLOCATION.as_bytes()].concat();
                    self.reply(option, wire::REP_META_CONTEXT, &payload);
                }
                self.reply(option, wire::REP_ACK, &[]);
                Some(name)
            }
            Err(error) => {
                self.refuse_open(option, &error);
                None
            }
        }
    }

    fn inform(&mut self, option: u32, info: &ExportInfo, request: &InfoRequest) {
        let flags = transmission_flags(info, self.structured);
        self.reply(option, wire::REP_INFO, &export_info(info.size, flags));
        let limits = &self.shared.limits;
        let sizes = block_size_info(preferred_bytes(info, limits), limits.request_bytes_max);
        self.reply(option, wire::REP_INFO, &sizes);
        if request.wants_name {
            self.reply(option, wire::REP_INFO, &text_info(wire::INFO_NAME, &info.name));
        }
        if let Some(text) = info.description.as_deref().filter(|_| request.wants_description) {
            self.reply(option, wire::REP_INFO, &text_info(wire::INFO_DESCRIPTION, text));
        }
        self.reply(option, wire::REP_ACK, &[]);
    }

    async fn open(&mut self, name: &str) -> Result<Session, OpenError> {
        let name = self.resolve(name).await?;
        let export: Arc<dyn Export> = self.ask(self.shared.exports.open(&name)).await?;
        let allocation = self.allocation_of.as_ref() == Some(&name);
        Ok(Session::new(export, self.structured, allocation, &self.shared.limits))
    }

    async fn describe(&mut self, name: &str) -> Result<(String, ExportInfo), OpenError> {
        let name = self.resolve(name).await?;
        let info = self.ask(self.shared.exports.describe(&name)).await?;
        Ok((name, info))
    }

    /// The empty name stands for the only export there is.
    async fn resolve(&mut self, name: &str) -> Result<String, OpenError> {
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
        let mut names = self.names().await?;
        match (names.pop(), names.is_empty()) {
            (Some(name), true) => Ok(name),
            _ => Err(OpenError::Unknown),
        }
    }

    async fn names(&mut self) -> Result<Vec<String>, OpenError> {
        let list = self.shared.exports.list();
        self.ask(Box::pin(async move { Ok(list.await) })).await
    }

    /// Waits for the embedding program, on its own time and not on the client's.
    async fn ask<T>(&mut self, answer: BoxFuture<Result<T, OpenError>>) -> Result<T, OpenError> {
        let begun = Instant::now();
        let limit: Duration = self.shared.limits.open_timeout;
        let answer = timeout(limit, answer).await;
        self.deadline += begun.elapsed();
        answer.unwrap_or_else(|_| {
            Err(OpenError::Unavailable { reason: "the export did not answer in time".into() })
        })
    }

    fn refuse_open(&mut self, option: u32, error: &OpenError) {
        let kind = match error {
            OpenError::Unknown => wire::REP_ERR_UNKNOWN,
            OpenError::Policy { .. } => wire::REP_ERR_POLICY,
            OpenError::Unavailable { .. } => wire::REP_ERR_SHUTDOWN,
        };
        self.refuse(option, kind, &error.to_string());
    }

    fn refuse(&mut self, option: u32, kind: u32, text: &str) {
        let text = &text[..text.floor_char_boundary(wire::STRING_BYTES_MAX)];
        self.reply(option, kind, text.as_bytes());
    }

    fn reply(&mut self, option: u32, kind: u32, payload: &[u8]) {
        option_reply(&mut self.out, option, kind, payload);
    }

    async fn read(&mut self, bytes: &mut [u8]) -> Result<(), HandshakeError> {
        match timeout_at(self.deadline, self.stream.read_exact(bytes)).await {
            Ok(read) => Ok(read.map(drop)?),
            Err(_) => Err(HandshakeError::TimedOut),
        }
    }

    async fn skip(&mut self, length: u32) -> Result<(), HandshakeError> {
        let mut left = length as usize;
        let mut scratch = [0; 4096];
        while left > 0 {
            let part = left.min(scratch.len());
            self.read(&mut scratch[..part]).await?;
            left -= part;
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), HandshakeError> {
        let send = async {
            self.stream.write_all(&self.out).await?;
            self.stream.flush().await
        };
        match timeout_at(self.deadline, send).await {
            Ok(sent) => sent?,
            Err(_) => return Err(HandshakeError::TimedOut),
        }
        self.out.clear();
        Ok(())
    }
}
