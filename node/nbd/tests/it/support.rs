//! A client of raw bytes, and a device whose every call the test answers itself.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use smalti_nbd::proto::wire;
use smalti_nbd::test_support::{FixedExports, MemoryExport};
use smalti_nbd::{
    BoxFuture, DeviceError, DeviceErrorKind, Export, ExportInfo, Exports, Extent, Limits, Peer,
    ReadReply, Server, ZeroFlags,
};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub(crate) const MIB: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(60);

/// Fails the test instead of hanging it.
pub(crate) async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("took too long")
}

/// Waits until a condition holds.
pub(crate) async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds() {
        assert!(tokio::time::Instant::now() < deadline, "never came true: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub(crate) fn memory(name: &str, size: u64) -> Arc<dyn Export> {
    Arc::new(MemoryExport::new(ExportInfo::new(name, size)))
}

pub(crate) struct Harness {
    pub(crate) server: Server,
    pub(crate) exports: Arc<FixedExports>,
    pub(crate) stop: CancellationToken,
}

impl Harness {
    pub(crate) fn new(exports: impl IntoIterator<Item = Arc<dyn Export>>, limits: Limits) -> Self {
        let exports = Arc::new(FixedExports::new(exports));
        let server = Server::new(Arc::clone(&exports) as Arc<dyn Exports>, limits).unwrap();
        Self { server, exports, stop: CancellationToken::new() }
    }

    pub(crate) fn memory() -> Self {
        Self::new([memory("v", MIB)], Limits::default())
    }

    /// A new connection, with the task that serves it.
    pub(crate) fn connect(&self) -> (Client<UnixStream>, JoinHandle<()>) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Client::new(ours), self.serve(theirs))
    }

    pub(crate) fn serve<S>(&self, stream: S) -> JoinHandle<()>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (server, stop) = (self.server.clone(), self.stop.clone());
        tokio::spawn(async move {
            server.serve_stream(stream, Peer::Other("test"), &stop).await;
        })
    }

    /// A connection in the transmission phase, with structured replies and block status if asked.
    pub(crate) async fn open(&self, structured: bool) -> (Client<UnixStream>, JoinHandle<()>) {
        let (mut client, task) = self.connect();
        client.negotiate("", structured).await;
        (client, task)
    }

    /// Nothing is held any more.
    pub(crate) async fn idle(&self) {
        until("all connections end", || self.server.connections() == 0).await;
        assert_eq!(self.server.bytes_in_flight(), 0);
        assert_eq!(self.exports.attached(), 0);
    }
}

/// One reply of an option.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct OptionReply {
    pub(crate) kind: u32,
    pub(crate) data: Vec<u8>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chunk {
    pub(crate) done: bool,
    pub(crate) kind: u16,
    pub(crate) cookie: u64,
    pub(crate) payload: Vec<u8>,
}

impl Chunk {
    /// Error number and text.
    pub(crate) fn error(&self) -> (u32, String) {
        assert!(self.kind & (1 << 15) != 0, "not an error: {self:?}");
        let errno = u32::from_be_bytes(self.payload[..4].try_into().unwrap());
        let length = u16::from_be_bytes(self.payload[4..6].try_into().unwrap());
        let text = String::from_utf8(self.payload[6..6 + usize::from(length)].to_vec()).unwrap();
        (errno, text)
    }
}

pub(crate) struct Client<S> {
    pub(crate) stream: S,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Client<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream }
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        within(self.stream.write_all(bytes)).await.unwrap();
    }

    /// Sends one byte; the server may have closed.
    pub(crate) async fn drip(&mut self) {
        let _closed_or_not = within(self.stream.write(&[0])).await;
    }

    pub(crate) async fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        within(self.stream.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    pub(crate) async fn bytes(&mut self, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        within(self.stream.read_exact(&mut bytes)).await.unwrap();
        bytes
    }

    /// The server closed, or reset, the connection without another byte.
    pub(crate) async fn gone(&mut self) {
        let mut rest = Vec::new();
        match within(self.stream.read_to_end(&mut rest)).await {
            Ok(_) => assert_eq!(rest, b"", "bytes before the end"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    /// Reads the greeting and answers it.
    pub(crate) async fn greet(&mut self, flags: u32) {
        assert_eq!(self.take().await, *b"NBDMAGICIHAVEOPT\0\x03");
        self.send(&flags.to_be_bytes()).await;
    }

    pub(crate) async fn send_option(&mut self, option: u32, payload: &[u8]) {
        let length = u32::try_from(payload.len()).unwrap();
        let header = [b"IHAVEOPT".as_slice(), &option.to_be_bytes(), &length.to_be_bytes()];
        self.send(&[header.concat().as_slice(), payload].concat()).await;
    }

    pub(crate) async fn option_reply(&mut self, option: u32) -> OptionReply {
        assert_eq!(u64::from_be_bytes(self.take().await), wire::OPTION_REPLY_MAGIC);
        assert_eq!(u32::from_be_bytes(self.take().await), option);
        let kind = u32::from_be_bytes(self.take().await);
        let length = u32::from_be_bytes(self.take().await);
        OptionReply { kind, data: self.bytes(length as usize).await }
    }

    /// Sends an option and collects its replies up to the one that ends them.
    pub(crate) async fn option(&mut self, option: u32, payload: &[u8]) -> Vec<OptionReply> {
        self.send_option(option, payload).await;
        let mut replies = Vec::new();
        loop {
            let reply = self.option_reply(option).await;
            let last = reply.kind == wire::REP_ACK || reply.kind & (1 << 31) != 0;
            replies.push(reply);
            if last {
                return replies;
            }
        }
    }

    /// The error an option ends with, and its text.
    pub(crate) async fn option_error(&mut self, option: u32, payload: &[u8]) -> (u32, String) {
        let mut replies = self.option(option, payload).await;
        assert_eq!(replies.len(), 1, "{replies:?}");
        let reply = replies.remove(0);
        (reply.kind, String::from_utf8(reply.data).unwrap())
    }

    pub(crate) async fn negotiate(&mut self, name: &str, structured: bool) {
        self.greet(3).await;
        if structured {
            let ack = [OptionReply { kind: wire::REP_ACK, data: vec![] }];
            assert_eq!(self.option(wire::OPT_STRUCTURED_REPLY, &[]).await, ack);
            let query = meta(name, &[wire::BASE_ALLOCATION]);
            assert_eq!(self.option(wire::OPT_SET_META_CONTEXT, &query).await.len(), 2);
        }
        let replies = self.option(wire::OPT_GO, &info(name, &[])).await;
        assert_eq!(replies.last().unwrap().kind, wire::REP_ACK, "{replies:?}");
    }

    pub(crate) async fn request(
        &mut self,
        command: u16,
        flags: u16,
        cookie: u64,
        offset: u64,
        length: u32,
    ) {
        self.send(&request(command, flags, cookie, offset, length)).await;
    }

    pub(crate) async fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let length = u32::try_from(data.len()).unwrap();
        let head = request(wire::CMD_WRITE, flags, cookie, offset, length);
        self.send(&[head.as_slice(), data].concat()).await;
    }

    /// A simple reply's error number and cookie.
    pub(crate) async fn simple(&mut self) -> (u32, u64) {
        assert_eq!(u32::from_be_bytes(self.take().await), wire::SIMPLE_REPLY_MAGIC);
        (u32::from_be_bytes(self.take().await), u64::from_be_bytes(self.take().await))
    }

    pub(crate) async fn chunk(&mut self) -> Chunk {
        assert_eq!(u32::from_be_bytes(self.take().await), wire::STRUCTURED_REPLY_MAGIC);
        let flags = u16::from_be_bytes(self.take().await);
        assert!(flags <= 1, "flags {flags}");
        let kind = u16::from_be_bytes(self.take().await);
        let cookie = u64::from_be_bytes(self.take().await);
        let length = u32::from_be_bytes(self.take().await);
        Chunk { done: flags == 1, kind, cookie, payload: self.bytes(length as usize).await }
    }

    /// The connection still serves requests.
    pub(crate) async fn alive(&mut self) {
        self.request(wire::CMD_FLUSH, 0, 0xa11e, 0, 0).await;
        assert_eq!(self.simple().await, (0, 0xa11e));
    }
}

pub(crate) fn request(command: u16, flags: u16, cookie: u64, offset: u64, length: u32) -> Vec<u8> {
    let mut bytes = wire::REQUEST_MAGIC.to_be_bytes().to_vec();
    bytes.extend_from_slice(&flags.to_be_bytes());
    bytes.extend_from_slice(&command.to_be_bytes());
    bytes.extend_from_slice(&cookie.to_be_bytes());
    bytes.extend_from_slice(&offset.to_be_bytes());
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes
}

pub(crate) fn text(text: &str) -> Vec<u8> {
    [&u32::try_from(text.len()).unwrap().to_be_bytes(), text.as_bytes()].concat()
}

pub(crate) fn info(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut payload = text(name);
    payload.extend_from_slice(&u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted.iter().for_each(|info| payload.extend_from_slice(&info.to_be_bytes()));
    payload
}

pub(crate) fn meta(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut payload = text(name);
    payload.extend_from_slice(&u32::try_from(queries.len()).unwrap().to_be_bytes());
    queries.iter().for_each(|query| payload.extend_from_slice(&text(query)));
    payload
}

/// What a device was asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Asked {
    Read(u64, u32),
    Write(u64, Bytes, bool),
    Flush,
    Trim(u64, u64, bool),
    Zero(u64, u64, ZeroFlags),
    Status(u64, u64, usize),
    Cache(u64, u64),
}

/// A call that waits for the test's answer.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) asked: Asked,
    answer: oneshot::Sender<Result<Answer, DeviceError>>,
}

#[derive(Debug)]
pub(crate) enum Answer {
    Done,
    Read(ReadReply),
    Status(Vec<Extent>),
}

impl Call {
    pub(crate) fn done(self) {
        self.answer.send(Ok(Answer::Done)).unwrap();
    }

    pub(crate) fn data(self, data: impl Into<Bytes>) {
        self.read(ReadReply::data(data.into()));
    }

    pub(crate) fn read(self, reply: ReadReply) {
        self.answer.send(Ok(Answer::Read(reply))).unwrap();
    }

    pub(crate) fn status(self, extents: Vec<Extent>) {
        self.answer.send(Ok(Answer::Status(extents))).unwrap();
    }

    pub(crate) fn fail(self, error: DeviceError) {
        self.answer.send(Err(error)).unwrap();
    }

    /// The server dropped the call.
    pub(crate) fn is_dropped(&self) -> bool {
        self.answer.is_closed()
    }
}

/// A device that hands every call to the test.
pub(crate) struct Scripted {
    info: ExportInfo,
    calls: mpsc::Sender<Call>,
}

pub(crate) fn scripted(info: ExportInfo) -> (Arc<dyn Export>, mpsc::Receiver<Call>) {
    let (calls, receiver) = mpsc::channel(1024);
    (Arc::new(Scripted { info, calls }), receiver)
}

/// The next call.
pub(crate) async fn next(calls: &mut mpsc::Receiver<Call>) -> Call {
    within(calls.recv()).await.unwrap()
}

impl Scripted {
    fn ask<T>(
        &self,
        asked: Asked,
        pick: fn(Answer) -> Option<T>,
    ) -> BoxFuture<Result<T, DeviceError>>
    where
        T: 'static,
    {
        let (answer, answered) = oneshot::channel();
        let sent = self.calls.try_send(Call { asked, answer });
        async move {
            sent.expect("the test listens");
            let answer = answered.await.map_err(|_| {
                DeviceError::new(DeviceErrorKind::ShuttingDown, "the test dropped the call")
            })?;
            answer.map(|answer| pick(answer).expect("an answer that fits the call"))
        }
        .boxed()
    }

    fn unit(&self, asked: Asked) -> BoxFuture<Result<(), DeviceError>> {
        self.ask(asked, |answer| matches!(answer, Answer::Done).then_some(()))
    }
}

impl Export for Scripted {
    fn info(&self) -> ExportInfo {
        self.info.clone()
    }

    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, DeviceError>> {
        self.ask(Asked::Read(offset, length), |answer| match answer {
            Answer::Read(reply) => Some(reply),
            _ => None,
        })
    }

    fn write(&self, offset: u64, data: Bytes, fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        self.unit(Asked::Write(offset, data, fua))
    }

    fn flush(&self) -> BoxFuture<Result<(), DeviceError>> {
        self.unit(Asked::Flush)
    }

    fn trim(&self, offset: u64, length: u64, fua: bool) -> BoxFuture<Result<(), DeviceError>> {
        self.unit(Asked::Trim(offset, length, fua))
    }

    fn write_zeroes(
        &self,
        offset: u64,
        length: u64,
        flags: ZeroFlags,
    ) -> BoxFuture<Result<(), DeviceError>> {
        self.unit(Asked::Zero(offset, length, flags))
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, DeviceError>> {
        self.ask(Asked::Status(offset, length, extents_max), |answer| match answer {
            Answer::Status(extents) => Some(extents),
            _ => None,
        })
    }

    fn cache(&self, offset: u64, length: u64) -> BoxFuture<Result<(), DeviceError>> {
        self.unit(Asked::Cache(offset, length))
    }
}
