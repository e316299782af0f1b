//! Numbers of the NBD protocol, named as in its text.

/// First eight bytes the server sends: `NBDMAGIC`.
pub const NBD_MAGIC: u64 = 0x4e42_444d_4147_4943;
/// Second eight bytes of the server, and the start of every option: `IHAVEOPT`.
pub const IHAVEOPT: u64 = 0x4948_4156_454f_5054;
/// Starts every reply to an option.
pub const OPTION_REPLY_MAGIC: u64 = 0x0003_e889_0455_65a9;
/// Starts every request.
pub const REQUEST_MAGIC: u32 = 0x2560_9513;
/// Starts a simple reply.
pub const SIMPLE_REPLY_MAGIC: u32 = 0x6744_6698;
/// Starts a chunk of a structured reply.
pub const STRUCTURED_REPLY_MAGIC: u32 = 0x668e_33ef;

/// Handshake flag: the server, or the client, speaks fixed newstyle.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1 << 0;
/// Handshake flag: leave out the 124 zero bytes after `OPT_EXPORT_NAME`.
pub const FLAG_NO_ZEROES: u16 = 1 << 1;

/// Opens an export, without a way to report failure.
pub const OPT_EXPORT_NAME: u32 = 1;
/// Ends the negotiation.
pub const OPT_ABORT: u32 = 2;
/// Lists exports.
pub const OPT_LIST: u32 = 3;
/// Switches to TLS.
pub const OPT_STARTTLS: u32 = 5;
/// Describes an export.
pub const OPT_INFO: u32 = 6;
/// Opens an export.
pub const OPT_GO: u32 = 7;
/// Switches structured replies on.
pub const OPT_STRUCTURED_REPLY: u32 = 8;
/// Lists metadata contexts.
pub const OPT_LIST_META_CONTEXT: u32 = 9;
/// Selects metadata contexts.
pub const OPT_SET_META_CONTEXT: u32 = 10;

/// Option done.
pub const REP_ACK: u32 = 1;
/// One export of a list.
pub const REP_SERVER: u32 = 2;
/// One information about an export.
pub const REP_INFO: u32 = 3;
/// One metadata context.
pub const REP_META_CONTEXT: u32 = 4;
/// Option unknown.
pub const REP_ERR_UNSUP: u32 = (1 << 31) + 1;
/// Option refused by configuration.
pub const REP_ERR_POLICY: u32 = (1 << 31) + 2;
/// Option malformed or out of place.
pub const REP_ERR_INVALID: u32 = (1 << 31) + 3;
/// Export unknown.
pub const REP_ERR_UNKNOWN: u32 = (1 << 31) + 6;
/// The server is shutting down or the export cannot be served now.
pub const REP_ERR_SHUTDOWN: u32 = (1 << 31) + 7;
/// Option too large.
pub const REP_ERR_TOO_BIG: u32 = (1 << 31) + 9;

/// Size and transmission flags.
pub const INFO_EXPORT: u16 = 0;
/// Canonical name.
pub const INFO_NAME: u16 = 1;
/// Text for people.
pub const INFO_DESCRIPTION: u16 = 2;
/// Minimum, preferred and maximum request size.
pub const INFO_BLOCK_SIZE: u16 = 3;

/// Transmission flag: the flags are valid.
pub const HAS_FLAGS: u16 = 1 << 0;
/// Transmission flag: writes are refused.
pub const READ_ONLY: u16 = 1 << 1;
/// Transmission flag: `CMD_FLUSH` is understood.
pub const SEND_FLUSH: u16 = 1 << 2;
/// Transmission flag: `CMD_FLAG_FUA` is understood.
pub const SEND_FUA: u16 = 1 << 3;
/// Transmission flag: `CMD_TRIM` is understood.
pub const SEND_TRIM: u16 = 1 << 5;
/// Transmission flag: `CMD_WRITE_ZEROES` is understood.
pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
/// Transmission flag: `CMD_FLAG_DF` is understood.
pub const SEND_DF: u16 = 1 << 7;
/// Transmission flag: connections to this export share one view.
pub const CAN_MULTI_CONN: u16 = 1 << 8;
/// Transmission flag: `CMD_CACHE` is understood.
pub const SEND_CACHE: u16 = 1 << 10;
/// Transmission flag: `CMD_FLAG_FAST_ZERO` is understood.
pub const SEND_FAST_ZERO: u16 = 1 << 11;

/// Read bytes.
pub const CMD_READ: u16 = 0;
/// Write bytes.
pub const CMD_WRITE: u16 = 1;
/// End the connection.
pub const CMD_DISC: u16 = 2;
/// Make answered writes durable.
pub const CMD_FLUSH: u16 = 3;
/// Give space back.
pub const CMD_TRIM: u16 = 4;
/// Prefetch.
pub const CMD_CACHE: u16 = 5;
/// Make a range read as zeroes.
pub const CMD_WRITE_ZEROES: u16 = 6;
/// Describe allocation.
pub const CMD_BLOCK_STATUS: u16 = 7;

/// Durable before the reply.
pub const CMD_FLAG_FUA: u16 = 1 << 0;
/// Zeroed space stays allocated.
pub const CMD_FLAG_NO_HOLE: u16 = 1 << 1;
/// The read comes back in one chunk.
pub const CMD_FLAG_DF: u16 = 1 << 2;
/// One extent only.
pub const CMD_FLAG_REQ_ONE: u16 = 1 << 3;
/// Zero fast or not at all.
pub const CMD_FLAG_FAST_ZERO: u16 = 1 << 4;

/// Chunk flag: the last chunk of its reply.
pub const REPLY_FLAG_DONE: u16 = 1 << 0;
/// Chunk without payload.
pub const REPLY_NONE: u16 = 0;
/// Chunk of data at an offset.
pub const REPLY_OFFSET_DATA: u16 = 1;
/// Chunk of zeroes at an offset.
pub const REPLY_OFFSET_HOLE: u16 = 2;
/// Chunk of extents.
pub const REPLY_BLOCK_STATUS: u16 = 5;
/// Error chunk.
pub const REPLY_ERROR: u16 = (1 << 15) + 1;
/// Error chunk with an offset.
pub const REPLY_ERROR_OFFSET: u16 = (1 << 15) + 2;

/// Extent flag: no space allocated.
pub const STATE_HOLE: u32 = 1 << 0;
/// Extent flag: reads as zeroes.
pub const STATE_ZERO: u32 = 1 << 1;

/// The one metadata context served.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Its number in replies.
pub const BASE_ALLOCATION_ID: u32 = 1;
/// The longest string of the protocol, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;
