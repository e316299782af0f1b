//! Blocks that say who wrote them: seed, block number and write number in every 4096 bytes.
//!
//! The rest of a block follows from those three, so a torn, stale, misplaced or flipped block is
//! told from a good one, and a good one says exactly which write it came from.

/// Bytes of one block.
pub const BLOCK: usize = 4096;

/// What a block holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// Only zeros: never written.
    Zero,
    /// The whole content of this write.
    Write(u64),
    /// Anything else, in words.
    Wrong(String),
}

/// The next number of a splitmix64 sequence. Good enough for offsets and contents, and the same
/// everywhere for the same seed.
pub fn next_random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Fills one block with the content of write number `seq` to block `block`.
///
/// # Panics
/// When `buf` is not one block long.
pub fn fill(seed: u64, block: u64, seq: u64, buf: &mut [u8]) {
    assert_eq!(buf.len(), BLOCK, "one block");
    buf[..8].copy_from_slice(&seed.to_le_bytes());
    buf[8..16].copy_from_slice(&block.to_le_bytes());
    buf[16..24].copy_from_slice(&seq.to_le_bytes());
    let mut state = seed ^ block.rotate_left(20) ^ seq.rotate_left(41);
    for word in buf[24..].chunks_exact_mut(8) {
        word.copy_from_slice(&next_random(&mut state).to_le_bytes());
    }
}

/// Bytes of what [`piece`] makes.
pub const PIECE: usize = 1 << 20;

/// A MiB of a volume, all of whose blocks are as the first write makes them.
#[must_use]
pub fn piece(seed: u64, at: u64) -> Vec<u8> {
    let mut bytes = vec![0; PIECE];
    let first = at * (PIECE / BLOCK) as u64;
    for (block, buf) in (first..).zip(bytes.chunks_mut(BLOCK)) {
        fill(seed, block, 1, buf);
    }
    bytes
}

/// Says what the bytes read from block `block` are.
#[must_use]
pub fn look(seed: u64, block: u64, buf: &[u8]) -> Seen {
    if buf.len() != BLOCK {
        return Seen::Wrong(format!("{} bytes instead of a block", buf.len()));
    }
    if buf.iter().all(|b| *b == 0) {
        return Seen::Zero;
    }
    let word = |at: usize| {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(&buf[at..at + 8]);
        u64::from_le_bytes(bytes)
    };
    let (got_seed, got_block, seq) = (word(0), word(8), word(16));
    let mut whole = vec![0; BLOCK];
    fill(got_seed, got_block, seq, &mut whole);
    if let Some(at) = (0..BLOCK).find(|i| whole[*i] != buf[*i]) {
        return Seen::Wrong(format!("bytes of no write (first wrong byte at {at})"));
    }
    if got_seed != seed || got_block != block {
        return Seen::Wrong(format!(
            "block {got_block} of seed {got_seed:#x}, write {seq}: it belongs elsewhere"
        ));
    }
    Seen::Write(seq)
}

/// A seed from `SMALTI_SEED`, else from the clock. Print it: it repeats the run's choices.
#[must_use]
pub fn seed() -> u64 {
    std::env::var("SMALTI_SEED").ok().and_then(|s| s.parse().ok()).unwrap_or_else(|| {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        now.map_or(1, |d| d.as_secs() ^ u64::from(d.subsec_nanos()) << 32)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_blocks_apart() {
        let mut a = vec![0; BLOCK];
        assert_eq!(look(7, 3, &a), Seen::Zero);
        fill(7, 3, 9, &mut a);
        assert_eq!(look(7, 3, &a), Seen::Write(9));
        assert!(matches!(look(7, 4, &a), Seen::Wrong(_)), "misplaced");
        assert!(matches!(look(8, 3, &a), Seen::Wrong(_)), "of another run");
        let mut b = vec![0; BLOCK];
        fill(7, 3, 10, &mut b);
        let torn = [&a[..512], &b[512..]].concat();
        assert!(matches!(look(7, 3, &torn), Seen::Wrong(_)), "torn");
        a[4095] ^= 1;
        assert!(matches!(look(7, 3, &a), Seen::Wrong(_)), "flipped");
    }
}
