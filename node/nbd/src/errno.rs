//! Error numbers on the wire, and the one table from device errors to them.

use crate::device::DeviceErrorKind;

/// The error numbers of the NBD protocol. They equal Linux's, on every system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// Operation not permitted.
    Perm = 1,
    /// Input or output error.
    Io = 5,
    /// Out of memory.
    NoMem = 12,
    /// Invalid argument.
    Inval = 22,
    /// No space left.
    NoSpc = 28,
    /// Value too large.
    Overflow = 75,
    /// Not supported.
    NotSup = 95,
    /// The server is shutting down.
    Shutdown = 108,
}

impl Errno {
    /// The number as sent.
    pub fn code(self) -> u32 {
        self as u32
    }
}

impl From<DeviceErrorKind> for Errno {
    fn from(kind: DeviceErrorKind) -> Self {
        match kind {
            DeviceErrorKind::NotPermitted => Self::Perm,
            DeviceErrorKind::Io => Self::Io,
            DeviceErrorKind::NoMemory => Self::NoMem,
            DeviceErrorKind::Invalid => Self::Inval,
            DeviceErrorKind::NoSpace => Self::NoSpc,
            DeviceErrorKind::Overflow => Self::Overflow,
            DeviceErrorKind::NotSupported => Self::NotSup,
            DeviceErrorKind::ShuttingDown => Self::Shutdown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_the_number_of_the_protocol() {
        let table = [
            (DeviceErrorKind::NotPermitted, 1),
            (DeviceErrorKind::Io, 5),
            (DeviceErrorKind::NoMemory, 12),
            (DeviceErrorKind::Invalid, 22),
            (DeviceErrorKind::NoSpace, 28),
            (DeviceErrorKind::Overflow, 75),
            (DeviceErrorKind::NotSupported, 95),
            (DeviceErrorKind::ShuttingDown, 108),
        ];
        for (kind, code) in table {
            assert_eq!(Errno::from(kind).code(), code, "{kind:?}");
        }
    }
}
