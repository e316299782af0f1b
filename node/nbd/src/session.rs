//! What a negotiation settled: the opened export and the rules of its connection.

use std::sync::Arc;

use crate::device::{Export, ExportInfo};
use crate::limits::Limits;
use crate::proto::{Rules, wire};

/// An opened export with everything the transmission phase needs to know.
pub(crate) struct Session {
    pub(crate) export: Arc<dyn Export>,
    pub(crate) info: ExportInfo,
    pub(crate) rules: Rules,
}

impl Session {
    pub(crate) fn new(
        export: Arc<dyn Export>,
        structured: bool,
        allocation: bool,
        limits: &Limits,
    ) -> Self {
        let info = export.info();
        let rules = Rules {
            size: info.size,
            read_only: info.read_only,
            structured,
            allocation,
            request_bytes_max: limits.request_bytes_max,
        };
        Self { export, info, rules }
    }
}

/// The flags an export is announced with.
pub(crate) fn transmission_flags(info: &ExportInfo, structured: bool) -> u16 {
    let mut flags = wire::HAS_FLAGS | wire::SEND_FLUSH | wire::SEND_FUA | wire::SEND_CACHE;
    if info.read_only {
        flags |= wire::READ_ONLY;
    } else {
        flags |= wire::SEND_TRIM | wire::SEND_WRITE_ZEROES | wire::SEND_FAST_ZERO;
    }
    if info.multi_conn {
        flags |= wire::CAN_MULTI_CONN;
    }
    if structured {
        flags |= wire::SEND_DF;
    }
    flags
}

/// The preferred request size to announce: what the export says if the protocol allows it.
pub(crate) fn preferred_bytes(info: &ExportInfo, limits: &Limits) -> u32 {
    let wanted = info.preferred_block_bytes;
    if wanted.is_power_of_two() && (512..=limits.request_bytes_max).contains(&wanted) {
        wanted
    } else {
        4096
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_follow_the_export() {
        let info = ExportInfo::new("v", 1);
        assert_eq!(transmission_flags(&info, true), 0b1101_1110_1101);
        let info = ExportInfo { read_only: true, multi_conn: false, ..info };
        assert_eq!(transmission_flags(&info, false), 0b0100_0000_1111);
    }

    #[test]
    fn odd_preferred_sizes_become_the_usual_one() {
        let limits = Limits::default();
        let told = |preferred_block_bytes| {
            let info = ExportInfo { preferred_block_bytes, ..ExportInfo::new("v", 1) };
            preferred_bytes(&info, &limits)
        };
        for (asked, answer) in
            [(0, 4096), (1, 4096), (512, 512), (5000, 4096), (65536, 65536), (1 << 26, 4096)]
        {
            assert_eq!(told(asked), answer, "{asked}");
        }
    }
}
