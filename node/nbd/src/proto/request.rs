//! The transmission phase's requests: 28 bytes in, a checked operation or a refusal out.

use super::option::Fields;
use super::wire;
use crate::device::ZeroFlags;
use crate::errno::Errno;

/// Bytes of a request's header; the payload of a write follows it.
pub const REQUEST_BYTES: usize = 28;

/// A request as sent, nothing checked but the magic number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// Command flags.
    pub flags: u16,
    /// What to do.
    pub command: Command,
    /// The client's mark, sent back in the reply.
    pub cookie: u64,
    /// First byte.
    pub offset: u64,
    /// Bytes; of a write also the length of the payload that follows.
    pub length: u32,
}

/// A command by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    /// `CMD_READ`
    Read,
    /// `CMD_WRITE`
    Write,
    /// `CMD_DISC`
    Disconnect,
    /// `CMD_FLUSH`
    Flush,
    /// `CMD_TRIM`
    Trim,
    /// `CMD_CACHE`
    Cache,
    /// `CMD_WRITE_ZEROES`
    WriteZeroes,
    /// `CMD_BLOCK_STATUS`
    BlockStatus,
    /// Any other number.
    Unknown(u16),
}

impl From<u16> for Command {
    fn from(number: u16) -> Self {
        match number {
            wire::CMD_READ => Self::Read,
            wire::CMD_WRITE => Self::Write,
            wire::CMD_DISC => Self::Disconnect,
            wire::CMD_FLUSH => Self::Flush,
            wire::CMD_TRIM => Self::Trim,
            wire::CMD_CACHE => Self::Cache,
            wire::CMD_WRITE_ZEROES => Self::WriteZeroes,
            wire::CMD_BLOCK_STATUS => Self::BlockStatus,
            other => Self::Unknown(other),
        }
    }
}

/// A request that passed every check: the range lies within the export.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Read, in one chunk if `whole`.
    Read {
        /// `CMD_FLAG_DF` was set.
        whole: bool,
    },
    /// Write the payload.
    Write {
        /// Durable before the reply.
        fua: bool,
    },
    /// Make answered writes durable.
    Flush,
    /// Give the range back.
    Trim {
        /// Durable before the reply.
        fua: bool,
    },
    /// Prefetch the range.
    Cache,
    /// Zero the range.
    WriteZeroes(ZeroFlags),
    /// Describe the range.
    BlockStatus {
        /// `CMD_FLAG_REQ_ONE` was set.
        one: bool,
    },
}

/// Why a request is answered with an error without reaching the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// The error number.
    pub errno: Errno,
    /// The text for people.
    pub text: &'static str,
}

/// What the negotiation settled, as far as requests are judged by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// Size of the export.
    pub size: u64,
    /// Nothing may be changed.
    pub read_only: bool,
    /// Structured replies are on.
    pub structured: bool,
    /// `base:allocation` is selected.
    pub allocation: bool,
    /// The largest read or write.
    pub request_bytes_max: u32,
}

impl Request {
    /// Reads a header; `None` if it does not start with the magic number.
    pub fn parse(bytes: &[u8; REQUEST_BYTES]) -> Option<Self> {
        let mut fields = Fields(bytes);
        (fields.u32()? == wire::REQUEST_MAGIC).then_some(())?;
        Some(Self {
            flags: fields.u16()?,
            command: fields.u16()?.into(),
            cookie: fields.u64()?,
            offset: fields.u64()?,
            length: fields.u32()?,
        })
    }

    /// Bytes of payload that follow the header, whatever becomes of the request.
    pub fn payload_bytes(&self) -> u32 {
        if self.command == Command::Write { self.length } else { 0 }
    }

    fn has(&self, flag: u16) -> bool {
        self.flags & flag != 0
    }

    /// Checks the request against the rules of its connection. `Ok(None)` means goodbye.
    ///
    /// # Errors
    /// The error number and text the client is answered with.
    pub fn check(&self, rules: &Rules) -> Result<Option<Operation>, Refusal> {
        use wire::{
            CMD_FLAG_DF, CMD_FLAG_FAST_ZERO, CMD_FLAG_FUA, CMD_FLAG_NO_HOLE, CMD_FLAG_REQ_ONE,
        };
        let (known, past_end) = match self.command {
            Command::Disconnect => return Ok(None),
            Command::Unknown(_) => return Err(inval("the command is unknown")),
            Command::Read => (CMD_FLAG_DF, Errno::Inval),
            Command::WriteZeroes => (CMD_FLAG_NO_HOLE | CMD_FLAG_FAST_ZERO, Errno::NoSpc),
            Command::Write => (0, Errno::NoSpc),
            Command::BlockStatus => (CMD_FLAG_REQ_ONE, Errno::Inval),
            Command::Flush | Command::Trim | Command::Cache => (0, Errno::Inval),
        };
        // FUA is allowed on every command and means nothing on those that change nothing.
        if self.flags & !(known | CMD_FLAG_FUA) != 0 {
            return Err(inval("a flag is unknown or does not belong to the command"));
        }
        let changes = matches!(self.command, Command::Write | Command::Trim | Command::WriteZeroes);
        if changes && rules.read_only {
            return Err(Refusal { errno: Errno::Perm, text: "the export is read-only" });
        }
        if self.command == Command::Flush && (self.offset != 0 || self.length != 0) {
            return Err(inval("a flush takes no offset and no length"));
        }
        if matches!(self.command, Command::Read | Command::Write)
            && self.length > rules.request_bytes_max
        {
            return Err(inval("the request is larger than the maximum block size"));
        }
        match self.offset.checked_add(u64::from(self.length)) {
            Some(end) if end <= rules.size => {}
            _ => return Err(Refusal { errno: past_end, text: "past the end of the export" }),
        }
        let fua = self.has(CMD_FLAG_FUA);
        Ok(Some(match self.command {
            Command::Read => {
                let whole = self.has(CMD_FLAG_DF);
                if whole && !rules.structured {
                    return Err(inval("a read in one chunk needs structured replies"));
                }
                Operation::Read { whole }
            }
            Command::Write => Operation::Write { fua },
            Command::Flush => Operation::Flush,
            Command::Trim => Operation::Trim { fua },
            Command::Cache => Operation::Cache,
            Command::WriteZeroes => Operation::WriteZeroes(ZeroFlags {
                may_trim: !self.has(CMD_FLAG_NO_HOLE),
                fast_only: self.has(CMD_FLAG_FAST_ZERO),
                fua,
            }),
            Command::BlockStatus => {
                if !(rules.structured && rules.allocation) {
                    return Err(inval("no metadata context is selected"));
                }
                if self.length == 0 {
                    return Err(inval("a block status of no bytes"));
                }
                Operation::BlockStatus { one: self.has(CMD_FLAG_REQ_ONE) }
            }
            Command::Disconnect | Command::Unknown(_) => {
                return Err(inval("the command is unknown"));
            }
        }))
    }
}

fn inval(text: &'static str) -> Refusal {
    Refusal { errno: Errno::Inval, text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const RULES: Rules = Rules {
        size: 1 << 20,
        read_only: false,
        structured: true,
        allocation: true,
        request_bytes_max: 1 << 16,
    };

    fn request(command: u16, flags: u16, offset: u64, length: u32) -> Request {
        Request { flags, command: command.into(), cookie: 7, offset, length }
    }

    fn errno(request: Request, rules: &Rules) -> u32 {
        request.check(rules).expect_err("must be refused").errno.code()
    }

    #[test]
    fn header_fields_are_big_endian() {
        let mut bytes = [0; REQUEST_BYTES];
        bytes[..4].copy_from_slice(&[0x25, 0x60, 0x95, 0x13]);
        bytes[5] = 1;
        bytes[7] = 1;
        bytes[15] = 9;
        bytes[22] = 2;
        bytes[27] = 3;
        let parsed = Request::parse(&bytes).expect("magic is right");
        let expected = Request { cookie: 9, ..request(1, 1, 512, 3) };
        assert_eq!(parsed, expected);
        bytes[0] = 0;
        assert_eq!(Request::parse(&bytes), None);
    }

    #[test]
    fn ranges_end_where_the_export_ends() {
        for command in [0, 1, 4, 5, 6, 7] {
            assert!(request(command, 0, (1 << 20) - 1, 1).check(&RULES).is_ok(), "{command}");
            let past = if matches!(command, 1 | 6) { 28 } else { 22 };
            assert_eq!(errno(request(command, 0, 1 << 20, 1), &RULES), past, "{command}");
            assert_eq!(errno(request(command, 0, (1 << 20) - 1, 2), &RULES), past, "{command}");
            assert_eq!(errno(request(command, 0, u64::MAX, 2), &RULES), past, "{command}");
        }
        assert!(request(0, 0, 1 << 20, 0).check(&RULES).is_ok(), "empty at the end");
        assert_eq!(errno(request(0, 0, (1 << 20) + 1, 0), &RULES), 22);
    }

    #[test]
    fn large_requests_are_refused_only_when_they_carry_data() {
        let rules = Rules { size: u64::MAX, ..RULES };
        for command in [0, 1] {
            assert!(request(command, 0, 0, 1 << 16).check(&rules).is_ok());
            assert_eq!(errno(request(command, 0, 0, (1 << 16) + 1), &rules), 22);
        }
        for command in [4, 5, 6, 7] {
            assert!(request(command, 0, 0, u32::MAX).check(&rules).is_ok(), "{command}");
        }
    }

    #[test]
    fn flags_belong_to_commands() {
        let allowed: [(u16, u16); 8] =
            [(0, 5), (1, 1), (3, 1), (4, 1), (5, 1), (6, 0b1_0011), (7, 0b1001), (0, 4)];
        for (command, flags) in allowed {
            let length = u32::from(command != 3);
            assert!(request(command, flags, 0, length).check(&RULES).is_ok(), "{command} {flags}");
        }
        for command in [0, 1, 3, 4, 5, 6, 7] {
            for bit in 0..16 {
                let flags = 1 << bit;
                let known = allowed.iter().any(|&(of, all)| of == command && all & flags != 0);
                let length = u32::from(command != 3);
                let checked = request(command, flags, 0, length).check(&RULES);
                assert_eq!(checked.is_ok(), known, "command {command} flag {flags}");
            }
        }
    }

    #[test]
    fn rules_of_the_connection_are_kept() {
        let read_only = Rules { read_only: true, ..RULES };
        for command in [1, 4, 6] {
            assert_eq!(errno(request(command, 0, 0, 1), &read_only), 1);
        }
        for command in [0, 5, 7] {
            assert!(request(command, 0, 0, 1).check(&read_only).is_ok());
        }
        assert!(request(3, 0, 0, 0).check(&read_only).is_ok());
        let simple = Rules { structured: false, allocation: false, ..RULES };
        assert_eq!(errno(request(0, 4, 0, 1), &simple), 22);
        assert_eq!(errno(request(7, 0, 0, 1), &simple), 22);
        assert_eq!(errno(request(7, 0, 0, 1), &Rules { allocation: false, ..RULES }), 22);
        assert_eq!(errno(request(7, 0, 0, 0), &RULES), 22);
        assert_eq!(errno(request(3, 0, 1, 0), &RULES), 22);
        assert_eq!(errno(request(8, 0, 0, 0), &RULES), 22);
        assert_eq!(request(2, 0xffff, 1, 1).check(&RULES), Ok(None));
    }

    proptest! {
        #[test]
        fn accepted_requests_lie_within_the_export(
            flags in 0u16..64, command in 0u16..10, offset in any::<u64>(), length in any::<u32>(),
            size in any::<u64>(), read_only: bool, structured: bool, allocation: bool,
        ) {
            let rules = Rules { size, read_only, structured, allocation, ..RULES };
            // Half of the offsets near the end, where mistakes would be.
            let offset = if offset % 2 == 0 { size.saturating_sub(offset % 4096) } else { offset };
            if let Ok(Some(operation)) = request(command, flags, offset, length).check(&rules) {
                let end = offset.checked_add(u64::from(length));
                prop_assert!(end.is_some_and(|end| end <= size));
                let data =
                    matches!(operation, Operation::Read { .. } | Operation::Write { .. });
                prop_assert!(!data || length <= rules.request_bytes_max);
            }
        }

        #[test]
        fn random_headers_never_panic(mut bytes in any::<[u8; REQUEST_BYTES]>(), magic: bool) {
            if magic {
                bytes[..4].copy_from_slice(&wire::REQUEST_MAGIC.to_be_bytes());
            }
            let parsed = Request::parse(&bytes);
            prop_assert!(!magic || parsed.is_some());
            if let Some(parsed) = parsed {
                let _either_way = parsed.check(&RULES);
            }
        }
    }
}
