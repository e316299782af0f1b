//! Nodes that join: tokens that let one in, and the number it gets.
//!
//! J1. A token lets one node in. Whoever uses it second is refused, at whatever node it asks.
//! J2. A number of a node is never given twice. A certificate of a node that was removed names one
//!     that no map knows again.
//! J3. Nothing here lets anybody join: of a token the map has what a proof is checked against, not
//!     what it is made with.

use super::{invalid, limits};
use crate::check::check_name;
use crate::command::{Applied, Rejection};
use crate::types::{ClusterMap, JoinToken, Node, NodeAddresses};
use smalti_storage::ids::{ClusterId, NodeId, TokenId};

impl ClusterMap {
    pub(super) fn create_token(
        &mut self,
        id: TokenId,
        token: &JoinToken,
        now: u64,
    ) -> Result<Applied, Rejection> {
        if self.cluster == ClusterId::default() {
            return Err(invalid("the cluster is not founded yet"));
        }
        if id == TokenId::default() || self.tokens.contains_key(&id) {
            return Err(invalid("a token needs an identity of its own"));
        }
        if token.used_by.is_some() {
            return Err(invalid("a new token is not used"));
        }
        let lasts = token.expires.saturating_sub(now);
        if !(1..=limits::TOKEN_SECONDS).contains(&lasts) {
            return Err(invalid(format!(
                "a token lasts from 1 to {} seconds, not {lasts}",
                limits::TOKEN_SECONDS
            )));
        }
        self.check_joiner(&token.name)?;
        let open = |token: &JoinToken| token.expires > now && token.used_by.is_none();
        if self.tokens.values().filter(|token| open(token)).count() >= limits::TOKENS {
            return Err(invalid(format!(
                "{} tokens are open: wait until some are used or expire",
                limits::TOKENS
            )));
        }
        self.tokens.retain(|_, token| token.expires > now);
        if self.tokens.len() >= limits::TOKENS {
            // Used ones are kept only to say so.
            self.tokens.retain(|_, token| token.used_by.is_none());
        }
        self.tokens.insert(id, token.clone());
        Ok(Applied::Done)
    }

    /// A node becomes a member by a token. The proposer has checked that it has the secret.
    pub(super) fn join(
        &mut self,
        token: TokenId,
        name: &str,
        addresses: &NodeAddresses,
        now: u64,
    ) -> Result<Applied, Rejection> {
        let open = self.usable_token(token, now).map_err(Rejection::Invalid)?;
        let name = match (open.name.as_str(), name) {
            ("", name) => name,
            (only, "") => only,
            (only, name) if only == name => name,
            (only, _) => return Err(invalid(format!("the token is for a node named {only}"))),
        };
        if self.nodes.len() >= limits::NODES {
            return Err(invalid(format!("a cluster has at most {} nodes", limits::NODES)));
        }
        let node = NodeId(self.next_node);
        let next = self.next_node.checked_add(1).ok_or_else(|| invalid("no number is left"))?;
        let name = if name.is_empty() { self.free_name(node) } else { name.to_owned() };
        self.check_joiner(&name)?;
        let taken = self.nodes.values().find(|other| other.addresses.quic == addresses.quic);
        if let Some(other) = taken {
            return Err(invalid(format!("{} is the address of {}", addresses.quic, other.name)));
        }

        self.next_node = next;
        self.nodes.insert(node, Node::new(name.clone(), addresses.clone()));
        self.tokens.retain(|_, token| token.expires > now);
        if let Some(token) = self.tokens.get_mut(&token) {
            token.used_by = Some(node);
        }
        Ok(Applied::Joined { node, name })
    }

    /// The name of a number, from this one's on, that no node has: one may have been given such a name.
    fn free_name(&self, node: NodeId) -> String {
        let names = (node.0..=u64::MAX).map(|number| NodeId(number).to_string());
        let is_free = |name: &String| self.nodes.values().all(|other| other.name != *name);
        names.into_iter().find(is_free).unwrap_or_else(|| node.to_string())
    }

    /// Whether a node of that name, or of none, could be taken in.
    fn check_joiner(&self, name: &str) -> Result<(), Rejection> {
        if name.is_empty() {
            return Ok(());
        }
        check_name(name).map_err(Rejection::Invalid)?;
        match self.nodes.values().any(|node| node.name == name) {
            true => Err(invalid(format!("there is a node {name} already"))),
            false => Ok(()),
        }
    }

    /// The token if it can be used at that time, in Unix seconds.
    ///
    /// # Errors
    /// Why not, in words.
    pub fn usable_token(&self, id: TokenId, now: u64) -> Result<&JoinToken, String> {
        let Some(token) = self.tokens.get(&id) else {
            return Err("the token is not known: it has expired, or is another cluster's".into());
        };
        if let Some(node) = token.used_by {
            return Err(format!("the token was used already, by {node}"));
        }
        if token.expires <= now {
            return Err("the token has expired".into());
        }
        Ok(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::Command;
    use crate::types::{Custody, ShareHolder};
    use uuid::Uuid;

    const NOW: u64 = 1_700_000_000;

    fn addresses(port: u16) -> NodeAddresses {
        let at = |port: u16| ([127, 0, 0, 1], port).into();
        NodeAddresses { quic: at(port), api: at(port + 1), nbd: at(port + 2) }
    }

    fn founded() -> ClusterMap {
        let mut map = ClusterMap::default();
        let custody = Custody {
            share_epoch: 1,
            threshold: 1,
            holders: vec![ShareHolder { node: NodeId(3), share: 1 }],
            commitments: vec![1],
            sealed_for_recovery: Vec::new(),
        };
        let nodes = vec![(NodeId(3), "n3".to_owned(), addresses(100))];
        let cluster = ClusterId(Uuid::from_u128(9));
        assert_eq!(
            map.apply(&Command::InitCluster { cluster, nodes, custody, recovery: None }),
            Applied::Done
        );
        map
    }

    fn id(no: u128) -> TokenId {
        TokenId(Uuid::from_u128(no))
    }

    fn create(map: &mut ClusterMap, no: u128, name: &str, now: u64, lasts: u64) -> Applied {
        let token = JoinToken {
            proof_key: [7; 32],
            name: name.to_owned(),
            expires: now + lasts,
            used_by: None,
        };
        map.apply(&Command::CreateToken { id: id(no), token, now })
    }

    fn join(map: &mut ClusterMap, no: u128, name: &str, port: u16, now: u64) -> Applied {
        let (token, name, addresses) = (id(no), name.to_owned(), addresses(port));
        map.apply(&Command::Join { token, name, addresses, now })
    }

    #[track_caller]
    fn refused(map: &mut ClusterMap, words: &str, ask: impl FnOnce(&mut ClusterMap) -> Applied) {
        let mut before = map.clone();
        match ask(map) {
            Applied::Rejected(why) => assert!(why.to_string().contains(words), "{why}"),
            other => panic!("{other:?}, not refused as {words}"),
        }
        before.version += 1;
        assert_eq!(*map, before, "a refusal changes nothing");
        map.check().expect("consistent");
    }

    #[test]
    fn a_token_lets_one_node_in() {
        let mut map = founded();
        assert_eq!(create(&mut map, 1, "", NOW, 60), Applied::Done);
        let joined = join(&mut map, 1, "", 200, NOW + 59);
        assert_eq!(joined, Applied::Joined { node: NodeId(4), name: "n4".into() });
        map.check().expect("consistent");
        refused(&mut map, "was used already, by n4", |map| join(map, 1, "", 300, NOW + 59));
        refused(&mut map, "is not known", |map| join(map, 2, "", 300, NOW));
        assert_eq!(create(&mut map, 2, "", NOW, 60), Applied::Done);
        refused(&mut map, "has expired", |map| join(map, 2, "", 300, NOW + 60));
        refused(&mut map, "n3 already", |map| join(map, 2, "n3", 300, NOW));
        refused(&mut map, "is not a name", |map| join(map, 2, "-", 300, NOW));
        refused(&mut map, "is the address of n4", |map| join(map, 2, "x", 200, NOW));
        let joined = join(&mut map, 2, "x", 300, NOW);
        assert_eq!(joined, Applied::Joined { node: NodeId(5), name: "x".into() });
    }

    #[test]
    fn a_name_that_a_number_would_give_may_be_taken() {
        let mut map = founded();
        for (no, wish, number, name) in [
            (1, "n6", 4, "n6"),
            (2, "n5", 5, "n5"),
            (3, "", 6, "n7"),
            (4, "", 7, "n8"),
            (5, "", 8, "n9"),
        ] {
            assert_eq!(create(&mut map, no, "", NOW, 60), Applied::Done);
            let joined = join(&mut map, no, wish, 200 + 10 * number as u16, NOW);
            assert_eq!(joined, Applied::Joined { node: NodeId(number), name: name.into() });
            map.check().expect("consistent");
        }
    }

    #[test]
    fn the_number_of_a_removed_node_is_not_given_again() {
        let mut map = founded();
        for (no, number) in [(1, 4), (2, 5)] {
            assert_eq!(create(&mut map, no, "", NOW, 60), Applied::Done);
            let joined = join(&mut map, no, "again", 200, NOW);
            assert_eq!(joined, Applied::Joined { node: NodeId(number), name: "again".into() });
            assert_eq!(map.apply(&Command::RemoveNode { node: NodeId(number) }), Applied::Done);
            map.check().expect("consistent");
        }
    }

    #[test]
    fn a_token_for_a_name_lets_no_other_in() {
        let mut map = founded();
        refused(&mut map, "n3 already", |map| create(map, 1, "n3", NOW, 60));
        assert_eq!(create(&mut map, 1, "x", NOW, 60), Applied::Done);
        refused(&mut map, "named x", |map| join(map, 1, "y", 200, NOW));
        let joined = join(&mut map, 1, "", 200, NOW);
        assert_eq!(joined, Applied::Joined { node: NodeId(4), name: "x".into() });
    }

    #[test]
    fn tokens_are_few_and_do_not_last() {
        let mut map = founded();
        for lasts in [0, limits::TOKEN_SECONDS + 1] {
            refused(&mut map, "a token lasts", |map| create(map, 1, "", NOW, lasts));
        }
        for no in 1..=limits::TOKENS as u128 {
            assert_eq!(create(&mut map, no, "", NOW, 60), Applied::Done);
        }
        refused(&mut map, "tokens are open", |map| create(map, 999, "", NOW, 60));
        refused(&mut map, "of its own", |map| create(map, 1, "", NOW, 60));
        // A used one gives way, and so do all that have expired.
        assert!(matches!(join(&mut map, 1, "", 200, NOW), Applied::Joined { .. }));
        assert_eq!(create(&mut map, 999, "", NOW, 60), Applied::Done);
        assert_eq!(map.tokens.len(), limits::TOKENS);
        assert_eq!(create(&mut map, 1000, "", NOW + 60, 60), Applied::Done);
        assert_eq!(map.tokens.len(), 1);
        map.check().expect("consistent");
    }
}
