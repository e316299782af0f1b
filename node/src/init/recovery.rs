//! Recovery shares of a new cluster: drawn, printed once, forgotten.

use super::founding::FoundingRecovery;
use anyhow::{Context, ensure};
use rand::CryptoRng;
use smalti_map::limits;
use smalti_storage::ids::ClusterId;
use smalti_storage::keys::{
    Commitments, RecoveryShare, Secret, SecretName, combine_recovery_shares, get_key_parts,
    open_for_recovery, seal_for_recovery,
};
use std::fmt;
use zeroize::Zeroizing;

/// How many people are to get a share, and how many of them are to be needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveryWish {
    shares: u8,
    threshold: u8,
}

/// What people are given. Nowhere else once this is dropped.
#[derive(Clone, PartialEq, Eq)]
pub struct RecoveryShares {
    /// How many are needed.
    pub threshold: u8,
    /// One line for each person.
    pub lines: Vec<Zeroizing<String>>,
}

impl fmt::Debug for RecoveryShares {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RecoveryShares({} of {}, redacted)", self.threshold, self.lines.len())
    }
}

/// What a new cluster begins with.
pub(super) struct Drawn {
    /// What its map is to know.
    pub(super) public: FoundingRecovery,
    /// The master secret, sealed.
    pub(super) sealed: Vec<u8>,
    /// What people are given.
    pub(super) shares: RecoveryShares,
}

impl RecoveryWish {
    /// So many shares, of which so many are needed.
    ///
    /// # Errors
    /// One share alone would be the secret, more are needed than there are, or there are too many.
    pub fn new(shares: u8, threshold: u8) -> anyhow::Result<Self> {
        ensure!(
            shares <= limits::RECOVERY_SHARES,
            "{shares} recovery shares are more than {}",
            limits::RECOVERY_SHARES
        );
        ensure!(
            threshold >= 2,
            "a recovery threshold of {threshold} is less than 2: one person alone could open everything"
        );
        ensure!(
            threshold <= shares,
            "{threshold} of {shares} recovery shares could never be brought together"
        );
        Ok(Self { shares, threshold })
    }

    /// Draws the recovery secret and seals the master secret to it.
    pub(super) fn draw(
        self,
        cluster: ClusterId,
        master: &Secret,
        custody: &Commitments,
        rng: &mut impl CryptoRng,
    ) -> anyhow::Result<Drawn> {
        let Self { shares, threshold } = self;
        let dealing = get_key_parts(&Secret::random(rng), threshold, shares, rng)
            .context("split the recovery secret")?;
        let to = &dealing.commitments;
        let sealed = seal_for_recovery(master, cluster, SecretName::Master, to, rng);
        let line = |part| RecoveryShare::new(cluster, part).to_text();
        let lines: Vec<Zeroizing<String>> = dealing.parts.into_iter().map(line).collect();
        // It is gone when this returns. What can not be opened now never can be.
        let texts: Vec<&str> = lines.iter().map(|line| line.as_str()).collect();
        let first = texts.len() - usize::from(threshold);
        for some in [&texts[..usize::from(threshold)], &texts[first..]] {
            let back = combine_recovery_shares(some, cluster, to)
                .map_err(|problems| anyhow::anyhow!("read the recovery shares: {problems:?}"))?;
            open_for_recovery(&back, &sealed, cluster, SecretName::Master, custody)
                .context("open the master secret with the recovery shares")?;
        }
        let public = FoundingRecovery { threshold, shares, commitments: to.to_bytes() };
        Ok(Drawn { public, sealed, shares: RecoveryShares { threshold, lines } })
    }
}

impl RecoveryShares {
    /// For people: the shares, and what to do with them.
    pub fn text(&self) -> Zeroizing<String> {
        let (need, all) = (self.threshold, self.lines.len());
        let lines: usize = self.lines.iter().map(|line| line.len() + 1).sum();
        let mut text = Zeroizing::new(String::with_capacity(lines + 1000));
        text.push_str(&format!(
            "RECOVERY SHARES, shown this once and kept nowhere: any {need} of these {all} open every volume, also \
             when custodians can not.\nGive each to another person, to be kept on paper or offline, away from the \
             cluster:\n\n"
        ));
        for line in &self.lines {
            text.push_str(line);
            text.push('\n');
        }
        text.push_str(&format!(
            "\nTry them once the cluster is up, and then once in a while: `smalti key recover --check` with {need} \
             of them.\n\n"
        ));
        text
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]
    use super::*;

    #[test]
    fn wishes_that_can_not_be_are_refused() {
        for (shares, threshold, why) in [
            (5, 1, "less than 2"),
            (5, 0, "less than 2"),
            (2, 3, "3 of 2 recovery shares"),
            (100, 3, "more than 99"),
        ] {
            let error = RecoveryWish::new(shares, threshold).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
        assert!(RecoveryWish::new(2, 2).is_ok() && RecoveryWish::new(99, 50).is_ok());
    }
}
