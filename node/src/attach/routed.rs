//! A volume as this node's clients see it, wherever its gateway is.
//!
//! A call that fails because the gateway or the session is gone is made again over a new route.
//! That is safe for writes: the answer was never given, an old gateway is fenced before a new one
//! serves, and a session's requests have ended before the next session of this process begins.

use super::AttachError;
use super::blocks::open_session;
use super::local::{Local, LocalGateways, Place};
use bytes::Bytes;
use smalti_cluster::Member;
use smalti_gateway::{BlockDevice, BoxFuture, ClientId, ForwardClient, GatewayError};
use smalti_map::Volume;
use smalti_nbd::{Extent, ReadReply};
use smalti_storage::ids::{NodeId, VolumeNo};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

/// How long a call goes on looking for a route before it fails. Longer than any failover; what
/// lasts longer is an outage, and the client should hear of it. While a coordinator has the call it
/// waits for as long as that does.
const CALL_PATIENCE: Duration = Duration::from_secs(60);

/// A call that was answered after more than that was with a coordinator, and not refused at once.
const SHORT_CALL: Duration = Duration::from_secs(1);

/// Likewise one that was not answered: a connection that is dead is given up sooner.
const LONG_CALL: Duration = Duration::from_secs(10);

const PAUSE: Duration = Duration::from_millis(20);

/// How often a route is looked at that nobody uses just now.
const LOOK_EVERY: Duration = Duration::from_millis(500);

#[derive(Clone)]
enum Route {
    Local(Arc<Local>),
    Remote { node: NodeId, client: Arc<ForwardClient> },
}

impl Route {
    fn device(&self) -> Arc<dyn BlockDevice> {
        match self {
            Self::Local(local) => local.device(),
            Self::Remote { client, .. } => Arc::clone(client) as _,
        }
    }

    fn is(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Local(a), Self::Local(b)) => a.generation() == b.generation(),
            (Self::Remote { client: a, .. }, Self::Remote { client: b, .. }) => Arc::ptr_eq(a, b),
            _ => false,
        }
    }
}

pub(crate) struct RoutedDevice {
    this: Weak<Self>,
    member: Member,
    local: LocalGateways,
    client: ClientId,
    volume: VolumeNo,
    route: std::sync::Mutex<Option<Route>>,
    /// Held by whoever looks for a route.
    searching: Mutex<()>,
}

impl RoutedDevice {
    pub(super) fn new(
        member: Member,
        local: LocalGateways,
        client: ClientId,
        volume: VolumeNo,
    ) -> Arc<Self> {
        let device = Arc::new_cyclic(|this| Self {
            this: Weak::clone(this),
            member,
            local,
            client,
            volume,
            route: std::sync::Mutex::default(),
            searching: Mutex::default(),
        });
        tokio::spawn(keep_route(Arc::downgrade(&device)));
        device
    }

    fn current(&self) -> Option<Route> {
        self.route.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, route: Option<Route>) {
        *self.route.lock().unwrap_or_else(PoisonError::into_inner) = route;
    }

    /// Forgets a route that failed, unless it was replaced meanwhile.
    fn forget(&self, failed: &Route) {
        let mut route = self.route.lock().unwrap_or_else(PoisonError::into_inner);
        if route.as_ref().is_some_and(|route| route.is(failed)) {
            *route = None;
        }
    }

    /// Makes sure that there is a route.
    pub(super) async fn connect(&self) -> Result<(), AttachError> {
        self.find().await.map(drop)
    }

    async fn find(&self) -> Result<Route, AttachError> {
        if let Some(route) = self.current() {
            return Ok(route);
        }
        let _searching = self.searching.lock().await;
        if let Some(route) = self.current() {
            return Ok(route);
        }
        let route = match self.local.place(self.volume).await? {
            Place::Here(local) => Route::Local(local),
            Place::There(node) => {
                let client = open_session(&self.member, node, self.volume, self.client).await?;
                Route::Remote { node, client: Arc::new(client) }
            }
        };
        self.set(Some(route.clone()));
        Ok(route)
    }

    /// Makes a call, over another route when one is lost.
    async fn call<T, F>(self: Arc<Self>, call: F) -> Result<T, GatewayError>
    where
        F: Fn(&dyn BlockDevice) -> BoxFuture<Result<T, GatewayError>>,
    {
        let mut deadline = Instant::now() + CALL_PATIENCE;
        loop {
            let error = match self.find().await {
                Ok(route) => {
                    let began = Instant::now();
                    match call(route.device().as_ref()).await {
                        Err(error) if error.is_retry_elsewhere() => {
                            self.forget(&route);
                            let reached = !matches!(error, GatewayError::Disconnected);
                            if began.elapsed() > if reached { SHORT_CALL } else { LONG_CALL } {
                                // It was waited for with reason, however long; when stores come back
                                // the coordinator is often another one.
                                deadline = Instant::now() + CALL_PATIENCE;
                            }
                            error
                        }
                        result => return result,
                    }
                }
                Err(AttachError::NoVolume) => return Err(GatewayError::Fenced),
                Err(error) => {
                    tracing::debug!(volume = %self.volume, %error, "no route yet");
                    GatewayError::Disconnected
                }
            };
            if Instant::now() >= deadline {
                return Err(error);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn run<T, F>(&self, call: F) -> BoxFuture<Result<T, GatewayError>>
    where
        T: Send + 'static,
        F: Fn(&dyn BlockDevice) -> BoxFuture<Result<T, GatewayError>> + Send + Sync + 'static,
    {
        match self.this.upgrade() {
            Some(this) => Box::pin(this.call(call)),
            None => Box::pin(std::future::ready(Err(GatewayError::Disconnected))),
        }
    }

    /// Whether a route leads nowhere any more: a frozen node would hold its sessions open and never answer.
    fn is_lost(&self, route: &Route, volume: Option<&Volume>) -> bool {
        let seat = volume.and_then(|volume| volume.coordinator).map(|seat| seat.node);
        match route {
            Route::Remote { node, client } => seat != Some(*node) || client.has_ended(),
            Route::Local(local) => {
                seat != Some(self.member.node())
                    || volume.is_none_or(|volume| volume.writer_gen != local.generation())
            }
        }
    }
}

/// Drops a route that is lost, and finds another one though nothing is asked for: a client that is idle is
/// attached all the same, and only whoever serves it can say so.
async fn keep_route(device: Weak<RoutedDevice>) {
    let Some(mut map) = device.upgrade().map(|device| device.member.raft().watch()) else { return };
    let mut every = tokio::time::interval(LOOK_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connected = false;
    loop {
        tokio::select! {
            changed = map.changed() => if changed.is_err() { return },
            _ = every.tick() => {}
        }
        let Some(device) = device.upgrade() else { return };
        let map = Arc::clone(&map.borrow_and_update());
        let volume = map.volumes.get(&device.volume);
        let route = device.current();
        // Whoever attaches finds the first one.
        connected |= route.is_some();
        if let Some(route) = &route
            && device.is_lost(route, volume)
        {
            device.forget(route);
        }
        drop(route);
        if connected
            && volume.is_some()
            && let Err(error) = device.connect().await
        {
            tracing::debug!(volume = %device.volume, %error, "no route yet");
        }
    }
}

impl BlockDevice for RoutedDevice {
    fn read(&self, offset: u64, length: u32) -> BoxFuture<Result<ReadReply, GatewayError>> {
        self.run(move |device| device.read(offset, length))
    }

    fn write(&self, offset: u64, data: Bytes) -> BoxFuture<Result<(), GatewayError>> {
        self.run(move |device| device.write(offset, data.clone()))
    }

    fn zero(&self, offset: u64, length: u64) -> BoxFuture<Result<(), GatewayError>> {
        self.run(move |device| device.zero(offset, length))
    }

    fn block_status(
        &self,
        offset: u64,
        length: u64,
        extents_max: usize,
    ) -> BoxFuture<Result<Vec<Extent>, GatewayError>> {
        self.run(move |device| device.block_status(offset, length, extents_max))
    }

    fn flush(&self) -> BoxFuture<Result<(), GatewayError>> {
        self.run(|device| device.flush())
    }
}
