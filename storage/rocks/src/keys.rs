//! Keys on disk: big endian, so that byte order is the order of rows and slots.
//!
//! ```text
//! slot     volume u32 | group u16 | stripe u64 | index u32 | slot u8             19 bytes
//! version  slot | !epoch u32 | !seq u64                  newest version first    31 bytes
//! volume   "v" | volume u32                                                       5 bytes
//! index    "c" | volume u32 | group u16                                           7 bytes
//! changed  index | stripe u64 | index u32                                        19 bytes
//! dropped  "d" | number u64 | volume u32 | group u16 of one group    13 or 15 bytes
//! ```

pub(crate) mod change;
pub(crate) mod dropped;
pub(crate) mod slot;
pub(crate) mod version;
pub(crate) mod volume;

/// The smallest key greater than every key that begins with `prefix`.
pub(crate) fn after_prefix(prefix: &[u8]) -> Vec<u8> {
    let mut key = prefix.to_vec();
    while let Some(last) = key.pop() {
        if last < u8::MAX {
            key.push(last + 1);
            return key;
        }
    }
    // All ones: longer than any key, and none is greater.
    vec![u8::MAX; version::LEN + 1]
}
