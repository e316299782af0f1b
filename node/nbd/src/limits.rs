//! How much any client, and all clients together, may ask of the server.

use std::time::Duration;

const KIB: u32 = 1024;
const MIB: u32 = 1024 * KIB;

/// Bounds on everything a client can make grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections over all listeners; further ones are closed as they arrive.
    pub connections_max: usize,
    /// Options one client may send before it enters the transmission phase.
    pub options_max: u32,
    /// Payload of one option that is read into memory.
    pub option_bytes_max: u32,
    /// Payload of an oversize option that is skipped and answered; more ends the connection.
    pub option_drain_bytes_max: u32,
    /// Time for the whole negotiation, not counting the time spent waiting for [`crate::Exports`].
    pub handshake_timeout: Duration,
    /// Time for one call on [`crate::Exports`].
    pub open_timeout: Duration,
    /// Requests of one connection that are being served or whose replies wait to be sent.
    pub requests_in_flight_max: usize,
    /// The largest read or write; advertised as the maximum block size. A power of two.
    pub request_bytes_max: u32,
    /// Payload bytes of one connection's requests in flight.
    pub connection_bytes_max: usize,
    /// Payload bytes of all connections' requests in flight.
    pub total_bytes_max: usize,
    /// Payload of a refused write that is skipped and answered; more ends the connection.
    pub drain_bytes_max: u32,
    /// A client that moves next to nothing for so long (less than a sixteenth of the memory that it
    /// holds in each quarter of it), in the middle of a payload or with replies waiting,
    /// is cut off if another connection waits for bytes under `total_bytes_max`.
    pub stall_timeout: Duration,
    /// Time for the requests in flight to end once a connection is closing.
    pub drain_timeout: Duration,
    /// The same once the server stops.
    pub stop_timeout: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections_max: 1024,
            options_max: 256,
            option_bytes_max: 64 * KIB,
            option_drain_bytes_max: MIB,
            handshake_timeout: Duration::from_secs(30),
            open_timeout: Duration::from_secs(60),
            requests_in_flight_max: 256,
            request_bytes_max: 32 * MIB,
            connection_bytes_max: 64 * MIB as usize,
            total_bytes_max: 256 * MIB as usize,
            drain_bytes_max: 128 * MIB,
            stall_timeout: Duration::from_secs(30),
            drain_timeout: Duration::from_secs(30),
            stop_timeout: Duration::from_secs(2),
        }
    }
}

/// Limits that contradict each other or the protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LimitsError {
    /// The protocol wants the maximum to be a multiple of the preferred size, whatever that is.
    #[error("request_bytes_max must be a power of two of at least 65536")]
    RequestBytes,
    /// A request as large as allowed would wait for ever.
    #[error("connection_bytes_max and total_bytes_max must hold a request of request_bytes_max")]
    BytesInFlight,
    /// More than the semaphore can count.
    #[error("total_bytes_max is too large")]
    TotalBytes,
    /// Nothing could ever be served.
    #[error("connections_max, options_max and requests_in_flight_max must not be zero")]
    Zero,
    /// A name of the protocol's longest length, and what comes with it, must fit.
    #[error("option_bytes_max must be at least 8192")]
    OptionBytes,
}

impl Limits {
    /// Checks that the limits can be kept together.
    ///
    /// # Errors
    /// Names the first rule that is broken.
    pub fn validate(&self) -> Result<(), LimitsError> {
        if !self.request_bytes_max.is_power_of_two() || self.request_bytes_max < 64 * KIB {
            return Err(LimitsError::RequestBytes);
        }
        let request = self.request_bytes_max as usize;
        if self.connection_bytes_max < request || self.total_bytes_max < request {
            return Err(LimitsError::BytesInFlight);
        }
        if self.total_bytes_max > tokio::sync::Semaphore::MAX_PERMITS {
            return Err(LimitsError::TotalBytes);
        }
        if self.connections_max == 0 || self.options_max == 0 || self.requests_in_flight_max == 0 {
            return Err(LimitsError::Zero);
        }
        if self.option_bytes_max < 8 * KIB {
            return Err(LimitsError::OptionBytes);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_hold_and_contradictions_do_not() {
        let good = Limits::default();
        assert_eq!(good.validate(), Ok(()));
        let cases = [
            (Limits { request_bytes_max: 100_000, ..good.clone() }, LimitsError::RequestBytes),
            (Limits { request_bytes_max: 4096, ..good.clone() }, LimitsError::RequestBytes),
            (Limits { connection_bytes_max: 1 << 20, ..good.clone() }, LimitsError::BytesInFlight),
            (Limits { total_bytes_max: 1 << 20, ..good.clone() }, LimitsError::BytesInFlight),
            (Limits { total_bytes_max: usize::MAX, ..good.clone() }, LimitsError::TotalBytes),
            (Limits { requests_in_flight_max: 0, ..good.clone() }, LimitsError::Zero),
            (Limits { option_bytes_max: 10, ..good }, LimitsError::OptionBytes),
        ];
        for (limits, error) in cases {
            assert_eq!(limits.validate(), Err(error));
        }
    }
}
