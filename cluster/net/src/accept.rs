//! The acceptor's side: lets peers in, reads what they ask, hands it to services.

use crate::{
    endpoint::Shared,
    join,
    session::{Sending, Session},
    tls::peer_identity,
    wire::{
        BodyError, HEADER_LEN, Header, Kind, REQUEST_BYTES_MAX, Status, WELCOME, answer_head, code,
        read_body,
    },
};
use bytes::Bytes;
use futures::FutureExt;
use quinn::{Connection, Incoming, RecvStream};
use smalti_storage::ids::NodeId;
use std::{panic::AssertUnwindSafe, sync::Arc};
use tokio::sync::Semaphore;

/// Handshakes under way at once. Each costs signatures, so strangers must not set their number.
const HANDSHAKES_MAX: usize = 64;

/// Answers up to this overtake the bulk of sessions.
const OVERTAKING_MAX: usize = 64 << 10;

/// Takes connections until the endpoint closes.
pub(crate) async fn run(shared: Arc<Shared>) {
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let incoming = tokio::select! {
            biased;
            () = shared.closing.cancelled() => return,
            incoming = shared.quinn.accept() => incoming,
        };
        let Some(incoming) = incoming else { return };
        let Some(incoming) = join::take(&shared, incoming) else { continue };
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            incoming.refuse();
            continue;
        };
        let guest = shared.clone();
        shared.tasks.spawn(async move {
            let Some((connection, node)) = handshake(&guest, incoming).await else { return };
            drop(permit);
            serve(guest, connection, node).await;
        });
    }
}

/// Lets a peer in, or not.
async fn handshake(shared: &Shared, incoming: Incoming) -> Option<(Connection, NodeId)> {
    let addr = incoming.remote_address();
    let attempt = async { incoming.accept()?.await };
    let connection = match tokio::time::timeout(shared.config.connect_timeout, attempt).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::info!(%addr, %error, "connection refused");
            return None;
        }
        Err(_) => {
            tracing::debug!(%addr, "handshake not completed in time");
            return None;
        }
    };
    let node = match peer_identity(&connection) {
        Ok(identity) => identity.node,
        Err(error) => {
            connection.close(code::PROTOCOL, b"no identity");
            tracing::warn!(%addr, %error, "verified certificate without identity");
            return None;
        }
    };
    // Again, because the map may have changed since the handshake began.
    if !shared.policy.allow(node) {
        connection.close(code::REMOVED, b"not a member");
        return None;
    }
    if !shared.guests.admit(node, &connection, &shared.config) {
        connection.close(code::CROWDED, b"too many connections");
        tracing::warn!(peer = %node, "too many connections");
        return None;
    }
    Some((connection, node))
}

/// Serves a peer's streams until its connection ends.
async fn serve(shared: Arc<Shared>, connection: Connection, node: NodeId) {
    let guest = Guest {
        node,
        requests: Semaphore::new(shared.config.requests_bytes_max as usize),
        shared: shared.clone(),
    };
    let guest = Arc::new(guest);
    let welcome = async {
        let mut stream = connection.open_uni().await.ok()?;
        stream.write_all(&WELCOME).await.ok()?;
        stream.finish().ok()
    };
    if welcome.await.is_some() {
        while let Ok((send, recv)) = connection.accept_bi().await {
            if !shared.policy.allow(node) {
                connection.close(code::REMOVED, b"not a member");
                break;
            }
            shared.tasks.spawn(guest.clone().stream(Sending::new(send), recv));
        }
    }
    shared.guests.forget(&connection);
}

/// A peer on one connection.
struct Guest {
    node: NodeId,
    /// Bytes of requests that may be held at once.
    requests: Semaphore,
    shared: Arc<Shared>,
}

impl Guest {
    async fn stream(self: Arc<Self>, mut send: Sending, mut recv: RecvStream) {
        let limit = self.shared.config.request_timeout;
        let mut head = [0; HEADER_LEN];
        let Ok(Ok(())) = tokio::time::timeout(limit, recv.read_exact(&mut head)).await else {
            return;
        };
        let header = match Header::decode(head) {
            Ok(header) => header,
            Err((status, text)) => {
                tracing::warn!(peer = %self.node, text, "unreadable stream");
                return self.refuse(send, recv, status, text).await;
            }
        };
        match header.kind {
            Kind::Call => self.call(send, recv, header).await,
            Kind::Session => {
                let Some(handler) = self.shared.services.session(header.service) else {
                    return self.refuse(send, recv, Status::NoService, "no such session").await;
                };
                let Some(hello) = self.body(&mut recv, header.len).await else { return };
                let answer = answer_head(Status::Ok, 0);
                if send.stream.write_all(&answer).await.is_ok() {
                    let shared = &self.shared;
                    let session = Session::start(send, recv, &shared.config, &shared.tasks);
                    handler.session(self.node, hello, session);
                }
            }
        }
    }

    async fn call(&self, send: Sending, mut recv: RecvStream, header: Header) {
        let Some(service) = self.shared.services.call(header.service) else {
            return self.refuse(send, recv, Status::NoService, "no such service").await;
        };
        // Before the body is read, and until it is answered.
        let Ok(held) = self.requests.acquire_many(header.len).await else { return };
        let Some(request) = self.body(&mut recv, header.len).await else { return };
        let work = async { service.call(self.node, request).await };
        let answer = AssertUnwindSafe(work).catch_unwind().await;
        drop(held);
        let (status, body) = match answer {
            Ok(body) if body.len() <= REQUEST_BYTES_MAX => (Status::Ok, body),
            Ok(body) => {
                tracing::error!(service = header.service, len = body.len(), "answer over limit");
                (Status::AnswerTooLarge, Bytes::new())
            }
            Err(_) => {
                tracing::error!(service = header.service, peer = %self.node, "service panicked");
                (Status::Failed, Bytes::new())
            }
        };
        if body.len() <= OVERTAKING_MAX {
            // Fails only when the caller is gone, as do the writes.
            let _ = send.stream.set_priority(1);
        }
        self.answer(send, status, body).await;
    }

    /// Reads the payload; `None` when the peer did not send all of it, or not in time.
    async fn body(&self, recv: &mut RecvStream, len: u32) -> Option<Bytes> {
        let limit = self.shared.config.request_timeout;
        match tokio::time::timeout(limit, read_body(recv, len as usize)).await {
            Ok(Ok(body)) => Some(body),
            Ok(Err(BodyError::Truncated)) => {
                tracing::warn!(peer = %self.node, "request cut short");
                None
            }
            // The caller gave up, or the connection did.
            Ok(Err(BodyError::Read(_))) => None,
            Err(_) => {
                tracing::warn!(peer = %self.node, "request not sent in time");
                None
            }
        }
    }

    async fn refuse(
        &self,
        send: Sending,
        mut recv: RecvStream,
        status: Status,
        text: &'static str,
    ) {
        // Fails only when the peer has ended the direction already.
        let _ = recv.stop(code::CLOSED);
        self.answer(send, status, Bytes::from_static(text.as_bytes())).await;
    }

    /// Sends an answer. A caller that does not take it must not keep it in our memory for ever.
    async fn answer(&self, mut send: Sending, status: Status, body: Bytes) {
        // The body is within a limit far below 4 GiB.
        let head = answer_head(status, body.len() as u32);
        let mut pieces = [Bytes::copy_from_slice(&head), body];
        let writing = send.stream.write_all_chunks(&mut pieces);
        let limit = self.shared.config.request_timeout;
        if let Ok(Ok(())) = tokio::time::timeout(limit, writing).await {
            let _ = send.stream.finish();
            send.armed = false;
        }
    }
}
